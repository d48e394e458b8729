"""Admission and the choice of whose memory is taken: pure functions of the ledger and the idle leases.

A plan covers the whole need or there is none. Memory is taken in this order: pooled frames that fit as they are, free
capacity, other pooled frames (destroyed for their bytes), frames that are on their way back already, and then frames of
idle leases, no more than are needed: the cheapest to take first, then the longest idle.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from enum import Enum

from vrambroker.broker.core.idle import IdleLeases
from vrambroker.broker.core.ids import Domain, FrameId, LeaseId
from vrambroker.broker.core.ledger import Frame, Ledger, Shelf
from vrambroker.broker.core.snapshot import FramePlace
from vrambroker.broker.core.ticket import bytes_of


class Reach(Enum):
    """How far a ticket may go for its frames: to what is free now, or to what is leaving and idle as well."""

    FREE = "free"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`parts`: how many frames of each size. `spared`: leases that must not be recalled for it. `bare`: no frame is of
    use as it is, only its bytes are.
    """

    parts: Mapping[int, int]
    domain: Domain
    spared: Set[LeaseId]
    bare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to set aside: `exact` frames serve as they are, `melting` ones are destroyed for their bytes. `recalls`: which
    of them idle leases have to give up for it.
    """

    exact: tuple[FrameId, ...]
    melting: tuple[FrameId, ...]
    to_create: Mapping[int, int]
    reserve_bytes: int
    recalls: Mapping[LeaseId, Set[FrameId]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """Where frames can come from; read, never written."""

    ledger: Ledger
    idle: IdleLeases
    frames_of: Callable[[LeaseId], Iterable[Frame]]

    def reachable_bytes(self, reach: Reach, spared: Set[LeaseId]) -> int:
        """Return what a need could be covered with, at most; `covers` is cheaper where it does."""
        if reach is Reach.FREE:
            return self.ledger.free_bytes
        coming_bytes = self.ledger.coming.size_bytes + self.ledger.melting.size_bytes
        return self.ledger.free_bytes + coming_bytes + self.idle.size_bytes - self.idle.bytes_in(spared)

    def covers(self, size_bytes: int, reach: Reach, spared: Set[LeaseId]) -> bool:
        """Tell whether so much is within reach."""
        return size_bytes <= self.ledger.free_bytes or size_bytes <= self.reachable_bytes(reach, spared)


def plan(need: Need, supply: Supply, reach: Reach) -> Plan | None:
    """Return how the whole need can be covered, or None if it can't be within reach."""
    if not supply.covers(bytes_of(need.parts), reach, need.spared):
        return None
    draft = _Draft(need, supply.ledger)
    if not need.bare:
        draft.fit_pooled(supply.ledger.pool)
    draft.create_from_free()
    draft.melt(supply.ledger.pool)
    if reach is Reach.ALL:
        if not need.bare:
            draft.fit_coming(supply.ledger.coming)
        draft.melt(supply.ledger.melting)
        draft.melt(supply.ledger.coming)
        draft.recall(supply)
    return draft.finish()


class _Draft:
    """A plan in the making.

    `missing`: frames for which nothing is set aside yet; `short_bytes`: how much of the need is not covered by
    anything. Free capacity and frames to be destroyed cover any need, whatever their sizes.
    """

    def __init__(self, need: Need, ledger: Ledger) -> None:
        self._domain = need.domain
        self._spared = need.spared
        self._bare = need.bare
        self._missing = {size: number for size, number in sorted(need.parts.items(), reverse=True) if number}
        self._to_create: dict[int, int] = {}
        self._unframed_bytes = ledger.unframed_bytes
        self._short_bytes = bytes_of(need.parts) - ledger.unframed_bytes
        self._exact: dict[FrameId, Frame] = {}
        self._melting: dict[FrameId, Frame] = {}

    def fit_pooled(self, pool: Shelf) -> None:
        """Take what serves as it is, even where free capacity would do: a recycled frame is there already."""
        for size in tuple(self._missing):
            for frame in pool.fitting(self._domain, size):
                if size not in self._missing:
                    break
                self._take(frame)

    def fit_coming(self, coming: Shelf) -> None:
        """Take what will serve as it is, as far as free capacity does not do."""
        for size in tuple(self._missing):
            for frame in coming.fitting(self._domain, size):
                if size not in self._missing or self._short_bytes <= 0:
                    break
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        self._exact[frame.frame] = frame
        self._short_bytes -= frame.size_bytes
        self._less(frame.size_bytes, 1)

    def _less(self, size: int, number: int) -> None:
        self._missing[size] -= number
        if not self._missing[size]:
            del self._missing[size]

    def create_from_free(self) -> None:
        """Make what fits into free capacity, whole frames only, larger ones first."""
        room_bytes = self._unframed_bytes
        for size in tuple(self._missing):
            number = min(self._missing[size], room_bytes // size)
            if number:
                self._to_create[size] = number
                room_bytes -= number * size
                self._less(size, number)

    def melt(self, frames: Iterable[Frame]) -> None:
        """Take frames for their bytes, no more than it takes."""
        for frame in frames:
            if self._short_bytes <= 0:
                return
            if frame.frame not in self._exact:
                self._melting[frame.frame] = frame
                self._short_bytes -= frame.size_bytes

    def recall(self, supply: Supply) -> None:
        """Take frames of idle leases until nothing is short: of each lease first those that serve as they are."""
        for lease in supply.idle:
            if self._short_bytes <= 0:
                return
            if lease in self._spared:
                continue
            frames = tuple(supply.frames_of(lease))
            for frame in frames:
                if self._short_bytes <= 0:
                    break
                if not self._bare and frame.domain == self._domain and frame.size_bytes in self._missing:
                    self._take(frame)
            self.melt(sorted(frames, key=lambda frame: -frame.size_bytes))

    def finish(self) -> Plan | None:
        if self._short_bytes > 0:
            return None
        for size, number in self._missing.items():
            self._to_create[size] = self._to_create.get(size, 0) + number
        self._prune()
        return Plan(
            exact=tuple(self._exact),
            melting=tuple(self._melting),
            to_create=self._to_create,
            reserve_bytes=min(self._unframed_bytes, bytes_of(self._to_create)),
            recalls=self._recalls(),
        )

    def _prune(self) -> None:
        """Let go of what later finds have made needless, latest first."""
        for frame in reversed(tuple(self._melting.values())):
            if frame.size_bytes <= -self._short_bytes:
                del self._melting[frame.frame]
                self._short_bytes += frame.size_bytes

    def _recalls(self) -> dict[LeaseId, set[FrameId]]:
        recalls: dict[LeaseId, set[FrameId]] = {}
        for frame in (*self._exact.values(), *self._melting.values()):
            if frame.place is FramePlace.LENT and not frame.leaving and frame.lease is not None:
                recalls.setdefault(frame.lease, set()).add(frame.frame)
        return recalls
