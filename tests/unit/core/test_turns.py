"""Whose turn it is: priority, then age; and tickets that are cancelled."""

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, limits, peer
from tests.unit.core.pair import RL, Pair, limit_to
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import (
    Cancelled,
    InvalidArgument,
    NotOwner,
    OutOfDeviceMemory,
    QuotaExceeded,
    UnknownTag,
    UnknownTicket,
)
from vrambroker.broker.core.ids import CallId, Instant, SessionId, TicketId
from vrambroker.broker.core.phase import Pattern, Ranked

DROP = ev.Contents.DROP


def crowd(desk: Desk, sizes: dict[str, int], *, holder: int = 8) -> tuple[dict[str, SessionId], SessionId]:
    """Return sessions whose memory is parked, by name, and one that has all of the device."""
    waiting: dict[str, SessionId] = {}
    for number, (name, size) in enumerate(sizes.items()):
        waiting[name] = desk.attach(peer(number + 1), name)
        desk.lease(waiting[name], "w", size, DROP)
        desk.pause(waiting[name], "w", release=True)
    busy = desk.attach(peer(99), "busy")
    desk.lease(busy, "kv", holder, DROP)
    return waiting, busy


def resume(desk: Desk, session: SessionId, *, deadline: Instant = FAR) -> CallId:
    assert desk.resume(session, "w", deadline=deadline) is None
    return desk.last_call


def test_the_more_urgent_goes_first_whoever_came_before() -> None:
    desk = Desk()
    who, busy = crowd(desk, {"a": 5, "b": 5})
    desk.prioritize(who["b"], "w", priority=1)
    first, second = resume(desk, who["a"]), resume(desk, who["b"])
    assert [(ticket.session, ticket.priority) for ticket in desk.queue()] == [("b", 1), ("a", 0)]
    desk.pause(busy, "kv")
    assert isinstance(desk.answers[second], ef.Resumed)
    assert first not in desk.answers


def test_a_priority_that_is_set_while_it_waits_counts_from_then_on() -> None:
    desk = Desk()
    who, _ = crowd(desk, {"a": 5, "b": 5})
    for name in who:
        resume(desk, who[name])
    assert [ticket.session for ticket in desk.queue()] == ["a", "b"]
    desk.prioritize(who["b"], "w", priority=3)
    assert [ticket.session for ticket in desk.queue()] == ["b", "a"]
    desk.prioritize(who["b"], "w", priority=-3)
    assert [ticket.session for ticket in desk.queue()] == ["a", "b"]
    assert desk.view(desk.broker.snapshot().sessions[1].leases[0].lease).priority == -3


def test_a_ticket_whose_most_urgent_tag_is_returned_is_as_urgent_as_the_rest() -> None:
    desk = Desk()
    one, two, busy = desk.attach(peer(1), "one"), desk.attach(peer(2), "two"), desk.attach(peer(99), "busy")
    urgent = desk.lease(one, "urgent", 1, DROP)
    desk.lease(one, "w", 2, DROP)
    desk.lease(two, "w", 4, DROP)
    desk.pause(one, "urgent", "w", release=True)
    desk.pause(two, "w", release=True)
    desk.lease(busy, "kv", 8, DROP)
    desk.prioritize(one, "urgent", priority=2)
    desk.prioritize(two, "w", priority=1)
    assert desk.resume(one, "urgent", "w") is None
    assert desk.resume(two, "w") is None
    assert [ticket.session for ticket in desk.queue()] == ["one", "two"]
    desk.give(one, urgent)
    assert [(ticket.session, ticket.priority) for ticket in desk.queue()] == [("two", 1), ("one", 0)]


def test_who_has_waited_long_enough_is_not_overtaken_by_the_more_urgent() -> None:
    desk = Desk(limits(ageing=100))
    who, _ = crowd(desk, {"a": 5, "b": 5})
    desk.prioritize(who["b"], "w", priority=1)
    resume(desk, who["a"])
    desk.now = Instant(desk.now + 101)
    resume(desk, who["b"])
    assert [ticket.session for ticket in desk.queue()] == ["a", "b"]


def test_what_fits_goes_past_what_does_not_until_that_has_waited_long() -> None:
    desk = Desk(limits(ageing=100))
    who, busy = crowd(desk, {"large": 6, "one": 1, "two": 1}, holder=7)
    large = resume(desk, who["large"])
    assert isinstance(desk.resume(who["one"], "w"), ef.Resumed), "it fits in what is free"
    desk.pause(who["one"], "w", release=True)
    desk.now = Instant(desk.now + 100)
    patient = resume(desk, who["two"])
    assert desk.free == 1
    assert isinstance(desk.lend(busy, "more", 1), ef.Leased), "what can't wait is not held up for it"
    desk.give(busy, desk.broker.snapshot().sessions[-1].leases[-1].lease)
    assert patient not in desk.answers
    desk.pause(busy, "kv")
    assert isinstance(desk.answers[large], ef.Resumed)
    assert isinstance(desk.answers[patient], ef.Resumed)


def test_of_the_idle_the_less_urgent_gives_first() -> None:
    desk = Desk()
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    leases = {tag: desk.lease(session, tag, 2, DROP) for tag in ("a", "b", "c")}
    assert desk.prioritize(session, "a", priority=2) == ef.Done()
    desk.prioritize(session, "b", priority=1)
    desk.pause(session, "a", "b", "c")
    desk.lease(other, "x", 5)
    there = {tag: desk.view(lease).device_bytes // MIB for tag, lease in leases.items()}
    assert there == {"a": 2, "b": 1, "c": 0}


@pytest.mark.parametrize("priority", [101, -101, 1 << 40])
def test_a_priority_has_bounds(priority: int) -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 1)
    assert isinstance(desk.prioritize(session, "w", priority=priority), InvalidArgument)
    assert isinstance(desk.prioritize(session, "nothing", priority=1), UnknownTag)
    assert isinstance(desk.prioritize(session, "w", priority=1, actor=peer(5, uid=7)), NotOwner)
    assert desk.view(lease).priority == 0


def test_a_ticket_that_waits_is_cancelled() -> None:
    desk = Desk()
    who, busy = crowd(desk, {"a": 5})
    call = resume(desk, who["a"])
    (ticket,) = desk.queue()
    assert isinstance(desk.cancel(ticket.ticket, peer(50, uid=7)), NotOwner)
    assert call not in desk.answers
    assert desk.cancel(ticket.ticket, peer(50, uid=1)) == ef.Done()
    assert isinstance(desk.answers[call], Cancelled)
    assert not desk.queue()
    assert isinstance(desk.cancel(ticket.ticket, peer(50, uid=1)), UnknownTicket)
    desk.pause(busy, "kv")
    assert isinstance(desk.resume(who["a"], "w"), ef.Resumed)


def test_a_ticket_that_is_on_its_way_is_cancelled_and_what_it_got_goes_back() -> None:
    desk = Desk(held_back=("leave",))
    who, busy = crowd(desk, {})
    session = desk.attach(peer(1), "a")
    desk.pause(busy, "kv")
    assert desk.lend(session, "w", 5, DROP) is None
    call = desk.last_call
    (ticket,) = desk.queue()
    assert ticket.admitted
    assert desk.cancel(ticket.ticket, peer(1)) == ef.Done()
    assert isinstance(desk.answers[call], Cancelled)
    desk.let_go("leave")
    assert desk.free == 5
    assert not who


def test_what_was_granted_comes_back_when_it_is_cancelled() -> None:
    desk = Desk()
    session = desk.attach(peer(1), "a")
    lease = desk.lease(session, "w", 3)
    desk.pause(session, "w", release=True)
    desk.held_back.add("arrive")
    call = resume(desk, session)
    (ticket,) = desk.broker.snapshot().granted
    assert desk.cancel(ticket.ticket, peer(1)) == ef.Done()
    assert desk.cancel(ticket.ticket, peer(1)) == ef.Done(), "it is on its way back already"
    assert isinstance(desk.answers[call], Cancelled)
    desk.let_go("arrive")
    assert (desk.view(lease).state, desk.free) == (LeaseState.PARKED, 8)


def test_a_client_that_dies_leaves_no_ticket_behind() -> None:
    desk = Desk()
    who, _ = crowd(desk, {"a": 5, "b": 5})
    for name in who:
        resume(desk, who[name])
    desk.do(ev.ProcessEnded(session=who["a"]))
    assert [ticket.session for ticket in desk.queue()] == ["b"]


def test_nothing_is_cancelled_that_is_not_there() -> None:
    assert isinstance(Desk().cancel(TicketId(7), peer(1)), UnknownTicket)


def test_the_refusal_says_whose_turn_it_is() -> None:
    desk = Desk()
    who, _ = crowd(desk, {"a": 5, "b": 1}, holder=8)
    resume(desk, who["a"])
    refused = desk.resume(who["b"], "w", wait=False)
    assert isinstance(refused, OutOfDeviceMemory)
    assert refused.message.endswith("a/w has waited longer")


class TestPlanned:
    """What the plan says of priorities while its phases are entered."""

    def pair(self) -> Pair:
        pair = Pair(limits(capacity=16))
        ranked = (
            Ranked(pattern=Pattern(session="rollout", tag="weights"), priority=3),
            Ranked(pattern=Pattern(session="trainer", tag="*"), priority=2),
        )
        pair.desk.set_plan(RL, priorities=ranked)
        return pair

    def priorities(self, pair: Pair) -> tuple[int, int, int]:
        weights, cache, params = (pair.desk.view(lease).priority for lease in (pair.weights, pair.cache, pair.params))
        return weights, cache, params

    def test_they_hold_while_a_phase_that_lists_the_tag_is_entered(self) -> None:
        pair = self.pair()
        assert self.priorities(pair) == (0, 0, 0), "no phase is entered yet"
        pair.desk.enter("generate")
        assert self.priorities(pair) == (3, 0, 0)
        pair.desk.enter("train")
        assert self.priorities(pair) == (0, 0, 2)
        more = pair.desk.lease(pair.trainer, "more", 1)
        assert pair.desk.view(more).priority == 2
        pair.desk.set_plan({"other": ("rollout/*",)})
        assert self.priorities(pair) == (0, 0, 0)

    def test_what_somebody_has_set_goes_before(self) -> None:
        pair = self.pair()
        pair.desk.prioritize(pair.rollout, "weights", priority=-1)
        pair.desk.enter("generate")
        assert self.priorities(pair)[0] == -1
        pair.desk.prioritize(pair.rollout, "weights", priority=0)
        assert self.priorities(pair)[0] == 0

    def test_a_change_that_fails_changes_no_priority(self) -> None:
        pair = self.pair()
        pair.desk.enter("train")
        limit_to(pair.desk, pair.rollout, 1)
        assert isinstance(pair.desk.enter("generate"), QuotaExceeded)
        assert self.priorities(pair) == (0, 0, 2)

    def test_who_waits_gets_its_new_place(self) -> None:
        desk = Desk()
        a, b, busy = (desk.attach(peer(number), name) for number, name in enumerate(("a", "b", "busy"), start=1))
        desk.lease(b, "w", 5, DROP)
        desk.set_plan({"p": ("b/w",)}, priorities=(Ranked(pattern=Pattern(session="b", tag="w"), priority=1),))
        assert isinstance(desk.enter("p"), ef.Entered)
        desk.pause(b, "w", release=True)
        desk.lease(a, "w", 5, DROP)
        desk.pause(a, "w", release=True)
        desk.lease(busy, "kv", 8, DROP)
        for session in (a, b):
            resume(desk, session)
        assert [(ticket.session, ticket.priority) for ticket in desk.queue()] == [("b", 1), ("a", 0)]
        desk.set_plan({"p": ("b/w",)})
        assert [(ticket.session, ticket.priority) for ticket in desk.queue()] == [("a", 0), ("b", 0)]
