"""Copying ahead: what is idle is copied while the link is, what counts of it, and who may have a place that is written to."""

from dataclasses import replace

import pytest

from tests.unit.core.desk import FAR, HOME, MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import ConnectionId, Domain, Instant, LeaseId, SessionId
from vrambroker.broker.core.phase import Order
from vrambroker.broker.core.snapshot import SlotState

ONE, TWO, ROOT = peer(1), peer(2), peer(99, uid=0)
SOON = 1_000
"""How long a lease is idle before it is copied, here."""


def desk_of(
    *,
    capacity: int = 8,
    budget: int = 64,
    copy_size: int = 1,
    patience: int = 0,
    held_back: tuple[str, ...] = ("copy",),
) -> Desk:
    held_to = limits(
        capacity=capacity, budget=budget, copy_ahead=SOON, copy_size=copy_size, patience=patience, file=budget
    )
    return Desk(held_to, held_back=held_back)


def later(desk: Desk) -> list[ef.SendCopy]:
    """Let the time come for what is idle now; returns all orders to copy so far."""
    desk.at(desk.now + SOON)
    return desk.sent(ef.SendCopy)


def parks(desk: Desk) -> list[bool]:
    """Return, for each slot ordered out so far, whether it had to be copied."""
    return [slot.park is not None for order in desk.sent(ef.SendRecall) for slot in order.slots]


def copied(desk: Desk, lease: LeaseId) -> int:
    return desk.view(lease).copied_bytes // MIB


def report(desk: Desk, order: ef.SendCopy, *, failure: str | None = None) -> None:
    """Answer an order, after everything else."""
    desk.drop("copy")
    slots = () if failure else tuple(slot.slot for slot in order.slots)
    desk.do(ev.Copied(session=order.session, order=order.order, slots=slots, failure=failure))


def idle(desk: Desk, size: int = 2, *, name: str = "trainer", who: ev.Peer = ONE) -> tuple[SessionId, LeaseId]:
    session = desk.attach(who, name)
    lease = desk.lease(session, "weights", size)
    assert desk.pause(session, "weights") == ef.Paused(leases=(lease,))
    return session, lease


def test_what_is_idle_for_long_enough_is_copied_and_taken_without_a_copy() -> None:
    desk = desk_of(held_back=())
    session, lease = idle(desk, 3)
    desk.at(desk.view(lease).since + SOON - 2)
    assert not desk.sent(ef.SendCopy)
    assert desk.broker.next_deadline() == desk.view(lease).since + SOON
    orders = later(desk)
    assert [len(order.slots) for order in orders] == [1, 1, 1]
    assert (copied(desk, lease), desk.view(lease).state) == (3, ef.LeaseState.IDLE)
    told = [line.why for line in desk.sent(ef.Publish) if line.copied_bytes]
    assert told == ["copied out ahead, the link is idle"] * 3
    two = desk.attach(TWO)
    other = desk.lease(two, "kv", 8)
    assert parks(desk) == [False] * 3
    assert any("its contents parked already" in line.why for line in desk.sent(ef.Publish))
    desk.give(two, other)
    desk.resume(session, "weights")
    places = {slot.slot: slot.to for order in orders for slot in order.slots}
    assert {slot.slot: slot.restore for slot in desk.sent(ef.SendGrant)[-1].slots} == places


def test_it_is_off_unless_asked_for() -> None:
    desk = Desk()
    idle(desk)
    desk.at(10 * SOON)
    assert (desk.sent(ef.SendCopy), desk.broker.next_deadline()) == ([], None)


@pytest.mark.parametrize("contents", [ev.Contents.DROP, ev.Contents.ZERO])
def test_only_what_is_kept_is_copied(contents: ev.Contents) -> None:
    desk = desk_of()
    one = desk.attach(ONE)
    desk.lease(one, "kv", 2, contents)
    desk.pause(one, "kv")
    assert not later(desk)


def test_a_few_slots_at_a_time_and_one_order_at_a_time() -> None:
    desk = desk_of(copy_size=2, patience=FAR)
    idle(desk, 3)
    idle(desk, 3, name="rollout", who=TWO)
    (order,) = later(desk)
    assert len(order.slots) == 2
    assert len(later(desk)) == 1
    desk.let_go("copy")
    assert [len(one.slots) for one in desk.sent(ef.SendCopy)] == [2, 1, 2, 1]


def test_a_slot_larger_than_an_order_is_an_order_of_its_own() -> None:
    desk = Desk(limits(capacity=16, sizes=(1, 4), copy_ahead=SOON, copy_size=2), held_back=["copy"])
    idle(desk, 9)
    later(desk)
    desk.let_go("copy")
    assert [[slot.to.size_bytes // MIB for slot in order.slots] for order in desk.sent(ef.SendCopy)] == [[4], [4], [1]]


def test_whoever_is_silent_keeps_the_others_waiting_for_so_long_only() -> None:
    desk = desk_of(patience=5 * SOON)
    idle(desk)
    idle(desk, name="rollout", who=TWO)
    (order,) = later(desk)
    desk.at(desk.now + 4 * SOON)
    assert len(desk.sent(ef.SendCopy)) == 1
    desk.at(desk.now + SOON)
    assert [one.session == order.session for one in desk.sent(ef.SendCopy)] == [True, False]


def test_what_is_taken_first_is_copied_first() -> None:
    desk = desk_of(patience=FAR)
    first, _ = idle(desk, 1)
    second, _ = idle(desk, 1, name="rollout", who=TWO)
    desk.prioritize(first, "weights", priority=5)
    assert [order.session for order in later(desk)] == [second]


def test_not_while_somebody_waits_or_something_moves() -> None:
    desk = desk_of(held_back=("copy", "leave"))
    session, lease = idle(desk, 2)
    two = desk.attach(TWO)
    desk.held_back.add("arrive")
    desk.lend(two, "kv", 3)
    assert not later(desk), "something arrives"
    desk.let_go("arrive")
    (order,) = desk.sent(ef.SendCopy)
    report(desk, order, failure="no")
    other = desk.lease(two, "grads", 2)
    desk.pause(two, "grads", release=True)
    assert desk.view(other).state is ef.LeaseState.LEAVING
    desk.lease(session, "more", 1)
    desk.pause(session, "more")
    assert len(later(desk)) == 1, "something leaves"
    desk.let_go("leave")
    assert len(desk.sent(ef.SendCopy)) == 2
    assert copied(desk, lease) == 0


def test_not_while_a_ticket_waits() -> None:
    desk = desk_of()
    session, _ = idle(desk, 2)
    two = desk.attach(TWO)
    desk.lease(two, "kv", 6)
    desk.hold(session, 8)
    assert not later(desk)
    desk.cancel(desk.queue()[0].ticket, ONE)
    assert len(desk.sent(ef.SendCopy)) == 1


def test_not_when_the_daemon_is_about_to_end() -> None:
    desk = desk_of()
    idle(desk)
    desk.do(ev.Drain())
    assert not later(desk)


def test_the_file_must_be_there() -> None:
    desk = desk_of(held_back=("file",))
    idle(desk)
    assert not later(desk)
    desk.let_go("file")
    assert len(desk.sent(ef.SendCopy)) == 2


def test_a_resume_forgets_copies_of_what_can_be_written_to() -> None:
    desk = desk_of(held_back=())
    session, lease = idle(desk, 2)
    later(desk)
    assert copied(desk, lease) == 2
    desk.resume(session, "weights")
    assert desk.view(lease).host_bytes == 0
    desk.pause(session, "weights", release=True)
    assert parks(desk) == [True, True]


def test_what_is_sealed_keeps_its_copy() -> None:
    desk = desk_of(held_back=())
    session, lease = idle(desk, 2)
    desk.seal(session, "weights")
    later(desk)
    desk.resume(session, "weights")
    assert desk.view(lease).host_bytes == 2 * MIB
    desk.pause(session, "weights", release=True)
    assert parks(desk) == [False, False]


def test_what_is_unsealed_while_it_is_copied_counts_until_it_is_back() -> None:
    desk = desk_of()
    session, lease = idle(desk, 1)
    desk.seal(session, "weights")
    (order,) = later(desk)
    desk.unseal(session, "weights")
    report(desk, order)
    assert copied(desk, lease) == 1
    desk.resume(session, "weights")
    assert desk.view(lease).host_bytes == 0


def test_a_report_after_a_resume_does_not_count() -> None:
    desk = desk_of()
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    report(desk, order)
    assert not any(slot.copied for slot in desk.view(lease).slots)


def test_a_report_of_an_earlier_pause_does_not_count() -> None:
    desk = desk_of(budget=1)
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    desk.pause(session, "weights")
    (slot,) = desk.view(lease).slots
    assert slot.extent == order.slots[0].to, "there is no other place, and it is set aside again"
    report(desk, order)
    assert copied(desk, lease) == 0
    desk.at(desk.now + SOON)
    desk.let_go("copy")
    assert copied(desk, lease) == 1, "in its own time"


def test_what_waits_for_a_place_that_is_written_to_leaves_when_it_is_not() -> None:
    desk = desk_of(budget=1)
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    two = desk.attach(TWO)
    other = desk.lease(two, "kv", 1)
    assert isinstance(desk.pause(two, "kv"), ef.Paused), "no pause is refused for it"
    three = desk.attach(peer(3))
    assert desk.lend(three, "grads", 7) is None
    assert not desk.sent(ef.SendRecall), "late writes would destroy it"
    report(desk, order)
    assert [one.lease for one in desk.sent(ef.SendRecall)] == [other]
    assert isinstance(desk.answers[desk.last_call], ef.Leased)
    assert desk.view(lease).state is ef.LeaseState.RESIDENT


def test_the_same_lease_paused_again_leaves_when_the_report_is_there() -> None:
    desk = desk_of(budget=1)
    session, _ = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    desk.pause(session, "weights", release=True)
    assert not desk.sent(ef.SendRecall)
    report(desk, order)
    assert parks(desk) == [True]


def test_nothing_is_copied_where_somebody_still_writes() -> None:
    desk = desk_of(budget=1)
    session, _ = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    idle(desk, 1, name="rollout", who=TWO)
    assert len(later(desk)) == 1
    report(desk, order)
    assert len(desk.sent(ef.SendCopy)) == 2


def test_a_recall_in_the_same_pause_does_not_wait_for_the_report() -> None:
    desk = desk_of(copy_size=4)
    _, lease = idle(desk, 2)
    (order,) = later(desk)
    two = desk.attach(TWO)
    desk.lease(two, "kv", 7)
    assert parks(desk) == [True], "the agent does both in order"
    report(desk, order)
    states = {slot.state: slot.copied for slot in desk.view(lease).slots}
    assert states == {SlotState.PARKED: True, SlotState.MAPPED: True}


def test_what_is_copied_while_it_leaves_and_stays_after_all_is_copied() -> None:
    desk = desk_of(held_back=("copy", "leave"))
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.pause(session, "weights", release=True)
    report(desk, order)
    (left,) = desk.drop("leave")
    assert isinstance(left, ev.Left)
    desk.do(replace(left, failure="cuMemUnmap"))
    assert [(slot.state, slot.copied) for slot in desk.view(lease).slots] == [(SlotState.MAPPED, True)]


def test_a_failure_is_told_and_not_tried_again_in_this_pause() -> None:
    desk = desk_of()
    session, lease = idle(desk, 2)
    (order,) = later(desk)
    report(desk, order, failure="no such\nextent")
    (line,) = (line for line in desk.sent(ef.Publish) if line.kind is ef.Kind.COPY_FAILED)
    assert line.why == "trainer/weights could not be copied ahead: no such?extent"
    assert len(later(desk)) == 1
    assert (desk.view(lease).state, desk.view(lease).takeable) == (ef.LeaseState.IDLE, True)
    desk.resume(session, "weights")
    desk.pause(session, "weights")
    assert len(later(desk)) == 2


def test_an_agent_that_copies_nothing_is_not_asked_for_ever() -> None:
    desk = desk_of()
    idle(desk)
    (order,) = later(desk)
    desk.drop("copy")
    desk.do(ev.Copied(session=order.session, order=order.order, slots=(), failure=None))
    assert len(later(desk)) == 1


def test_what_is_reported_in_part_counts_in_part() -> None:
    desk = desk_of(copy_size=4)
    _, lease = idle(desk, 3)
    (order,) = later(desk)
    desk.drop("copy")
    desk.do(ev.Copied(session=order.session, order=order.order, slots=(order.slots[1].slot,), failure="no"))
    assert copied(desk, lease) == 1
    two = desk.attach(TWO)
    desk.lease(two, "kv", 6)
    assert parks(desk) == [False], "what is copied goes first"


def test_doubled_reports_strangers_and_nonsense_are_passed_over() -> None:
    desk = desk_of(copy_size=4)
    session, lease = idle(desk, 2)
    two = desk.attach(TWO)
    (order,) = later(desk)
    slots = tuple(slot.slot for slot in order.slots)
    desk.drop("copy")
    desk.do(ev.Copied(session=two, order=order.order, slots=slots, failure=None))
    desk.do(ev.Copied(session=SessionId(777), order=order.order, slots=slots, failure=None))
    assert copied(desk, lease) == 0
    desk.do(ev.Copied(session=session, order=order.order, slots=(*slots, *slots, slots[0]), failure=None))
    assert copied(desk, lease) == 2
    desk.do(ev.Copied(session=session, order=order.order, slots=slots, failure="late"))
    assert copied(desk, lease) == 2


def test_an_old_report_that_comes_again_says_nothing_of_the_next_order() -> None:
    desk = desk_of(budget=1)
    session, lease = idle(desk, 1)
    (first,) = later(desk)
    report(desk, first)
    desk.resume(session, "weights")
    desk.pause(session, "weights")
    (_, second) = later(desk)
    assert first.slots == second.slots
    report(desk, first)
    assert copied(desk, lease) == 0
    report(desk, second)
    assert copied(desk, lease) == 1


def test_a_slot_that_was_not_named_does_not_count() -> None:
    desk = desk_of()
    _, lease = idle(desk, 2)
    (order,) = later(desk)
    desk.drop("copy")
    every = tuple(slot.slot for slot in desk.view(lease).slots)
    desk.do(ev.Copied(session=order.session, order=order.order, slots=every, failure=None))
    assert copied(desk, lease) == 1


def test_an_order_of_an_earlier_pause_is_sent_again_to_be_answered_only() -> None:
    desk = desk_of(budget=1)
    session, _ = idle(desk, 1)
    (order,) = later(desk)
    desk.resume(session, "weights")
    desk.pause(session, "weights")
    desk.do(ev.Reattach(call=desk.call(ONE), session=session, connection=ConnectionId(2001)))
    assert desk.sent(ef.SendCopy)[1:] == [replace(order, slots=())]


def test_an_order_is_sent_again_over_a_new_connection_also_when_it_counts_no_more() -> None:
    desk = desk_of()
    session, _ = idle(desk, 1)
    (order,) = later(desk)
    desk.do(ev.ConnectionLost(session=session, connection=ConnectionId(1001)))
    for connection in (2001, 2002):
        desk.do(ev.Reattach(call=desk.call(ONE), session=session, connection=ConnectionId(connection)))
        assert desk.sent(ef.SendCopy)[-1] == order
        desk.resume(session, "weights")
        order = replace(order, slots=())
    assert len(desk.sent(ef.SendCopy)) == 3


def test_who_is_away_is_not_asked() -> None:
    desk = desk_of()
    session, _ = idle(desk, 1)
    desk.do(ev.ConnectionLost(session=session, connection=ConnectionId(1001)))
    assert not later(desk)
    desk.do(ev.Reattach(call=desk.call(ONE), session=session, connection=ConnectionId(2001)))
    assert len(desk.sent(ef.SendCopy)) == 1


def test_a_lease_that_is_returned_keeps_its_places_from_others_until_the_report() -> None:
    desk = desk_of(budget=1)
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.give(session, lease)
    two = desk.attach(TWO)
    desk.lease(two, "kv", 1)
    desk.pause(two, "kv", release=True)
    assert not desk.sent(ef.SendRecall)
    report(desk, order, failure="there is no such lease")
    assert len(desk.sent(ef.SendRecall)) == 1


def test_who_says_goodbye_writes_no_more() -> None:
    desk = desk_of(budget=1)
    session, _ = idle(desk, 1)
    later(desk)
    two = desk.attach(TWO)
    desk.answer(ev.Detach(call=desk.call(ONE), session=session))
    desk.lease(two, "kv", 1)
    desk.pause(two, "kv", release=True)
    assert len(desk.sent(ef.SendRecall)) == 1


def test_who_has_died_may_write_until_it_is_fenced() -> None:
    desk = desk_of(budget=1, held_back=("copy", "fence"))
    session, _ = idle(desk, 1)
    later(desk)
    two = desk.attach(TWO)
    desk.do(ev.ProcessEnded(session=session))
    desk.lease(two, "kv", 1)
    desk.pause(two, "kv", release=True)
    assert not desk.sent(ef.SendRecall)
    desk.let_go("fence")
    assert len(desk.sent(ef.SendRecall)) == 1


def test_who_has_died_and_has_no_frames_writes_no_more() -> None:
    desk = desk_of(budget=1)
    session, lease = idle(desk, 1)
    later(desk)
    two = desk.attach(TWO)
    desk.give(session, lease)
    desk.do(ev.ProcessEnded(session=session))
    desk.lease(two, "kv", 1)
    desk.pause(two, "kv", release=True)
    assert len(desk.sent(ef.SendRecall)) == 1


def test_a_file_can_go_before_the_report_that_was_about_it() -> None:
    desk = desk_of(budget=2)
    session, lease = idle(desk, 1)
    (order,) = later(desk)
    desk.give(session, lease)
    stranger = desk.attach(peer(7, domain=Domain("away")))
    desk.lease(stranger, "kv", 2)
    assert isinstance(desk.pause(stranger, "kv"), ef.Paused)
    assert not [one for one in desk.broker.snapshot().arena if one.domain == HOME], "its agent has let go of it"
    report(desk, order)


@pytest.mark.parametrize("fails", [False, True])
def test_a_place_that_a_change_of_phase_gives_up_is_filled_after_the_report(fails: bool) -> None:
    desk = desk_of(budget=2)
    desk.scoped = True
    _, weights = idle(desk, 2)
    two = desk.attach(TWO, "rollout")
    kv = desk.lease(two, "kv", 2)
    (order,) = later(desk)
    desk.set_plan({"train": ("trainer/*",), "generate": ("rollout/*",)}, order=Order.HOST)
    assert isinstance(desk.enter("train"), ef.Entered)
    assert (desk.view(weights).host_bytes, desk.view(kv).host_bytes) == (0, 2 * MIB)
    three = desk.attach(peer(3))
    desk.lend(three, "grads", 5)
    assert not desk.sent(ef.SendRecall)
    report(desk, order, failure="no" if fails else None)
    assert [recall.lease for recall in desk.sent(ef.SendRecall)] == [kv]
    assert not any(slot.copied for slot in desk.view(weights).slots)


def test_what_was_given_up_for_a_change_of_phase_that_fails_is_copied_anew() -> None:
    desk = desk_of(budget=6)
    desk.scoped = True
    judge = desk.attach(peer(3), "judge")
    desk.lease(judge, "scores", 4, ev.Contents.DROP)
    desk.pause(judge, "scores", release=True)
    _, weights = idle(desk, 2)
    two = desk.attach(TWO, "rollout")
    desk.lease(two, "kv", 4)
    (order,) = later(desk)
    desk.set_plan({"train": ("trainer/*", "judge/*"), "generate": ("rollout/*",)}, order=Order.HOST)
    desk.held_back.add("leave")
    assert desk.enter("train", deadline=Instant(desk.now + 100)) is None
    assert desk.view(weights).host_bytes == 0
    desk.at(desk.now + 200)
    desk.let_go("leave")
    assert (desk.view(weights).state, desk.view(weights).host_bytes) == (ef.LeaseState.IDLE, 2 * MIB)
    report(desk, order)
    assert copied(desk, weights) == 0
    later(desk)
    desk.let_go("copy")
    assert copied(desk, weights) == 2


def test_many_that_cannot_be_copied_keep_nobody_else_from_it() -> None:
    desk = Desk(limits(capacity=100, budget=128, copy_ahead=10, leases=128))
    away, there = desk.attach(peer(1)), desk.attach(peer(2))
    for number in range(66):
        desk.lease(away, f"t{number}", 1)
    desk.lease(there, "x", 1)
    desk.held_back.add("copied")
    desk.do(ev.ConnectionLost(session=away, connection=ConnectionId(1001)))
    for number in range(66):
        desk.pause(away, f"t{number}")
    desk.pause(there, "x")
    desk.effects.clear()
    for _ in range(4):
        due = desk.broker.next_deadline()
        if due is not None and not desk.sent(ef.SendCopy):
            desk.at(due)
    assert [one.session for one in desk.sent(ef.SendCopy)] == [there]
