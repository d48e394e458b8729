"""The surface: the shape of what goes in and comes out, the event stream, the snapshot, and drivers' words taken
seriously.
"""

from dataclasses import replace

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import InvalidArgument, InvariantViolation
from vrambroker.broker.core.ids import ArenaFileId, FrameId, Instant, SessionId
from vrambroker.broker.core.limits import Limits

DROP = ev.Contents.DROP


@pytest.mark.parametrize(
    "unsound",
    [
        replace(limits(), frame_sizes_bytes=()),
        replace(limits(), frame_sizes_bytes=(0,)),
        replace(limits(), frame_sizes_bytes=(4 * MIB, MIB)),
        replace(limits(), frame_sizes_bytes=(2 * MIB, 3 * MIB)),
        replace(limits(), capacity_bytes=MIB + 1),
        replace(limits(), capacity_bytes=0),
    ],
)
def test_unsound_limits_are_no_ground_to_stand_on(unsound: Limits) -> None:
    with pytest.raises(InvariantViolation):
        Broker(unsound)


def test_time_never_goes_back() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 8, DROP)
    desk.now = Instant(500)
    desk.pause(session, "w", quiet=False, actor=peer(2), deadline=Instant(400))
    desk.now = Instant(10)
    desk.do(ev.DeadlineReached())
    assert desk.last_call in desk.answers


def test_a_mark_is_published_as_it_is() -> None:
    desk = Desk()
    assert desk.answer(ev.Mark(call=desk.call(peer(9)), label="generate 7")) == ef.Done()
    marks = [line for line in desk.sent(ef.Publish) if line.kind is ef.Kind.MARKED]
    assert [line.why for line in marks] == ["generate 7"]
    for label in ("", "x" * 257, "a\nb"):
        assert isinstance(desk.answer(ev.Mark(call=desk.call(peer(9)), label=label)), InvalidArgument)


def test_draining_tells_everybody_once() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.do(ev.Drain())
    desk.do(ev.Drain())
    assert [effect.session for effect in desk.sent(ef.SendDraining)] == [one, two]
    assert desk.broker.snapshot().draining


def test_the_stream_tells_a_leases_whole_residency_and_the_devices_totals() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    desk.resume(session, "w")
    desk.give(session, lease)
    lines = [line for line in desk.sent(ef.Publish) if line.kind is ef.Kind.LEASE_CHANGED]
    told = [
        (line.state.value if line.state else "", line.device_bytes // MIB, line.host_bytes // MIB) for line in lines
    ]
    assert told == [
        ("arriving", 0, 0),
        ("arriving", 2, 0),
        ("resident", 2, 0),
        ("leaving", 2, 2),
        ("parked", 0, 2),
        ("arriving", 2, 2),
        ("resident", 2, 0),
        ("", 0, 0),
    ]
    assert all((line.session, line.tag, line.lease) == ("trainer", "w", lease) for line in lines)
    assert all(line.why for line in desk.sent(ef.Publish))
    totals = [line for line in desk.sent(ef.Publish) if line.kind is ef.Kind.DEVICE_CHANGED]
    assert all(line.lent_bytes + line.free_bytes + line.held_bytes == 8 * MIB for line in totals)


def test_refusals_and_recalls_say_why_in_one_line() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    desk.lease(one, "w", 6, DROP)
    desk.lend(two, "kv", 6)
    desk.pause(one, "w")
    desk.lease(two, "kv", 6)
    lines = {line.kind: line for line in desk.sent(ef.Publish)}
    assert "trainer/w" in lines[ef.Kind.TICKET_REFUSED].why
    assert (lines[ef.Kind.TICKET_REFUSED].session, lines[ef.Kind.TICKET_REFUSED].tag) == ("rollout", "kv")
    assert "rollout/kv" in lines[ef.Kind.RECALLED].why
    assert lines[ef.Kind.RECALLED].session == "trainer"
    assert not any("\n" in line.why for line in desk.sent(ef.Publish))


def test_the_same_events_have_the_same_effects() -> None:
    def run() -> list[ef.Effect]:
        desk = Desk(limits(sizes=(1, 4), capacity=16))
        one, two = desk.attach(peer(1)), desk.attach(peer(2))
        desk.lease(one, "w", 10)
        desk.pause(one, "w")
        desk.lease(two, "kv", 13, DROP)
        desk.pause(two, "kv")
        desk.resume(one, "w")
        return desk.effects

    assert run() == run()


@pytest.mark.parametrize(
    "event",
    [
        ev.FrameCreated(frame=FrameId(77)),
        ev.FrameDestroyed(frame=FrameId(77)),
        ev.FrameCreateFailed(frame=FrameId(77), driver_call="c", driver_result="r"),
        ev.FencePassed(session=SessionId(77), frames=()),
    ],
)
def test_an_outcome_of_what_was_never_begun_is_a_bug_of_ours(event: ev.Event) -> None:
    desk = Desk()
    with pytest.raises(InvariantViolation):
        desk.do(event)


def test_an_unknown_arena_file_is_a_bug_of_ours() -> None:
    desk = Desk()
    for event in (
        ev.ArenaFileReady(file=ArenaFileId(5)),
        ev.ArenaFileFailed(file=ArenaFileId(5), reason=""),
        ev.ArenaFileDestroyed(file=ArenaFileId(5)),
        ev.ExtentPunched(file=ArenaFileId(5), offset_bytes=0),
    ):
        with pytest.raises(InvariantViolation):
            desk.do(event)


def test_a_frame_made_for_nobody_any_more_goes_to_the_next() -> None:
    desk = Desk(held_back=("create",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lend(one, "w", 8)
    desk.do(ev.ProcessEnded(session=one))
    desk.lend(two, "kv", 8)
    assert len(desk.sent(ef.CreateFrame)) == 8
    desk.let_go("create")
    assert isinstance(desk.answers[desk.last_call], ef.Leased)
    assert len(desk.sent(ef.CreateFrame)) == 8


def test_a_frame_that_was_never_made_gives_its_bytes_to_whom_they_were_promised() -> None:
    desk = Desk(limits(sizes=(1, 4), capacity=4), held_back=("create",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lend(one, "w", 4)
    (large,) = desk.sent(ef.CreateFrame)
    desk.do(ev.ProcessEnded(session=one))
    desk.lend(two, "kv", 3)
    desk.drop("create")
    desk.do(ev.FrameCreateFailed(frame=large.frame, driver_call="c", driver_result="r"))
    desk.let_go("create")
    assert isinstance(desk.answers[desk.last_call], ef.Leased)
