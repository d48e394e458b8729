"""Plan files: what they say, what is refused with which words, and a plan of RL worked out by hand."""

import json

import pytest

from vrambroker.broker.core.errors import InvalidArgument, OutOfDeviceMemory, OutOfHostMemory
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.limits import GIB, MIB
from vrambroker.broker.core.phase import Order, Pattern
from vrambroker.broker.plan.model import Plan
from vrambroker.broker.plan.peaks import peaks
from vrambroker.broker.plan.read import read_plan, read_plan_of, require_sizes
from vrambroker.broker.plan.verdict import verdict
from vrambroker.broker.plan.view import verdict_json, verdict_text

RL = """
order = "device"

[[phase]]
name = "generate"
tags = ["rollout/weights", "rollout/kv_cache"]

[[phase]]
name = "train"
tags = ["trainer/*"]

[[phase]]
name = "update"
tags = ["trainer/params", "rollout/weights"]

[tags."rollout/weights"]
size = "15GiB"
contents = "keep"
priority = 2

[tags."rollout/kv_cache"]
size = "40GiB"
contents = "drop"
elastic = true

[tags."trainer/params"]
size = "4GiB"

[tags."trainer/optimizer"]
size = "10GiB"

[device]
capacity = "70GiB"

[host]
budget = "64GiB"
"""


def test_a_file_says_phases_tags_and_bounds() -> None:
    plan = read_plan(RL)
    assert [phase.name for phase in plan.phases.phases] == ["generate", "train", "update"]
    assert plan.phases.phases[1].tags == (Pattern(session="trainer", tag="*"),)
    assert plan.phases.order is Order.DEVICE
    assert (plan.capacity_bytes, plan.host_budget_bytes) == (70 * GIB, 64 * GIB)
    cache = plan.tags[1]
    assert (str(cache), cache.size_bytes, cache.contents, cache.elastic) == (
        "rollout/kv_cache",
        40 * GIB,
        Contents.DROP,
        True,
    )
    assert plan.tags[2].contents is Contents.KEEP, "nothing is lost that nobody called expendable"
    assert plan.phases.priority_of("rollout", "weights") == 2
    assert plan.phases.priority_of("rollout", "kv_cache") == 0


@pytest.mark.parametrize(("size", "rounded"), [("1", 32 * MIB), ("33MiB", 64 * MIB), ("1GiB", GIB)])
def test_sizes_are_whole_frames(size: str, rounded: int) -> None:
    plan = read_plan(f'[[phase]]\nname = "a"\ntags = ["s/t"]\n[tags."s/t"]\nsize = "{size}"')
    assert plan.tags[0].size_bytes == rounded


def test_peaks_of_rl_by_hand() -> None:
    rows = [(str(peak), peak.device_bytes / GIB, peak.host_bytes / GIB) for peak in peaks(read_plan(RL))]
    assert rows == [
        ("generate", 55, 14),
        ("train", 14, 15),
        ("update", 19, 10),
        # The cache is dropped at once; the weights leave while the trainer's first two frames come.
        ("generate → train", 55, 29),
        ("train → update", 19, 25),
        ("update → generate", 55, 14),
    ]


def test_peaks_of_rl_with_the_lowest_host_peak() -> None:
    plan = read_plan(RL.replace('"device"', '"host"', 1))
    rows = [(str(peak), peak.device_bytes / GIB, peak.host_bytes / GIB) for peak in peaks(plan)]
    assert rows[3:] == [
        ("generate → train", 55, 15),
        # The rollout's weights come before the optimizer's states leave.
        ("train → update", 29, 15),
        ("update → generate", 55, 14),
    ]


def test_spare_frames_count_while_kept_contents_leave() -> None:
    text = RL.replace('size = "40GiB"', 'size = "32MiB"').replace('size = "10GiB"', 'size = "11GiB"')
    peak = peaks(read_plan(text))[3]
    assert (str(peak), peak.device_bytes) == ("generate → train", 15 * GIB + 2 * GIB)
    without = text.replace("[device]", "[device]\nspare_frames = 0")
    assert peaks(read_plan(without))[3].device_bytes == 15 * GIB + 32 * MIB


def test_the_largest_cache_fills_what_the_weights_leave() -> None:
    worked_out = verdict(read_plan(RL))
    assert worked_out.fits
    (cache,) = worked_out.elastic
    assert cache.largest_bytes == 55 * GIB
    assert "rollout/kv_cache fits up to 55.0 GiB (40.0 GiB planned)" in verdict_text(worked_out)


def test_what_does_not_fit_is_said_with_by_how_much() -> None:
    worked_out = verdict(read_plan(RL).bounded("50GiB", "20GiB"))
    with pytest.raises(OutOfDeviceMemory, match=r"^generate takes 55.0 GiB of the device, 5.0 GiB more than the 50.0"):
        worked_out.require_fits()
    assert "55.0 GiB (5.0 GiB too much)" in verdict_text(worked_out)
    told = json.loads(json.dumps(verdict_json(worked_out)))
    assert not told["fits"]
    assert told["phases"][0] == {
        "name": "generate",
        "device_bytes": 55 * GIB,
        "host_bytes": 14 * GIB,
        "device_over_bytes": 5 * GIB,
        "host_over_bytes": 0,
    }
    assert (told["changes"][0]["from"], told["changes"][0]["host_over_bytes"]) == ("generate", 9 * GIB)
    with pytest.raises(OutOfHostMemory, match=r"^generate → train takes 29.0 GiB of host memory, 9.0 GiB more"):
        verdict(read_plan(RL).bounded(None, "20GiB")).require_fits()


def test_without_bounds_everything_fits_and_no_size_is_the_largest() -> None:
    unbounded, _, _ = RL.partition("[device]")
    worked_out = verdict(read_plan(unbounded))
    assert worked_out.fits
    assert worked_out.elastic[0].largest_bytes is None
    assert "of any size" in verdict_text(worked_out)


def test_an_elastic_tag_may_fit_in_no_size() -> None:
    worked_out = verdict(read_plan(RL).bounded("10GiB", None))
    assert worked_out.elastic[0].largest_bytes == 0
    assert "fits in no size" in verdict_text(worked_out)


def test_what_no_phase_lists_is_always_there() -> None:
    plan = read_plan(RL + '\n[tags."judge/weights"]\nsize = "1GiB"\n')
    assert [peak.device_bytes // GIB for peak in peaks(plan)][:3] == [56, 15, 20]
    assert [peak.host_bytes // GIB for peak in peaks(plan)][:3] == [14, 15, 10]
    assert verdict_text(verdict(plan)).endswith("in no phase, so always there: judge/weights")


def test_one_phase_changes_to_nothing() -> None:
    assert len(peaks(read_plan('[[phase]]\nname = "a"\ntags = ["s/t"]\n[tags."s/t"]\nsize = "1GiB"'))) == 1


PHASE = '[[phase]]\nname = "a"\ntags = ["s/t"]\n'
TAG = '[tags."s/t"]\nsize = "1GiB"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("order =", "this is no TOML: Invalid value (at end of document)"),
        ("", "phase is missing"),
        ("phase = []", "a plan has 1 to 64 phases, not 0"),
        ('phase = "a"', "phase must be a list"),
        ("phase = [1]", "phase 1 must be a table: [[phase]]"),
        ('[[phase]]\ntags = ["s/t"]', "phase 1.name is missing"),
        ('[[phase]]\nname = "a"', "phase 'a'.tags is missing"),
        ('[[phase]]\nname = "a"\ntags = []', "phase 'a': 0 tags are not between 1 and 256"),
        ('[[phase]]\nname = "a"\ntags = [1]', "phase 'a'.tags must be a list of texts"),
        ('[[phase]]\nname = "a"\ntags = "s/t"', "phase 'a'.tags must be a list"),
        ('[[phase]]\nname = "a"\ntags = ["s"]', "phase 'a'.tags: 's' is not SESSION/TAG or a pattern of that"),
        ('[[phase]]\nname = "a"\ntags = ["s/t/u"]', "phase 'a'.tags: 's/t/u' is not SESSION/TAG or a pattern of that"),
        ('[[phase]]\nname = "a b"\ntags = ["s/t"]', "phase 'a b' is not 1 to 64 of the characters"),
        (PHASE + PHASE, "there are two phases 'a'"),
        (PHASE + "size = 1", "phase 'a'.size is no key here (there are: name, tags)"),
        ("colour = 1\n" + PHASE, "colour is no key here (there are: order, phase, device, host, tags)"),
        ('order = "up"\n' + PHASE, "order 'up' is not one of: device, host"),
        (PHASE + "[device]\ncapacity = 70", "device.capacity must be a text"),
        (PHASE + '[device]\ncapacity = "70GB"', "device.capacity '70GB' is not a size: a number and one of B, KiB"),
        (PHASE + '[device]\nsize = "70GiB"', "device.size is no key here (there are: frames, capacity, spare_frames)"),
        (PHASE + '[device]\nframes = ["3MiB", "8MiB"]', "device.frames must ascend, and each must divide the next"),
        (PHASE + "[device]\nspare_frames = true", "device.spare_frames must be a whole number"),
        (PHASE + "[device]\nspare_frames = -1", "device.spare_frames must be 0 to 64"),
        (PHASE + '[host]\ncapacity = "1GiB"', "host.capacity is no key here (there are: budget)"),
        (PHASE + '[tags."s/t"]\n', 'tags."s/t".size is missing'),
        (PHASE + '[tags."s/t"]\nsize = "much"', "tags.\"s/t\".size 'much' is not a size"),
        (PHASE + TAG + 'contents = "some"', "tags.\"s/t\".contents 'some' is not one of: keep, drop, zero"),
        (PHASE + TAG + "elastic = 1", 'tags."s/t".elastic must be true or false'),
        (PHASE + TAG + "priority = 1001", "s/t: priority 1001 is beyond 1000"),
        (
            PHASE + TAG + "soft = 1",
            'tags."s/t".soft is no key here (there are: contents, sealed, size, elastic, priority)',
        ),
        (PHASE + '[tags."s/*"]\nsize = "1GiB"', 'tags."s/*" must be one tag, not a pattern'),
        (PHASE + '[tags."s/u"]\nsize = "1GiB"', "phase 'a' lists s/t, which no tag under [tags] matches"),
        (PHASE + "[tags]\nsize = 1", "tags.size must be a table"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_plan_of("plan.toml", text)
    assert str(caught.value).startswith(f"plan.toml: {message}")
    assert "\n" not in str(caught.value)


def test_a_plan_without_sizes_can_be_entered_but_not_worked_out() -> None:
    plan = read_plan(PHASE)
    assert plan.phases.phase("a")
    with pytest.raises(InvalidArgument, match="no tag is declared"):
        require_sizes(plan)


def test_bounds_given_by_hand_go_before_those_of_a_daemon() -> None:
    plan = Plan(phases=read_plan(PHASE).phases)
    assert plan.bounded("1GiB", None).bounded_by(2, 3).capacity_bytes == GIB
    assert plan.bounded("1GiB", None).bounded_by(2, 3).host_budget_bytes == 3


def test_the_copy_of_what_is_sealed_stays_on_the_host() -> None:
    sealed = RL.replace('contents = "keep"', "sealed = true")
    hosts = {str(peak): peak.host_bytes // GIB for peak in peaks(read_plan(sealed))}
    assert hosts == {
        "generate": 14 + 15,
        "train": 15,
        "update": 10 + 15,
        "generate → train": 14 + 15,
        "train → update": 10 + 15,
        "update → generate": 14 + 15,
    }
    by_host = sealed.replace('order = "device"', 'order = "host"')
    assert [peak.host_bytes for peak in peaks(read_plan(by_host))] == [
        peak.host_bytes for peak in peaks(read_plan(RL.replace('order = "device"', 'order = "host"')))
    ]


def test_what_never_leaves_is_never_copied() -> None:
    alone = '[[phase]]\nname = "one"\ntags = ["s/t"]\n[tags."s/t"]\nsize = "1GiB"\nsealed = true\n'
    assert [peak.host_bytes for peak in peaks(read_plan(alone))] == [0]


def test_only_what_is_kept_can_be_sealed() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_plan(RL.replace('contents = "drop"', 'contents = "drop"\nsealed = true'))
    assert caught.value.message == 'tags."rollout/kv_cache".sealed is for contents that are kept, not drop'
