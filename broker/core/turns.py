"""Whose turn it is, as people change it: priorities, and tickets cancelled."""

from vrambroker.broker.core import phases, ranks
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Done
from vrambroker.broker.core.errors import Cancelled, InvalidArgument, NotOwner, UnknownTicket
from vrambroker.broker.core.events import Cancel, Peer, Prioritize
from vrambroker.broker.core.grant import undo
from vrambroker.broker.core.ids import OUTSIDE
from vrambroker.broker.core.lending import withdraw
from vrambroker.broker.core.pausing import require_tags
from vrambroker.broker.core.ticket import Stage, Ticket


def prioritize(book: Book, event: Prioritize) -> None:
    """Set a priority; what waits for these leases takes its new place in the queue."""
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    require_tags(book, event.tags)
    most = book.limits.priority_max
    if not -most <= event.priority <= most:
        raise InvalidArgument(
            message=f"priority {event.priority} is not between -{most} and {most}", argument="priority"
        )
    for lease in book.leases_of(session, event.tags):
        lease.asked_priority = event.priority
        ranks.rank(book, lease)
    book.reply(event.call.call, Done())


def cancel(book: Book, event: Cancel) -> None:
    """End a ticket before its time."""
    ticket = book.tickets.get(event.ticket)
    if ticket is None:
        raise UnknownTicket(message=f"there is no ticket {event.ticket}", ticket=event.ticket)
    if ticket.session == OUTSIDE:
        _require_asked_by(ticket, event.call.actor)
    else:
        book.sessions.get(ticket.session).require_authority(event.call.actor)
    _end(book, ticket, by_uid=event.call.actor.uid)
    book.reply(event.call.call, Done())


def _require_asked_by(ticket: Ticket, actor: Peer) -> None:
    """Raise `NotOwner` unless it is root, or who asked for the room; nobody ends a refill."""
    if ticket.refill or actor.uid not in (0, ticket.uid):
        raise NotOwner(message=f"uid {actor.uid} may not end ticket {ticket.ticket}", session="", uid=actor.uid)


def _end(book: Book, ticket: Ticket, *, by_uid: int) -> None:
    error = Cancelled(message=f"ticket {ticket.ticket} was cancelled by uid {by_uid}", ticket=ticket.ticket)
    if phases.cancel(book, ticket, error):
        return
    match ticket.stage:
        case Stage.QUEUED | Stage.CLAIMABLE | Stage.KEPT:
            withdraw(book, ticket, error)
        case Stage.ADMITTED if not ticket.slots:
            withdraw(book, ticket, error)
        case Stage.ADMITTED | Stage.GRANTED:
            undo(book, ticket, error)
        case Stage.UNDOING:
            call, ticket.call = ticket.call, None
            if call is not None:
                book.refuse(call, error, session=book.name_of(ticket.session), ticket=ticket.ticket)
