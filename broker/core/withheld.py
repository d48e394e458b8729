"""What is on the device and is no lease: contexts, NCCL, memory of processes that are no sessions.

It is known by its bytes alone, from readings. `keep_free_bytes` of the device stay free for it: what that takes of the
capacity is *withheld*, that is reserved as a ticket's room is, and refilled out of what is free, leaving or idle before
anybody who waits gets any.

While it grows, or is more than the sessions' own processes account for, the broker is *eager*: since who is outside can't
ask, it has idle memory leave until as much again is free. That is withheld from nobody who asks.
"""

from vrambroker.broker.core import hold, recall, scheduler
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import OUTSIDE, Instant, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.core.scheduler import Reach
from vrambroker.broker.core.slot import Slot
from vrambroker.broker.core.ticket import Room, Ticket


def target_bytes(book: Book) -> int:
    """Return how much of the capacity is to be withheld, in whole frames."""
    limits, outside = book.limits, book.outside
    if limits.device_bytes is None:
        return 0
    for_frames_bytes = limits.device_bytes - limits.keep_free_bytes - outside.used_bytes
    over_bytes = limits.capacity_bytes - for_frames_bytes + outside.refused_bytes
    smallest = limits.frame_sizes_bytes[0]
    return min(limits.capacity_bytes, max(0, -(-over_bytes // smallest) * smallest))


def refill(book: Book) -> None:
    """Have as much withheld as there should be, as far as anything is free, leaving or idle."""
    short_bytes = target_bytes(book) - book.outside.withheld_bytes - _coming_bytes(book)
    if short_bytes <= 0:
        return
    smallest, supply = book.limits.frame_sizes_bytes[0], book.supply()
    size_bytes = min(short_bytes, supply.reachable_bytes(Reach.ALL, frozenset())) // smallest * smallest
    found = scheduler.plan(hold.room_need(book, size_bytes), supply, Reach.ALL) if size_bytes else None
    if found is not None:
        ticket = open_ticket(book, size_bytes, book.now)
        ticket.refill = True
        book.outside.refills[ticket.ticket] = None
        _publish_ticket(book, ticket, Kind.TICKET_QUEUED, f"{size_bytes} bytes more are to be kept free")
        hold.admit(book, ticket, found)


def open_ticket(book: Book, size_bytes: int, deadline: Instant) -> Ticket:
    """Make a ticket for room that is no session's; it is neither queued nor admitted yet."""
    ticket = Ticket(
        ticket=TicketId(book.draw_id()),
        session=OUTSIDE,
        demand=Room(size_bytes=size_bytes),
        since=book.now,
        deadline=deadline,
        certain=False,
        own=False,
        call=None,
    )
    book.tickets[ticket.ticket] = ticket
    return ticket


def _coming_bytes(book: Book) -> int:
    return sum(book.tickets[number].hold.keep_bytes for number in book.outside.refills)


def absorb(book: Book, ticket: Ticket) -> None:
    """Count what a refill has brought among what is withheld."""
    _publish_ticket(book, ticket, Kind.TICKET_DONE, f"{ticket.hold.keep_bytes} bytes more are kept free")
    withhold(book, ticket, ticket.hold.keep_bytes)
    let_go(book)


def give_up(book: Book, ticket: Ticket) -> None:
    """End a refill that has lost a promise; another takes its place, out of what there is now."""
    _publish_ticket(book, ticket, Kind.TICKET_REFUSED, "a promise was broken")
    hold.close(book, ticket)


def _publish_ticket(book: Book, ticket: Ticket, kind: Kind, why: str) -> None:
    label = hold.label(book, ticket)
    book.publish(kind, f"{label}: {why}", session=label, ticket=ticket.ticket)


def withhold(book: Book, ticket: Ticket, size_bytes: int) -> None:
    """Move capacity that is reserved for a ticket to what is withheld; without any, the ticket is over."""
    assert isinstance(ticket.demand, Room)
    ticket.hold.keep_bytes -= size_bytes
    ticket.hold.reserved_bytes -= size_bytes
    ticket.demand.size_bytes -= size_bytes
    book.outside.withheld_bytes += size_bytes
    if not ticket.hold.keep_bytes:
        hold.close(book, ticket)


def let_go(book: Book) -> None:
    """Give back what is withheld and need not be any more."""
    spare_bytes = book.outside.withheld_bytes - target_bytes(book)
    if spare_bytes > 0:
        book.outside.withheld_bytes -= spare_bytes
        book.ledger.unreserve(spare_bytes)
        book.supply_grew = True


def eager_because(book: Book) -> str:
    """Return why what is idle is taken though nobody asks for it; nothing, if it is not."""
    limits, outside = book.limits, book.outside
    if limits.eager is Eager.ALWAYS:
        return "as configured"
    if limits.eager is Eager.NEVER or limits.device_bytes is None:
        return ""
    if outside.grew_at is not None and book.now < outside.grew_at + limits.eager_ns:
        return "it is growing"
    sessions = len(book.sessions.live) + len(book.sessions.ended)
    stranger_bytes = outside.used_bytes - sessions * limits.outside_per_session_bytes
    if stranger_bytes > 0:
        return f"{stranger_bytes} bytes of it are more than {sessions} sessions' processes account for"
    return ""


def press(book: Book) -> bool:
    """While eager, have what is idle leave, the cheapest first, as far as it takes; not what its owner waits to have back.
    Tells whether anything does.
    """
    reason, missing_bytes = eager_because(book), _missing_bytes(book)
    pressed = False
    for lease in [book.leases[number] for number in book.idle] if reason and missing_bytes > 0 else []:
        slots = _slots_to_take(lease, missing_bytes) if not lease.comebacks else []
        if slots:
            why = f"idle, its contents {lease.worth}, and memory outside of leases comes first: {reason}"
            recall.want(book, lease, slots, why)
            missing_bytes -= sum(slot.size_bytes for slot in slots)
            pressed = True
    return pressed


def _slots_to_take(lease: Lease, missing_bytes: int) -> list[Slot]:
    """Return as many of a lease's slots as bring so much, or all that may be taken."""
    slots: list[Slot] = []
    for slot in lease.cheapest():
        if missing_bytes <= 0:
            break
        slots.append(slot)
        missing_bytes -= slot.size_bytes
    return slots


def _missing_bytes(book: Book) -> int:
    """Return how much the device lacks to have as much free, and as much again, as is kept free for others; what is on
    its way back, or nobody's, counts as free. Where all that is idle is unwanted, everything is lacking.
    """
    limits, ledger = book.limits, book.ledger
    if limits.eager is Eager.ALWAYS or limits.device_bytes is None:
        return limits.capacity_bytes
    free_bytes = limits.device_bytes - book.outside.used_bytes - ledger.framed_bytes
    going_bytes = ledger.coming.size_bytes + ledger.melting.size_bytes + ledger.pool.size_bytes
    for ticket in (one for one in book.tickets.values() if one.session == OUTSIDE):
        going_bytes += max(0, ticket.hold.keep_bytes - ticket.hold.reserved_bytes)
    return 2 * limits.keep_free_bytes - free_bytes - going_bytes


def keeps_nothing_to_spare(book: Book) -> bool:
    """Tell whether frames that nobody took are to be closed at once."""
    return bool(eager_because(book)) and _missing_bytes(book) + book.ledger.pool.size_bytes > 0


def publish(book: Book) -> None:
    """Tell what is outside, and what is done about it."""
    used_bytes, reason = book.outside.used_bytes, eager_because(book)
    why = f"{used_bytes} bytes are outside of leases; {target_bytes(book)} of the capacity are kept out of use for that"
    book.emit(
        Publish(
            kind=Kind.OUTSIDE_CHANGED,
            at=book.now,
            why=f"{why}; what is idle is taken: {reason}" if reason else why,
            outside_bytes=used_bytes,
        )
    )


def next_deadline(book: Book) -> Instant | None:
    """Return when the broker stops being eager by itself, or asks the driver again for what it had not."""
    deadlines = (_eager_until(book), book.outside.refused_until)
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


def _eager_until(book: Book) -> Instant | None:
    grew_at = book.outside.grew_at
    return Instant(grew_at + book.limits.eager_ns) if grew_at is not None else None


def expire(book: Book) -> None:
    """Stop being eager for what has grown some time ago, and withholding what the driver had not some time ago."""
    outside, until = book.outside, _eager_until(book)
    if until is not None and book.now >= until:
        outside.grew_at = None
        publish(book)
    if outside.refused_until is not None and book.now >= outside.refused_until:
        outside.refused_bytes, outside.refused_until = 0, None
        let_go(book)
