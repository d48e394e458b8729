"""Kept contents that the arena has no room for: their way to the spill store and back, and what can go wrong on it."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import (
    DriverFailed,
    InvariantViolation,
    OutOfDeviceMemory,
    OutOfHostMemory,
    WaitExpired,
)
from vrambroker.broker.core.ids import Domain, Instant, SessionId, TransferId
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.core.phase import Order

DROP = ev.Contents.DROP


class Spilling:
    """A trainer with `size` MiB of a device of 8, in frames of 1; the arena has 2 MiB beside 1 of staging room."""

    def __init__(self, *, size: int = 4, arena: int = 2, staging: int = 1, spill: int = 16, capacity: int = 8) -> None:
        held_to = limits(capacity=capacity, budget=arena + staging, file=2, spill=spill, staging=staging)
        self.desk = Desk(held_to)
        self.trainer = self.desk.attach(peer(1))
        self.weights = self.desk.lease(self.trainer, "weights", size)

    def pause(self, *, release: bool = False) -> object:
        return self.desk.pause(self.trainer, "weights", release=release)

    def resume(self, *, deadline: int = 1_000_000) -> object:
        return self.desk.resume(self.trainer, "weights", deadline=Instant(deadline))

    def other(self) -> SessionId:
        return self.desk.attach(peer(2), "rollout")

    @property
    def spilled(self) -> int:
        """Return how many slots have their contents in the store, and nowhere else."""
        slots = self.desk.view(self.weights).slots
        return sum(slot.spilled and not slot.copied and slot.frame is None for slot in slots)

    @property
    def used(self) -> tuple[int, int]:
        """Return what is set aside in the arena and in the store, in MiB."""
        seen = self.desk.broker.snapshot()
        return seen.host_used_bytes // MIB, seen.spill_used_bytes // MIB

    def fail(self, kind: str) -> None:
        """Let every transfer of a kind fail that was held back."""
        for done in self.desk.drop(kind):
            assert isinstance(done, ev.Transferred)
            call = "pwritev in /spill" if kind == "spill_out" else "preadv in /spill"
            self.desk.do(ev.TransferFailed(transfer=done.transfer, driver_call=call, reason="Input/output error"))


def test_a_pause_sets_places_aside_in_the_arena_first_and_then_in_the_store() -> None:
    case = Spilling()
    assert case.pause() == ef.Paused(leases=(case.weights,))
    assert case.used == (2, 2)
    assert not case.desk.sent(ef.SpillOut), "a pause moves nothing"
    (line,) = [one for one in case.desk.sent(ef.Publish) if one.kind is ef.Kind.SPILLED]
    assert line.why == f"trainer/weights: {2 * MIB} bytes go to the spill directory: the arena has {2 * MIB} left"
    assert case.resume() == ef.Resumed(leases=(ef.ResumedLease(lease=case.weights, tag="weights", same_pages=True),))
    assert case.used == (0, 0)


def test_what_fits_in_the_arena_is_not_spilled() -> None:
    case = Spilling(size=2)
    case.pause(release=True)
    assert case.used == (2, 0)
    assert not case.desk.sent(ef.SpillOut)


def test_what_is_of_low_priority_is_spilled_first() -> None:
    case = Spilling(size=2)
    moments = case.desk.lease(case.trainer, "moments", 2)
    case.desk.prioritize(case.trainer, "moments", priority=3)
    assert isinstance(case.desk.pause(case.trainer, "weights", "moments"), ef.Paused)
    assert case.desk.view(moments).spill_bytes == 0
    assert case.desk.view(case.weights).spill_bytes == 2 * MIB


def test_contents_go_out_and_come_back_one_after_the_other() -> None:
    case = Spilling()
    assert isinstance(case.pause(release=True), ef.Paused)
    assert (case.spilled, case.used) == (2, (2, 2))
    outs = case.desk.sent(ef.SpillOut)
    assert len(outs) == 2
    assert outs[0].extent == outs[1].extent, "they take turns in one extent"
    assert outs[0].place != outs[1].place
    assert isinstance(case.resume(), ef.Resumed)
    ins = case.desk.sent(ef.SpillIn)
    assert {one.place for one in ins} == {one.place for one in outs}
    assert case.used == (0, 0)
    assert case.desk.view(case.weights).state is LeaseState.RESIDENT


def test_frames_move_on_before_they_are_written() -> None:
    case = Spilling(size=8, arena=7)
    case.pause()
    case.desk.held_back.add("spill_out")
    other = case.other()
    assert isinstance(case.desk.lend(other, "cache", 8, DROP), ef.Leased)
    assert (case.spilled, case.used) == (0, (8, 1))
    case.desk.let_go("spill_out")
    assert (case.spilled, case.used) == (1, (7, 1))


def test_a_recall_waits_for_its_turn_in_the_staging_room() -> None:
    case = Spilling()
    case.pause()
    case.desk.held_back.add("spill_out")
    other = case.other()
    assert case.desk.lend(other, "cache", 8, DROP) is None
    assert case.desk.view(case.weights).state is LeaseState.LEAVING
    assert len(case.desk.sent(ef.SpillOut)) == 1
    case.desk.let_go("spill_out")
    assert isinstance(case.desk.answers[case.desk.last_call], ef.Leased)


def test_a_recall_that_nobody_needs_any_more_gives_its_turn_back() -> None:
    case = Spilling(size=8)
    case.desk.held_back.add("file")
    case.pause()
    other = case.other()
    call = case.desk.lend(other, "cache", 8, DROP, deadline=Instant(100))
    assert call is None
    case.desk.at(100)
    assert isinstance(case.desk.answers[case.desk.last_call], WaitExpired | OutOfDeviceMemory)
    case.desk.let_go("file")
    assert isinstance(case.resume(), ef.Resumed)
    assert case.used == (0, 0)


def test_what_fits_in_neither_is_refused_with_both_named() -> None:
    case = Spilling(spill=1)
    answer = case.pause()
    assert isinstance(answer, OutOfHostMemory)
    assert answer.message == (
        f"trainer must keep {4 * MIB} bytes and the arena has room for {2 * MIB} and the spill directory for {MIB}"
    )
    assert (answer.requested_bytes, answer.free_bytes, answer.capacity_bytes) == (4 * MIB, 3 * MIB, 4 * MIB)
    assert case.used == (0, 0)
    assert case.desk.view(case.weights).state is LeaseState.RESIDENT


def test_copies_that_nobody_needs_give_way_before_a_pause_is_refused() -> None:
    case = Spilling(size=2, spill=1)
    assert case.desk.seal(case.trainer, "weights") == ef.Done()
    case.pause(release=True)
    case.resume()
    assert case.used == (2, 0)
    case.desk.lease(case.trainer, "moments", 2)
    assert isinstance(case.desk.pause(case.trainer, "moments", release=True), ef.Paused)
    case.desk.lease(case.trainer, "grads", 1)
    assert isinstance(case.desk.pause(case.trainer, "grads", release=True), ef.Paused)
    assert case.used == (2, 1)


def test_a_sealed_lease_keeps_no_copy_in_the_store() -> None:
    case = Spilling()
    assert case.desk.seal(case.trainer, "weights") == ef.Done()
    case.pause(release=True)
    case.resume()
    assert case.used == (2, 0)


def test_contents_that_are_in_the_staging_room_still_need_no_reading() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    assert isinstance(case.resume(), ef.Resumed)
    assert not case.desk.sent(ef.SpillIn)
    assert case.used == (1, 1), "what is being written is given back when that is over"
    case.desk.let_go("spill_out")
    assert case.used == (0, 0)


def test_a_frame_is_granted_only_once_its_contents_are_read() -> None:
    case = Spilling(size=3)
    case.pause(release=True)
    case.desk.held_back.add("spill_in")
    assert case.resume() is None
    granted = [slot for grant in case.desk.sent(ef.SendGrant)[1:] for slot in grant.slots]
    assert [slot.restore is not None for slot in granted] == [True, True]
    case.desk.let_go("spill_in")
    assert isinstance(case.desk.answers[case.desk.last_call], ef.Resumed)
    last = case.desk.sent(ef.SendGrant)[-1].slots[0]
    assert last.restore == case.desk.sent(ef.SpillIn)[0].extent


def test_two_that_come_and_go_do_not_wait_for_each_other_for_ever() -> None:
    case = Spilling(size=8, arena=1)
    case.pause()
    other = case.other()
    cache = case.desk.lease(other, "cache", 8)
    for _ in range(3):
        assert isinstance(case.desk.pause(other, "cache"), ef.Paused)
        assert isinstance(case.resume(), ef.Resumed)
        assert isinstance(case.pause(), ef.Paused)
        assert isinstance(case.desk.resume(other, "cache"), ef.Resumed)
    assert case.desk.view(cache).spill_bytes == 0
    assert case.used == (1, 7)


def test_a_process_that_is_stopped_keeps_no_more_than_half_of_the_staging_room() -> None:
    case = Spilling(size=4, staging=2, capacity=16)
    other = case.other()
    cache = case.desk.lease(other, "cache", 4)
    case.desk.held_back.add("leave")
    case.pause(release=True)
    case.desk.drop("leave")
    case.desk.held_back.clear()
    assert isinstance(case.desk.pause(other, "cache", release=True), ef.Paused)
    assert case.desk.view(cache).state is LeaseState.PARKED
    assert case.desk.view(case.weights).state is LeaseState.LEAVING
    assert isinstance(case.desk.resume(other, "cache"), ef.Resumed)


def test_staging_room_is_made_before_it_is_needed() -> None:
    case = Spilling()
    case.pause()
    assert [file.staging for file in case.desk.broker.snapshot().arena] == [False, True]


def test_domains_take_turns_in_the_staging_room() -> None:
    case = Spilling(size=4)
    stranger = case.desk.attach(peer(3, uid=2, domain=Domain("away")), "stranger")
    case.desk.lease(stranger, "weights", 4)
    case.pause(release=True)
    assert isinstance(case.desk.pause(stranger, "weights", release=True), ef.Paused)
    assert case.used == (2, 6)
    assert isinstance(case.resume(), ef.Resumed)
    assert isinstance(case.desk.resume(stranger, "weights"), ef.Resumed)
    assert case.used == (0, 0)
    extents = [(out.extent.file, out.extent.offset_bytes) for out in case.desk.sent(ef.SpillOut)]
    assert len(set(extents)) == 2, "a file is for one domain"


@pytest.mark.parametrize("held_back", ["file", "leave", "spill_out", "spill_in", "arrive", ""])
def test_an_owner_that_dies_anywhere_on_the_way_leaves_nothing(held_back: str) -> None:
    case = Spilling()
    case.desk.held_back.update({held_back, "punch"})
    case.pause(release=True)
    if held_back in ("spill_in", "arrive"):
        case.resume()
    case.desk.do(ev.ProcessEnded(session=case.trainer))
    case.desk.let_go(held_back)
    case.desk.let_go("punch")
    assert case.used == (0, 0)
    seen = case.desk.broker.snapshot()
    assert not seen.arena
    assert seen.free_bytes == seen.capacity_bytes


def test_what_a_dead_owner_has_in_a_transfer_is_wiped_when_that_is_over_and_not_before() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    (out,) = case.desk.sent(ef.SpillOut)
    before = len(case.desk.sent(ef.PunchExtent))
    case.desk.do(ev.ProcessEnded(session=case.trainer))
    punched = [one.extent for one in case.desk.sent(ef.PunchExtent)[before:]]
    assert out.extent not in punched
    case.desk.let_go("spill_out")
    assert case.desk.sent(ef.PunchExtent)[-1].extent == out.extent


def test_a_write_that_fails_keeps_contents_in_memory_and_is_tried_again() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    case.fail("spill_out")
    assert (case.spilled, case.used) == (0, (3, 1))
    (line,) = [one for one in case.desk.sent(ef.Publish) if one.kind is ef.Kind.SPILL_FAILED]
    assert line.why.startswith("trainer/weights: pwritev in /spill failed: Input/output error")
    deadline = case.desk.broker.next_deadline()
    assert deadline is not None
    case.desk.at(deadline)
    assert len(case.desk.sent(ef.SpillOut)) == 2
    case.fail("spill_out")
    later = case.desk.broker.next_deadline()
    assert later is not None
    assert later - case.desk.now > deadline - 100, "later and later"
    case.desk.held_back.clear()
    case.desk.at(later)
    assert (case.spilled, case.used) == (1, (2, 1))
    assert isinstance(case.resume(), ef.Resumed)


def test_after_a_failed_write_contents_come_back_out_of_memory() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    case.fail("spill_out")
    assert isinstance(case.resume(), ef.Resumed)
    assert not case.desk.sent(ef.SpillIn)
    assert case.used == (0, 0)


def test_while_writing_fails_nobody_counts_on_the_store() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    other = case.other()
    cache = case.desk.lease(other, "cache", 2)
    assert isinstance(case.desk.pause(other, "cache"), ef.Paused)
    assert case.desk.view(cache).spill_bytes == 2 * MIB
    case.fail("spill_out")
    view = case.desk.view(cache)
    assert (view.spill_bytes, view.takeable, view.state) == (0, False, LeaseState.IDLE)
    case.desk.lease(other, "more", 1)
    refused = case.desk.pause(other, "more")
    assert isinstance(refused, OutOfHostMemory)
    assert "spill directory for 0 (pwritev in /spill failed: Input/output error)" in refused.message
    case.desk.held_back.clear()
    deadline = case.desk.broker.next_deadline()
    assert deadline is not None
    case.desk.at(deadline)
    view = case.desk.view(cache)
    assert (view.spill_bytes, view.takeable) == (2 * MIB, True), "it is tried again by and by"


def test_a_failed_write_refuses_who_waits_for_frames_that_can_not_leave() -> None:
    case = Spilling(size=4)
    case.desk.held_back.add("spill_out")
    assert case.pause(release=True) is None
    case.fail("spill_out")
    answer = case.desk.answers[case.desk.last_call]
    assert isinstance(answer, OutOfHostMemory)
    assert "Input/output error" in answer.message
    assert case.desk.view(case.weights).state is LeaseState.PARTIAL
    assert isinstance(case.resume(), ef.Resumed)


def test_a_read_that_fails_refuses_the_resume_and_can_be_tried_again() -> None:
    case = Spilling()
    case.pause(release=True)
    case.desk.held_back.add("spill_in")
    assert case.resume() is None
    case.fail("spill_in")
    answer = case.desk.answers[case.desk.last_call]
    assert isinstance(answer, DriverFailed)
    assert (answer.driver_call, answer.driver_result) == ("preadv in /spill", "Input/output error")
    assert "trainer/weights can't be read back" in answer.message
    assert case.desk.view(case.weights).state is LeaseState.PARKED
    assert (case.spilled, case.used) == (2, (2, 2))
    assert case.desk.free == 8
    case.desk.held_back.clear()
    assert isinstance(case.resume(), ef.Resumed)


def test_a_resume_that_gives_up_while_its_contents_are_read_leaves_them_in_the_store() -> None:
    case = Spilling(size=3)
    case.pause(release=True)
    case.desk.held_back.update({"spill_in", "arrive"})
    assert case.resume(deadline=500) is None
    case.desk.at(500)
    late = case.desk.answers[case.desk.last_call]
    assert isinstance(late, WaitExpired)
    assert "trainer/weights" in late.message
    case.desk.let_go("arrive")
    case.desk.let_go("spill_in")
    assert (case.spilled, case.used) == (1, (2, 1))
    assert case.desk.view(case.weights).state is LeaseState.PARKED
    assert isinstance(case.resume(), ef.Resumed)


def test_a_disk_that_is_too_slow_is_named() -> None:
    case = Spilling(size=1, arena=0)
    case.pause(release=True)
    case.desk.held_back.add("spill_in")
    assert case.resume(deadline=500) is None
    case.desk.at(500)
    late = case.desk.answers[case.desk.last_call]
    assert isinstance(late, WaitExpired)
    assert "waiting for the spill directory" in late.message


def test_slots_that_are_returned_on_the_way_are_free_when_that_is_over() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("spill_out")
    case.pause(release=True)
    assert case.desk.give(case.trainer, case.weights) == ef.Done()
    assert case.used == (1, 1)
    case.desk.let_go("spill_out")
    assert case.used == (0, 0)
    assert not case.desk.sent(ef.PunchExtent), "its owner lives"


def test_staging_room_that_is_not_to_be_had_is_asked_for_again() -> None:
    case = Spilling(size=3)
    case.desk.held_back.add("file")
    case.pause()
    other = case.other()
    assert case.desk.lend(other, "cache", 8, DROP) is None
    files = case.desk.drop("file")
    for made in files:
        assert isinstance(made, ev.ArenaFileReady)
        staging = [one.file for one in case.desk.broker.snapshot().arena if one.staging]
        case.desk.do(ev.ArenaFileFailed(file=made.file, reason="no memory") if made.file in staging else made)
    assert case.desk.view(case.weights).takeable, "its contents still have their place"
    case.desk.held_back.clear()
    deadline = case.desk.broker.next_deadline()
    assert deadline is not None
    case.desk.at(deadline)
    assert isinstance(case.desk.answers[case.desk.last_call], ef.Leased)


def test_an_arena_file_that_could_not_be_made_is_tried_again_by_and_by() -> None:
    desk = Desk(limits(retry=100))
    session = desk.attach(peer(1))
    desk.held_back.add("file")
    lease = desk.lease(session, "w", 4)
    desk.pause(session, "w")
    for made in desk.drop("file"):
        assert isinstance(made, ev.ArenaFileReady)
        desk.do(ev.ArenaFileFailed(file=made.file, reason="no memory"))
    assert not desk.view(lease).takeable
    deadline = desk.broker.next_deadline()
    assert deadline == desk.now + 100
    desk.held_back.clear()
    desk.at(deadline)
    assert desk.view(lease).takeable
    assert desk.broker.next_deadline() is None, "and not again and again"


def test_a_resume_that_waits_for_what_can_not_leave_after_all_is_answered() -> None:
    desk = Desk(limits(capacity=4, device=4, eager=Eager.ALWAYS))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(other, "v", 1)
    desk.lease(session, "w", 3)
    desk.held_back.add("file")
    assert desk.hold(other, 4) is None, "it has waited longer, and what it waits for is in use"
    assert isinstance(desk.pause(session, "w"), ef.Paused)
    assert desk.resume(session, "w") is None
    call = desk.last_call
    for made in desk.drop("file"):
        assert isinstance(made, ev.ArenaFileReady)
        desk.do(ev.ArenaFileFailed(file=made.file, reason="no memory"))
    assert isinstance(desk.answers[call], ef.Resumed)


@pytest.mark.parametrize("order", list(Order))
def test_a_change_of_phase_spills_what_the_arena_has_no_room_for(order: Order) -> None:
    capacity = 8 if order is Order.DEVICE else 14
    desk = Desk(limits(capacity=capacity, budget=3, file=2, spill=16, staging=1), scoped=True)
    trainer, rollout = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    desk.lease(rollout, "weights", 6)
    assert isinstance(desk.pause(rollout, "weights", release=True), ef.Paused)
    desk.lease(trainer, "params", 8)
    desk.set_plan({"generate": ("rollout/*",), "train": ("trainer/*",)}, order=order)
    for phase in ("generate", "train", "generate"):
        assert isinstance(desk.enter(phase), ef.Entered)
    seen = desk.broker.snapshot()
    assert seen.host_used_bytes + seen.spill_used_bytes == 8 * MIB
    assert seen.spill_used_bytes >= 6 * MIB


def test_a_read_that_fails_undoes_a_change_of_phase() -> None:
    desk = Desk(limits(capacity=8, budget=3, file=2, spill=16, staging=1), scoped=True)
    trainer, rollout = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    weights = desk.lease(rollout, "weights", 4)
    desk.pause(rollout, "weights", release=True)
    params = desk.lease(trainer, "params", 8)
    desk.set_plan({"generate": ("rollout/*",), "train": ("trainer/*",)})
    desk.held_back.add("spill_in")
    assert desk.enter("generate") is None
    call = desk.last_call
    (read, *_) = desk.drop("spill_in")
    assert isinstance(read, ev.Transferred)
    desk.held_back.clear()
    desk.do(ev.TransferFailed(transfer=read.transfer, driver_call="preadv", reason="EIO"))
    assert isinstance(desk.answers[call], DriverFailed)
    assert (desk.view(weights).state, desk.view(params).state) == (LeaseState.PARKED, LeaseState.RESIDENT)


def test_limits_that_can_not_be_kept_are_refused() -> None:
    for wrong in (limits(spill=4), limits(spill=4, sizes=(1, 4), staging=2), limits(spill=4, staging=8, budget=4)):
        with pytest.raises(InvariantViolation):
            Broker(wrong)
    with pytest.raises(InvariantViolation):
        Broker(limits(staging=4))


def test_outcomes_that_nobody_waits_for_are_bugs() -> None:
    case = Spilling()
    with pytest.raises(InvariantViolation, match="transfer 99"):
        case.desk.do(ev.Transferred(transfer=TransferId(99)))
