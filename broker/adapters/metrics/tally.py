"""What the lines of the event stream add up to: who has how much where, who is there, who waits, and what has happened.

An `Observer`, and no more than a few dictionary entries a line; the status line and the metrics are both read off it.
"""

from collections import Counter
from dataclasses import dataclass

from vrambroker.broker.adapters.metrics.histogram import Histogram
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import Instant, LeaseId, TicketId

NS_PER_S = 1_000_000_000
WAIT_BOUNDS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
COUNTED = frozenset(
    {
        Kind.RECALLED,
        Kind.SPILLED,
        Kind.SPILL_FAILED,
        Kind.COPY_FAILED,
        Kind.SESSION_ATTACHED,
        Kind.SESSION_ENDED,
        Kind.TICKET_QUEUED,
        Kind.TICKET_DONE,
        Kind.TICKET_REFUSED,
        Kind.PHASE_ENTERED,
        Kind.PHASE_REFUSED,
    }
)
TICKETS = frozenset({Kind.TICKET_QUEUED, Kind.TICKET_ADMITTED, Kind.TICKET_DONE, Kind.TICKET_REFUSED})
SESSIONS = frozenset({Kind.SESSION_ATTACHED, Kind.SESSION_CONNECTED, Kind.SESSION_DISCONNECTED, Kind.SESSION_ENDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A ticket that is not met yet; `admitted`: all that it needs is certain, and on its way."""

    since: Instant
    admitted: bool


class Tally:
    """The totals, from the lines since the daemon began. `leases` has the latest line about each."""

    def __init__(self, *, capacity_bytes: int) -> None:
        self.lent_bytes = 0
        self.free_bytes = capacity_bytes
        self.held_bytes = 0
        self.host_bytes = 0
        self.host_file_bytes = 0
        self.spill_bytes = 0
        self.sessions: dict[str, bool] = {}
        self.leases: dict[LeaseId, Publish] = {}
        self.tickets: dict[TicketId, Waiting] = {}
        self.counts: Counter[Kind] = Counter()
        self.waits = Histogram(WAIT_BOUNDS_S)

    @property
    def waiting(self) -> int:
        """How many tickets wait for room that nobody has promised yet."""
        return sum(not ticket.admitted for ticket in self.tickets.values())

    def oldest_wait_s(self, now: Instant) -> float:
        """Return for how long the oldest of them has waited; 0 if none does."""
        since = min((ticket.since for ticket in self.tickets.values() if not ticket.admitted), default=now)
        return max(0, now - since) / NS_PER_S

    def published(self, line: Publish) -> None:
        kind = line.kind
        if kind is Kind.LEASE_CHANGED:
            self._lease(line)
        elif kind is Kind.DEVICE_CHANGED:
            self._device(line)
        elif kind in TICKETS:
            self._ticket(line)
        elif kind in SESSIONS:
            self._session(line)
        if kind in COUNTED:
            self.counts[kind] += 1

    def _lease(self, line: Publish) -> None:
        if line.state is None:
            self.leases.pop(line.lease, None)
        else:
            self.leases[line.lease] = line

    def _device(self, line: Publish) -> None:
        self.lent_bytes, self.free_bytes, self.held_bytes = line.lent_bytes, line.free_bytes, line.held_bytes
        self.host_bytes, self.host_file_bytes = line.host_bytes, line.host_file_bytes
        self.spill_bytes = line.spill_bytes

    def _ticket(self, line: Publish) -> None:
        if not line.ticket:
            return
        if line.kind is Kind.TICKET_QUEUED:
            self.tickets[line.ticket] = Waiting(since=line.at, admitted=False)
            return
        known = self.tickets.pop(line.ticket, None)
        if known is None:
            return
        if line.kind is Kind.TICKET_ADMITTED:
            self.tickets[line.ticket] = Waiting(since=known.since, admitted=True)
        elif line.kind is Kind.TICKET_DONE:
            self.waits.add((line.at - known.since) / NS_PER_S)

    def _session(self, line: Publish) -> None:
        match line.kind:
            case Kind.SESSION_ENDED:
                self.sessions.pop(line.session, None)
            case Kind.SESSION_DISCONNECTED:
                self.sessions[line.session] = False
            case _:
                self.sessions[line.session] = True
