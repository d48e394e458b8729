"""The timeline: what is drawn and what is traced is what the events told, byte for byte."""

import json
import re
import resource
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.status import DeviceStatus, HostStatus, SessionStatus, Status, StreamEvent, TagStatus
from vrambroker.client.timeline import history_of, picture, trace, write_timeline
from vrambroker.client.timeline.history import History, Step, Track
from vrambroker.client.timeline.scale import byte_ticks, bytes_text, second_ticks, seconds_text
from vrambroker.client.timeline.stack import cycles, even, focus, highest, mean, stack, whole

MIB = 1 << 20
SECOND = 1_000_000_000
SVG = "{http://www.w3.org/2000/svg}"


def _event(sequence: int, at_s: float, kind: str, **fields: object) -> StreamEvent:
    told: dict[str, object] = {
        **dict.fromkeys(("why", "session", "tag", "state"), ""),
        **dict.fromkeys(("lease", "ticket", "device_bytes", "host_bytes"), 0),
        **dict.fromkeys(("lent_bytes", "free_bytes", "held_bytes", "host_file_bytes"), 0),
    }
    return StreamEvent(**{**told, **fields}, sequence=sequence, time_ns=int(at_s * SECOND), kind=kind)  # type: ignore[arg-type]


class Book:
    """Writes an event stream as the daemon would."""

    def __init__(self, capacity_mib: int) -> None:
        self.capacity_bytes = capacity_mib * MIB
        self.events: list[StreamEvent] = []
        self._device: dict[int, int] = {}

    def add(self, at_s: float, kind: str, **fields: object) -> None:
        self.events.append(_event(len(self.events) + 1, at_s, kind, **fields))

    def lease(self, at_s: float, name: str, lease: int, device_mib: int, host_mib: int, state: str) -> None:
        session, _, tag = name.partition("/")
        self._device[lease] = device_mib * MIB
        sizes = {"device_bytes": device_mib * MIB, "host_bytes": host_mib * MIB}
        self.add(at_s, "lease_changed", session=session, tag=tag, lease=lease, state=state, **sizes)
        lent = sum(self._device.values())
        self.add(at_s, "device_changed", lent_bytes=lent, free_bytes=self.capacity_bytes - lent)

    def mark(self, at_s: float, label: str) -> None:
        self.add(at_s, "marked", why=label)

    def history(self, *sessions: SessionStatus) -> History:
        return history_of(self.status(*sessions), self.events)

    def status(self, *sessions: SessionStatus) -> Status:
        return Status(
            device=DeviceStatus(
                id="host:0",
                capacity_bytes=self.capacity_bytes,
                lent_bytes=0,
                free_bytes=self.capacity_bytes,
                held_bytes=0,
                foreign_bytes=0,
                peak_lent_bytes=0,
            ),
            sessions=sessions,
            queue=(),
            holds=(),
            host=HostStatus(budget_bytes=0, used_bytes=0, file_bytes=0),
            draining=False,
            version="test",
            pid=1,
            now_ns=0,
        )


def two_sides(steps: int) -> Book:
    """A trainer and a rollout that take turns, a second each."""
    book = Book(24)
    book.lease(0, "trainer/params", 1, 8, 0, "resident")
    for step in range(steps):
        at_s = 1 + 2.0 * step
        book.mark(at_s, f"generate {step}")
        book.lease(at_s, "trainer/params", 1, 8, 8, "idle")
        book.lease(at_s + 0.1, "trainer/params", 1, 0, 8, "parked")
        book.lease(at_s + 0.2, "rollout/kv_cache", 2, 20, 0, "resident")
        book.mark(at_s + 1, f"train {step}")
        book.lease(at_s + 1.1, "rollout/kv_cache", 2, 0, 0, "parked")
        book.lease(at_s + 1.2, "trainer/params", 1, 8, 0, "resident")
    book.mark(1 + 2.0 * steps, "finish")
    return book


def _integral(steps: Sequence[Step], begin_ns: int, end_ns: int, what: str) -> int:
    """Add up bytes times nanoseconds the slow way."""
    total = 0
    ends = [step.at_ns for step in steps[1:]] + [end_ns]
    for step, until_ns in zip(steps, ends, strict=True):
        total += getattr(step, what) * max(0, min(until_ns, end_ns) - max(step.at_ns, begin_ns))
    return total


def test_leases_of_one_tag_are_one_track_and_a_returned_one_is_gone() -> None:
    book = Book(64)
    book.lease(1, "trainer/params", 1, 8, 0, "resident")
    book.lease(2, "trainer/params", 2, 4, 2, "idle")
    book.lease(3, "trainer/params", 1, 0, 0, "")
    (track,) = book.history().tracks
    assert (track.session, track.tag) == ("trainer", "params")
    told = [
        (step.at_ns // SECOND, step.device_bytes // MIB, step.host_bytes // MIB, step.state) for step in track.steps
    ]
    assert told == [(1, 8, 0, "resident"), (2, 12, 2, "partial"), (3, 4, 2, "idle")]


def test_an_ended_session_has_nothing() -> None:
    book = Book(64)
    book.lease(1, "trainer/params", 1, 8, 0, "resident")
    book.lease(1, "rollout/weights", 2, 4, 0, "resident")
    book.add(2, "session_ended", session="trainer")
    trainer, rollout = book.history().tracks
    assert trainer.steps[-1] == Step(at_ns=2 * SECOND, device_bytes=0, host_bytes=0, state="")
    assert rollout.steps[-1].device_bytes == 4 * MIB


def test_a_sessions_tags_lie_together_in_order_of_appearance() -> None:
    book = Book(64)
    for lease, name in enumerate(("trainer/params", "rollout/weights", "trainer/grads", "rollout/kv_cache"), start=1):
        book.lease(lease, name, lease, 2, 0, "resident")
    assert [f"{track.session}/{track.tag}" for track in book.history().tracks] == [
        "trainer/params",
        "trainer/grads",
        "rollout/weights",
        "rollout/kv_cache",
    ]


def test_what_did_not_change_in_the_time_that_is_remembered_was_there_all_along() -> None:
    book = Book(64)
    book.events = [_event(500, 1, "marked", why="train"), _event(501, 3, "marked", why="end")]
    tag = TagStatus(
        tag="params",
        lease=1,
        contents="keep",
        state="parked",
        device_bytes=0,
        host_bytes=8 * MIB,
        since_ns=0,
        priority=0,
        sealed=False,
    )
    session = SessionStatus(session=1, name="trainer", pid=1, uid=0, connected=True, ended=False, tags=(tag,))
    history = book.history(session)
    step = Step(at_ns=SECOND, device_bytes=0, host_bytes=8 * MIB, state="parked")
    assert history.tracks == (Track(session="trainer", tag="params", steps=(step,)),)
    assert not history.complete


def test_a_history_is_complete_only_without_a_gap() -> None:
    book = two_sides(1)
    assert book.history().complete
    del book.events[3]
    assert not book.history().complete


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("train 12", "train"),
        ("train#3", "train"),
        ("train", "train"),
        ("12", "12"),
        ("v2 eval", "v2 eval"),
        ("v2", "v2"),
    ],
)
def test_a_stage_is_named_without_its_number(label: str, name: str) -> None:
    book = Book(8)
    book.mark(1, label)
    book.mark(2, "next")
    stage, _ = book.history().stages
    assert (stage.name, stage.label, stage.end_ns) == (name, label, 2 * SECOND)


_CHANGES = st.lists(
    st.tuples(
        st.integers(1, 50),
        st.sampled_from(("trainer/params", "trainer/grads", "rollout/weights")),
        st.integers(0, 30),
        st.integers(0, 30),
        st.sampled_from(("resident", "idle", "parked")),
    ),
    min_size=1,
    max_size=25,
)


@given(changes=_CHANGES, pieces=st.integers(1, 9))
def test_a_stack_and_its_means_have_the_area_of_the_tracks(
    changes: list[tuple[int, str, int, int, str]], pieces: int
) -> None:
    book, at_s = Book(1000), 0
    leases: dict[str, int] = {}
    for wait_s, name, device_mib, host_mib, state in changes:
        at_s += wait_s
        book.lease(at_s, name, leases.setdefault(name, len(leases) + 1), device_mib, host_mib, state)
    book.mark(at_s + 7, "end")
    history = book.history()
    span = whole(history)
    exact = stack(history, span, lambda step: step.device_bytes)
    for shown in (exact, mean(exact, even(span, pieces))):
        for track, layer in zip(history.tracks, shown.layers, strict=True):
            widths = [end - begin for begin, end in zip(shown.edges_ns, shown.edges_ns[1:], strict=False)]
            area = sum(value * width for value, width in zip(layer, widths, strict=True))
            assert area == pytest.approx(_integral(track.steps, span.begin_ns, span.end_ns, "device_bytes"))
    assert max(highest(exact, even(span, pieces))) == max(exact.heights)


def _path_area(data: str) -> float:
    """Return the area inside a path of M, H, V and Z, by the shoelace formula."""
    area, points, x, y = 0.0, list[tuple[float, float]](), 0.0, 0.0
    for command, numbers in re.findall(r"([MHVZ])([-\d. ]*)", data):
        if command == "Z":
            pairs = zip(points, [*points[1:], points[0]], strict=True)
            area += abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2
            points = []
            continue
        values = [float(number) for number in numbers.split()]
        x, y = (values[0], values[1]) if command == "M" else (values[0], y) if command == "H" else (x, values[0])
        points.append((x, y))
    return area


@pytest.mark.parametrize("steps", [2, 40])
def test_the_drawn_areas_are_the_bytes_over_time(steps: int) -> None:
    history = two_sides(steps).history()
    drawn = ElementTree.fromstring(picture.draw(history))
    capacity = next(line for line in drawn.iter(f"{SVG}line") if line.get("class") == "capacity")
    bytes_per_pixel = history.capacity_bytes / (
        picture.DEVICE_TOP + picture.DEVICE_HEIGHT - float(capacity.attrib["y1"])
    )
    span = focus(history)
    ns_per_pixel = span.length_ns / (picture.RIGHT - picture.LEFT)
    areas = {
        path.get("id"): path.attrib["d"] for path in drawn.iter(f"{SVG}path") if path.get("class") == "device area"
    }
    assert set(areas) == {"device:trainer/params", "device:rollout/kv_cache"}
    for track in history.tracks:
        told = _integral(track.steps, span.begin_ns, span.end_ns, "device_bytes")
        area = _path_area(areas[f"device:{track.session}/{track.tag}"])
        assert area * bytes_per_pixel * ns_per_pixel == pytest.approx(told, rel=0.005)


def test_the_layers_lie_on_each_other_and_below_the_capacity() -> None:
    drawn = ElementTree.fromstring(picture.draw(two_sides(2).history()))
    limit = next(float(line.attrib["y1"]) for line in drawn.iter(f"{SVG}line") if line.get("class") == "capacity")
    for path in drawn.iter(f"{SVG}path"):
        if path.get("class") == "device area":
            heights = [float(number) for number in re.findall(r"V([-\d.]+)", path.attrib["d"])]
            assert min(heights) >= limit
            assert max(heights) <= picture.DEVICE_TOP + picture.DEVICE_HEIGHT


def test_stages_are_labelled_and_odd_words_do_no_harm() -> None:
    book = Book(8)
    book.lease(0, "a<b&c/\"t'", 1, 2, 0, "idle")
    book.mark(1, '<script>&"')
    book.mark(9, "train")
    book.mark(12, "end")
    drawn = ElementTree.fromstring(picture.draw(book.history()))
    words = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"a<b&c", "\"t'", '<script>&"', "train", "capacity 8 MiB", "device", "host"} <= set(words)
    assert not list(drawn.iter(f"{SVG}script"))


def test_a_long_run_is_shown_by_its_last_whole_cycles() -> None:
    history = two_sides(40).history()
    span = focus(history)
    shown = [stage.label for stage in history.stages if span.begin_ns <= stage.begin_ns < span.end_ns]
    assert shown == [f"{name} {step}" for step in (36, 37, 38) for name in ("generate", "train")]
    edges = cycles(history, 10)
    assert 2 <= len(edges) <= 12
    assert (min(edges), max(edges)) == (history.begin_ns, history.end_ns)
    assert focus(two_sides(3).history()) == whole(two_sides(3).history())


def test_a_phase_that_is_entered_is_a_stage() -> None:
    book = two_sides(steps=1)
    before = [stage.label for stage in book.history().stages]
    book.add(100, "phase_entering", phase="generate", why="generate: 1 leases leave, 2 come")
    book.add(101, "phase_entered", phase="generate", why="generate: paused nothing; resumed nothing")
    book.add(102, "phase_refused", phase="train", why="train: no")
    assert [stage.label for stage in book.history().stages] == [*before, "generate"]


def test_a_run_without_cycles_is_shown_by_its_last_stages() -> None:
    book = Book(8)
    book.lease(0, "a/t", 1, 2, 0, "resident")
    for index in range(30):
        book.mark(index + 1, chr(ord("a") + index) * 3)
    history = book.history()
    assert focus(history).begin_ns == history.stages[12].begin_ns
    ElementTree.fromstring(picture.draw(history))


def test_more_changes_than_pixels_are_drawn_as_means() -> None:
    book = Book(8)
    for index in range(6000):
        book.lease(index, "a/t", 1, 1 + index % 3, 0, "resident")
    text = picture.draw(book.history())
    assert len(text) < 200_000
    ElementTree.fromstring(text)


def test_a_single_instant_can_be_drawn() -> None:
    book = Book(8)
    book.mark(1, "alone")
    ElementTree.fromstring(picture.draw(book.history()))
    json.loads(trace.render(book.history()))


def _trace_of(history: History) -> list[dict[str, object]]:
    events: list[dict[str, object]] = json.loads(trace.render(history))["traceEvents"]
    return events


def test_the_trace_has_what_the_format_asks_of_each_event() -> None:
    required = {"M": {"args"}, "C": {"ts", "args"}, "X": {"ts", "dur", "cat"}}
    for event in _trace_of(two_sides(2).history()):
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        assert required[str(event["ph"])] <= event.keys()
        for key in ("ts", "dur"):
            value = event.get(key, 0.0)
            assert isinstance(value, int | float)
            assert value >= 0


def test_the_trace_tells_each_track_and_each_stage() -> None:
    history = two_sides(2).history()
    events = _trace_of(history)
    names = {event["pid"]: event["args"] for event in events if event["name"] == "process_name"}
    assert [args["name"] for args in names.values()] == ["device host:0", "trainer", "rollout"]  # type: ignore[index]
    counted = [event for event in events if event["name"] == "params device bytes"]
    assert [event["args"] for event in counted] == [{"bytes": step.device_bytes} for step in history.tracks[0].steps]
    slices = [event for event in events if event.get("cat") == "lease" and event["pid"] == 2]
    assert [event["name"] for event in slices[:4]] == ["resident", "idle", "parked", "resident"]
    assert sum(float(str(event["dur"])) for event in slices) == pytest.approx(
        (history.end_ns - history.begin_ns) / 1000
    )
    stages = [event["name"] for event in events if event.get("cat") == "stage"]
    assert stages == ["generate 0", "train 0", "generate 1", "train 1", "finish"]


@pytest.mark.parametrize(
    ("suffix", "begin"), [(".svg", "<svg"), (".json", '{"displayTimeUnit"'), (".html", "<!doctype html>")]
)
def test_the_files_ending_decides_what_is_written(tmp_path: Path, suffix: str, begin: str) -> None:
    book = two_sides(2)
    out = tmp_path / "new" / f"timeline{suffix}"
    write_timeline(out, book.status(), book.events)
    assert out.read_text().startswith(begin)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_timeline_that_can_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    book = two_sides(1)
    out = tmp_path / "timeline.svg"
    out.write_text("the old one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"timeline\.svg"):
            write_timeline(out, book.status(), book.events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.svg"]


def test_another_ending_and_an_empty_stream_are_refused(tmp_path: Path) -> None:
    book = two_sides(1)
    with pytest.raises(InvalidArgument):
        write_timeline(tmp_path / "timeline.png", book.status(), book.events)
    with pytest.raises(InvalidArgument):
        write_timeline(tmp_path / "timeline.svg", book.status(), [])
    assert not list(tmp_path.iterdir())


def test_ticks_and_texts_are_round() -> None:
    assert byte_ticks(28 * MIB, 5) == [0, 10 * MIB, 20 * MIB]
    assert byte_ticks(3, 5) == [0, 1, 2, 3]
    assert second_ticks(86.6, 88.4, 8) == pytest.approx([87.0, 87.5, 88.0])
    assert [bytes_text(size) for size in (0, 512, 1536, 26 * MIB, 5 * 1024 * MIB)] == [
        "0",
        "512 B",
        "1.5 KiB",
        "26 MiB",
        "5 GiB",
    ]
    assert seconds_text(0.5, 0.25) == "0.5 s"
