"""Capacity set aside for later: nobody else gets it, and what its session leases or resumes uses it up."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import InvalidArgument, OutOfDeviceMemory, QuotaExceeded, UnknownTicket, WaitExpired
from vrambroker.broker.core.ids import Instant, SessionId, TicketId

DROP = ev.Contents.DROP


def hold(desk: Desk, session: SessionId, size: int) -> TicketId:
    answer = desk.hold(session, size)
    assert isinstance(answer, ef.Held), answer
    return answer.ticket


def kept(desk: Desk) -> list[tuple[str, int]]:
    return [(one.session, one.size_bytes // MIB) for one in desk.broker.snapshot().kept]


def test_what_is_set_aside_is_its_owners_alone() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "one"), desk.attach(peer(2), "two")
    ticket = hold(desk, one, 5)
    assert (desk.free, desk.broker.snapshot().held_bytes, kept(desk)) == (3, 5 * MIB, [("one", 5)])
    refused = desk.lend(two, "x", 4)
    assert isinstance(refused, OutOfDeviceMemory)
    assert [(one.session, one.state, one.size_bytes // MIB) for one in refused.holders] == [("one", "held", 5)]
    desk.lease(one, "w", 4)
    assert (desk.free, kept(desk)) == (3, [("one", 1)])
    desk.lease(one, "w", 2)
    assert (desk.free, kept(desk)) == (2, [])
    assert isinstance(desk.cancel(ticket, peer(1)), UnknownTicket), "it is used up"


def test_it_is_given_back_by_cancelling_it_and_by_the_sessions_end() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    ticket = hold(desk, one, 5)
    assert desk.cancel(ticket, peer(1)) == ef.Done()
    assert desk.free == 8
    hold(desk, one, 5)
    hold(desk, two, 2)
    desk.do(ev.ProcessEnded(session=one))
    assert (desk.free, kept(desk)) == (6, [("trainer-2", 2)])


def test_it_is_taken_from_the_idle_and_is_no_frame() -> None:
    desk = Desk(limits(sizes=(1, 4), pool=8))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(two, "kv", 8, DROP)
    desk.pause(two, "kv")
    hold(desk, one, 5)
    assert desk.view(idle).device_bytes == 0
    assert desk.free == 3, "frames of 4 MiB had to go, and the rest is free"
    assert not any(frame.size_bytes for frame in desk.broker.snapshot().frames)


def test_it_waits_for_room_in_its_turn() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(two, "kv", 6, DROP)
    assert isinstance(desk.hold(one, 5, wait=False), OutOfDeviceMemory)
    assert desk.hold(one, 5) is None
    call = desk.last_call
    desk.pause(two, "kv")
    assert isinstance(desk.answers[call], ef.Held)
    assert kept(desk) == [("trainer", 5)]


def test_who_has_not_let_go_in_time_is_named() -> None:
    desk = Desk(held_back=("leave",))
    one, two = desk.attach(peer(1), "one"), desk.attach(peer(2), "two")
    desk.lease(two, "kv", 6, DROP)
    desk.pause(two, "kv")
    assert desk.hold(one, 5, deadline=Instant(300)) is None
    call = desk.last_call
    desk.at(300)
    refused = desk.answers[call]
    assert isinstance(refused, WaitExpired)
    assert [holder.session for holder in refused.holders] == ["two"]
    desk.let_go("leave")
    assert not kept(desk)


def test_a_promise_that_is_broken_leaves_it_waiting() -> None:
    desk = Desk(held_back=("leave", "fence"))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(two, "kv", 6, DROP)
    desk.pause(two, "kv")
    desk.hold(one, 5)
    call = desk.last_call
    desk.do(ev.ProcessEnded(session=two))
    assert call not in desk.answers
    desk.let_go("fence")
    assert isinstance(desk.answers[call], ef.Held)


def test_a_resume_uses_it_up() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(one, "w", 5)
    desk.pause(one, "w", release=True)
    hold(desk, one, 4)
    desk.lease(two, "x", 4)
    assert isinstance(desk.resume(one, "w", wait=False), OutOfDeviceMemory)
    assert kept(desk) == [("trainer", 4)], "a refusal uses nothing up"
    assert desk.resume(one, "w") is None
    call = desk.last_call
    assert kept(desk) == [("trainer", 4)]
    desk.pause(two, "x", release=True)
    assert isinstance(desk.answers[call], ef.Resumed)
    assert (desk.view(lease).device_bytes // MIB, kept(desk), desk.free) == (5, [], 3)


def test_what_it_covers_is_resumed_at_once_whoever_waits() -> None:
    desk = Desk()
    one, two, three = desk.attach(peer(1)), desk.attach(peer(2)), desk.attach(peer(3))
    for session, size in ((one, 4), (two, 6)):
        desk.lease(session, "w", size, DROP)
        desk.pause(session, "w", release=True)
    hold(desk, one, 4)
    desk.lease(three, "x", 4)
    desk.resume(two, "w")
    assert isinstance(desk.resume(one, "w", wait=False), ef.Resumed)
    assert not kept(desk)


@pytest.mark.parametrize("size", [0, 9])
def test_sizes_that_no_device_has(size: int) -> None:
    desk = Desk()
    assert isinstance(desk.hold(desk.attach(peer(1)), size), InvalidArgument)


def test_there_is_a_limit_on_it() -> None:
    desk = Desk(limits(tickets=3))
    session = desk.attach(peer(1))
    for _ in range(3):
        hold(desk, session, 1)
    assert isinstance(desk.hold(session, 1), QuotaExceeded)


def test_what_its_session_waits_for_uses_it_up_as_soon_as_it_is_there() -> None:
    desk = Desk(held_back={"leave"})
    one, two, three = desk.attach(peer(1)), desk.attach(peer(2)), desk.attach(peer(3))
    desk.lease(one, "w", 4, DROP)
    desk.held_back.clear()
    desk.pause(one, "w", release=True)
    desk.lease(two, "x", 3, DROP)
    hold(desk, three, 4)
    assert desk.hold(one, 4) is None
    assert desk.resume(one, "w") is None
    resume = desk.last_call
    desk.held_back.add("leave")
    desk.pause(two, "x")
    assert resume not in desk.answers
    desk.let_go("leave")
    assert isinstance(desk.answers[resume], ef.Resumed)
    assert kept(desk) == [("trainer-3", 4)]
