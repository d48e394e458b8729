"""Resume: all or none, first come first served, and nobody waits whom the free memory would do."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import (
    Draining,
    DriverFailed,
    NotOwner,
    OutOfDeviceMemory,
    UnknownTag,
    WaitExpired,
)
from vrambroker.broker.core.ids import Instant, LeaseId, SessionId

DROP, KEEP = ev.Contents.DROP, ev.Contents.KEEP


def swap(desk: Desk) -> tuple[SessionId, SessionId, LeaseId, LeaseId]:
    """Return a trainer whose 6 MiB are parked, and a rollout that has 6 of the 8 MiB, resident."""
    one, two = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    parked = desk.lease(one, "w", 6)
    desk.pause(one, "w", release=True)
    there = desk.lease(two, "kv", 6, DROP)
    return one, two, parked, there


def test_from_idle_nothing_moves_and_the_pages_are_the_same() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w")
    grants = len(desk.sent(ef.SendGrant))
    same = ef.Resumed(leases=(ef.ResumedLease(lease=lease, tag="w", same_pages=True),))
    assert desk.resume(session, "w", wait=False) == same
    assert desk.resume(session, "w") == same, "resuming what is resident is no error"
    assert len(desk.sent(ef.SendGrant)) == grants
    assert [state.paused for state in desk.sent(ef.SendLeaseState)] == [True, False]


def test_from_parked_the_contents_are_restored_and_the_pages_are_new() -> None:
    desk = Desk()
    one, two, parked, _ = swap(desk)
    desk.pause(two, "kv")
    answer = desk.resume(one, "w")
    assert answer == ef.Resumed(leases=(ef.ResumedLease(lease=parked, tag="w", same_pages=False),))
    grant = desk.sent(ef.SendGrant)[-1]
    assert all(slot.restore is not None for slot in grant.slots)
    assert len({slot.restore for slot in grant.slots}) == 6
    assert desk.view(parked).state is LeaseState.RESIDENT
    assert desk.view(parked).host_bytes == 0
    again = desk.resume(one, "w")
    assert isinstance(again, ef.Resumed)
    assert not again.leases[0].same_pages, "somebody who did not ask before has to hear it too"


def test_state_is_told_before_the_answer() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    desk.resume(session, "w")
    told = [effect for effect in desk.effects if isinstance(effect, ef.SendLeaseState | ef.Reply)]
    assert isinstance(told[-2], ef.SendLeaseState)
    assert isinstance(told[-1], ef.Reply)


def test_what_is_not_certain_is_refused_at_once_unless_it_may_wait() -> None:
    desk = Desk()
    one, _, parked, _ = swap(desk)
    before = desk.broker.snapshot()
    refused = desk.resume(one, "w", wait=False)
    assert isinstance(refused, OutOfDeviceMemory)
    assert [(holder.session, holder.size_bytes // MIB) for holder in refused.holders] == [("rollout", 6)]
    assert desk.broker.snapshot() == before
    assert desk.resume(one, "w", deadline=Instant(300)) is None
    call = desk.last_call
    (ticket,) = desk.queue()
    assert (ticket.session, ticket.tags, ticket.size_bytes, ticket.admitted) == ("trainer", ("w",), 6 * MIB, False)
    assert ticket.waits_for[0].tag == "kv"
    desk.at(300)
    assert isinstance(desk.answers[call], OutOfDeviceMemory)
    assert desk.view(parked).state is LeaseState.PARKED
    assert not desk.queue()


def test_a_resume_waits_for_a_peer_to_pause() -> None:
    desk = Desk()
    one, two, parked, there = swap(desk)
    desk.resume(one, "w")
    call = desk.last_call
    desk.pause(two, "kv")
    assert isinstance(desk.answers[call], ef.Resumed)
    assert (desk.view(parked).state, desk.view(there).device_bytes) == (LeaseState.RESIDENT, 2 * MIB)


def test_a_resume_waits_for_a_peer_to_return() -> None:
    desk = Desk()
    one, two, _, there = swap(desk)
    desk.resume(one, "w")
    call = desk.last_call
    desk.give(two, there)
    assert isinstance(desk.answers[call], ef.Resumed)


def test_a_peer_that_has_not_let_go_in_time_is_named() -> None:
    desk = Desk(held_back=("leave",))
    one = desk.attach(peer(1), "trainer")
    two = desk.attach(peer(2), "rollout")
    parked = desk.lease(one, "w", 6)
    desk.pause(one, "w", release=True)
    desk.let_go("leave")
    there = desk.lease(two, "kv", 6)
    desk.held_back.add("leave")
    desk.pause(two, "kv")
    desk.resume(one, "w", deadline=Instant(300))
    call = desk.last_call
    desk.at(300)
    refused = desk.answers[call]
    assert isinstance(refused, WaitExpired)
    assert [(holder.session, holder.tag) for holder in refused.holders] == [("rollout", "kv")]
    desk.let_go("leave")
    assert desk.view(parked).state is LeaseState.PARKED, "what it had got goes back"
    assert desk.free == 6
    assert desk.view(there).device_bytes == 2 * MIB


def test_all_tags_or_none() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "a", 3, DROP)
    desk.lease(one, "b", 3, DROP)
    desk.pause(one, "a", "b", release=True)
    desk.lease(two, "kv", 4, DROP)
    before = [lease.state for lease in desk.broker.snapshot().sessions[0].leases]
    assert isinstance(desk.resume(one, "a", "b", wait=False), OutOfDeviceMemory)
    assert isinstance(desk.resume(one, "a", "nothing"), UnknownTag)
    assert [lease.state for lease in desk.broker.snapshot().sessions[0].leases] == before
    assert isinstance(desk.resume(one, "a", wait=False), ef.Resumed)


def test_more_than_the_device_has_is_refused_at_once() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    for tag in ("a", "b", "c"):
        desk.lease(session, tag, 3, DROP)
        desk.pause(session, tag, release=True)
    refused = desk.resume(session, "a", "b", "c")
    assert isinstance(refused, OutOfDeviceMemory)
    assert refused.requested_bytes == 9 * MIB


def test_the_leases_of_one_ticket_are_not_recalled_for_each_other() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    idle = desk.lease(session, "idle", 3, DROP)
    away = desk.lease(session, "away", 3, DROP)
    desk.pause(session, "away", release=True)
    desk.pause(session, "idle")
    other = desk.lease(session, "other", 4, DROP)
    desk.pause(session, "other")
    answer = desk.resume(session, "idle", "away")
    assert isinstance(answer, ef.Resumed)
    assert {one.lease: one.same_pages for one in answer.leases} == {idle: True, away: False}
    assert desk.view(other).device_bytes == 2 * MIB


def test_waiting_is_first_come_first_served() -> None:
    desk = Desk()
    one, two, three = (desk.attach(peer(pid), name) for pid, name in ((1, "a"), (2, "b"), (3, "c")))
    for session in (one, two):
        desk.lease(session, "w", 4, DROP)
        desk.pause(session, "w", release=True)
    taken = desk.lease(three, "kv", 8, DROP)
    desk.resume(one, "w")
    first = desk.last_call
    desk.resume(two, "w")
    second = desk.last_call
    assert [ticket.session for ticket in desk.queue()] == ["a", "b"]
    slots = [slot.slot for slot in desk.view(taken).slots]
    desk.give(three, taken, slots[:4])
    assert first in desk.answers
    assert second not in desk.answers
    desk.give(three, taken, slots[4:])
    assert second in desk.answers


def test_what_fits_in_what_is_free_does_not_wait_behind_what_does_not() -> None:
    desk = Desk()
    one, two, three = (desk.attach(peer(pid), name) for pid, name in ((1, "a"), (2, "b"), (3, "c")))
    desk.lease(one, "w", 6, DROP)
    desk.pause(one, "w", release=True)
    desk.lease(two, "w", 1, DROP)
    desk.pause(two, "w", release=True)
    taken = desk.lease(three, "kv", 8, DROP)
    desk.resume(one, "w")
    large = desk.last_call
    desk.resume(two, "w")
    small = desk.last_call
    desk.give(three, taken, [desk.view(taken).slots[0].slot])
    assert isinstance(desk.answers[small], ef.Resumed)
    assert large not in desk.answers


def test_the_head_of_the_queue_is_not_robbed_of_what_is_idle() -> None:
    desk = Desk()
    one, two, three = (desk.attach(peer(pid), name) for pid, name in ((1, "a"), (2, "b"), (3, "c")))
    for session, size in ((one, 8), (two, 2)):
        desk.lease(session, "w", size, DROP)
        desk.pause(session, "w", release=True)
    desk.lease(three, "x", 4, DROP)
    idle = desk.lease(three, "y", 4, DROP)
    desk.resume(one, "w")
    desk.pause(three, "y")
    desk.resume(two, "w")
    assert desk.last_call not in desk.answers
    assert desk.view(idle).state is LeaseState.IDLE


def test_who_asks_for_something_at_once_does_not_overtake_who_waits() -> None:
    desk = Desk()
    one, two, three = desk.attach(peer(1), "a"), desk.attach(peer(2), "b"), desk.attach(peer(3), "c")
    desk.lease(one, "a", 7)
    desk.pause(one, "a", release=True)
    desk.lease(two, "b", 3)
    desk.pause(two, "b", release=True)
    desk.lease(three, "busy", 2)
    idle = desk.lease(three, "idle", 5)
    desk.pause(three, "idle")
    assert desk.resume(one, "a") is None
    waiting = desk.last_call
    refusals = desk.resume(two, "b", wait=False), desk.lend(two, "x", 2)
    for refused in refusals:
        assert isinstance(refused, OutOfDeviceMemory)
        assert refused.message.endswith("a/a has waited longer")
    assert desk.view(idle).state is LeaseState.IDLE
    assert isinstance(desk.lend(two, "x", 1), ef.Leased), "what fits in what is free is never kept waiting"
    desk.pause(three, "busy")
    assert isinstance(desk.answers[waiting], ef.Resumed)


def test_who_waits_for_what_another_brings_back_keeps_nobody_from_what_is_idle() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "a"), desk.attach(peer(2), "b")
    desk.lease(one, "w", 3)
    desk.pause(one, "w", release=True)
    desk.lease(two, "idle", 5)
    desk.pause(two, "idle")
    desk.held_back.add("arrive")
    desk.resume(one, "w")
    desk.resume(one, "w")
    assert desk.lend(two, "x", 2) is None
    call = desk.last_call
    desk.let_go("arrive")
    assert isinstance(desk.answers[call], ef.Leased)


def test_a_second_resume_of_the_same_lease_is_answered_with_the_first() -> None:
    desk = Desk(held_back=("arrive",))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    desk.let_go("arrive")
    desk.pause(session, "w", release=True)
    desk.held_back.add("arrive")
    desk.resume(session, "w")
    first = desk.last_call
    desk.resume(session, "w", wait=False)
    second = desk.last_call
    assert second not in desk.answers
    desk.let_go("arrive")
    assert desk.answers[first] == desk.answers[second]
    assert len(desk.sent(ef.SendGrant)) == 2


def test_a_lease_on_its_way_out_comes_back_only_once_it_is_out() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    release = desk.last_call
    desk.resume(session, "w")
    resume = desk.last_call
    assert release not in desk.answers
    desk.let_go("leave")
    assert list(desk.answers)[-2:] == [release, resume]
    assert desk.view(lease).state is LeaseState.RESIDENT


def test_a_recall_that_was_only_decided_is_called_off_when_nobody_needs_it() -> None:
    desk = Desk(held_back=("file",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(one, "w", 6)
    desk.pause(one, "w")
    assert desk.lend(two, "kv", 4, deadline=Instant(300)) is None
    assert desk.view(idle).state is LeaseState.LEAVING
    desk.at(300)
    assert isinstance(desk.answers[desk.last_call], WaitExpired)
    assert desk.view(idle).state is LeaseState.IDLE
    desk.let_go("file")
    assert not [sent for sent in desk.sent(ef.SendRecall) if sent.lease == idle]
    answer = desk.resume(one, "w")
    assert isinstance(answer, ef.Resumed)
    assert answer.leases[0].same_pages


def test_a_restore_that_fails_is_undone_and_may_be_tried_again() -> None:
    desk = Desk()
    one, two, parked, there = swap(desk)
    desk.give(two, there)
    desk.held_back.add("arrive")
    desk.resume(one, "w")
    call = desk.last_call
    slots = [slot.slot for slot in desk.sent(ef.SendGrant)[-1].slots]
    places = {slot.slot: slot.extent for slot in desk.view(parked).slots}
    desk.drop("arrive")
    desk.do(ev.Arrived(session=one, lease=parked, slots=tuple(slots[:2]), failure=None))
    assert {slot.slot: slot.extent for slot in desk.view(parked).slots} == places, "the parked copy stays"
    desk.do(ev.Arrived(session=one, lease=parked, slots=(slots[2],), failure="ENOMEM"))
    refused = desk.answers[call]
    assert isinstance(refused, DriverFailed)
    recall = desk.sent(ef.SendRecall)[-1]
    assert {(slot.slot, slot.park) for slot in recall.slots} == {(slots[0], None), (slots[1], None)}
    desk.do(ev.Arrived(session=one, lease=parked, slots=tuple(slots[3:]), failure=None))
    assert (desk.view(parked).state, desk.free) == (LeaseState.PARKED, 8)
    assert {slot.slot: slot.extent for slot in desk.view(parked).slots} == places
    desk.held_back.clear()
    assert isinstance(desk.resume(one, "w"), ef.Resumed)


def test_a_return_of_one_of_the_leases_lets_the_rest_come_back() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "a", 3, DROP)
    gone = desk.lease(one, "b", 5, DROP)
    desk.pause(one, "a", "b", release=True)
    desk.lease(two, "kv", 5, DROP)
    desk.resume(one, "a", "b")
    call = desk.last_call
    desk.give(one, gone)
    answer = desk.answers[call]
    assert isinstance(answer, ef.Resumed)
    assert [lease.tag for lease in answer.leases] == ["a"]


def test_a_return_of_the_only_lease_refuses_its_resume() -> None:
    desk = Desk()
    one, _, parked, _ = swap(desk)
    desk.resume(one, "w")
    call = desk.last_call
    desk.give(one, parked)
    assert isinstance(desk.answers[call], UnknownTag)


def test_a_resume_nobody_waits_for_is_withdrawn() -> None:
    desk = Desk()
    one, _, _, _ = swap(desk)
    desk.resume(one, "w")
    call = desk.last_call
    desk.do(ev.CallAbandoned(call=call))
    assert isinstance(desk.answers[call], WaitExpired)
    assert not desk.queue()
    desk.do(ev.CallAbandoned(call=call))


def test_a_resume_under_way_goes_on_without_its_caller_and_a_replay_hears_of_it() -> None:
    desk = Desk(held_back=("arrive",))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    desk.let_go("arrive")
    desk.pause(session, "w", release=True)
    desk.held_back.add("arrive")
    ask = {"session": session, "tags": ("w",), "wait": True}
    event = ev.Resume(call=desk.call(peer(1), "r"), session=session, tags=("w",), wait=True, deadline=Instant(900))
    desk.do(event)
    desk.do(ev.CallAbandoned(call=event.call.call))
    desk.let_go("arrive")
    again = ev.Resume(call=desk.call(peer(1), "r"), session=session, tags=("w",), wait=True, deadline=Instant(950))
    assert desk.answer(again) == desk.answers[event.call.call]
    assert ask["wait"]


def test_who_may_resume_and_when() -> None:
    desk = Desk()
    session = desk.attach(peer(1, uid=5))
    desk.lease(session, "w", 1)
    desk.pause(session, "w")
    assert isinstance(desk.resume(session, "w", actor=peer(2, uid=6)), NotOwner)
    desk.do(ev.Drain())
    assert isinstance(desk.resume(session, "w"), Draining)
    assert isinstance(desk.pause(session, "w", release=True), ef.Paused)
    assert isinstance(desk.give(session, desk.broker.snapshot().sessions[0].leases[0].lease), ef.Done)


@pytest.mark.parametrize("sizes", [(1,), (1, 4)])
def test_two_that_do_not_fit_together_take_turns(sizes: tuple[int, ...]) -> None:
    desk = Desk(limits(sizes=sizes, capacity=8, budget=64))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "w", 6)
    desk.pause(one, "w")
    desk.lease(two, "kv", 7)
    for _ in range(3):
        desk.pause(two, "kv")
        assert isinstance(desk.resume(one, "w"), ef.Resumed)
        desk.pause(one, "w")
        assert isinstance(desk.resume(two, "kv"), ef.Resumed)
    assert desk.broker.snapshot().peak_lent_bytes <= 8 * MIB


def test_who_could_not_leave_is_not_asked_again_until_its_owner_has_paused_anew() -> None:
    desk = Desk(held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    stuck = desk.lease(one, "w", 6, DROP)
    desk.pause(one, "w")
    desk.lend(two, "kv", 4)
    call = desk.last_call
    slots = tuple(slot.slot for slot in desk.sent(ef.SendRecall)[0].slots)
    desk.drop("leave")
    desk.do(ev.Left(session=one, lease=stuck, slots=slots, failure="EIO"))
    desk.let_go("leave")
    assert isinstance(desk.answers[call], OutOfDeviceMemory)
    assert isinstance(desk.lend(two, "kv", 4), OutOfDeviceMemory)
    assert len([sent for sent in desk.sent(ef.SendRecall) if sent.lease == stuck]) == 1
    desk.resume(one, "w")
    desk.pause(one, "w")
    desk.let_go("leave")
    assert isinstance(desk.lend(two, "kv", 4), ef.Leased)


def test_a_return_into_the_pool_is_no_less_of_a_return() -> None:
    desk = Desk(limits(pool=8))
    one, two, _, there = swap(desk)
    desk.resume(one, "w")
    call = desk.last_call
    slots = [slot.slot for slot in desk.view(there).slots]
    desk.give(two, there, slots[:4])
    assert isinstance(desk.answers[call], ef.Resumed)


def test_a_lease_whose_first_growth_failed_stays_as_its_agent_knows_it() -> None:
    desk = Desk(held_back=("arrive", "leave"))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    (grant,) = desk.sent(ef.SendGrant)
    first, second = (slot.slot for slot in grant.slots)
    desk.drop("arrive")
    desk.do(ev.Arrived(session=session, lease=grant.lease, slots=(first,), failure=None))
    desk.do(ev.Arrived(session=session, lease=grant.lease, slots=(second,), failure="EINVAL"))
    desk.drop("leave")
    desk.do(ev.Left(session=session, lease=grant.lease, slots=(first,), failure="EIO"))
    assert [slot.slot for slot in desk.view(grant.lease).slots] == [first]
    desk.give(session, grant.lease, [first])
    assert not desk.view(grant.lease).slots
    desk.let_go("arrive")
    assert desk.lease(session, "w", 2) == grant.lease, "its agent would take no other under the tag"
