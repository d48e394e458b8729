"""How much is copied between device and host, and for how long: from the orders to agents and what they report.

`out` is contents that must be parked before their frames leave, `ahead` what is parked while nothing else moves, `in` what
comes back. The time of a direction is that in which at least one of its copies was ordered and not yet reported, so bytes
over seconds is a rate, however many copies are under way at once.
"""

from dataclasses import dataclass, field
from enum import Enum

from vrambroker.broker.core.effects import Effect, SendCopy, SendGrant, SendRecall, SpillIn, SpillOut
from vrambroker.broker.core.events import (
    Arrived,
    Copied,
    Detach,
    Event,
    Left,
    ProcessEnded,
    Return,
    TransferFailed,
    Transferred,
)
from vrambroker.broker.core.ids import Instant, LeaseId, OrderId, SessionId, SlotId, TransferId


class Direction(Enum):
    OUT = "out"
    IN = "in"
    AHEAD = "ahead"


@dataclass(slots=True, kw_only=True, eq=False)
class Way:
    """One direction. `under_way`: the bytes of each slot whose copy is ordered, by its session."""

    done_bytes: int = 0
    busy_ns: int = 0
    since: Instant | None = None
    under_way: dict[SessionId, dict[tuple[LeaseId | OrderId, SlotId], int]] = field(
        default_factory=dict[SessionId, dict[tuple[LeaseId | OrderId, SlotId], int]]
    )

    def begin(self, session: SessionId, of: LeaseId | OrderId, sizes_bytes: dict[SlotId, int], now: Instant) -> None:
        """Take note of copies that an agent was told to make; told again, they are the same ones."""
        if not sizes_bytes:
            return
        ours = self.under_way.setdefault(session, {})
        for slot, size_bytes in sizes_bytes.items():
            ours[of, slot] = size_bytes
        self.since = now if self.since is None else self.since

    def end(
        self, session: SessionId, of: LeaseId | OrderId, slots: tuple[SlotId, ...], now: Instant, *, made: bool
    ) -> None:
        """Take note that copies are over; those that were `made` count."""
        ours = self.under_way.get(session)
        if ours is None:
            return
        for slot in slots:
            size_bytes = ours.pop((of, slot), 0)
            self.done_bytes += size_bytes if made else 0
        self._settle(session, ours, now)

    def forget(self, session: SessionId, of: LeaseId | OrderId | None, now: Instant) -> None:
        """Take note that nothing more is heard of a session's copies, or of those of one lease or order."""
        ours = self.under_way.get(session)
        if ours is None:
            return
        for key in [key for key in ours if of is None or key[0] == of]:
            del ours[key]
        self._settle(session, ours, now)

    def _settle(self, session: SessionId, ours: dict[tuple[LeaseId | OrderId, SlotId], int], now: Instant) -> None:
        if not ours:
            del self.under_way[session]
        if not self.under_way and self.since is not None:
            self.busy_ns += now - self.since
            self.since = None

    def busy_until(self, now: Instant) -> int:
        """Return the time in nanoseconds, what goes on just now included."""
        return self.busy_ns + (0 if self.since is None else max(0, now - self.since))


class Copies:
    """All directions, and what goes to the spill store and back."""

    def __init__(self) -> None:
        self.ways = {direction: Way() for direction in Direction}
        self.written_bytes = 0
        self.read_bytes = 0
        self._transfers: dict[TransferId, tuple[bool, int]] = {}

    def told(self, event: Event, now: Instant) -> None:
        """Take note of what was reported, before its effects."""
        ways = self.ways
        match event:
            case Left():
                ways[Direction.OUT].end(event.session, event.lease, event.slots, now, made=event.failure is None)
                # What has gone back was called off on its way in.
                ways[Direction.IN].end(event.session, event.lease, event.slots, now, made=False)
            case Arrived():
                ways[Direction.IN].end(event.session, event.lease, event.slots, now, made=event.failure is None)
            case Copied():
                ways[Direction.AHEAD].end(event.session, event.order, event.slots, now, made=True)
                ways[Direction.AHEAD].forget(event.session, event.order, now)
            case Return(slots=()):
                for way in ways.values():
                    way.forget(event.session, event.lease, now)
            case Return():
                for way in ways.values():
                    way.end(event.session, event.lease, event.slots, now, made=False)
            case Detach() | ProcessEnded():
                for way in ways.values():
                    way.forget(event.session, None, now)
            case Transferred():
                self._transferred(event.transfer)
            case TransferFailed():
                self._transfers.pop(event.transfer, None)
            case _:
                pass

    def ordered(self, effect: Effect, now: Instant) -> None:
        """Take note of what is ordered."""
        match effect:
            case SendRecall():
                parked = {slot.slot: slot.park.size_bytes for slot in effect.slots if slot.park is not None}
                self.ways[Direction.OUT].begin(effect.session, effect.lease, parked, now)
            case SendGrant():
                restored = {slot.slot: slot.size_bytes for slot in effect.slots if slot.restore is not None}
                self.ways[Direction.IN].begin(effect.session, effect.lease, restored, now)
            case SendCopy():
                copied = {slot.slot: slot.to.size_bytes for slot in effect.slots}
                self.ways[Direction.AHEAD].begin(effect.session, effect.order, copied, now)
            case SpillOut():
                self._transfers[effect.transfer] = (True, effect.extent.size_bytes)
            case SpillIn():
                self._transfers[effect.transfer] = (False, effect.extent.size_bytes)
            case _:
                pass

    def _transferred(self, transfer: TransferId) -> None:
        is_write, size_bytes = self._transfers.pop(transfer, (False, 0))
        if is_write:
            self.written_bytes += size_bytes
        else:
            self.read_bytes += size_bytes
