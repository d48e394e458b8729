"""A lease's state is what its slots are doing, and its counters follow every step."""

import pytest

from vrambroker.broker.core.effects import Extent, LeaseState
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import ArenaFileId, Domain, Instant, LeaseId, SessionId, SlotId, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.slot import Slot, Step

LIFE = {
    "granted": (Step.GRANT,),
    "mapped": (Step.GRANT, Step.ARRIVE),
    "leaving": (Step.GRANT, Step.ARRIVE, Step.RECALL),
    "parked": (Step.GRANT, Step.ARRIVE, Step.RECALL, Step.PARK),
    "dropped": (Step.GRANT, Step.ARRIVE, Step.RECALL, Step.DROP),
}


def lease_of(*states: str, paused: bool = True, contents: Contents = Contents.KEEP) -> Lease:
    lease = Lease(
        lease=LeaseId(1),
        session=SessionId(1),
        domain=Domain("d"),
        tag="t",
        contents=contents,
        since=Instant(0),
        paused=paused,
    )
    for number, state in enumerate(states):
        slot = Slot(slot=SlotId(number + 1), size_bytes=4)
        lease.add(slot)
        for step in LIFE[state]:
            lease.step(slot, step)
    return lease


@pytest.mark.parametrize(
    ("slots", "paused", "state"),
    [
        ((), False, LeaseState.RESIDENT),
        ((), True, LeaseState.PARKED),
        (("mapped", "mapped"), False, LeaseState.RESIDENT),
        (("mapped", "mapped"), True, LeaseState.IDLE),
        (("mapped", "granted"), False, LeaseState.ARRIVING),
        (("parked", "granted"), True, LeaseState.ARRIVING),
        (("mapped", "leaving"), True, LeaseState.LEAVING),
        (("mapped", "parked"), True, LeaseState.PARTIAL),
        (("parked", "dropped"), True, LeaseState.PARKED),
    ],
)
def test_the_state_is_derived_from_the_slots(slots: tuple[str, ...], paused: bool, state: LeaseState) -> None:
    assert lease_of(*slots, paused=paused).state is state


def test_a_decided_recall_shows_as_leaving_and_its_frames_as_absent() -> None:
    lease = lease_of("mapped", "mapped")
    assert lease.absent_bytes == 0
    one, other = lease.slots.values()
    lease.go(one)
    assert lease.state is LeaseState.LEAVING
    assert (lease.absent_bytes, lease.idle_bytes) == (4, 4)
    lease.go(other)
    assert (lease.absent_bytes, lease.idle_bytes) == (8, 0)
    lease.step(one, Step.RECALL)
    lease.step(one, Step.DROP)
    assert (lease.absent_bytes, lease.going_bytes) == (8, 4)


def test_an_empty_lease_that_is_growing_is_arriving() -> None:
    lease = lease_of(paused=False)
    lease.growing[TicketId(1)] = None
    assert lease.state is LeaseState.ARRIVING


def test_bytes_follow_the_steps() -> None:
    lease = lease_of("mapped", "granted", "leaving", "parked", "dropped")
    assert (lease.device_bytes, lease.total_bytes, lease.mapped_bytes) == (12, 20, 4)
    assert lease.absent_bytes == 12, "what is granted is on its way"
    assert not lease.settled


def test_a_slot_has_one_extent_of_its_own_size() -> None:
    lease = lease_of("mapped")
    slot = lease.slots[SlotId(1)]
    assert lease.unplaced() == [slot]
    extent = Extent(file=ArenaFileId(9), offset_bytes=0, size_bytes=4)
    lease.place(slot, extent)
    assert (lease.host_bytes, lease.unplaced(), slot.park) == (4, [], extent)
    assert not lease.files_to_park_in()
    lease.go(slot)
    assert list(lease.files_to_park_in()) == [9]
    with pytest.raises(InvariantViolation):
        lease.place(slot, extent)
    slot.copied = True
    assert slot.park is None, "what is parked already is not parked again"
    assert lease.displace(slot) == extent
    assert (lease.host_bytes, slot.copied) == (0, False)


def test_contents_that_are_worth_nothing_need_no_place() -> None:
    assert lease_of("mapped", contents=Contents.DROP).unplaced() == []


def test_a_slot_goes_only_once_it_holds_nothing() -> None:
    lease = lease_of("mapped")
    slot = lease.slots[SlotId(1)]
    with pytest.raises(InvariantViolation):
        lease.remove(slot)
    lease.step(slot, Step.RETURN)
    lease.remove(slot)
    assert (lease.slots, lease.total_bytes) == ({}, 0)
