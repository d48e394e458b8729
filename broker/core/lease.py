"""A lease: what a session holds under one tag and policy. Its state is derived from its slots' and never stored.

Counters by slot state are kept with every step, so that asking for the state or for the bytes costs nothing however
many slots there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vrambroker.broker.core.effects import Extent, LeaseState, SpillPlace
from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    Domain,
    ExportKey,
    Instant,
    LeaseId,
    ReaderId,
    SessionId,
    SlotId,
    TicketId,
)
from vrambroker.broker.core.slot import WITH_FRAME, Slot, Step, follow
from vrambroker.broker.core.snapshot import SlotState

ABSENT = (SlotState.PARKED, SlotState.DROPPED, SlotState.LEAVING)


def _zeroes() -> dict[SlotState, int]:
    return dict.fromkeys(SlotState, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """`priority`: of the idle, those of lower priority are taken first; of those that wait, those of higher one go first.
    `asked_priority`: what somebody has set it to, whatever the plan says.

    `over`: its session or its tag is over a soft limit, so that it is taken before others.

    `takeable` is false after a recall failed, or when kept contents lost their place: nobody may count on its
    frames.

    `going`: mapped slots whose recall is decided, while their place in the arena is not populated yet, so that nothing
    has been said to the owner.

    `seated`: a change of phase has brought it back and given up its places in the arena, but not opened it yet.

    `opened`: something was granted in it, so that its owner's agent knows it, whatever became of that. `lock`: the
    ticket that brings it back just now; `comebacks` and `growing` are all tickets that name it. `releases`: the pauses
    that wait until its frames have left.

    `discarded`: its owner has said of this pause that nothing of it need be kept, whatever `contents` says.

    `sealed`: nobody can write to it, so that what is parked of it stays true when it comes back. `doubled_bytes`: what is
    mapped and parked as well, so that to take it is an unmap. `device_bytes`: what it has of the device, whatever the
    frames are doing; `counted_bytes`: what its session's sum has of that.

    `readers`: who maps memory of it beside its owner; `exports`: by what they could come to do so. `clearings`: the calls
    that wait until there are no readers.

    `pauses`: which pause this is; what was copied in another is not what is there now. `uncopied`: copying it out ahead has
    failed in this pause, so that it is not tried again.
    """

    lease: LeaseId
    session: SessionId
    domain: Domain
    tag: str
    contents: Contents
    since: Instant
    idle_since: Instant = Instant(0)
    priority: int = 0
    asked_priority: int | None = None
    over: bool = False
    paused: bool = False
    moved: bool = False
    takeable: bool = True
    seated: bool = False
    discarded: bool = False
    opened: bool = False
    sealed: bool = False
    pauses: int = 0
    uncopied: bool = False
    lock: TicketId | None = None
    pending_slots: int = 0
    host_bytes: int = 0
    spill_bytes: int = 0
    slots: dict[SlotId, Slot] = field(default_factory=dict[SlotId, Slot])
    growing: dict[TicketId, None] = field(default_factory=dict[TicketId, None])
    comebacks: dict[TicketId, None] = field(default_factory=dict[TicketId, None])
    releases: dict[CallId, None] = field(default_factory=dict[CallId, None])
    readers: dict[ReaderId, None] = field(default_factory=dict[ReaderId, None])
    exports: dict[ExportKey, None] = field(default_factory=dict[ExportKey, None])
    clearings: dict[CallId, None] = field(default_factory=dict[CallId, None])
    going: dict[SlotId, None] = field(default_factory=dict[SlotId, None])
    going_bytes: int = 0
    doubled_bytes: int = 0
    counted_bytes: int = 0
    device_bytes: int = 0
    total_bytes: int = 0
    count: dict[SlotState, int] = field(default_factory=_zeroes)
    size_bytes: dict[SlotState, int] = field(default_factory=_zeroes)

    @property
    def mapped_bytes(self) -> int:
        return self.size_bytes[SlotState.MAPPED]

    @property
    def keeps(self) -> bool:
        """Its contents must be there again after a pause; after this one, if it is paused."""
        return self.contents is Contents.KEEP and not self.discarded

    @property
    def cost(self) -> int:
        """How dear it is to take its frames: nothing is worth keeping, all of it is parked already, or it must be
        copied.
        """
        if not self.keeps:
            return 0
        return 1 if self.doubled_bytes == self.mapped_bytes else 2

    @property
    def worth(self) -> str:
        """What its contents are worth, as a person reads it."""
        if self.cost == 1:
            return "parked already"
        if self.discarded:
            return "discarded"
        return {Contents.KEEP: "kept", Contents.DROP: "dropped", Contents.ZERO: "zero again"}[self.contents]

    @property
    def absent_bytes(self) -> int:
        """What it still takes to bring it back from its pause: all but what is mapped and stays, or granted."""
        if not self.paused:
            return 0
        size_bytes = self.size_bytes
        absent_bytes = size_bytes[SlotState.PARKED] + size_bytes[SlotState.DROPPED] + size_bytes[SlotState.LEAVING]
        return absent_bytes + self.going_bytes

    def is_absent(self, slot: Slot) -> bool:
        """Tell whether it takes a frame to bring this slot back from a pause."""
        return slot.state in ABSENT or slot.slot in self.going

    @property
    def recalled(self) -> bool:
        """Some of it is on its way out, or about to be."""
        return bool(self.count[SlotState.LEAVING] or self.going)

    @property
    def settled(self) -> bool:
        """Nothing of it is on the way."""
        return not self.count[SlotState.GRANTED] and not self.recalled

    @property
    def idle_bytes(self) -> int:
        """What may be taken from it: all that is mapped and stays, if it is paused, left alone, and its contents have a
        place.
        """
        free_to_take = self.paused and self.takeable and self.lock is None and not self.growing
        return self.mapped_bytes - self.going_bytes if free_to_take else 0

    @property
    def copied_bytes(self) -> int:
        """What of an idle lease is parked as well; of others nobody asks."""
        return self.doubled_bytes if self.state in (LeaseState.IDLE, LeaseState.PARTIAL) else 0

    @property
    def state(self) -> LeaseState:
        if self.count[SlotState.GRANTED] or (not self.slots and self.growing):
            return LeaseState.ARRIVING
        if self.recalled:
            return LeaseState.LEAVING
        if self.count[SlotState.MAPPED] == len(self.slots) and (self.slots or not self.paused):
            return LeaseState.IDLE if self.paused else LeaseState.RESIDENT
        return LeaseState.PARTIAL if self.count[SlotState.MAPPED] else LeaseState.PARKED

    def add(self, slot: Slot) -> None:
        self.slots[slot.slot] = slot
        self._tally(slot, +1)

    def remove(self, slot: Slot) -> None:
        """Forget a slot that was returned."""
        invariant(slot.state is SlotState.EMPTY and not slot.placed, "a slot goes only once it holds nothing")
        self._tally(slot, -1)
        del self.slots[slot.slot]

    def step(self, slot: Slot, step: Step) -> None:
        following = follow(slot.state, step)
        self.stay(slot)
        self._tally(slot, -1)
        slot.state = following
        self._tally(slot, +1)

    def go(self, slot: Slot) -> None:
        """Count a mapped slot among those that are about to leave."""
        invariant(slot.state is SlotState.MAPPED and slot.slot not in self.going, "only what is there can go")
        self.going[slot.slot] = None
        self.going_bytes += slot.size_bytes

    def stay(self, slot: Slot) -> None:
        """Undo `go`, if it was done."""
        if slot.slot in self.going:
            del self.going[slot.slot]
            self.going_bytes -= slot.size_bytes

    def staying(self) -> Iterator[Slot]:
        """Yield the slots that are mapped and not about to leave."""
        return (slot for slot in self.in_state(SlotState.MAPPED) if slot.slot not in self.going)

    def _tally(self, slot: Slot, by: int) -> None:
        self.count[slot.state] += by
        self.size_bytes[slot.state] += by * slot.size_bytes
        self.total_bytes += by * slot.size_bytes
        self.device_bytes += by * slot.size_bytes if slot.state in WITH_FRAME else 0
        self.doubled_bytes += by * slot.size_bytes if slot.doubled else 0

    def place(self, slot: Slot, extent: Extent) -> None:
        """Set an extent aside for the slot's contents."""
        invariant(slot.extent is None and extent.size_bytes == slot.size_bytes, "a slot has one extent of its own size")
        slot.extent = extent
        self.host_bytes += extent.size_bytes

    def keep_copy(self, slot: Slot) -> None:
        """Note that the slot's contents are in its extent."""
        invariant(slot.extent is not None and not slot.copied, "a copy has a place, and is made once")
        self.note(slot, copied=True, spilled=slot.spilled)

    def displace(self, slot: Slot) -> Extent | None:
        """Take the slot's extent from it, with whatever is in it."""
        self.note(slot, copied=False, spilled=slot.spilled)
        extent, slot.extent = slot.extent, None
        self.host_bytes -= extent.size_bytes if extent is not None else 0
        return extent

    def spill(self, slot: Slot, place: SpillPlace) -> None:
        """Set a place in the spill store aside for the slot's contents."""
        invariant(not slot.placed and place.size_bytes == slot.size_bytes, "a slot has one place of its own size")
        slot.spill = place
        self.spill_bytes += place.size_bytes

    def unspill(self, slot: Slot) -> SpillPlace | None:
        """Take the slot's place in the spill store from it, with whatever is in it."""
        self.note(slot, copied=slot.copied, spilled=False)
        place, slot.spill = slot.spill, None
        self.spill_bytes -= place.size_bytes if place is not None else 0
        return place

    def note(self, slot: Slot, *, copied: bool, spilled: bool) -> None:
        """Take note of where the contents are, beside the device."""
        before = slot.doubled
        slot.copied, slot.spilled = copied, spilled
        self.doubled_bytes += (slot.doubled - before) * slot.size_bytes

    def in_state(self, *states: SlotState) -> Iterator[Slot]:
        return (slot for slot in self.slots.values() if slot.state in states)

    def cheapest(self) -> Iterator[Slot]:
        """Yield the slots that may be taken, those that are parked already first."""
        if self.doubled_bytes:
            yield from (slot for slot in self.staying() if slot.saved)
        yield from (slot for slot in self.staying() if not slot.saved)

    def unplaced(self) -> list[Slot]:
        """Return the slots whose contents must be kept and have no place yet."""
        if not self.keeps or self.seated:
            return []
        return [slot for slot in self.in_state(SlotState.MAPPED) if not slot.placed]

    def files_to_park_in(self) -> dict[ArenaFileId, None]:
        """Return the files that must be populated before all that is about to leave can be ordered out."""
        parks = (self.slots[slot].park for slot in self.going)
        return {extent.file: None for extent in parks if extent is not None}
