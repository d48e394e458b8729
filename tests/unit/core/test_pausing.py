"""Pause: at once when the owner says it is quiet, else after its gates are closed; and a place for what is kept."""

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import (
    DriverFailed,
    InvalidArgument,
    NotOwner,
    NotQuiescent,
    OutOfDeviceMemory,
    OutOfHostMemory,
    QuotaExceeded,
    UnknownTag,
    WaitExpired,
    WrongState,
)
from vrambroker.broker.core.ids import CallId, Instant, OrderId, SessionId

KEEP, DROP, ZERO = ev.Contents.KEEP, ev.Contents.DROP, ev.Contents.ZERO


def order_of(desk: Desk) -> OrderId:
    return desk.sent(ef.SendPauseOrder)[-1].order


def test_a_pause_moves_nothing_and_is_no_error_twice() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 3)
    assert desk.pause(session, "w") == ef.Paused(leases=(lease,))
    assert desk.view(lease).state is LeaseState.IDLE
    assert desk.pause(session, "w", "w") == ef.Paused(leases=(lease,))
    assert desk.sent(ef.SendLeaseState) == [ef.SendLeaseState(session=session, lease=lease, paused=True)]
    assert not desk.sent(ef.SendRecall)


@pytest.mark.parametrize("tags", [(), ("w",) * 5, ("w", "a/b"), ("x" * 65,)])
def test_tags_that_can_not_be(tags: tuple[str, ...]) -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 1)
    assert isinstance(desk.pause(session, *tags), InvalidArgument)
    assert isinstance(desk.resume(session, *tags), InvalidArgument)


def test_one_unknown_tag_and_nothing_is_paused() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 1)
    before = desk.broker.snapshot()
    assert isinstance(desk.pause(session, "w", "x"), UnknownTag)
    assert desk.broker.snapshot() == before


def test_only_the_owner_says_that_it_is_quiet_and_only_its_uid_or_root_asks() -> None:
    desk = Desk()
    session = desk.attach(peer(1, uid=5))
    desk.lease(session, "w", 1)
    assert isinstance(desk.pause(session, "w", actor=peer(2, uid=5)), NotOwner)
    assert isinstance(desk.pause(session, "w", actor=peer(2, uid=6), quiet=False), NotOwner)
    for actor in (peer(2, uid=5), peer(3, uid=0)):
        assert desk.pause(session, "w", actor=actor, quiet=False) is None
        assert desk.do(ev.Quiet(session=session, order=order_of(desk)))
        assert isinstance(desk.answers[desk.last_call], ef.Paused)
        desk.resume(session, "w", actor=actor)


def test_a_place_is_set_aside_for_what_is_kept_and_for_nothing_else() -> None:
    desk = Desk(limits(sizes=(1, 4), capacity=16, file=8))
    session = desk.attach(peer(1))
    kept = desk.lease(session, "a", 6)
    desk.lease(session, "b", 2, DROP)
    desk.lease(session, "c", 2, ZERO)
    desk.pause(session, "a", "b", "c")
    assert [file.size_bytes for file in desk.sent(ef.CreateArenaFile)] == [8 * MIB]
    extents = [slot.extent for slot in desk.view(kept).slots]
    assert all(extent is not None and extent.offset_bytes % extent.size_bytes == 0 for extent in extents)
    assert desk.view(kept).host_bytes == 6 * MIB
    seen = desk.broker.snapshot()
    assert (seen.host_used_bytes, seen.host_file_bytes) == (6 * MIB, 8 * MIB)
    told = desk.sent(ef.Publish)[-1]
    assert (told.host_bytes, told.host_file_bytes) == (6 * MIB, 8 * MIB)


def test_without_a_place_the_pause_is_refused_whole() -> None:
    desk = Desk(limits(budget=4, file=4))
    session = desk.attach(peer(1))
    desk.lease(session, "a", 3)
    desk.lease(session, "b", 3)
    desk.pause(session, "a")
    desk.resume(session, "a")
    before = desk.broker.snapshot()
    refused = desk.pause(session, "a", "b")
    assert isinstance(refused, OutOfHostMemory)
    assert (refused.requested_bytes, refused.free_bytes, refused.capacity_bytes) == (6 * MIB, 4 * MIB, 4 * MIB)
    assert desk.broker.snapshot() == before
    desk.pause(session, "a")
    refused = desk.pause(session, "b")
    assert isinstance(refused, OutOfHostMemory)
    assert [(one.tag, one.size_bytes // MIB) for one in refused.holders] == [("a", 3)]


def test_extents_are_free_again_when_the_lease_is_resumed_from_idle() -> None:
    desk = Desk(limits(budget=4, file=4))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "a", 4)
    for _ in range(3):
        desk.pause(session, "a")
        desk.resume(session, "a")
        assert desk.view(lease).host_bytes == 0
    assert len(desk.sent(ef.CreateArenaFile)) == 1


def test_a_release_is_answered_when_everything_has_left() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    assert desk.pause(session, "w", release=True) is None
    call = desk.last_call
    assert desk.pause(session, "w", release=True) is None
    joined = desk.last_call
    (recall,) = desk.sent(ef.SendRecall)
    desk.drop("leave")
    desk.do(ev.Left(session=session, lease=lease, slots=(recall.slots[0].slot,), failure=None))
    assert call not in desk.answers
    desk.do(ev.Left(session=session, lease=lease, slots=(recall.slots[1].slot,), failure=None))
    assert desk.answers[call] == desk.answers[joined] == ef.Paused(leases=(lease,))
    assert (desk.view(lease).state, desk.free) == (LeaseState.PARKED, 8)
    assert desk.pause(session, "w", release=True) == ef.Paused(leases=(lease,)), "nothing is left to leave"


def test_a_recall_waits_until_its_file_is_populated() -> None:
    desk = Desk(held_back=("file",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    assert not desk.sent(ef.SendRecall)
    assert desk.view(lease).state is LeaseState.LEAVING
    desk.let_go("file")
    assert desk.sent(ef.SendRecall)
    assert isinstance(desk.answers[desk.last_call], ef.Paused)


def fail_files(desk: Desk) -> None:
    for event in desk.drop("file"):
        assert isinstance(event, ev.ArenaFileReady)
        desk.do(ev.ArenaFileFailed(file=event.file, reason="ENOMEM"))


def test_a_file_that_fails_refuses_the_release_and_leaves_the_lease_idle() -> None:
    desk = Desk(held_back=("file",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 6)
    desk.pause(session, "w", release=True)
    call = desk.last_call
    fail_files(desk)
    assert isinstance(desk.answers[call], OutOfHostMemory)
    assert desk.view(lease).state is LeaseState.IDLE
    assert not desk.waiting("file"), "it is not tried again and again"
    assert desk.lend(other, "kv", 4) is None, "somebody needs it"
    fail_files(desk)
    assert isinstance(desk.answers[desk.last_call], OutOfDeviceMemory), "nobody may count on its frames"
    assert desk.pause(session, "w", release=True) is None, "it is tried again"
    desk.let_go("file")
    assert isinstance(desk.answers[desk.last_call], ef.Paused)
    assert desk.view(lease).state is LeaseState.PARKED


@pytest.mark.parametrize("waits", [True, False])
def test_what_lost_its_place_finds_another_when_somebody_needs_its_frames(waits: bool) -> None:
    desk = Desk(limits(file=4))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 4)
    desk.lease(other, "kv", 4)
    desk.pause(other, "kv", release=True)
    desk.lease(other, "x", 4)
    desk.held_back.add("file")
    desk.pause(session, "w")
    fail_files(desk)
    assert desk.view(lease).host_bytes == 0
    desk.let_go("file")
    answer = desk.resume(other, "kv") if waits else desk.lend(other, "y", 3)
    assert isinstance(answer, ef.Resumed if waits else ef.Leased)
    assert desk.view(lease).device_bytes == (0 if waits else MIB)
    assert isinstance(desk.pause(other, "x", "kv", "y" if not waits else "x"), ef.Paused)
    assert isinstance(desk.resume(session, "w"), ef.Resumed)


def test_what_lost_its_place_is_housed_where_there_is_room_again() -> None:
    desk = Desk(limits(budget=8, file=4), held_back=("file",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    full = desk.lease(one, "full", 4)
    desk.let_go("file")
    desk.pause(one, "full")
    lease = desk.lease(two, "w", 4)
    desk.held_back.add("file")
    desk.pause(two, "w")
    fail_files(desk)
    assert desk.view(lease).host_bytes == 0
    desk.give(one, full)
    assert desk.view(lease).host_bytes == 4 * MIB
    assert not desk.waiting("file"), "the room is in a file that is there"
    assert isinstance(desk.lend(one, "x", 8), ef.Leased)


def test_a_file_that_fails_takes_a_promise_with_it() -> None:
    desk = Desk(held_back=("file",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 6)
    desk.pause(session, "w")
    assert desk.lend(other, "kv", 4) is None
    fail_files(desk)
    assert type(desk.answers[desk.last_call]).__name__ == "OutOfDeviceMemory"
    assert desk.view(lease).state is LeaseState.IDLE
    assert isinstance(desk.resume(session, "w"), ef.Resumed)


def test_another_pause_finds_another_place_after_a_file_has_failed() -> None:
    desk = Desk(held_back=("file",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(session, "w", 6)
    desk.pause(session, "w")
    fail_files(desk)
    desk.let_go("file")
    assert isinstance(desk.pause(session, "w"), ef.Paused)
    assert isinstance(desk.lend(other, "kv", 8), ef.Leased)


def test_what_has_its_place_leaves_first_and_a_recall_ends_when_the_rest_is_returned() -> None:
    desk = Desk(limits(sizes=(1, 2), file=2), held_back=("file",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 3)
    desk.pause(session, "w")
    first, second = desk.drop("file")
    desk.do(first)
    desk.pause(session, "w", release=True)
    call = desk.last_call
    assert isinstance(second, ev.ArenaFileReady)
    assert [slot.park.file for sent in desk.sent(ef.SendRecall) for slot in sent.slots if slot.park] != [second.file]
    assert call not in desk.answers
    late = [slot.slot for slot in desk.view(lease).slots if slot.extent and slot.extent.file == second.file]
    desk.give(session, lease, late)
    desk.do(ev.ArenaFileFailed(file=second.file, reason="ENOMEM"))
    assert desk.answers[call] == ef.Paused(leases=(lease,))
    assert desk.view(lease).state is LeaseState.PARKED


def test_what_is_left_when_the_homeless_part_is_returned_may_be_taken() -> None:
    desk = Desk(limits(capacity=3, sizes=(1, 2), file=2), held_back=("file",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 3)
    desk.pause(session, "w")
    first, second = desk.drop("file")
    assert isinstance(first, ev.ArenaFileReady)
    desk.do(first)
    assert isinstance(second, ev.ArenaFileReady)
    late = [slot.slot for slot in desk.view(lease).slots if slot.extent and slot.extent.file == second.file]
    desk.do(ev.ArenaFileFailed(file=second.file, reason="ENOMEM"))
    desk.give(session, lease, late)
    assert isinstance(desk.lend(other, "kv", 3), ef.Leased)


def test_a_copy_that_fails_refuses_the_release_and_keeps_what_stayed() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    first, second = (slot.slot for slot in desk.sent(ef.SendRecall)[0].slots)
    desk.drop("leave")
    desk.do(ev.Left(session=session, lease=lease, slots=(first,), failure="EIO"))
    refused = desk.answers[desk.last_call]
    assert isinstance(refused, DriverFailed)
    assert refused.driver_result == "EIO"
    desk.do(ev.Left(session=session, lease=lease, slots=(second,), failure=None))
    assert desk.view(lease).state is LeaseState.PARTIAL
    desk.let_go("leave")
    assert isinstance(desk.pause(session, "w", release=True), ef.Paused)
    assert isinstance(desk.resume(session, "w"), ef.Resumed)


def test_a_release_that_joins_a_recall_already_partly_failed_asks_again_for_the_rest() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    first, second = (slot.slot for slot in desk.sent(ef.SendRecall)[0].slots)
    desk.drop("leave")
    desk.do(ev.Left(session=session, lease=lease, slots=(first,), failure="EIO"))
    desk.pause(session, "w", release=True)
    desk.do(ev.Left(session=session, lease=lease, slots=(second,), failure=None))
    assert [slot.slot for slot in desk.sent(ef.SendRecall)[-1].slots] == [first]
    desk.let_go("leave")
    assert isinstance(desk.answers[desk.last_call], ef.Paused)


def test_a_growing_lease_is_not_paused() -> None:
    desk = Desk(held_back=("arrive",))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 1)
    assert isinstance(desk.pause(session, "w"), WrongState)
    desk.let_go("arrive")
    assert isinstance(desk.pause(session, "w"), ef.Paused)


def test_a_lease_that_is_being_resumed_is_not_paused() -> None:
    desk = Desk(held_back=("arrive",))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 1)
    desk.let_go("arrive")
    desk.pause(session, "w", release=True)
    desk.held_back.add("arrive")
    desk.resume(session, "w")
    assert isinstance(desk.pause(session, "w"), WrongState)
    assert isinstance(desk.pause(session, "w", release=True), WrongState)


class TestOrder:
    """A pause from outside."""

    def ordered(self, *, deadline: Instant = FAR) -> tuple[Desk, SessionId]:
        desk = Desk()
        session = desk.attach(peer(1))
        desk.lease(session, "w", 1)
        desk.lease(session, "x", 1)
        desk.pause(session, "x")
        assert desk.pause(session, "w", "x", quiet=False, actor=peer(2), deadline=deadline) is None
        assert desk.sent(ef.SendPauseOrder)[-1].tags == ("w",), "the paused are quiet already"
        return desk, session

    def test_it_takes_effect_when_the_gates_are_closed(self) -> None:
        desk, session = self.ordered()
        effects = desk.do(ev.Quiet(session=session, order=order_of(desk)))
        answer = desk.answers[desk.last_call]
        assert isinstance(answer, ef.Paused)
        assert len(answer.leases) == 2
        told = [type(one) for one in effects if isinstance(one, ef.SendLeaseState | ef.SendPauseCancelled)]
        assert told == [ef.SendLeaseState, ef.SendPauseCancelled], "its agent may not know the lease any more"

    def test_it_is_refused_when_they_can_not_be(self) -> None:
        desk, session = self.ordered()
        desk.do(ev.Busy(session=session, order=order_of(desk), tag="w"))
        refused = desk.answers[desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag) == ("trainer", "w")
        assert not desk.sent(ef.SendPauseCancelled), "the gates are open"

    def test_its_time_runs_out_and_the_scope_is_named(self) -> None:
        desk, session = self.ordered(deadline=Instant(500))
        assert desk.broker.next_deadline() == 500
        desk.do(ev.StillBusy(session=session, order=order_of(desk), tag="w", scope="train_step"))
        desk.at(499)
        assert desk.last_call in desk.answers or desk.broker.next_deadline() == 500
        desk.at(500)
        refused = desk.answers[desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("trainer", "w", "train_step")
        assert len(desk.sent(ef.SendPauseCancelled)) == 1
        assert desk.broker.next_deadline() is None

    def test_its_time_runs_out_and_the_callback_is_named(self) -> None:
        desk, session = self.ordered(deadline=Instant(500))
        desk.do(ev.Calling(session=session, order=order_of(desk), tag="w", callback="Engine.drain\x1b"))
        desk.at(500)
        refused = desk.answers[desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("trainer", "w", "Engine.drain?")
        assert "callback 'Engine.drain?'" in refused.message

    def test_a_scope_that_is_reported_after_the_callback_is_what_keeps_it_waiting(self) -> None:
        desk, session = self.ordered(deadline=Instant(500))
        desk.do(ev.Calling(session=session, order=order_of(desk), tag="w", callback="drain"))
        desk.do(ev.StillBusy(session=session, order=order_of(desk), tag="w", scope="step"))
        desk.at(500)
        refused = desk.answers[desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert "scope 'step'" in refused.message

    @pytest.mark.parametrize(("why", "told"), [("a batch is running", "a batch is running"), ("", "no reason given")])
    def test_the_application_declines_and_says_why(self, why: str, told: str) -> None:
        desk, session = self.ordered()
        desk.do(ev.Declined(session=session, order=order_of(desk), tag="w", callback="drain", why=why))
        refused = desk.answers[desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("trainer", "w", "drain")
        assert told in refused.message
        assert "trainer/w" in refused.message
        assert not desk.sent(ef.SendPauseCancelled), "its gates are open"
        assert not any(lease.paused for lease in desk.broker.snapshot().sessions[0].leases if lease.tag == "w")
        desk.do(ev.Declined(session=session, order=order_of(desk), tag="w", callback="drain", why=why))

    def test_a_late_quiet_is_told_that_the_order_is_void(self) -> None:
        desk, session = self.ordered(deadline=Instant(500))
        desk.at(500)
        desk.do(ev.Quiet(session=session, order=order_of(desk)))
        assert len(desk.sent(ef.SendPauseCancelled)) == 2
        assert all(lease.paused == (lease.tag == "x") for lease in desk.broker.snapshot().sessions[0].leases)

    def test_gates_of_what_its_owner_has_paused_meanwhile_are_not_left_to_the_order(self) -> None:
        desk = Desk()
        session = desk.attach(peer(1))
        lease = desk.lease(session, "w", 2)
        desk.pause(session, "w", quiet=False)
        order = desk.sent(ef.SendPauseOrder)[-1].order
        desk.pause(session, "w")
        desk.do(ev.Quiet(session=session, order=order))
        assert desk.answers[CallId(desk.last_call - 1)] == ef.Paused(leases=(lease,))
        assert [sent.order for sent in desk.sent(ef.SendPauseCancelled)] == [order]

    def test_an_arena_without_room_opens_the_gates_again(self) -> None:
        desk = Desk(limits(budget=1, file=1))
        session = desk.attach(peer(1))
        desk.lease(session, "w", 2)
        desk.pause(session, "w", quiet=False, actor=peer(2))
        desk.do(ev.Quiet(session=session, order=order_of(desk)))
        assert isinstance(desk.answers[desk.last_call], OutOfHostMemory)
        assert len(desk.sent(ef.SendPauseCancelled)) == 1

    def test_growth_meanwhile_is_told_when_the_gates_are_closed(self) -> None:
        desk, session = self.ordered()
        call = desk.last_call
        desk.held_back.add("arrive")
        desk.lend(session, "w", 1)
        desk.do(ev.Quiet(session=session, order=order_of(desk)))
        assert isinstance(desk.answers[call], WrongState)
        assert len(desk.sent(ef.SendPauseCancelled)) == 1

    def test_what_was_resumed_meanwhile_is_not_paused_behind_its_owners_back(self) -> None:
        desk, session = self.ordered()
        call = desk.last_call
        desk.resume(session, "x")
        desk.do(ev.Quiet(session=session, order=order_of(desk)))
        refused = desk.answers[call]
        assert isinstance(refused, NotQuiescent)
        assert refused.tag == "x"

    def test_an_order_nobody_waits_for_is_void(self) -> None:
        desk, _ = self.ordered()
        desk.do(ev.CallAbandoned(call=desk.last_call))
        assert isinstance(desk.answers[desk.last_call], WaitExpired)
        assert len(desk.sent(ef.SendPauseCancelled)) == 1

    def test_an_order_of_somebody_elses_is_none_of_ones_business(self) -> None:
        desk, _ = self.ordered()
        stranger = desk.attach(peer(3))
        call = desk.last_call
        desk.do(ev.Busy(session=stranger, order=order_of(desk), tag="w"))
        desk.do(ev.StillBusy(session=stranger, order=order_of(desk), tag="w", scope="s"))
        desk.do(ev.Quiet(session=stranger, order=order_of(desk)))
        assert desk.sent(ef.SendPauseCancelled)[-1].session == stranger
        assert not any(lease.paused and lease.tag == "w" for lease in desk.broker.snapshot().sessions[0].leases)
        assert call in desk.answers

    def test_there_is_a_limit_on_orders(self) -> None:
        desk = Desk(limits(tickets=1))
        session = desk.attach(peer(1))
        desk.lease(session, "w", 1)
        desk.pause(session, "w", quiet=False, actor=peer(2))
        assert isinstance(desk.pause(session, "w", quiet=False, actor=peer(2)), QuotaExceeded)


def test_what_a_client_says_is_cut_and_can_not_draw_on_a_terminal() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 1)
    desk.pause(session, "w", release=True)
    left = desk.drop("leave")[0]
    assert isinstance(left, ev.Left)
    desk.do(ev.Left(session=session, lease=lease, slots=left.slots, failure="\x1b[2J\n" + "x" * 32_000))
    refused = desk.answers[desk.last_call]
    assert isinstance(refused, DriverFailed)
    assert refused.driver_result == "?[2J?" + "x" * 194 + "…"
    told = [line.why for line in desk.sent(ef.Publish)]
    assert all(why.isprintable() and len(why) < 300 for why in told)
    assert any("could not leave: ?[2J?xx" in why for why in told)


def test_a_report_about_a_tag_that_was_not_asked_about_is_passed_over() -> None:
    desk = Desk()
    session = desk.attach(peer(1), "rollout")
    desk.lease(session, "w", 1)
    desk.pause(session, "w", quiet=False, actor=peer(9), deadline=Instant(300))
    order = order_of(desk)
    desk.do(ev.Busy(session=session, order=order, tag="\x1b]0;x\x07"))
    desk.do(ev.StillBusy(session=session, order=order, tag="other", scope="step"))
    assert desk.last_call not in desk.answers
    desk.do(ev.StillBusy(session=session, order=order, tag="w", scope="\x1b[31mstep"))
    desk.at(300)
    refused = desk.answers[desk.last_call]
    assert isinstance(refused, NotQuiescent)
    assert (refused.tag, refused.scope) == ("w", "?[31mstep")


def test_a_lease_tells_since_when_it_is_in_its_state() -> None:
    desk = Desk()
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(session, "w", 4, DROP)
    resident = desk.view(lease).since
    slots = [slot.slot for slot in desk.view(lease).slots]
    desk.give(session, lease, slots[:1])
    assert desk.view(lease).since == resident, "it has fewer bytes and is as resident as before"
    desk.now = Instant(500)
    desk.pause(session, "w")
    assert (desk.view(lease).state, desk.view(lease).since) == (LeaseState.IDLE, 501)
    desk.now = Instant(700)
    desk.lease(other, "kv", 8, DROP)
    assert (desk.view(lease).state, desk.view(lease).since > 700) == (LeaseState.PARKED, True)
