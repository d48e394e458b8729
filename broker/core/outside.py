"""What comes from outside of leases: readings of what is there, what the driver did not have, and requests for room."""

from dataclasses import replace

from vrambroker.broker.core import hold, withheld
from vrambroker.broker.core.book import OUTSIDE_NAME, Book
from vrambroker.broker.core.effects import Kind
from vrambroker.broker.core.errors import Draining, InvalidArgument, QuotaExceeded, invariant
from vrambroker.broker.core.events import MakeRoom, OutsideMeasured, Reconfigure
from vrambroker.broker.core.ids import OUTSIDE, Instant
from vrambroker.broker.core.lending import plan_at_once, require_size
from vrambroker.broker.core.limits import NS_PER_S
from vrambroker.broker.core.ticket import Stage, bytes_of

GROWTH_SHARE = 8
"""What has grown by this part of what is kept free is worth being eager for; a tensor more or less is not."""


def make_room(book: Book, event: MakeRoom) -> None:
    """Set capacity aside for nobody's session, as soon as there is any; or at once, or not at all."""
    if book.draining:
        raise Draining(message="the daemon is shutting down and makes no room")
    require_size(book, event.size_bytes)
    _require_sound(book, event)
    need = hold.room_need(book, event.size_bytes)
    found = None if event.wait else plan_at_once(book, OUTSIDE, need, event.size_bytes, OUTSIDE_NAME)
    ticket = withheld.open_ticket(book, bytes_of(need.parts), event.deadline)
    ticket.certain, ticket.call, ticket.uid = not event.wait, event.call.call, event.call.actor.uid
    ticket.lasts_ns = event.lasts_ns
    book.wait(event.call.call, ticket)
    why = f"uid {ticket.uid} asks for room outside of leases"
    book.publish(Kind.TICKET_QUEUED, why, session=OUTSIDE_NAME, ticket=ticket.ticket)
    if found is not None:
        hold.admit(book, ticket, found)
    else:
        book.queue.add(ticket)
        book.supply_grew = True


def _require_sound(book: Book, event: MakeRoom) -> None:
    limits = book.limits
    if not 0 < event.lasts_ns <= limits.room_ns_max:
        most_s = limits.room_ns_max // NS_PER_S
        raise InvalidArgument(message=f"room is kept for more than 0 and at most {most_s} s", argument="lasts")
    of_uid = [ticket for ticket in book.tickets.values() if ticket.lasts_ns and ticket.uid == event.call.actor.uid]
    if len(of_uid) >= limits.rooms_per_user_max:
        most = limits.rooms_per_user_max
        raise QuotaExceeded(
            message=f"uid {event.call.actor.uid} has room made {most} times already",
            limit="rooms_per_user_max",
            limit_value=most,
        )


def measured(book: Book, event: OutsideMeasured) -> None:
    """Take note of a reading: withhold what it says, and no more than that."""
    invariant(event.used_bytes >= 0, "nobody uses less than nothing")
    outside = book.outside
    grown_bytes = event.used_bytes - outside.used_bytes
    outside.used_bytes, outside.refused_bytes, outside.refused_until = event.used_bytes, 0, None
    if grown_bytes > 0:
        _use_up_rooms(book, grown_bytes)
    outside.low_bytes = min(outside.low_bytes, event.used_bytes)
    if event.used_bytes - outside.low_bytes >= max(1, book.limits.keep_free_bytes // GROWTH_SHARE):
        outside.grew_at, outside.low_bytes = book.now, event.used_bytes
    withheld.let_go(book)
    book.supply_grew = True
    withheld.publish(book)


def reconfigure(book: Book, event: Reconfigure) -> None:
    """Keep from now on to what the operator says: what is withheld follows, and what is idle and due is copied out."""
    limits = book.limits
    known = limits.device_bytes is not None
    invariant(known or not event.keep_free_bytes, "nothing is kept free where nobody measures")
    book.limits = replace(
        limits,
        keep_free_bytes=event.keep_free_bytes,
        outside_per_session_bytes=event.outside_per_session_bytes,
        eager=event.eager,
        copy_ahead_ns=event.copy_ahead_ns,
    )
    withheld.let_go(book)
    book.supply_grew = True
    withheld.publish(book)


def _use_up_rooms(book: Book, grown_bytes: int) -> None:
    """Count what has grown as that for which room was made, the oldest first."""
    smallest = book.limits.frame_sizes_bytes[0]
    left_bytes = -(-grown_bytes // smallest) * smallest
    for ticket in [one for one in book.tickets.values() if one.lasts_ns and one.stage is Stage.KEPT]:
        part_bytes = min(left_bytes, ticket.hold.keep_bytes)
        if part_bytes:
            withheld.withhold(book, ticket, part_bytes)
            left_bytes -= part_bytes


def refused(book: Book, size_bytes: int) -> None:
    """Withhold what the driver did not have until a reading says how much there is, or for a while: what others took may be
    gone again before it is measured.
    """
    book.outside.refused_bytes += size_bytes
    book.outside.refused_until = Instant(book.now + book.limits.retry_ns)
    book.supply_grew = True
