"""Exports and readers: who maps whose memory, and that nobody loses it under their hands."""

from dataclasses import replace

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, key_of, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import (
    BrokerError,
    InvalidArgument,
    InvariantViolation,
    NotOwner,
    NotQuiescent,
    OutOfDeviceMemory,
    QuotaExceeded,
    UnknownLease,
    UnknownSession,
    UnknownTag,
    WrongState,
)
from vrambroker.broker.core.ids import ConnectionId, Domain, Instant, LeaseId, ReaderId, SessionId, SlotId
from vrambroker.broker.core.ledger import SPOILT
from vrambroker.broker.core.snapshot import FramePlace

DROP = ev.Contents.DROP


class Sharing:
    """A trainer that has exported a lease of 3 MiB under the key `k`, and a rollout."""

    def __init__(self, *, held_back: tuple[str, ...] = (), scoped: bool = False, read_only: bool = False) -> None:
        self.desk = Desk(limits(pool=8), held_back=held_back, scoped=scoped)
        self.trainer = self.desk.attach(peer(1), "trainer")
        self.rollout = self.desk.attach(peer(2), "rollout")
        self.lease = self.desk.lease(self.trainer, "weights", 3)
        assert isinstance(self.desk.export(self.trainer, self.lease, read_only=read_only), ef.Done)

    @property
    def reader(self) -> ReaderId:
        return self.desk.view(self.lease).readers[-1].reader

    def read(self, number: int = 1, by: SessionId | None = None) -> ef.ReadGranted:
        answer = self.desk.read(by or self.rollout, number)
        assert isinstance(answer, ef.ReadGranted), answer
        return answer


def places(desk: Desk) -> list[FramePlace]:
    return [frame.place for frame in desk.broker.snapshot().frames]


def test_a_reader_is_recorded_and_gets_the_frames_before_the_answer() -> None:
    world = Sharing()
    before = len(world.desk.effects)
    answer = world.read()
    assert world.desk.readers(world.lease) == [("rollout", True)]
    sent = [effect for effect in world.desk.effects[before:] if isinstance(effect, ef.SendReadGrant | ef.Reply)]
    grant, reply = sent
    assert isinstance(grant, ef.SendReadGrant) and isinstance(reply, ef.Reply)
    assert (grant.session, grant.reader, grant.writable) == (world.rollout, answer.reader, True)
    slots = world.desk.view(world.lease).slots
    expected = [(slot.slot, slot.frame, number * MIB, MIB) for number, slot in enumerate(slots)]
    assert [(one.slot, one.frame, one.offset_bytes, one.size_bytes) for one in grant.slots] == expected


def test_a_slot_is_sent_once_however_often_it_is_read() -> None:
    world = Sharing()
    world.read(1)
    world.read(2)
    first, second, third = (slot.slot for slot in world.desk.view(world.lease).slots)
    world.desk.export(world.trainer, world.lease, [first, second], key="part")
    assert isinstance(world.desk.read(world.rollout, 3, "part"), ef.ReadGranted)
    assert len(world.desk.sent(ef.SendReadGrant)) == 1
    assert len(world.desk.readers(world.lease)) == 1
    grown = world.desk.lease(world.trainer, "weights", 1)
    assert grown == world.lease
    fresh = next(slot.slot for slot in world.desk.view(grown).slots if slot.slot not in (first, second, third))
    world.desk.export(world.trainer, world.lease, [third, fresh], key="more")
    world.desk.read(world.rollout, 4, "more")
    assert [slot.slot for slot in world.desk.sent(ef.SendReadGrant)[-1].slots] == [fresh]


def test_reading_only_and_reading_and_writing_are_two_readers() -> None:
    world = Sharing()
    world.desk.export(world.trainer, world.lease, read_only=True, key="look")
    world.read()
    world.desk.read(world.rollout, 2, "look")
    assert world.desk.readers(world.lease) == [("rollout", True), ("rollout", False)]
    assert [grant.writable for grant in world.desk.sent(ef.SendReadGrant)] == [True, False]


def test_the_owner_that_receives_its_own_has_no_reader() -> None:
    world = Sharing()
    assert world.desk.read(world.trainer) == ef.ReadGranted(lease=world.lease, reader=None)
    assert world.desk.readers(world.lease) == []
    assert isinstance(world.desk.pause(world.trainer, "weights"), ef.Paused)


def test_an_export_is_settled_when_all_that_was_received_is_let_go_of() -> None:
    world = Sharing()
    other = world.desk.attach(peer(3), "other")
    world.read(1)
    world.read(2)
    world.read(1, by=other)
    for session, number in ((world.rollout, 1), (other, 1)):
        world.desk.end_read(session, number)
        assert world.desk.sent(ef.SendExportSettled) == []
    world.desk.end_read(world.rollout, 2)
    assert world.desk.sent(ef.SendExportSettled) == [
        ef.SendExportSettled(session=world.trainer, key=key_of("k")),
    ]
    assert isinstance(world.desk.read(world.rollout, 5), UnknownLease)
    # What is mapped stays, so that receiving again costs nothing.
    assert len(world.desk.readers(world.lease)) == 2


def test_what_was_sent_twice_is_settled_when_it_was_received_twice() -> None:
    world = Sharing()
    assert isinstance(world.desk.send_again(world.trainer, world.lease), ef.Done)
    world.read(1)
    world.desk.end_read(world.rollout, 1)
    assert world.desk.sent(ef.SendExportSettled) == []
    world.read(2)
    world.desk.end_read(world.rollout, 2)
    assert len(world.desk.sent(ef.SendExportSettled)) == 1
    assert isinstance(world.desk.send_again(world.trainer, world.lease), UnknownLease)


def test_what_nobody_has_received_can_be_taken_back() -> None:
    world = Sharing()
    world.desk.export(world.trainer, world.lease, key="used")
    world.desk.read(world.rollout, 1, "used")
    world.desk.send_again(world.trainer, world.lease, key="used")
    assert isinstance(world.desk.unexport(world.trainer), ef.Done)
    assert [one.key for one in world.desk.sent(ef.SendExportSettled)] == [key_of("k")]
    world.desk.end_read(world.rollout, 1)
    assert [one.key for one in world.desk.sent(ef.SendExportSettled)] == [key_of("k"), key_of("used")]


def test_a_read_that_ends_twice_or_never_began_is_no_error() -> None:
    world = Sharing()
    world.read(1)
    for number in (1, 1, 77):
        assert isinstance(world.desk.end_read(world.rollout, number), ef.Done)


def test_a_pause_has_what_is_mapped_and_not_in_use_let_go_of_at_once() -> None:
    world = Sharing()
    world.read()
    world.desk.end_read(world.rollout)
    assert isinstance(world.desk.pause(world.trainer, "weights", release=True), ef.Paused)
    assert world.desk.readers(world.lease) == []
    assert isinstance(world.desk.resume(world.trainer, "weights"), ef.Resumed)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("release", [True, False])
def test_a_pause_waits_for_what_is_in_use(quiet: bool, release: bool) -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.read()
    assert world.desk.pause(world.trainer, "weights", quiet=quiet, release=release) is None
    call = world.desk.last_call
    assert world.desk.sent(ef.SendCloseReader) == [ef.SendCloseReader(session=world.rollout, reader=world.reader)]
    assert world.desk.view(world.lease).paused is False
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.answers[call], ef.Paused)
    assert world.desk.view(world.lease).paused is True


@pytest.mark.parametrize("quiet", [True, False])
def test_a_pause_that_waits_in_vain_is_refused_and_changes_nothing(quiet: bool) -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.read()
    world.desk.pause(world.trainer, "weights", quiet=quiet, deadline=Instant(500))
    call = world.desk.last_call
    world.desk.at(500)
    refused = world.desk.answers[call]
    assert isinstance(refused, NotQuiescent)
    assert "trainer/weights is in use by rollout" in refused.message
    assert (refused.session, refused.tag, refused.scope) == ("trainer", "weights", "rollout")
    assert world.desk.view(world.lease).paused is False
    assert len(world.desk.sent(ef.SendPauseCancelled)) == (0 if quiet else 1)
    # The next reader is another one: this one goes as soon as it can.
    world.read(2)
    assert len(world.desk.readers(world.lease)) == 2
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.pause(world.trainer, "weights"), ef.Paused)


def test_nobody_receives_what_is_about_to_be_paused() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.pause(world.trainer, "weights")
    refused = world.desk.read(world.rollout, 2)
    assert isinstance(refused, WrongState) and "trainer/weights is about to be paused" in refused.message
    world.desk.let_go("close_reader")
    refused = world.desk.read(world.rollout, 2)
    assert isinstance(refused, WrongState) and "trainer/weights is paused" in refused.message
    world.desk.resume(world.trainer, "weights")
    world.read(3)


def test_what_was_exported_before_a_pause_is_received_after_it() -> None:
    world = Sharing()
    other = world.desk.attach(peer(3), "other")
    world.desk.pause(world.trainer, "weights", release=True)
    busy = world.desk.lease(other, "busy", 7, DROP)
    world.desk.give(other, busy)
    world.desk.resume(world.trainer, "weights")
    world.read()
    frames = [slot.frame for slot in world.desk.view(world.lease).slots]
    assert [one.frame for one in world.desk.sent(ef.SendReadGrant)[-1].slots] == frames


def test_two_tags_are_paused_when_the_last_reader_of_either_has_let_go() -> None:
    world = Sharing(held_back=("close_reader",))
    cache = world.desk.lease(world.trainer, "cache", 1, DROP)
    world.desk.export(world.trainer, cache, key="cache")
    world.read(1)
    world.desk.read(world.rollout, 2, "cache")
    world.desk.pause(world.trainer, "weights", "cache")
    call = world.desk.last_call
    first, second = world.desk.drop("close_reader")
    world.desk.do(first)
    assert call not in world.desk.answers
    world.desk.do(second)
    assert isinstance(world.desk.answers[call], ef.Paused)


def test_a_pause_that_waits_for_readers_ends_with_its_lease() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.pause(world.trainer, "weights")
    call = world.desk.last_call
    world.desk.give(world.trainer, world.lease)
    assert isinstance(world.desk.answers[call], UnknownTag)


def test_a_lease_may_be_returned_while_a_pause_of_it_and_another_waits_for_readers() -> None:
    world = Sharing(held_back=("close_reader",))
    cache = world.desk.lease(world.trainer, "cache", 1, DROP)
    world.desk.export(world.trainer, cache, key="cache")
    world.read(1)
    world.desk.read(world.rollout, 2, "cache")
    world.desk.pause(world.trainer, "weights", "cache")
    call = world.desk.last_call
    world.desk.give(world.trainer, cache)
    assert call not in world.desk.answers
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.answers[call], UnknownTag), "nothing is paused of what is not all there"
    assert not world.desk.view(world.lease).readers


def test_a_pause_that_waits_for_readers_ends_with_its_session() -> None:
    world = Sharing(held_back=("close_reader", "fence"))
    world.read()
    world.desk.pause(world.trainer, "weights")
    call = world.desk.last_call
    world.desk.do(ev.ProcessEnded(session=world.trainer))
    assert isinstance(world.desk.answers[call], UnknownSession)


def test_gates_are_not_taken_for_closed_over_a_lost_connection() -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.read()
    world.desk.pause(world.trainer, "weights", quiet=False)
    call = world.desk.last_call
    world.desk.do(ev.ConnectionLost(session=world.trainer, connection=ConnectionId(1001)))
    world.desk.let_go("close_reader")
    assert call not in world.desk.answers
    back = ev.Reattach(call=world.desk.call(peer(1)), session=world.trainer, connection=ConnectionId(5))
    world.desk.do(back)
    assert isinstance(world.desk.answers[call], ef.Paused)


def test_gates_are_not_taken_for_closed_after_the_owner_has_resumed_what_is_behind_them() -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.desk.lease(world.trainer, "cache", 1, DROP)
    world.read()
    world.desk.pause(world.trainer, "weights", "cache", quiet=False)
    call = world.desk.last_call
    world.desk.pause(world.trainer, "cache")
    world.desk.resume(world.trainer, "cache")
    world.desk.let_go("close_reader")
    refused = world.desk.answers[call]
    assert isinstance(refused, NotQuiescent) and "trainer/cache resumed" in refused.message
    assert world.desk.view(world.lease).paused is False


def test_a_change_of_phase_waits_for_readers() -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.desk.lease(world.rollout, "cache", 1, DROP)
    world.desk.set_plan({"train": ("trainer/*",), "generate": ("rollout/*",)})
    world.read()
    world.desk.enter("generate")
    call = world.desk.last_call
    assert len(world.desk.sent(ef.SendCloseReader)) == 1
    refused = world.desk.read(world.rollout, 2)
    assert isinstance(refused, WrongState) and "about to be paused" in refused.message
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.answers[call], ef.Entered)
    assert world.desk.view(world.lease).paused is True


def test_a_change_of_phase_that_waits_for_readers_in_vain_names_them() -> None:
    world = Sharing(held_back=("close_reader",), scoped=True)
    world.desk.set_plan({"train": ("trainer/*",), "generate": ("rollout/*",)})
    world.read()
    world.desk.enter("generate", deadline=Instant(500))
    call = world.desk.last_call
    world.desk.at(500)
    refused = world.desk.answers[call]
    assert isinstance(refused, NotQuiescent) and refused.scope == "rollout"
    assert world.desk.view(world.lease).paused is False


def test_what_may_be_written_to_is_sealed_when_its_writers_have_let_go() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    assert world.desk.seal(world.trainer, "weights") is None
    call = world.desk.last_call
    assert world.desk.view(world.lease).sealed is False
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.answers[call], ef.Done)
    assert world.desk.view(world.lease).sealed is True


def test_a_seal_leaves_those_who_only_read_what_they_have() -> None:
    world = Sharing(held_back=("close_reader",))
    world.desk.export(world.trainer, world.lease, read_only=True, key="look")
    world.desk.read(world.rollout, 1, "look")
    world.read(2)
    world.desk.seal(world.trainer, "weights")
    call = world.desk.last_call
    assert len(world.desk.waiting("close_reader")) == 1
    world.desk.let_go("close_reader")
    assert isinstance(world.desk.answers[call], ef.Done)
    assert world.desk.readers(world.lease) == [("rollout", False)]


def test_a_seal_does_not_wait_for_ever() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.seal(world.trainer, "weights")
    call = world.desk.last_call
    deadline = world.desk.broker.next_deadline()
    assert deadline is not None
    world.desk.at(deadline)
    assert isinstance(world.desk.answers[call], NotQuiescent)
    assert world.desk.view(world.lease).sealed is False


def test_what_is_sealed_is_read_and_not_written_to() -> None:
    world = Sharing()
    world.desk.export(world.trainer, world.lease, read_only=True, key="look")
    world.desk.read(world.rollout, 1, "look")
    assert isinstance(world.desk.seal(world.trainer, "weights"), ef.Done)
    assert isinstance(world.desk.read(world.rollout, 2, "look"), ef.ReadGranted)
    refused = world.desk.read(world.rollout, 3)
    assert isinstance(refused, WrongState) and "sealed" in refused.message


def test_a_returned_frame_goes_to_nobody_before_its_readers_have_let_go() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    first = world.desk.view(world.lease).slots[0]
    world.desk.give(world.trainer, world.lease, [first.slot])
    assert len(world.desk.sent(ef.SendCloseReader)) == 1
    assert places(world.desk).count(FramePlace.LINGERING) == 1
    assert world.desk.free == 5
    refused = world.desk.lend(world.rollout, "huge", 8, DROP)
    assert isinstance(refused, OutOfDeviceMemory)
    assert ("rollout", "reading", MIB) in [(one.session, one.state, one.size_bytes) for one in refused.holders]
    world.desk.let_go("close_reader")
    assert world.desk.free == 6
    again = world.desk.lease(world.rollout, "mine", 1, DROP)
    assert world.desk.view(again).slots[0].frame == first.frame


def test_a_whole_lease_that_is_returned_leaves_its_readers_what_they_have() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    assert isinstance(world.desk.give(world.trainer, world.lease), ef.Done)
    assert places(world.desk) == [FramePlace.LINGERING] * 3
    assert [one.key for one in world.desk.sent(ef.SendExportSettled)] == [key_of("k")]
    world.desk.let_go("close_reader")
    assert set(places(world.desk)) == {FramePlace.POOLED}
    assert world.desk.free == 8


def test_an_owner_that_says_goodbye_leaves_its_readers_what_they_have() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.answer(ev.Detach(call=world.desk.call(peer(1)), session=world.trainer))
    assert places(world.desk) == [FramePlace.LINGERING] * 3
    world.desk.let_go("close_reader")
    assert world.desk.free == 8


def test_the_frames_of_a_dead_owner_are_fenced_whoever_reads_them() -> None:
    world = Sharing(held_back=("close_reader", "fence"))
    world.read()
    world.desk.do(ev.ProcessEnded(session=world.trainer))
    assert places(world.desk) == [FramePlace.FENCED] * 3
    world.desk.let_go("fence")
    assert world.desk.free == 8
    world.desk.let_go("close_reader")
    assert world.desk.free == 8


@pytest.mark.parametrize("read_only", [True, False])
def test_what_a_dead_reader_could_write_to_is_never_passed_on(read_only: bool) -> None:
    world = Sharing(read_only=read_only)
    world.read()
    world.desk.do(ev.ProcessEnded(session=world.rollout))
    assert world.desk.readers(world.lease) == []
    frames = {slot.frame for slot in world.desk.view(world.lease).slots}
    assert isinstance(world.desk.pause(world.trainer, "weights", release=True), ef.Paused)
    other = world.desk.attach(peer(3), "other")
    got = {slot.frame for slot in world.desk.view(world.desk.lease(other, "mine", 8, DROP)).slots}
    assert bool(got & frames) == read_only


def test_what_lingers_for_a_dead_writer_is_closed() -> None:
    world = Sharing(held_back=("close_reader", "destroy"))
    world.read()
    world.desk.give(world.trainer, world.lease)
    world.desk.do(ev.ProcessEnded(session=world.rollout))
    assert places(world.desk) == [FramePlace.DESTROYING] * 3
    assert {frame.domain for frame in world.desk.broker.snapshot().frames} == {SPOILT}


def test_a_reader_that_says_goodbye_spoils_nothing() -> None:
    world = Sharing()
    world.read()
    world.desk.answer(ev.Detach(call=world.desk.call(peer(2)), session=world.rollout))
    assert world.desk.readers(world.lease) == []
    assert [one.key for one in world.desk.sent(ef.SendExportSettled)] == [key_of("k")]
    assert SPOILT not in {frame.domain for frame in world.desk.broker.snapshot().frames}


def test_who_receives_can_pass_it_on() -> None:
    world = Sharing(read_only=True)
    world.read()
    third = world.desk.attach(peer(3), "third")
    refused = world.desk.export(world.rollout, world.lease, key="on")
    assert isinstance(refused, InvalidArgument) and "read-only" in refused.message
    assert isinstance(world.desk.export(world.rollout, world.lease, read_only=True, key="on"), ef.Done)
    assert isinstance(world.desk.read(third, 1, "on"), ef.ReadGranted)
    assert world.desk.readers(world.lease) == [("rollout", False), ("third", False)]
    # And back to its owner.
    assert world.desk.read(world.trainer, 1, "on") == ef.ReadGranted(lease=world.lease, reader=None)


def test_who_has_received_nothing_passes_nothing_on() -> None:
    world = Sharing()
    world.read()
    third = world.desk.attach(peer(3), "third")
    assert isinstance(world.desk.export(third, world.lease, key="on"), UnknownLease)


def test_what_can_not_be_exported() -> None:
    world = Sharing()
    stranger = world.desk.attach(peer(3, uid=2, domain=Domain("away")), "stranger")
    assert isinstance(world.desk.export(stranger, world.lease, key="x"), UnknownLease)
    assert isinstance(world.desk.export(world.trainer, world.lease, [999], key="x"), UnknownLease)
    assert isinstance(world.desk.export(world.trainer, world.lease), InvalidArgument)
    assert isinstance(world.desk.send_again(world.rollout, world.lease), UnknownLease)
    event = ev.Export(
        call=world.desk.call(peer(2)),
        session=world.trainer,
        key=key_of("x"),
        lease=world.lease,
        read_only=False,
        again=False,
        slots=(ev.ExportedSlot(slot=SlotId(1), offset_bytes=0),),
    )
    assert isinstance(world.desk.answer(event), NotOwner)
    for key, lease, slots in (
        (key_of("x"), LeaseId(999), event.slots),
        (key_of("x"), world.lease, ()),
        (key_of("x"), world.lease, event.slots * 1025),
        (b"short", world.lease, event.slots),
    ):
        one = ev.Export(
            call=world.desk.call(peer(1)),
            session=world.trainer,
            key=key,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            lease=lease,
            read_only=False,
            again=False,
            slots=slots,
        )
        assert isinstance(world.desk.answer(one), InvalidArgument | UnknownLease)


def test_another_domain_can_not_tell_a_key_from_none() -> None:
    world = Sharing()
    stranger = world.desk.attach(peer(3, uid=2, domain=Domain("away")), "stranger")
    refused, unknown = world.desk.read(stranger), world.desk.read(stranger, key="none")
    assert isinstance(refused, UnknownLease) and isinstance(unknown, UnknownLease)
    assert (refused.message, refused.lease) == (unknown.message, unknown.lease)


def test_there_is_a_limit_on_exports_and_readers() -> None:
    desk = Desk(replace(limits(pool=8), exports_per_session_max=2, readers_per_session_max=1))
    trainer, rollout = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    one, other = desk.lease(trainer, "one", 1), desk.lease(trainer, "other", 1)
    desk.export(trainer, one, key="1")
    desk.export(trainer, other, key="2")
    assert isinstance(desk.export(trainer, one, key="3"), QuotaExceeded)
    assert isinstance(desk.read(rollout, 1, "1"), ef.ReadGranted)
    assert isinstance(desk.read(rollout, 2, "2"), QuotaExceeded)
    assert desk.readers(other) == []


def test_a_number_names_one_read() -> None:
    world = Sharing()
    world.read(1)
    assert isinstance(world.desk.read(world.rollout, 1), InvalidArgument)


def test_what_was_returned_is_not_received() -> None:
    world = Sharing()
    first = world.desk.view(world.lease).slots[0].slot
    world.desk.give(world.trainer, world.lease, [first])
    refused = world.desk.read(world.rollout)
    assert isinstance(refused, WrongState) and "has given up memory" in refused.message


def test_an_agent_that_is_there_again_hears_what_it_may_have_missed() -> None:
    world = Sharing(held_back=("close_reader",))
    other = world.desk.lease(world.trainer, "other", 1)
    world.desk.export(world.trainer, other, key="other")
    world.read()
    world.desk.read(world.rollout, 2, "other")
    world.desk.give(world.trainer, other)
    before = len(world.desk.effects)
    for session, pid in ((world.rollout, 2), (world.trainer, 1)):
        world.desk.do(ev.Reattach(call=world.desk.call(peer(pid)), session=session, connection=ConnectionId(pid)))
    again = world.desk.effects[before:]
    assert [one.lease for one in again if isinstance(one, ef.SendReadGrant)] == [world.lease]
    assert len([one for one in again if isinstance(one, ef.SendCloseReader)]) == 1
    assert [one.key for one in again if isinstance(one, ef.SendExportSettled)] == [key_of("other")]


def test_an_agent_reports_only_its_own_readers_and_once() -> None:
    world = Sharing()
    world.read()
    reader = world.reader
    world.desk.do(ev.ReaderClosed(session=world.trainer, reader=reader))
    assert world.desk.readers(world.lease) == [("rollout", True)]
    for _ in range(2):
        world.desk.do(ev.ReaderClosed(session=world.rollout, reader=reader))
    assert world.desk.readers(world.lease) == []
    assert world.desk.sent(ef.EndReader) == [ef.EndReader(reader=reader)]


def test_a_pause_that_everybody_has_left_is_withdrawn() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.pause(world.trainer, "weights", deadline=FAR)
    call = world.desk.last_call
    world.desk.do(ev.CallAbandoned(call=call))
    assert isinstance(world.desk.answers[call], BrokerError)
    world.desk.let_go("close_reader")
    assert world.desk.view(world.lease).paused is False


def test_the_check_finds_a_reader_of_a_paused_lease() -> None:
    world = Sharing()
    world.read()
    book = getattr(world.desk.broker, "_book")  # noqa: B009
    book.leases[world.lease].paused = True
    with pytest.raises(InvariantViolation):
        world.desk.broker.check()


def test_the_check_finds_a_frame_with_a_reader_that_is_lent_to_others() -> None:
    world = Sharing(held_back=("close_reader",))
    world.read()
    world.desk.give(world.trainer, world.lease)
    book = getattr(world.desk.broker, "_book")  # noqa: B009
    frame = next(iter(book.lingering))
    del book.lingering[frame]
    book.ledger.linger_no_more(book.frame(frame))
    with pytest.raises(InvariantViolation, match="goes to nobody"):
        world.desk.broker.check()
