"""Frames are handed on as they come: what leaves one session is granted to the next while more of it is being copied."""

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import DriverFailed, OutOfDeviceMemory, WaitExpired
from vrambroker.broker.core.ids import CallId, Instant, LeaseId, SessionId, SlotId
from vrambroker.broker.core.ticket import Stage

DROP = ev.Contents.DROP


class Swap:
    """A trainer of 4 MiB, parked, on a device of 4 that a rollout has; it has paused, and the trainer resumes."""

    def __init__(self, *, deadline: int = 1_000_000, patience: int = 0) -> None:
        self.desk = desk = Desk(limits(capacity=4, patience=patience))
        self.one, self.two = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
        self.parked = desk.lease(self.one, "w", 4)
        desk.pause(self.one, "w", release=True)
        self.there = desk.lease(self.two, "kv", 4)
        desk.held_back.add("leave")
        desk.pause(self.two, "kv")
        assert desk.resume(self.one, "w", deadline=Instant(deadline)) is None
        self.call: CallId = desk.last_call
        (recall,) = desk.sent(ef.SendRecall)[1:]
        assert recall.lease == self.there
        self.leaving = [slot.slot for slot in recall.slots]

    def leave(self, *slots: SlotId) -> None:
        """Let some of the rollout's slots have left."""
        self.desk.do(ev.Left(session=self.two, lease=self.there, slots=slots, failure=None))

    def granted(self) -> list[int]:
        """Return how many slots each grant to the trainer has had since it resumed."""
        return [len(sent.slots) for sent in self.desk.sent(ef.SendGrant)[2:] if sent.session == self.one]

    def vacated(self, session: SessionId, lease: LeaseId) -> list[SlotId]:
        recalls = [sent for sent in self.desk.sent(ef.SendRecall)[2:] if sent.session == session]
        assert all(sent.lease == lease for sent in recalls)
        return [slot.slot for sent in recalls for slot in sent.slots]


def test_a_frame_that_has_left_is_granted_while_others_are_leaving() -> None:
    swap = Swap()
    swap.leave(swap.leaving[0])
    assert swap.granted() == [1]
    assert swap.desk.view(swap.parked).device_bytes == MIB
    swap.leave(*swap.leaving[1:3])
    assert swap.granted() == [1, 2]
    assert swap.call not in swap.desk.answers, "nobody is resident before the last frame is in"
    swap.leave(swap.leaving[3])
    assert isinstance(swap.desk.answers[swap.call], ef.Resumed)
    states = swap.desk.view(swap.parked).state, swap.desk.view(swap.there).state
    assert states == (LeaseState.RESIDENT, LeaseState.PARKED)


def test_the_parked_copy_stays_until_the_last_frame_is_in() -> None:
    swap = Swap()
    swap.leave(*swap.leaving[:3])
    assert swap.desk.view(swap.parked).host_bytes == 4 * MIB
    swap.leave(swap.leaving[3])
    assert swap.desk.view(swap.parked).host_bytes == 0


def test_a_growth_gets_its_slots_as_they_come() -> None:
    desk = Desk(limits(capacity=4), held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(one, "w", 4, DROP)
    desk.pause(one, "w")
    assert desk.lend(two, "kv", 3) is None
    first, *others = [slot.slot for slot in desk.sent(ef.SendRecall)[0].slots]
    desk.drop("leave")
    desk.do(ev.Left(session=one, lease=idle, slots=(first,), failure=None))
    assert [len(sent.slots) for sent in desk.sent(ef.SendGrant)[1:]] == [1]
    desk.do(ev.Left(session=one, lease=idle, slots=tuple(others), failure=None))
    assert isinstance(desk.answers[desk.last_call], ef.Leased)


def test_when_a_promise_is_broken_what_had_come_goes_back_and_the_ticket_waits_on() -> None:
    swap = Swap()
    swap.leave(*swap.leaving[:2])
    assert swap.granted() == [2]
    stuck, gone = swap.leaving[2:]
    swap.desk.do(ev.Left(session=swap.two, lease=swap.there, slots=(stuck,), failure="EIO"))
    assert len(swap.vacated(swap.one, swap.parked)) == 2
    (waiting,) = swap.desk.queue()
    assert (waiting.stage, waiting.tags) == (Stage.UNDOING, ("w",))
    swap.desk.drop("leave")
    vacated = tuple(swap.vacated(swap.one, swap.parked))
    swap.desk.do(ev.Left(session=swap.one, lease=swap.parked, slots=vacated, failure=None))
    (waiting,) = swap.desk.queue()
    assert waiting.stage is Stage.QUEUED
    assert swap.desk.view(swap.parked).state is LeaseState.PARKED
    assert swap.call not in swap.desk.answers
    swap.leave(gone)
    swap.desk.let_go("leave")
    assert isinstance(swap.desk.give(swap.two, swap.there), ef.Done)
    assert isinstance(swap.desk.answers[swap.call], ef.Resumed)


def test_a_ticket_that_waits_again_has_its_old_deadline() -> None:
    swap = Swap(deadline=300)
    swap.leave(swap.leaving[0])
    swap.desk.held_back.add("fence")
    swap.desk.do(ev.ProcessEnded(session=swap.two))
    swap.desk.let_go("leave")
    (waiting,) = swap.desk.queue()
    assert (waiting.stage, waiting.deadline) == (Stage.QUEUED, 300)
    swap.desk.at(300)
    assert isinstance(swap.desk.answers[swap.call], OutOfDeviceMemory)


def test_a_ticket_that_waits_again_gets_what_a_dead_peer_had() -> None:
    swap = Swap()
    swap.leave(swap.leaving[0])
    swap.desk.do(ev.ProcessEnded(session=swap.two))
    assert swap.call not in swap.desk.answers
    swap.desk.let_go("leave")
    assert isinstance(swap.desk.answers[swap.call], ef.Resumed)


def test_what_has_come_in_part_goes_back_when_the_time_is_up() -> None:
    swap = Swap(deadline=300)
    swap.leave(swap.leaving[0])
    swap.desk.at(300)
    refused = swap.desk.answers[swap.call]
    assert isinstance(refused, WaitExpired)
    assert [(holder.session, holder.tag) for holder in refused.holders] == [("rollout", "kv")]
    swap.desk.let_go("leave")
    assert swap.desk.view(swap.parked).state is LeaseState.PARKED
    assert not swap.desk.queue()


def test_nobody_is_cut_short_while_frames_keep_coming() -> None:
    swap = Swap(deadline=300, patience=200)
    swap.desk.at(290)
    swap.leave(swap.leaving[0])
    swap.desk.at(300)
    assert swap.call not in swap.desk.answers
    swap.desk.at(600)
    assert isinstance(swap.desk.answers[swap.call], WaitExpired)


def test_what_somebody_waits_for_to_be_gone_does_not_come_back_before() -> None:
    desk = Desk(limits(capacity=8), held_back=("leave",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 2)
    desk.pause(session, "w", release=True)
    release = desk.last_call
    first, second = (slot.slot for slot in desk.sent(ef.SendRecall)[0].slots)
    desk.resume(session, "w")
    desk.drop("leave")
    desk.do(ev.Left(session=session, lease=lease, slots=(first,), failure=None))
    assert len(desk.sent(ef.SendGrant)) == 1
    desk.do(ev.Left(session=session, lease=lease, slots=(second,), failure=None))
    assert isinstance(desk.answers[release], ef.Paused)
    assert isinstance(desk.answers[desk.last_call], ef.Resumed)


def test_a_frame_that_cannot_be_made_undoes_what_had_come() -> None:
    desk = Desk(limits(capacity=4, sizes=(1, 2)), held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    idle = desk.lease(one, "w", 4, DROP)
    desk.pause(one, "w")
    assert desk.lend(two, "kv", 3) is None
    call = desk.last_call
    desk.drop("leave")
    exact, melts = (slot.slot for slot in desk.sent(ef.SendRecall)[0].slots)
    desk.do(ev.Left(session=one, lease=idle, slots=(exact,), failure=None))
    desk.held_back.add("create")
    desk.do(ev.Left(session=one, lease=idle, slots=(melts,), failure=None))
    (made,) = desk.drop("create")
    assert isinstance(made, ev.FrameCreated)
    desk.do(ev.FrameCreateFailed(frame=made.frame, driver_call="cuMemCreate", driver_result="OUT_OF_MEMORY"))
    assert isinstance(desk.answers[call], DriverFailed)
    desk.let_go("leave")
    assert desk.free == 4
