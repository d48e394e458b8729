"""Changes of phase on the move: what comes opens together, whatever fails undoes it all, and both orders."""

import pytest

from tests.unit.core.desk import MIB, Answer, Desk, limits, peer
from tests.unit.core.pair import DROP, RL, Pair, limit_to
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import Kind, LeaseState
from vrambroker.broker.core.errors import (
    Cancelled,
    DriverFailed,
    OutOfDeviceMemory,
    OutOfHostMemory,
    QuotaExceeded,
    WaitExpired,
)
from vrambroker.broker.core.ids import CallId, ConnectionId, Domain, Instant, TicketId
from vrambroker.broker.core.phase import Order

LATER = Instant(10_000)


def resident(pair: Pair) -> set[str]:
    return {
        lease.tag for session in pair.desk.broker.snapshot().sessions for lease in session.leases if not lease.paused
    }


def entering(pair: Pair, *held_back: str, deadline: Instant = LATER) -> CallId:
    pair.desk.held_back.update(held_back)
    assert pair.desk.enter("generate", deadline=deadline) is None
    return pair.desk.last_call


def answered(pair: Pair, call: CallId) -> Answer:
    return pair.desk.answers[call]


class TestTogether:
    def test_nothing_opens_before_all_has_arrived(self) -> None:
        pair = Pair(limits(capacity=10))
        judge = pair.desk.attach(peer(3), "judge")
        pair.desk.lease(judge, "weights", 2)
        pair.desk.pause(judge, "weights")
        pair.desk.set_plan({"generate": ("rollout/*", "judge/*"), "train": ("trainer/*",)})
        call = entering(pair, "arrive")
        granted = pair.desk.drop("arrive")
        for one in granted[:-1]:
            pair.desk.do(one)
            assert not resident(pair), "what is there already, or has arrived, waits for the rest"
        pair.desk.do(granted[-1])
        assert resident(pair) == {"weights", "kv_cache"}
        assert isinstance(answered(pair, call), ef.Entered)

    def test_what_comes_is_not_taken_for_what_comes_with_it(self) -> None:
        pair = Pair(limits(capacity=10))
        judge = pair.desk.attach(peer(3), "judge")
        scores = pair.desk.lease(judge, "scores", 4, DROP)
        pair.desk.pause(judge, "scores")
        pair.desk.set_plan({"generate": ("rollout/weights", "judge/*"), "train": ("trainer/*",)})
        entered = pair.desk.enter("generate")
        assert isinstance(entered, ef.Entered)
        assert {one.lease: one.same_pages for one in entered.resumed} == {pair.weights: False, scores: True}

    def test_memory_changes_hands_frame_by_frame(self) -> None:
        pair = Pair()
        entering(pair, "leave")
        (left,) = pair.desk.drop("leave")
        assert isinstance(left, ev.Left)
        before = len(pair.desk.sent(ef.SendGrant))
        one = ev.Left(session=left.session, lease=left.lease, slots=left.slots[:1], failure=None)
        pair.desk.do(one)
        assert len(pair.desk.sent(ef.SendGrant)) == before + 1, "the first frame is on its way while others leave"
        assert not resident(pair)

    def test_a_session_that_dies_on_the_way_is_not_waited_for(self) -> None:
        pair = Pair()
        call = entering(pair, "arrive")
        pair.desk.do(ev.ProcessEnded(session=pair.rollout))
        entered = answered(pair, call)
        assert isinstance(entered, ef.Entered)
        assert not entered.resumed

    def test_one_that_dies_while_it_leaves_leaves_its_room_all_the_same(self) -> None:
        pair = Pair()
        call = entering(pair, "leave")
        pair.desk.do(ev.ProcessEnded(session=pair.trainer))
        pair.desk.let_go("leave")
        assert isinstance(answered(pair, call), ef.Entered)

    def test_who_goes_away_does_not_stop_what_moves(self) -> None:
        pair = Pair()
        call = entering(pair, "arrive")
        pair.desk.do(ev.CallAbandoned(call=call))
        pair.desk.let_go("arrive")
        assert resident(pair) == {"weights", "kv_cache"}

    def test_parts_of_it_are_no_calls_of_anybodys(self) -> None:
        pair = Pair()
        entering(pair, "arrive")
        pair.desk.let_go("arrive")
        assert all(call > 0 for call in pair.desk.answers)


class TestUndone:
    """Whatever fails, residency is as it was."""

    def undone(self, pair: Pair, call: CallId) -> Answer:
        assert resident(pair) == {"params"}
        assert pair.states() == {
            "params": LeaseState.RESIDENT,
            "weights": LeaseState.PARKED,
            "kv_cache": LeaseState.PARKED,
        }
        seen = pair.desk.broker.snapshot()
        assert (seen.phase, seen.entering, seen.queue, seen.granted) == ("", "", (), ())
        last = pair.desk.sent(ef.SendLeaseState)[-1]
        assert (last.lease, last.paused) == (pair.params, False)
        assert Kind.PHASE_REFUSED in [line.kind for line in pair.desk.sent(ef.Publish)]
        return answered(pair, call)

    def test_when_what_comes_can_not_be_mapped(self) -> None:
        pair = Pair()
        call = entering(pair, "arrive")
        granted, other = pair.desk.drop("arrive")
        assert isinstance(granted, ev.Arrived)
        pair.desk.held_back.clear()
        pair.desk.do(other)
        pair.desk.do(ev.Arrived(session=granted.session, lease=granted.lease, slots=granted.slots, failure="ENOMEM"))
        assert isinstance(self.undone(pair, call), DriverFailed)

    def test_when_one_part_fails_after_another_has_arrived(self) -> None:
        pair = Pair(limits(capacity=10), cache=3)
        judge = pair.desk.attach(peer(3), "judge")
        scores = pair.desk.lease(judge, "scores", 2)
        pair.desk.pause(judge, "scores", release=True)
        pair.desk.set_plan({"generate": ("rollout/*", "judge/*"), "train": ("trainer/*",)})
        call = entering(pair, "arrive")
        grants = pair.desk.drop("arrive")
        pair.desk.held_back.clear()
        for granted in grants[:-1]:
            pair.desk.do(granted)
        last = grants[-1]
        assert isinstance(last, ev.Arrived)
        assert last.lease == scores
        pair.desk.do(ev.Arrived(session=last.session, lease=last.lease, slots=last.slots, failure="ENOMEM"))
        assert isinstance(answered(pair, call), DriverFailed)
        assert resident(pair) == {"params"}
        assert not pair.desk.broker.snapshot().granted

    def test_when_what_leaves_can_not(self) -> None:
        pair = Pair()
        call = entering(pair, "leave", deadline=Instant(500))
        (left,) = pair.desk.drop("leave")
        pair.desk.held_back.clear()
        assert isinstance(left, ev.Left)
        pair.desk.do(ev.Left(session=left.session, lease=left.lease, slots=left.slots, failure="EIO"))
        assert call not in pair.desk.answers, "its promise is broken, and it waits for room at its old place"
        pair.desk.at(500)
        assert isinstance(self.undone(pair, call), OutOfDeviceMemory)

    def test_when_what_leaves_takes_too_long(self) -> None:
        pair = Pair()
        call = entering(pair, "leave", deadline=Instant(500))
        pair.desk.at(500)
        assert call not in pair.desk.answers, "what leaves must come back first"
        pair.desk.let_go("leave")
        refused = self.undone(pair, call)
        assert isinstance(refused, WaitExpired)
        assert [(one.session, one.tag) for one in refused.holders] == [("trainer", "params")]

    def test_when_what_comes_takes_too_long(self) -> None:
        pair = Pair()
        call = entering(pair, "arrive", deadline=Instant(500))
        pair.desk.at(500)
        pair.desk.let_go("arrive")
        assert isinstance(self.undone(pair, call), WaitExpired)

    def test_it_does_not_wait_for_ever_for_what_comes_back(self) -> None:
        pair = Pair(limits(undo=300))
        call = entering(pair, "leave", deadline=Instant(500))
        pair.desk.at(500)
        pair.desk.at(900)
        refused = answered(pair, call)
        assert isinstance(refused, WaitExpired)
        assert "; and not undone: trainer/params" in refused.message
        assert not pair.desk.broker.snapshot().entering
        pair.desk.let_go("leave")
        assert isinstance(pair.desk.resume(pair.trainer, "params"), ef.Resumed)

    def test_what_was_returned_meanwhile_does_not_come_back(self) -> None:
        pair = Pair()
        call = entering(pair, "leave", deadline=Instant(500))
        pair.desk.drop("leave")
        pair.desk.give(pair.trainer, pair.params)
        assert isinstance(answered(pair, call), ef.Entered), "its room is there"

    def test_what_its_owner_pauses_on_the_way_stays_paused(self) -> None:
        pair = Pair()
        grads = pair.desk.lease(pair.trainer, "grads", 1)
        pair.desk.pause(pair.trainer, "grads")
        call = entering(pair, "arrive", deadline=Instant(500))
        pair.desk.at(500)
        pair.desk.let_go("arrive")
        assert isinstance(answered(pair, call), WaitExpired)
        assert pair.desk.view(grads).paused
        assert resident(pair) == {"params"}


class TestLowestHostPeak:
    """Kept contents come before others leave."""

    def pair(self, *, capacity: int = 10, budget: int = 5) -> Pair:
        """The rollout's 3 parked; the trainer's 5 on a device of 10, with an arena of 5."""
        return Pair(limits(capacity=capacity, budget=budget, file=1), order=Order.HOST, cache=4)

    def test_the_arena_never_has_both_sides(self) -> None:
        pair = self.pair()
        assert isinstance(pair.desk.enter("generate"), ef.Entered)
        assert resident(pair) == {"weights", "kv_cache"}
        assert (
            max(line.host_bytes for line in pair.desk.sent(ef.Publish) if line.kind is Kind.DEVICE_CHANGED) <= 5 * MIB
        )
        assert isinstance(pair.desk.enter("train"), ef.Entered)
        assert resident(pair) == {"params"}

    def test_under_the_other_order_that_is_refused(self) -> None:
        pair = self.pair()
        pair.desk.set_plan(RL, order=Order.DEVICE)
        assert isinstance(pair.desk.enter("generate"), OutOfHostMemory)

    def test_kept_contents_of_both_sides_must_fit_the_device(self) -> None:
        pair = self.pair(capacity=7)
        pair.desk.set_plan({"generate": ("rollout/weights",), "train": ("trainer/*",)}, order=Order.HOST)
        assert isinstance(pair.desk.enter("generate"), OutOfDeviceMemory)
        pair.desk.set_plan({"generate": ("rollout/weights",), "train": ("trainer/*",)}, order=Order.DEVICE)
        assert isinstance(pair.desk.enter("generate"), OutOfHostMemory)

    def test_nothing_opens_before_all_has_arrived(self) -> None:
        pair = self.pair()
        call = entering(pair, "leave")
        assert pair.desk.view(pair.weights).state is LeaseState.IDLE
        assert pair.desk.view(pair.weights).host_bytes == 0, "its contents are on the device alone"
        assert not resident(pair)
        pair.desk.let_go("leave")
        assert isinstance(answered(pair, call), ef.Entered)

    def test_what_failed_late_leaves_what_has_come_in_place_and_paused(self) -> None:
        pair = self.pair()
        call = entering(pair, "leave", deadline=Instant(500))
        pair.desk.at(500)
        pair.desk.let_go("leave")
        assert isinstance(answered(pair, call), WaitExpired)
        assert resident(pair) == {"params"}
        weights = pair.desk.view(pair.weights)
        assert (weights.state, weights.host_bytes, weights.takeable) == (LeaseState.IDLE, 3 * MIB, True)
        pair.desk.set_plan({"generate": ("rollout/weights",), "train": ("trainer/*",)}, order=Order.HOST)
        assert isinstance(pair.desk.enter("generate"), ef.Entered)

    def test_what_its_owner_has_reopened_on_the_way_is_asked_for_again(self) -> None:
        pair = self.pair(budget=8)
        call = entering(pair, "arrive")
        pair.desk.scoped = False
        assert isinstance(pair.desk.pause(pair.trainer, "params"), ef.Paused)
        assert isinstance(pair.desk.resume(pair.trainer, "params"), ef.Resumed)
        asked = len(pair.orders())
        pair.desk.let_go("arrive")
        assert call not in pair.desk.answers
        assert not pair.desk.view(pair.params).paused
        assert len(pair.orders()) == asked + 1
        pair.desk.do(ev.Quiet(session=pair.trainer, order=pair.orders()[-1].order))
        assert isinstance(answered(pair, call), ef.Entered)

    def test_a_leaver_that_dies_between_the_steps_leaves_no_order_behind(self) -> None:
        pair = self.pair()
        call = entering(pair, "arrive")
        pair.desk.do(ev.ProcessEnded(session=pair.trainer))
        pair.desk.let_go("arrive")
        assert isinstance(answered(pair, call), ef.Entered)


def test_contents_of_two_domains_are_paused_as_one_or_not_at_all() -> None:
    desk = Desk(limits(budget=4, file=4), scoped=True)
    one, two = desk.attach(peer(1), "a"), desk.attach(peer(2, domain=Domain("other")), "b")
    first, second = desk.lease(one, "t", 3), desk.lease(two, "t", 3)
    desk.set_plan({"off": ("nobody/*",), "on": ("*/t",)})
    refused = desk.enter("off")
    assert isinstance(refused, OutOfHostMemory)
    assert not desk.view(first).paused and not desk.view(second).paused
    assert desk.view(first).host_bytes == 0
    assert desk.broker.snapshot().host_used_bytes == 0


@pytest.mark.parametrize("order", Order)
def test_dropped_contents_need_no_place(order: Order) -> None:
    desk = Desk(limits(budget=1, file=1), scoped=True)
    one, two = desk.attach(peer(1), "a"), desk.attach(peer(2), "b")
    desk.lease(one, "t", 7, DROP)
    desk.pause(one, "t", release=True)
    desk.lease(two, "t", 7, DROP)
    desk.set_plan({"a": ("a/*",), "b": ("b/*",)}, order=order)
    for phase in ("a", "b", "a"):
        assert isinstance(desk.enter(phase), ef.Entered)


def part_of(pair: Pair) -> TicketId:
    seen = pair.desk.broker.snapshot()
    return next(ticket.ticket for ticket in (*seen.granted, *seen.queue) if ticket.session == "rollout")


@pytest.mark.parametrize("order", Order)
def test_who_cancels_a_part_of_it_undoes_it_all(order: Order) -> None:
    pair = Pair(limits(capacity=10, budget=8, file=1), order=order, cache=4)
    call = entering(pair, "leave")
    assert (pair.desk.view(pair.weights).host_bytes == 0) == (order is Order.HOST)
    assert pair.desk.cancel(part_of(pair), peer(2)) == ef.Done()
    pair.desk.let_go("leave")
    refused = answered(pair, call)
    assert isinstance(refused, Cancelled)
    assert resident(pair) == {"params"}
    assert pair.desk.view(pair.weights).host_bytes == 3 * MIB, "its contents have a place, whatever came of it"


def test_over_its_budget_nothing_comes_and_what_was_there_comes_back() -> None:
    desk = Desk(limits(capacity=10), scoped=True)
    session = desk.attach(peer(1), "both")
    first, second = desk.lease(session, "a", 4), desk.lease(session, "b", 4)
    desk.pause(session, "b", release=True)
    desk.set_plan({"a": ("both/a",), "b": ("both/b",)})
    limit_to(desk, session, 7)
    desk.held_back.add("arrive")
    assert desk.enter("b", deadline=Instant(500)) is None, "what leaves is no hindrance"
    call = desk.last_call
    desk.at(500)
    desk.let_go("arrive")
    assert isinstance(desk.answers[call], WaitExpired)
    assert not desk.view(first).paused and desk.view(second).paused
    limit_to(desk, session, 3, revision=1)
    assert isinstance(desk.enter("b"), QuotaExceeded)
    assert not desk.view(first).paused, "over its budget now, but it was there"


def test_what_is_set_aside_is_for_what_comes() -> None:
    pair = Pair(limits(capacity=12), cache=6)
    judge = pair.desk.attach(peer(3), "judge")
    assert isinstance(pair.desk.hold(pair.rollout, 6), ef.Held)
    pair.desk.lease(judge, "left_alone", 1)
    assert isinstance(pair.desk.enter("generate"), ef.Entered)
    pair.desk.pause(pair.rollout, "weights", "kv_cache", release=True)
    assert isinstance(pair.desk.hold(judge, 4), ef.Held)
    pair.desk.set_plan({"all": ("*/*",)})
    assert isinstance(pair.desk.enter("all"), OutOfDeviceMemory), "what others have set aside is theirs"


def test_what_is_set_aside_for_one_domain_is_no_copy_to_spare_for_another() -> None:
    desk = Desk(limits(capacity=16, budget=6, file=4), scoped=True)
    trainer, judge = desk.attach(peer(1), "trainer"), desk.attach(peer(2, domain=Domain("away")), "judge")
    grads, weights = desk.lease(trainer, "grads", 1), desk.lease(judge, "weights", 4)
    assert desk.seal(trainer, "grads") == ef.Done()
    desk.set_plan({"train": ("trainer/*", "judge/*"), "idle": ("nobody/*",)})
    assert isinstance(desk.enter("idle"), OutOfHostMemory)
    assert [(desk.view(lease).paused, desk.view(lease).host_bytes) for lease in (grads, weights)] == [(False, 0)] * 2


def test_a_session_that_goes_between_the_two_steps_of_a_handover_is_no_failure() -> None:
    pair = Pair(order=Order.HOST, scoped=False)
    pair.desk.held_back.add("arrive")
    assert pair.desk.enter("generate", deadline=LATER) is None
    call = pair.desk.last_call
    (order,) = pair.orders()
    pair.desk.do(ev.Quiet(session=pair.trainer, order=order.order))
    pair.desk.do(ev.ConnectionLost(session=pair.trainer, connection=ConnectionId(1001)))
    again = ev.Reattach(call=pair.desk.call(peer(1)), session=pair.trainer, connection=ConnectionId(7))
    pair.desk.do(again)
    pair.desk.let_go("arrive")
    assert call not in pair.desk.answers, "what leaves in the second step may be in use again"
    pair.desk.do(ev.Detach(call=pair.desk.call(peer(2)), session=pair.rollout))
    pair.desk.do(ev.Quiet(session=pair.trainer, order=order.order))
    entered = pair.desk.answers[call]
    assert isinstance(entered, ef.Entered)
    assert [one.tag for one in entered.paused] == ["params"]
    assert not entered.resumed
