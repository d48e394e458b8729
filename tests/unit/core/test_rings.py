"""Who waits in a ring is refused, named, and can pause then; who may still be helped goes on waiting."""

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import OutOfDeviceMemory
from vrambroker.broker.core.ids import CallId, SessionId

DROP = ev.Contents.DROP


def scene(desk: Desk, **sizes: tuple[int, int]) -> tuple[SessionId, ...]:
    """Return sessions, each with some MiB parked as `w`, and some in use as `kv`."""
    sessions = {name: desk.attach(peer(number), name) for number, name in enumerate(sizes, 1)}
    for name, (parked, _) in sizes.items():
        if parked:
            desk.lease(sessions[name], "w", parked, DROP)
            desk.pause(sessions[name], "w", release=True)
    for name, (_, there) in sizes.items():
        if there:
            desk.lease(sessions[name], "kv", there, DROP)
    return tuple(sessions.values())


def wait(desk: Desk, session: SessionId) -> CallId:
    desk.resume(session, "w")
    return desk.last_call


def test_two_that_wait_for_each_other() -> None:
    desk = Desk()
    one, two = scene(desk, trainer=(4, 4), rollout=(4, 4))
    first = wait(desk, one)
    assert first not in desk.answers
    second = wait(desk, two)
    refused = desk.answers[second]
    assert isinstance(refused, OutOfDeviceMemory)
    assert "trainer/w waits for rollout/w waits for trainer/w" in refused.message
    assert [(one.session, one.tag, one.size_bytes) for one in refused.holders] == [
        ("trainer", "kv", 4 * MIB),
        ("rollout", "kv", 4 * MIB),
    ]
    assert first not in desk.answers, "the other keeps its place"
    desk.pause(two, "kv")
    assert isinstance(desk.answers[first], ef.Resumed)


def test_three_in_a_row() -> None:
    desk = Desk(limits(capacity=9))
    sessions = scene(desk, a=(3, 3), b=(3, 3), c=(3, 3))
    calls = [wait(desk, session) for session in sessions]
    assert [call in desk.answers for call in calls] == [False, False, True]
    refused = desk.answers[calls[2]]
    assert isinstance(refused, OutOfDeviceMemory)
    assert "a/w waits for b/w waits for c/w waits for a/w" in refused.message


def test_the_less_urgent_is_refused() -> None:
    desk = Desk()
    one, two = scene(desk, trainer=(4, 4), rollout=(4, 4))
    desk.prioritize(two, "w", priority=1)
    first, second = wait(desk, one), wait(desk, two)
    assert isinstance(desk.answers[first], OutOfDeviceMemory)
    assert second not in desk.answers


def test_a_third_that_may_still_pause_is_waited_for() -> None:
    desk = Desk(limits(capacity=12))
    one, two, three = scene(desk, trainer=(4, 4), rollout=(4, 4), judge=(0, 4))
    first, second = wait(desk, one), wait(desk, two)
    assert not {first, second} & desk.answers.keys()
    desk.pause(three, "kv")
    assert isinstance(desk.answers[first], ef.Resumed)
    assert second not in desk.answers, "the trainer goes on, and may pause"


def test_a_third_that_begins_to_wait_closes_the_ring() -> None:
    desk = Desk(limits(capacity=12))
    one, two, three = scene(desk, trainer=(4, 4), rollout=(4, 4), judge=(2, 4))
    calls = [wait(desk, session) for session in (one, two, three)]
    assert [call in desk.answers for call in calls] == [False, False, True]


def test_who_waits_only_for_those_in_the_ring_is_no_part_of_it() -> None:
    desk = Desk()
    one, two, three = scene(desk, trainer=(4, 4), rollout=(4, 4), judge=(0, 0))
    desk.hold(three, 2)
    aside = desk.last_call
    first, second = wait(desk, one), wait(desk, two)
    assert not {aside, first} & desk.answers.keys()
    refused = desk.answers[second]
    assert isinstance(refused, OutOfDeviceMemory)
    assert "judge" not in refused.message


def test_one_that_stands_in_its_own_way_may_be_helped_by_a_thread_of_its_own() -> None:
    desk = Desk()
    one, two = scene(desk, trainer=(5, 4), rollout=(4, 4))
    first, second = wait(desk, one), wait(desk, two)
    assert not {first, second} & desk.answers.keys()
    desk.pause(one, "kv")
    assert isinstance(desk.answers[second], ef.Resumed)


def test_what_an_operator_resumes_keeps_nobody_from_pausing() -> None:
    desk = Desk()
    one, two = scene(desk, trainer=(4, 4), rollout=(4, 4))
    first = wait(desk, one)
    desk.resume(two, "w", actor=peer(77))
    assert not {first, desk.last_call} & desk.answers.keys()


def test_what_is_set_aside_is_out_of_reach_as_well() -> None:
    desk = Desk()
    one, two = scene(desk, trainer=(4, 4), rollout=(5, 0))
    assert isinstance(desk.hold(two, 4), ef.Held)
    first = wait(desk, one)
    assert first not in desk.answers
    second = wait(desk, two)
    assert isinstance(desk.answers[second], OutOfDeviceMemory)
