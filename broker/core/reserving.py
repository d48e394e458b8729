"""Setting capacity aside for a session's later leases and resumes."""

from vrambroker.broker.core import hold
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import Draining
from vrambroker.broker.core.events import SetAside
from vrambroker.broker.core.lending import open_ticket, plan_at_once, require_few_waits, require_size
from vrambroker.broker.core.ticket import Room, bytes_of


def set_aside(book: Book, event: SetAside) -> None:
    """Admit the demand at once, or queue it, or refuse what is not certain."""
    if book.draining:
        raise Draining(message="the daemon is shutting down and sets nothing aside")
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    require_size(book, event.size_bytes)
    require_few_waits(book, session)
    need = hold.room_need(book, event.size_bytes)
    found = (
        None
        if event.wait
        else plan_at_once(book, session.session, need, event.size_bytes, f"{session.name}, for later,")
    )
    room = Room(size_bytes=bytes_of(need.parts))
    ticket = open_ticket(book, session, room, event.call, event.deadline, certain=not event.wait)
    if found is not None:
        hold.admit(book, ticket, found)
    else:
        book.queue.add(ticket)
        book.supply_grew = True
