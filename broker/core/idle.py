"""Two indexes over leases, so that no decision looks at all of them: whose frames to take first; and who holds most."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Set
from itertools import islice

from vrambroker.broker.core.ids import Instant, LeaseId
from vrambroker.broker.core.lease import Lease

IdleKey = tuple[int, bool, int, Instant, LeaseId]


class IdleLeases:
    """The leases that may be recalled, with the bytes that this would bring: the cheapest to take first, of those the
    ones over their soft limit, then those of lowest priority, then the longest idle.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._order: list[IdleKey] = []
        self._known: dict[LeaseId, tuple[IdleKey, int]] = {}

    def update(self, lease: Lease) -> bool:
        """Bring the index in line with the lease; tells whether more can be taken than before."""
        before = self._known.get(lease.lease)
        size_bytes = lease.idle_bytes
        key = (lease.cost, not lease.over, lease.priority, lease.idle_since, lease.lease)
        if before == ((key, size_bytes) if size_bytes else None):
            return False
        self.forget(lease.lease)
        if size_bytes:
            insort(self._order, key)
            self._known[lease.lease] = (key, size_bytes)
            self.size_bytes += size_bytes
        return size_bytes > (before[1] if before is not None else 0)

    def forget(self, lease: LeaseId) -> None:
        known = self._known.pop(lease, None)
        if known is not None:
            key, size_bytes = known
            del self._order[bisect_left(self._order, key)]
            self.size_bytes -= size_bytes

    def bytes_in(self, leases: Set[LeaseId]) -> int:
        """Return what may be taken from these; there may be thousands, and few of them idle."""
        return sum(self._known[lease][1] for lease in self._known.keys() & leases)

    def from_cost(self, cost: int) -> Iterator[LeaseId]:
        """Yield those that cost at least so much to take, in their order."""
        first = bisect_left(self._order, cost, key=lambda key: key[0])
        return (lease for *_, lease in islice(self._order, first, None))

    def __iter__(self) -> Iterator[LeaseId]:
        return (lease for *_, lease in self._order)

    def __len__(self) -> int:
        return len(self._order)


class Holdings:
    """Leases by the magnitude of what they hold, so that the largest holders are found without asking everybody."""

    def __init__(self) -> None:
        self._by_magnitude: dict[int, dict[LeaseId, None]] = {}
        self._magnitude: dict[LeaseId, int] = {}

    def update(self, lease: LeaseId, size_bytes: int) -> None:
        magnitude = size_bytes.bit_length()
        before = self._magnitude.get(lease, 0)
        if before == magnitude:
            return
        if before:
            del self._by_magnitude[before][lease]
            if not self._by_magnitude[before]:
                del self._by_magnitude[before]
            del self._magnitude[lease]
        if magnitude:
            self._by_magnitude.setdefault(magnitude, {})[lease] = None
            self._magnitude[lease] = magnitude

    def largest(self) -> Iterator[LeaseId]:
        """Yield leases, larger magnitudes first."""
        for magnitude in sorted(self._by_magnitude, reverse=True):
            yield from self._by_magnitude[magnitude]
