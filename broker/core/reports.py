"""What agents report: frames that arrived, frames that left.

A report may be late, doubled or wrong, and a client must not be able to bring the daemon down: what is not about a
slot of the client's own, in the state that the report is about, is passed over.
"""

from vrambroker.broker.core import grant, hold, recall
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import DriverFailed
from vrambroker.broker.core.events import Arrived, Left
from vrambroker.broker.core.ids import LeaseId, SessionId, SlotId, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import detach_slot
from vrambroker.broker.core.session import printable
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.snapshot import SlotState
from vrambroker.broker.core.ticket import Stage


def _meant(
    book: Book, session: SessionId, lease: LeaseId, slots: tuple[SlotId, ...], state: SlotState
) -> tuple[Lease, list[Slot]] | None:
    """Return the slots that a report can be about, or None if there are none."""
    found = [book.slot_of(session, lease, slot) for slot in dict.fromkeys(slots)]
    meant = [pair for pair in found if pair is not None and pair[1].state is state]
    return (meant[0][0], [slot for _, slot in meant]) if meant else None


def arrived(book: Book, event: Arrived) -> None:
    """Count granted slots as mapped; or, if they could not be mapped, undo the ticket that they belong to."""
    meant = _meant(book, event.session, event.lease, event.slots, SlotState.GRANTED)
    if meant is None:
        return
    lease, slots = meant
    if event.failure is not None:
        _missed(book, lease, slots, printable(event.failure))
        return
    undone: list[Slot] = []
    for slot in slots:
        book.step(lease, slot, Step.ARRIVE, "arrived")
        ticket = book.tickets[slot.ticket or TicketId(0)]
        ticket.outstanding.pop(slot.slot, None)
        ticket.moved_at = book.now
        if ticket.stage is Stage.UNDOING:
            undone.append(slot)
        book.stir(ticket.ticket)
    if undone:
        recall.vacate(book, lease, undone, "its grant is undone")


def _missed(book: Book, lease: Lease, slots: list[Slot], failure: str) -> None:
    tickets = {slot.ticket: None for slot in slots}
    for slot in slots:
        frame = book.frame_of(slot)
        if grant.grown_by(book, slot.ticket):
            slot.frame = None
            detach_slot(book, lease, slot, wipe=False)
        else:
            book.step(lease, slot, Step.MISS_PARKED if slot.saved else Step.MISS_DROPPED, "could not be mapped")
            _settle_slot(book, slot)
            slot.frame = None
        hold.give_back(book, frame)
    label = book.label_of(lease)
    error = DriverFailed(message=f"{label} could not be mapped: {failure}", driver_call="map", driver_result=failure)
    for number in tickets:
        grant.undo(book, book.tickets[number or TicketId(0)], error)
    recall.end_if_done(book, lease)


def _settle_slot(book: Book, slot: Slot) -> None:
    """Take a slot out of the ticket that granted it."""
    ticket = book.tickets.get(slot.ticket) if slot.ticket is not None else None
    slot.ticket = None
    if ticket is not None:
        ticket.slots.pop(slot.slot, None)
        ticket.outstanding.pop(slot.slot, None)
        book.stir(ticket.ticket)


def left(book: Book, event: Left) -> None:
    """Take the frames of slots that were vacated; or count them as mapped again, if they could not be."""
    meant = _meant(book, event.session, event.lease, event.slots, SlotState.LEAVING)
    if meant is None:
        return
    lease, slots = meant
    if event.failure is not None:
        _stayed(book, lease, slots, printable(event.failure))
    else:
        for slot in slots:
            _vacated(book, lease, slot)
        recall.note_progress(book, lease)
        book.stir(lease.lock)
    recall.end_if_done(book, lease)


def _vacated(book: Book, lease: Lease, slot: Slot) -> None:
    frame = book.frame_of(slot)
    lease.moved = True
    if grant.grown_by(book, slot.ticket):
        slot.frame = None
        detach_slot(book, lease, slot, wipe=False)
    else:
        if slot.park is not None:
            lease.note(slot, copied=True, spilled=False)
        book.step(lease, slot, Step.PARK if slot.saved else Step.DROP, "left")
        _settle_slot(book, slot)
        slot.frame = None
    hold.give_back(book, frame)


def _stayed(book: Book, lease: Lease, slots: list[Slot], failure: str) -> None:
    label = book.label_of(lease)
    for slot in slots:
        frame = book.frame_of(slot)
        grant.break_promise(book, frame)
        book.ledger.stay(frame)
        book.step(lease, slot, Step.STAY, f"could not leave: {failure}")
        _settle_slot(book, slot)
    lease.takeable = False
    book.touch(lease, f"could not leave: {failure}")
    error = DriverFailed(message=f"{label} could not leave: {failure}", driver_call="unmap", driver_result=failure)
    recall.refuse_releases(book, lease, error)
