"""The spill store: places for kept contents that the arena has no room for, and the staging room on the way there.

No process can reach the spill store but the daemon. So contents go to it and come back through an extent in files of
the arena that are kept for that, a part of the host's budget; slots take turns with them. All of the store is there
from the start, so that a place in it is as certain as one in the arena.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vrambroker.broker.core.arena import Arena
from vrambroker.broker.core.effects import Extent, SpillPlace
from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.ids import ArenaFileId, Domain, Instant, LeaseId, SlotId, TransferId
from vrambroker.broker.core.limits import Limits

STORE, STORE_FILE = Domain("the spill store"), ArenaFileId(0)
"""The store is laid out as one file that is always there; nobody who lends or leases ever hears of it."""

DOUBLINGS_MAX = 6
"""How often the time is doubled after which a write that goes on failing is tried again."""


@dataclass(slots=True, kw_only=True, eq=False)
class Transfer:
    """Contents on their way. `disowned`: their slot is gone, and what they use is free when it is over; the extent is
    to be wiped first, if `wipe`.
    """

    transfer: TransferId
    lease: LeaseId
    slot: SlotId
    extent: Extent
    place: SpillPlace
    outwards: bool
    disowned: bool = False
    wipe: bool = False


class Spill:
    """`staged`: the slots that have an extent of the staging room. `waiting`: those that need one, in the order of their
    turn. `moving`: which of them have a transfer under way. `trouble`: why the last write has failed; until `retry_at`,
    nothing is written, and nothing set aside.
    """

    def __init__(self, limits: Limits) -> None:
        self.budget_bytes = limits.spill_budget_bytes
        self.places = Arena(
            budget_bytes=limits.spill_budget_bytes,
            file_bytes=limits.spill_budget_bytes,
            sizes_bytes=limits.frame_sizes_bytes,
        )
        if self.budget_bytes:
            self.places.add_file(STORE_FILE, STORE, self.budget_bytes)
            self.places.begin_planned()
            self.places.made(STORE_FILE)
        self.staging = Arena(
            budget_bytes=limits.staging_bytes,
            file_bytes=limits.frame_sizes_bytes[-1],
            sizes_bytes=limits.frame_sizes_bytes,
        )
        self.staged: dict[SlotId, LeaseId] = {}
        self.waiting: dict[SlotId, LeaseId] = {}
        self.transfers: dict[TransferId, Transfer] = {}
        self.moving: dict[SlotId, TransferId] = {}
        self.trouble = ""
        self.retry_at: Instant | None = None
        self._retry_ns = limits.retry_ns
        self._failures = 0

    @property
    def used_bytes(self) -> int:
        return self.places.used_bytes

    @property
    def free_bytes(self) -> int:
        """Return what could still be set aside; nothing, while writing fails."""
        return self.budget_bytes - self.used_bytes if self.retry_at is None else 0

    def has_room(self, need: Mapping[int, int]) -> bool:
        """Tell whether so many places of each size can be set aside."""
        if not any(need.values()):
            return True
        return self.retry_at is None and self.places.room_for(STORE, need) is not None

    def take(self, size_bytes: int, lease: LeaseId, slot: SlotId) -> SpillPlace:
        """Set a place aside; `has_room` was asked before."""
        taken = self.places.take(STORE, size_bytes, lease, slot)
        return SpillPlace(offset_bytes=taken.offset_bytes, size_bytes=taken.size_bytes)

    def give(self, place: SpillPlace) -> None:
        """Put a place back; what is in it is read by nobody."""
        self.places.give(Extent(file=STORE_FILE, offset_bytes=place.offset_bytes, size_bytes=place.size_bytes))

    def begin(self, transfer: Transfer) -> None:
        """Take note of a transfer that is ordered."""
        self.transfers[transfer.transfer] = transfer
        self.moving[transfer.slot] = transfer.transfer

    def end(self, number: TransferId) -> Transfer:
        """Take note of a transfer that is over, whatever came of it; returns it."""
        transfer = self.transfers.pop(number, None)
        invariant(transfer is not None, f"transfer {number} is under way, as its outcome says")
        assert transfer is not None
        if not transfer.disowned:
            del self.moving[transfer.slot]
        return transfer

    def forget(self, slot: SlotId, *, wipe: bool) -> bool:
        """Leave a slot's places to the transfer that uses them just now; tells whether there is one."""
        self.waiting.pop(slot, None)
        self.staged.pop(slot, None)
        number = self.moving.pop(slot, None)
        if number is None:
            return False
        self.transfers[number].disowned, self.transfers[number].wipe = True, wipe
        return True

    def fail(self, now: Instant, reason: str) -> None:
        """Take note that a write has failed: nothing is written for a while, the longer the more have failed on end."""
        self.trouble = reason
        self.retry_at = Instant(now + (self._retry_ns << min(self._failures, DOUBLINGS_MAX)))
        self._failures += 1

    def succeed(self) -> None:
        """Take note that writing works."""
        self._failures = 0
