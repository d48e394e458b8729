"""Who waits for whom, and rings: tickets that wait for each other's memory, so that none of them can ever be met.

A process that waits for its own resume pauses nothing meanwhile, as far as anybody knows. A ticket that only such processes
could help is met after theirs, if ever, so it does not keep them from what is idle. And if they wait for it as well, and
so on round, somebody has to be refused: the one whose turn is last, which can pause then.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vrambroker.broker.core import hold, rooms
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import OutOfDeviceMemory
from vrambroker.broker.core.ids import OUTSIDE, SessionId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import withdraw
from vrambroker.broker.core.ticket import Stage, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A session that does nothing but wait. Nobody else gets what it has in use, nor what it has set aside."""

    tickets: tuple[Ticket, ...]
    in_use_bytes: int
    aside_bytes: int


@dataclass(slots=True, kw_only=True)
class Waiters:
    """Sessions that do nothing but wait, as far as they are not known to be helped without each other."""

    capacity_bytes: int
    by_session: dict[SessionId, Waiter]

    def within_reach_bytes(self, session: SessionId) -> int:
        """Return what a session's ticket could come to, at most, as long as all of these wait."""
        there_bytes = sum(one.in_use_bytes + one.aside_bytes for one in self.by_session.values())
        own = self.by_session.get(session)
        return self.capacity_bytes - there_bytes + (own.aside_bytes if own is not None else 0)

    def block(self, book: Book, ticket: Ticket) -> bool:
        """Tell whether a ticket can't be met before some of these have gone on."""
        return hold.total_bytes(book, ticket) > self.within_reach_bytes(ticket.session)


def waiters(book: Book) -> Waiters:
    """Return the sessions whose own process waits for room and has nothing else under way. One that stands in its own way
    is none of them: only another of its threads can help it, and may.
    """
    found: dict[SessionId, Waiter] = {}
    for session in {book.tickets[number].session for number in book.queue} - {OUTSIDE}:
        waiter = _waiter(book, session)
        if waiter is not None:
            found[session] = waiter
    return Waiters(capacity_bytes=book.limits.capacity_bytes, by_session=found)


def _waiter(book: Book, session: SessionId) -> Waiter | None:
    tickets = map(book.tickets.__getitem__, book.sessions.live[session].tickets)
    under_way = tuple(ticket for ticket in tickets if ticket.stage is not Stage.KEPT)
    if not all(_only_waits(book, ticket) for ticket in under_way):
        return None
    in_use_bytes = sum(lease.device_bytes for lease in _in_use(book, session))
    aside_bytes = rooms.kept_bytes(book, session)
    if all(hold.total_bytes(book, ticket) > book.limits.capacity_bytes - in_use_bytes for ticket in under_way):
        return None
    return Waiter(tickets=under_way, in_use_bytes=in_use_bytes, aside_bytes=aside_bytes)


def _only_waits(book: Book, ticket: Ticket) -> bool:
    return ticket.own and ticket.stage is Stage.QUEUED and not hold.being_resumed(book, ticket)


def _in_use(book: Book, session: SessionId) -> Iterator[Lease]:
    """Yield the leases that nobody but their owner can let go of."""
    return (lease for lease in map(book.leases.__getitem__, book.sessions.live[session].leases) if not lease.paused)


def refuse(book: Book) -> None:
    """Refuse a ticket of each ring, naming all that are in it."""
    while len(book.queue) > 1 and (ring := _find(book)):
        withdraw(book, ring[-1], _error(book, ring))


def _find(book: Book) -> list[Ticket]:
    """Return the tickets of a ring in the order of their turn, or none."""
    left = waiters(book)
    while len(left.by_session) > 1:
        helped = [
            session
            for session, waiter in left.by_session.items()
            if not all(left.block(book, ticket) for ticket in waiter.tickets)
        ]
        if not helped:
            break
        for session in helped:
            del left.by_session[session]
    holding = {session for session, one in left.by_session.items() if one.in_use_bytes + one.aside_bytes}
    if len(holding) < 2:
        return []
    return [ticket for ticket in map(book.tickets.__getitem__, book.queue) if ticket.session in holding]


def _error(book: Book, ring: list[Ticket]) -> OutOfDeviceMemory:
    last = ring[-1]
    names = " waits for ".join(hold.label(book, ticket) for ticket in (*ring, ring[0]))
    sessions = dict.fromkeys(ticket.session for ticket in ring)
    holders = (book.holder(lease, lease.device_bytes) for session in sessions for lease in _in_use(book, session))
    return OutOfDeviceMemory(
        message=f"a ring, of which {hold.label(book, last)} is the last: {names}; one of them has to pause first",
        requested_bytes=hold.needed_bytes(book, last),
        free_bytes=book.ledger.free_bytes,
        capacity_bytes=book.limits.capacity_bytes,
        holders=tuple(one for one in holders if one.size_bytes),
    )
