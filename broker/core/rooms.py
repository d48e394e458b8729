"""Capacity set aside for later: asked for like anything else, and used up by what its session leases and resumes.

It is kept as capacity, not as frames: so it is of use whatever sizes are asked for, and free on the device itself.
"""

from collections.abc import Iterator

from vrambroker.broker.core import hold, scheduler
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Held, Kind
from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.ids import OUTSIDE, Instant, SessionId
from vrambroker.broker.core.scheduler import Need, Plan, Reach
from vrambroker.broker.core.ticket import Room, Stage, Ticket, bytes_of


def keep_if_there(book: Book, ticket: Ticket) -> None:
    """Answer a ticket whose capacity is all there; from then on it is kept."""
    if not ticket.hold.complete:
        return
    ticket.stage = Stage.KEPT
    # What its session waits for can use it up.
    book.supply_grew = True
    if ticket.lasts_ns:
        ticket.deadline = Instant(book.now + ticket.lasts_ns)
        book.bound(ticket)
    name = book.name_of(ticket.session)
    why = f"{ticket.hold.keep_bytes} bytes are set aside: {hold.label(book, ticket)}"
    book.publish(Kind.TICKET_DONE, why, session=name, ticket=ticket.ticket)
    call, ticket.call = ticket.call, None
    if call is not None:
        book.reply(call, Held(ticket=ticket.ticket))


def kept_bytes(book: Book, session: SessionId) -> int:
    """Return what a session has set aside."""
    return sum(ticket.hold.keep_bytes for ticket in _kept(book, session))


def plan(book: Book, session: SessionId, need: Need, reach: Reach) -> Plan | None:
    """Plan for a session that uses up what it has set aside first; if that and what is within reach don't do, nothing is
    used up.
    """
    kept = 0 if need.bare else kept_bytes(book, session)
    needed = bytes_of(need.parts)
    supply = book.supply()
    if not supply.covers(needed - kept, reach, need.spared):
        return None
    _use_up(book, session, min(needed, kept))
    found = scheduler.plan(need, supply, reach)
    invariant(found is not None or not kept, "what is covered can be planned")
    return found


def _use_up(book: Book, session: SessionId, size_bytes: int) -> None:
    for ticket in tuple(_kept(book, session)):
        part_bytes = min(size_bytes, ticket.hold.keep_bytes)
        size_bytes -= part_bytes
        book.ledger.unreserve(part_bytes)
        ticket.hold.reserved_bytes -= part_bytes
        ticket.hold.keep_bytes -= part_bytes
        assert isinstance(ticket.demand, Room)
        ticket.demand.size_bytes -= part_bytes
        if not ticket.hold.keep_bytes:
            hold.close(book, ticket)


def _kept(book: Book, session: SessionId) -> Iterator[Ticket]:
    if session == OUTSIDE:
        return iter(())
    tickets = map(book.tickets.__getitem__, book.sessions.live[session].tickets)
    return (ticket for ticket in tickets if ticket.stage is Stage.KEPT)
