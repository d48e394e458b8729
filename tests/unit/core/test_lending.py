"""Lease, claim, return: what grows a lease and what shrinks it."""

import pytest

from tests.unit.core.desk import FAR, MIB, Answer, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import (
    Draining,
    DriverFailed,
    InvalidArgument,
    NotOwner,
    OutOfDeviceMemory,
    QuotaExceeded,
    RequestConflict,
    UnknownLease,
    UnknownSession,
    UnknownTag,
    WrongState,
)
from vrambroker.broker.core.ids import Domain, Instant, LeaseId, RequestId, SessionId

KEEP, DROP = ev.Contents.KEEP, ev.Contents.DROP


def test_a_lease_is_answered_when_its_frames_have_arrived() -> None:
    desk = Desk(held_back=("create", "arrive"))
    session = desk.attach(peer(1))
    assert desk.lend(session, "w", 2) is None
    call = desk.last_call
    desk.let_go("create")
    (grant,) = desk.sent(ef.SendGrant)
    assert (grant.tag, grant.contents, len(grant.slots)) == ("w", KEEP, 2)
    assert not any(slot.dirty or slot.restore for slot in grant.slots)
    assert call not in desk.answers
    desk.let_go("arrive")
    assert desk.answers[call] == ef.Leased(lease=grant.lease, claim=0)


def test_a_size_is_rounded_up_and_made_of_the_largest_frames_that_fit() -> None:
    desk = Desk(limits(capacity=16, sizes=(1, 4)))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 10)
    assert [slot.size_bytes // MIB for slot in desk.view(lease).slots] == [4, 4, 1, 1]
    odd = ev.Lease(
        call=desk.call(peer(1)), session=session, tag="o", contents=DROP, size_bytes=1, claimed=True, deadline=FAR
    )
    answer = desk.answer(odd)
    assert isinstance(answer, ef.Leased)
    assert desk.view(answer.lease).device_bytes == MIB


def test_what_is_asked_to_spare_is_lent_while_it_is_free() -> None:
    desk = Desk(limits(capacity=16, sizes=(1, 4)))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 4)
    answer = desk.lend(session, "w", 2, spare=3)
    assert answer == ef.Leased(lease=lease, claim=0)
    # A frame of 4 would be more than a quarter of the lease, and more than was needed.
    assert [slot.size_bytes // MIB for slot in desk.view(lease).slots] == [4, 1, 1, 1, 1, 1]
    # 7 are free: what is needed, but not what is to spare.
    desk.lend(session, "w", 4, spare=4)
    assert desk.view(lease).device_bytes == 13 * MIB


def test_what_is_to_spare_is_made_of_large_frames_in_a_large_lease() -> None:
    desk = Desk(limits(capacity=32, sizes=(1, 4)))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 16)
    desk.lend(session, "w", 1, spare=8)
    assert [slot.size_bytes // MIB for slot in desk.view(lease).slots] == [4, 4, 4, 4, 4, 4, 1]


def test_what_is_to_spare_is_taken_from_nobody() -> None:
    desk = Desk(limits(capacity=8))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(other, "idle", 4)
    desk.pause(other, "idle")
    lease = desk.lease(session, "w", 2)
    desk.lend(session, "w", 1, spare=2)
    assert desk.view(lease).device_bytes == 3 * MIB
    assert desk.view(idle).device_bytes == 4 * MIB


def test_nothing_is_to_spare_while_somebody_waits() -> None:
    desk = Desk(limits(capacity=8))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(session, "a", 4)
    desk.pause(session, "a")
    holds = desk.lease(other, "w", 4)
    desk.pause(session, "a", release=True)
    desk.lend(other, "w", 1)
    assert desk.resume(session, "a", wait=True) is None
    desk.lend(other, "w", 1, spare=1)
    assert desk.view(holds).device_bytes == 6 * MIB


def test_session_tag_and_contents_name_one_lease() -> None:
    desk = Desk()
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 1)
    assert desk.lease(session, "w", 2) == lease
    assert len({lease, desk.lease(session, "w", 1, DROP), desk.lease(other, "w", 1)}) == 3
    assert desk.view(lease).device_bytes == 3 * MIB


@pytest.mark.parametrize("size", [0, -1, 9, 1 << 60])
def test_a_size_that_can_never_be_is_told_apart(size: int) -> None:
    desk = Desk()
    refused = desk.lend(desk.attach(peer(1)), "w", size)
    assert isinstance(refused, InvalidArgument)
    assert refused.argument == "size_bytes"


@pytest.mark.parametrize("tag", ["", "a/b", "x" * 65, "ü"])
def test_a_tag_with_odd_characters_is_refused(tag: str) -> None:
    desk = Desk()
    assert isinstance(desk.lend(desk.attach(peer(1)), tag, 1), InvalidArgument)


def test_only_the_process_itself_leases_and_only_while_it_lives() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    before = desk.broker.snapshot()
    assert isinstance(desk.lend(session, "w", 1, actor=peer(2)), NotOwner)
    assert isinstance(desk.lend(session, "w", 1, actor=peer(1, uid=0)), NotOwner)
    assert isinstance(desk.lend(SessionId(99), "w", 1, actor=peer(1)), UnknownSession)
    desk.broker.check()
    assert desk.broker.snapshot() == before
    desk.do(ev.Drain())
    assert isinstance(desk.lend(session, "w", 1), Draining)


def test_what_is_not_certain_is_refused_at_once_with_the_holders() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    desk.lease(one, "w", 5)
    desk.lease(two, "kv", 1)
    before = desk.broker.snapshot()
    refused = desk.lend(two, "kv", 3)
    assert isinstance(refused, OutOfDeviceMemory)
    assert (refused.requested_bytes, refused.free_bytes, refused.capacity_bytes) == (3 * MIB, 2 * MIB, 8 * MIB)
    assert [(one.session, one.tag, one.state, one.size_bytes // MIB) for one in refused.holders] == [
        ("trainer", "w", "resident", 5),
        ("rollout", "kv", "resident", 1),
    ]
    assert desk.broker.snapshot() == before


def test_a_lease_waits_for_an_idle_one_to_be_recalled() -> None:
    desk = Desk(held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(one, "w", 6, DROP)
    desk.pause(one, "w")
    assert desk.lend(two, "kv", 5) is None
    desk.let_go("leave")
    assert isinstance(desk.answers[desk.last_call], ef.Leased)
    grant = desk.sent(ef.SendGrant)[-1]
    assert sum(slot.dirty for slot in grant.slots) == 3, "recycled frames are dirty, new ones are not"
    assert desk.free == 0
    assert desk.view(idle).device_bytes == 3 * MIB, "no more is taken than it takes"


def test_frames_of_another_domain_are_not_recycled() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2, domain=Domain("away")))
    desk.lease(one, "w", 8, DROP)
    desk.pause(one, "w")
    desk.lease(two, "kv", 8)
    assert not any(slot.dirty for slot in desk.sent(ef.SendGrant)[-1].slots)
    assert len(desk.sent(ef.DestroyFrame)) == 8


def test_a_paused_lease_does_not_grow() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 1)
    desk.pause(session, "w")
    for contents in (KEEP, DROP):
        refused = desk.lend(session, "w", 1, contents)
        assert isinstance(refused, WrongState)
        assert (refused.tag, refused.state) == ("w", "idle")


def test_limits_on_leases_slots_and_waiting_calls() -> None:
    desk = Desk(limits(leases=2, slots=3, tickets=2), held_back=("arrive",))
    session = desk.attach(peer(1))
    desk.lend(session, "a", 3)
    refused = desk.lend(session, "a", 1)
    assert isinstance(refused, QuotaExceeded)
    assert refused.limit == "slots_per_lease_max"
    desk.lend(session, "b", 1)
    refused = desk.lend(session, "b", 1)
    assert isinstance(refused, QuotaExceeded)
    assert refused.limit == "tickets_per_session_max"
    desk.let_go("arrive")
    refused = desk.lend(session, "c", 1)
    assert isinstance(refused, QuotaExceeded)
    assert refused.limit == "leases_per_session_max"


def test_an_unclaimed_lease_is_granted_when_its_claim_is_presented_once() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    answer = desk.lend(session, "w", 2, claimed=False)
    assert isinstance(answer, ef.Leased)
    assert answer.claim
    assert not desk.sent(ef.SendGrant)
    assert desk.broker.snapshot().held_bytes == 2 * MIB
    stranger = desk.attach(peer(2))
    foreign = ev.Claim(call=desk.call(peer(2)), session=stranger, claim=answer.claim)
    assert isinstance(desk.answer(foreign), UnknownLease)
    claim = ev.Claim(call=desk.call(peer(1), "c"), session=session, claim=answer.claim)
    assert desk.answer(claim) == ef.Leased(lease=answer.lease, claim=0)
    assert desk.view(answer.lease).device_bytes == 2 * MIB
    again = ev.Claim(call=desk.call(peer(1), "c"), session=session, claim=answer.claim)
    assert desk.answer(again) == ef.Leased(lease=answer.lease, claim=0)
    twice = ev.Claim(call=desk.call(peer(1)), session=session, claim=answer.claim)
    assert isinstance(desk.answer(twice), UnknownLease)


def test_a_return_of_the_lease_takes_its_claim_with_it() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    answer = desk.lend(session, "w", 2, claimed=False)
    assert isinstance(answer, ef.Leased)
    assert isinstance(desk.give(session, answer.lease), ef.Done)
    claim = ev.Claim(call=desk.call(peer(1)), session=session, claim=answer.claim)
    assert isinstance(desk.answer(claim), UnknownLease)
    assert desk.free == 8


def test_slots_are_returned_one_by_one_or_all_with_the_lease() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 3)
    slots = [slot.slot for slot in desk.view(lease).slots]
    assert isinstance(desk.give(session, lease, slots[:1]), ef.Done)
    assert (desk.free, desk.view(lease).device_bytes) == (6, 2 * MIB)
    assert isinstance(desk.give(session, lease, slots[1:]), ef.Done)
    assert desk.view(lease).device_bytes == 0, "a lease without slots is still a lease"
    assert desk.lease(session, "w", 1) == lease
    assert isinstance(desk.give(session, lease), ef.Done)
    assert isinstance(desk.give(session, lease), UnknownLease)
    assert isinstance(desk.resume(session, "w"), UnknownTag)


def test_a_return_of_what_is_not_there_changes_nothing() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(one, "w", 2)
    slots = [slot.slot for slot in desk.view(lease).slots]
    before = desk.broker.snapshot()
    assert isinstance(desk.give(one, lease, [slots[0], 9999]), UnknownLease)
    assert isinstance(desk.give(two, lease), UnknownLease)
    assert isinstance(desk.give(one, LeaseId(9999)), UnknownLease)
    assert desk.broker.snapshot() == before


@pytest.mark.parametrize("stage", ["granted", "mapped", "idle", "leaving", "parked"])
def test_a_return_is_legal_in_every_state_and_late_reports_are_passed_over(stage: str) -> None:
    desk = Desk(held_back=("arrive", "leave"))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    call = desk.last_call
    lease = desk.sent(ef.SendGrant)[0].lease
    if stage != "granted":
        desk.let_go("arrive")
    if stage in ("idle", "leaving", "parked"):
        desk.pause(session, "w")
    if stage in ("leaving", "parked"):
        desk.pause(session, "w", release=True)
    if stage == "parked":
        desk.let_go("leave")
    assert isinstance(desk.give(session, lease), ef.Done)
    assert (desk.free, desk.broker.snapshot().sessions[0].leases) == (8, ())
    before = desk.broker.snapshot()
    desk.let_go("arrive")
    desk.let_go("leave")
    assert desk.broker.snapshot() == before
    assert isinstance(desk.answers[call], UnknownLease if stage == "granted" else ef.Leased)


def test_a_frame_returned_in_mid_recall_goes_to_whom_it_was_promised() -> None:
    desk = Desk(held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(one, "w", 8)
    desk.pause(one, "w")
    desk.lend(two, "kv", 8)
    call = desk.last_call
    desk.give(one, lease)
    assert isinstance(desk.answers[call], ef.Leased)
    assert not desk.sent(ef.DestroyFrame)


def test_frames_that_come_back_are_kept_for_a_while_and_recycled() -> None:
    desk = Desk(limits(pool_time=1000))
    session = desk.attach(peer(1))
    desk.give(session, desk.lease(session, "w", 4))
    due = desk.broker.next_deadline()
    assert due is not None
    assert due <= desk.now + 1000
    again = desk.lease(session, "w", 3)
    assert len(desk.sent(ef.CreateFrame)) == 4, "none is made anew"
    desk.at(due - 10)
    desk.give(session, again)
    desk.at(due + 10)
    assert not desk.sent(ef.DestroyFrame), "the last to come back has its time"
    due = desk.broker.next_deadline()
    assert due is not None
    desk.at(due)
    assert len(desk.sent(ef.DestroyFrame)) == 4
    assert desk.broker.next_deadline() is None


def test_what_is_kept_for_a_while_is_there_for_others_at_once() -> None:
    desk = Desk(limits(capacity=4, pool_time=100))
    session, stranger = desk.attach(peer(1)), desk.attach(peer(2, domain=Domain("another")))
    desk.give(session, desk.lease(session, "w", 4))
    assert isinstance(desk.lend(stranger, "w", 4), ef.Leased)
    assert len(desk.sent(ef.DestroyFrame)) == 4, "but not as they are"


def test_returned_frames_go_to_the_pool_as_far_as_it_reaches() -> None:
    desk = Desk(limits(pool=2))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 3)
    desk.give(session, lease)
    seen = desk.broker.snapshot()
    assert (seen.free_bytes, len(seen.frames), len(desk.sent(ef.DestroyFrame))) == (8 * MIB, 2, 1)
    desk.lease(session, "w", 2)
    assert all(slot.dirty for slot in desk.sent(ef.SendGrant)[-1].slots)


def test_a_hundred_replays_are_one_lease() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    answers: list[Answer | None] = []
    for _ in range(100):
        event = ev.Lease(
            call=desk.call(peer(1), "same"),
            session=session,
            tag="w",
            contents=KEEP,
            size_bytes=MIB,
            claimed=True,
            deadline=Instant(FAR + len(answers)),
        )
        answers.append(desk.answer(event))
    assert set(answers) == {answers[0]}
    assert desk.free == 7
    other = ev.Lease(
        call=desk.call(peer(1), "same"),
        session=session,
        tag="w",
        contents=KEEP,
        size_bytes=2 * MIB,
        claimed=True,
        deadline=FAR,
    )
    conflict = desk.answer(other)
    assert isinstance(conflict, RequestConflict)
    assert conflict.request == RequestId("same")


def test_a_driver_that_makes_no_frame_fails_the_lease_and_nothing_stays() -> None:
    desk = Desk(held_back=("create",))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    call = desk.last_call
    first, second = desk.sent(ef.CreateFrame)
    desk.drop("create")
    desk.do(ev.FrameCreated(frame=first.frame))
    desk.do(ev.FrameCreateFailed(frame=second.frame, driver_call="cuMemCreate", driver_result="CUDA_ERROR_OUT"))
    refused = desk.answers[call]
    assert isinstance(refused, DriverFailed)
    assert (refused.driver_call, refused.driver_result) == ("cuMemCreate", "CUDA_ERROR_OUT")
    seen = desk.broker.snapshot()
    assert (seen.free_bytes, seen.frames, seen.sessions[0].leases, seen.queue) == (8 * MIB, (), (), ())


def test_a_growth_that_can_not_be_mapped_disappears() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.held_back.add("arrive")
    desk.lend(session, "w", 3)
    call = desk.last_call
    slots = [slot.slot for slot in desk.sent(ef.SendGrant)[-1].slots]
    desk.drop("arrive")
    desk.do(ev.Arrived(session=session, lease=lease, slots=(slots[0],), failure=None))
    desk.do(ev.Arrived(session=session, lease=lease, slots=(slots[1],), failure="EINVAL"))
    refused = desk.answers[call]
    assert isinstance(refused, DriverFailed)
    assert refused.driver_result == "EINVAL"
    assert isinstance(desk.pause(session, "w"), WrongState), "its growth is still being undone"
    desk.do(ev.Arrived(session=session, lease=lease, slots=(slots[2],), failure=None))
    assert all(slot.park is None for order in desk.sent(ef.SendRecall) for slot in order.slots)
    assert len(desk.view(lease).slots) == 2
    assert desk.free == 6
    assert isinstance(desk.pause(session, "w"), ef.Paused)
