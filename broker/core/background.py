"""Copying ahead: while the link is idle, kept contents of idle leases are copied out, so that taking them is an unmap.

One agent at a time gets one order about a few slots, which stay mapped. Until it has answered, or its process is gone and
fenced, it may write to their places in the arena, whatever has become of the lease: nobody else's contents go there before.
What it reports counts only in the pause in which it was ordered, since memory that was in use may have changed.
"""

from itertools import islice

from vrambroker.broker.core import recall
from vrambroker.broker.core.book import Book, CopyOrder
from vrambroker.broker.core.effects import CopiedSlot, Extent, Kind, SendCopy
from vrambroker.broker.core.events import Copied
from vrambroker.broker.core.ids import Instant, OrderId, SessionId, SlotId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.session import Session, printable
from vrambroker.broker.core.slot import Slot
from vrambroker.broker.core.snapshot import SlotState
from vrambroker.broker.core.ticket import Stage

TO_BE_COPIED = 2
"""What it costs to take a lease that is not copied yet."""

LOOKED_AT_MAX = 64
"""How many leases are looked at after an event, so that it costs the same however many are idle; if none of them can be
copied, the next ones are looked at after a moment.
"""

MOMENT_NS = 1_000_000

SLOTS_MAX = 1024
"""How many slots one order names; more would not fit in a packet."""

AT_REST = (Stage.CLAIMABLE, Stage.KEPT)
"""Stages of tickets for which nothing moves."""


def go_on(book: Book) -> None:
    """Give the next order if it is time for one, or note when it will be."""
    book.copy_at = None
    if book.limits.copy_ahead_ns is None or book.draining or not _link_is_idle(book):
        return
    busy_until = max((order.since + book.limits.patience_ns for order in book.copies.values()), default=0)
    looked_at, any_can = 0, False
    for number in islice(book.idle.from_cost(TO_BE_COPIED), book.copy_past, book.copy_past + LOOKED_AT_MAX):
        lease, looked_at = book.leases[number], looked_at + 1
        due = Instant(max(lease.idle_since + book.limits.copy_ahead_ns, busy_until))
        if not _may_be_copied(book, lease):
            continue
        if due > book.now:
            book.copy_at = due if book.copy_at is None else min(book.copy_at, due)
            any_can = True
        elif slots := _to_copy(book, lease):
            _order(book, lease, slots)
            busy_until = book.now + book.limits.patience_ns
            any_can = True
    book.copy_past = 0 if any_can or looked_at < LOOKED_AT_MAX else book.copy_past + LOOKED_AT_MAX
    if book.copy_past:
        book.copy_at = Instant(book.now + MOMENT_NS)


def _link_is_idle(book: Book) -> bool:
    """Tell whether nothing is leaving or arriving, or about to."""
    if book.handover is not None or book.ledger.coming.size_bytes:
        return False
    return all(ticket.stage in AT_REST for ticket in book.tickets.values())


def _may_be_copied(book: Book, lease: Lease) -> bool:
    """Tell whether its agent is there, has no other order, and has not failed."""
    connected = book.sessions.live[lease.session].connection is not None
    return connected and not lease.uncopied and lease.session not in book.copies


def _to_copy(book: Book, lease: Lease) -> list[Slot]:
    """Return the slots that an order is about: those first that are taken first."""
    slots: list[Slot] = []
    size_bytes = 0
    for slot in (one for one in lease.staying() if one.park is not None and book.arena.is_usable(one.park)):
        size_bytes += slot.size_bytes
        if slots and (size_bytes > book.limits.copy_ahead_bytes or len(slots) == SLOTS_MAX):
            break
        slots.append(slot)
    return slots


def _order(book: Book, lease: Lease, slots: list[Slot]) -> None:
    places = {slot.slot: slot.extent for slot in slots if slot.extent is not None}
    for extent in places.values():
        book.arena.begin_writing(extent)
    order = CopyOrder(
        order=OrderId(book.draw_id()),
        session=lease.session,
        lease=lease.lease,
        pause=lease.pauses,
        slots=places,
        since=book.now,
    )
    book.copies[lease.session] = order
    _send(book, order, places)


def _send(book: Book, order: CopyOrder, places: dict[SlotId, Extent]) -> None:
    slots = tuple(CopiedSlot(slot=slot, to=extent) for slot, extent in places.items())
    book.emit(SendCopy(session=order.session, order=order.order, lease=order.lease, slots=slots))


def resend(book: Book, session: Session) -> None:
    """Give an agent that is there again the order that it may have missed, as far as there is something to copy still. It
    is to be answered in any case, since nobody else has its places before.
    """
    order = book.copies.get(session.session)
    if order is None:
        return
    lease = book.leases.get(order.lease)
    slots = lease.staying() if lease is not None and order.is_about(lease) else ()
    _send(
        book, order, {slot.slot: slot.park for slot in slots if slot.park and slot.park == order.slots.get(slot.slot)}
    )


def copied(book: Book, event: Copied) -> None:
    """Count what was copied in the pause that is still under way."""
    order = book.copies.get(event.session)
    if order is None or order.order != event.order:
        return
    lease = book.leases.get(order.lease)
    if lease is not None and order.is_about(lease):
        _count(book, lease, order, event)
    _end(book, order)


def _count(book: Book, lease: Lease, order: CopyOrder, event: Copied) -> None:
    done = 0
    for number in dict.fromkeys(event.slots):
        slot = lease.slots.get(number)
        if slot is None or slot.state not in (SlotState.MAPPED, SlotState.LEAVING):
            continue
        if slot.park is not None and slot.park == order.slots.get(number):
            lease.keep_copy(slot)
            done += 1
    book.touch(lease, "copied out ahead, the link is idle")
    if event.failure is not None or not done:
        # It is tried again in the next pause: whatever is wrong may last, and nobody has asked for it.
        lease.uncopied = True
        why = f"{book.label_of(lease)} could not be copied ahead: {printable(event.failure or 'nothing was copied')}"
        book.publish(Kind.COPY_FAILED, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)


def _end(book: Book, order: CopyOrder) -> None:
    """Forget an order under which nothing is written any more, and send the recalls that have waited for its places."""
    del book.copies[order.session]
    for extent in order.slots.values():
        book.arena.end_writing(extent)
    for number in dict.fromkeys(extent.file for extent in order.slots.values()):
        file = book.arena.files.get(number)
        if file is not None:
            recall.file_ready(book, file)


def end(book: Book, session: SessionId) -> None:
    """Take note that a process writes to nothing any more: it has said goodbye, or is gone and fenced."""
    order = book.copies.get(session)
    if order is not None:
        _end(book, order)
