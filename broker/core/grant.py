"""Granting: what happens to a ticket from the moment it is admitted until its frames have arrived, or are back again.

Frames are handed on as they come: what leaves one session is granted to the next while more of it is still being
copied out. `progress` is the one place that decides this.
"""

from collections.abc import Iterator

from vrambroker.broker.core import files, hold, recall, rooms, withheld
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import (
    GrantedSlot,
    Kind,
    Leased,
    Resumed,
    ResumedLease,
    SendGrant,
    SendLeaseState,
)
from vrambroker.broker.core.errors import BrokerError, invariant
from vrambroker.broker.core.ids import FrameId, Instant, LeaseId, SlotId, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.snapshot import SlotState
from vrambroker.broker.core.ticket import Comeback, Growth, Room, Stage, Ticket


def progress(book: Book, ticket: Ticket) -> None:
    """Take a ticket as far as it can go now."""
    match ticket.stage:
        case Stage.ADMITTED:
            _hand_over(book, ticket)
        case Stage.GRANTED if ticket.arrived and not ticket.together:
            complete(book, ticket)
        case Stage.UNDOING if not ticket.slots and ticket.call is None:
            hold.close(book, ticket)
        case Stage.UNDOING if not ticket.slots:
            hold.queue_again(book, ticket)
        case _:
            pass


def _hand_over(book: Book, ticket: Ticket) -> None:
    """Grant what is in hand. What is only being made is waited for: it takes a moment, and a few large grants are mapped
    faster than many small ones.
    """
    if isinstance(ticket.demand, Room):
        if not ticket.refill:
            rooms.keep_if_there(book, ticket)
        elif ticket.hold.complete:
            withheld.absorb(book, ticket)
        return
    if not ticket.hold.creating:
        match ticket.demand:
            case Growth(claimed=False) as growth:
                if ticket.hold.complete:
                    _offer(book, ticket, growth)
                return
            case Growth() as growth:
                _send_growth(book, ticket, growth)
            case Comeback(leases=leases):
                _send_comeback(book, ticket, leases)
    if not hold.needed_bytes(book, ticket):
        ticket.stage, ticket.moved_at = Stage.GRANTED, book.now
        hold.empty(book, ticket)
        book.stir(ticket.ticket)


def _offer(book: Book, ticket: Ticket, growth: Growth) -> None:
    """Answer with a claim; the frames stay in hand until it is presented, but not for ever."""
    invariant(ticket.call is not None, "a lease without a claim still has its call")
    assert ticket.call is not None
    ticket.stage = Stage.CLAIMABLE
    ticket.claim = claim = book.draw_id()
    book.claims[claim] = ticket.ticket
    ticket.deadline = Instant(book.now + book.limits.claim_ns)
    book.bound(ticket)
    call, ticket.call = ticket.call, None
    book.reply(call, Leased(lease=growth.lease, claim=claim))


def _send_growth(book: Book, ticket: Ticket, growth: Growth) -> None:
    """Lend the frames in hand as new slots."""
    lease = book.leases[growth.lease]
    slots: list[Slot] = []
    for size, frames in ticket.hold.in_hand.items():
        for _ in frames:
            slot = Slot(slot=SlotId(book.draw_id()), size_bytes=size)
            lease.add(slot)
            slots.append(slot)
            book.count_kept(lease, slot.size_bytes)
            growth.parts[size] -= 1
            lease.pending_slots -= 1
    if slots:
        lease.opened = True
        _send(book, ticket, lease, slots)


def _send_comeback(book: Book, ticket: Ticket, leases: dict[LeaseId, None]) -> None:
    """Lend the frames in hand for what has left; not to a lease that somebody waits for to be gone. What is in the spill
    store is read first, and has its frame kept meanwhile.
    """
    in_hand = {size: len(frames) for size, frames in ticket.hold.in_hand.items()}
    fetching, ticket.fetching = ticket.fetching, {}
    ready: dict[LeaseId, list[Slot]] = {}
    for lease, slot in _absent(book, leases, fetching) if any(in_hand.values()) else ():
        if not in_hand.get(slot.size_bytes):
            continue
        in_hand[slot.size_bytes] -= 1
        if slot.needs_reading:
            _fetch(book, ticket, lease, slot)
        else:
            ready.setdefault(lease.lease, []).append(slot)
    for number, slots in ready.items():
        _send(book, ticket, book.leases[number], slots)


def _absent(book: Book, leases: dict[LeaseId, None], first: dict[SlotId, LeaseId]) -> Iterator[tuple[Lease, Slot]]:
    """Yield the slots that a frame can be lent for, those whose contents are being read first."""
    open_for = [lease for lease in map(book.leases.__getitem__, leases) if lease.paused and not lease.releases]
    for lease in open_for if first else ():
        slots = lease.in_state(SlotState.PARKED, SlotState.DROPPED)
        yield from ((lease, slot) for slot in slots if slot.slot in first)
    for lease in open_for:
        slots = lease.in_state(SlotState.PARKED, SlotState.DROPPED)
        yield from ((lease, slot) for slot in slots if slot.slot not in first)


def _fetch(book: Book, ticket: Ticket, lease: Lease, slot: Slot) -> None:
    ticket.fetching[slot.slot] = lease.lease
    if slot.extent is None:
        book.spill.waiting.setdefault(slot.slot, lease.lease)


def _send(book: Book, ticket: Ticket, lease: Lease, slots: list[Slot]) -> None:
    ticket.moved_at = book.now
    granted = tuple(_grant(book, ticket, lease, slot) for slot in slots)
    order = SendGrant(session=lease.session, lease=lease.lease, tag=lease.tag, contents=lease.contents, slots=granted)
    book.emit(order)


def _grant(book: Book, ticket: Ticket, lease: Lease, slot: Slot) -> GrantedSlot:
    in_hand = ticket.hold.in_hand.get(slot.size_bytes)
    invariant(bool(in_hand), "only what is in hand is granted")
    assert in_hand
    frame = book.frame(in_hand.pop())
    dirty = book.ledger.lend(frame, lease.session, lease.lease, lease.domain)
    slot.frame, slot.ticket, slot.dirty = frame.frame, ticket.ticket, dirty
    ticket.slots[slot.slot] = lease.lease
    ticket.outstanding[slot.slot] = lease.lease
    book.step(lease, slot, Step.GRANT, "granted")
    return granted_slot(slot)


def granted_slot(slot: Slot) -> GrantedSlot:
    """Return the grant of a slot, as it is sent and sent anew."""
    return GrantedSlot(
        slot=slot.slot,
        frame=slot.frame or FrameId(0),
        size_bytes=slot.size_bytes,
        dirty=slot.dirty,
        restore=slot.extent if slot.copied else None,
    )


def complete(book: Book, ticket: Ticket) -> None:
    """Answer a ticket whose frames have all arrived."""
    for slot, number in ticket.slots.items():
        book.leases[number].slots[slot].ticket = None
    ticket.slots.clear()
    call, ticket.call = ticket.call, None
    label = hold.label(book, ticket)
    done = (book.name_of(ticket.session), hold.tags(book, ticket), ticket.ticket)
    outcome: Leased | Resumed
    assert not isinstance(ticket.demand, Room), "what is set aside is not granted"
    match ticket.demand:
        case Growth(lease=number):
            files.prepare(book, book.leases[number])
            outcome = Leased(lease=number, claim=0)
            hold.close(book, ticket)
        case Comeback(leases=leases):
            comeback = [book.leases[lease] for lease in leases]
            hold.close(book, ticket)
            outcome = bring_back(book, comeback)
    book.publish(Kind.TICKET_DONE, f"{label}: all has arrived", session=done[0], tag=done[1], ticket=done[2])
    if call is not None:
        book.reply(call, outcome)


def bring_back(book: Book, leases: list[Lease]) -> Resumed:
    """Open leases for use whose slots are all mapped; their places in the arena are free again, but for what is parked
    of sealed ones.
    """
    for lease in (lease for lease in leases if lease.paused):
        invariant(not lease.absent_bytes and lease.settled, "a lease is resident only when all of it is mapped")
        files.unplace(book, lease)
        lease.paused = lease.seated = lease.discarded = False
        lease.takeable = True
        book.homeless.pop(lease.lease, None)
        book.touch(lease, "resumed")
        book.emit(SendLeaseState(session=lease.session, lease=lease.lease, paused=False))
    return Resumed(
        leases=tuple(ResumedLease(lease=lease.lease, tag=lease.tag, same_pages=not lease.moved) for lease in leases)
    )


def undo(book: Book, ticket: Ticket, error: BrokerError) -> None:
    """Refuse a ticket whose grant failed, or took too long, and take back what had arrived; residency becomes what it
    was.
    """
    if ticket.stage not in (Stage.ADMITTED, Stage.GRANTED):
        return
    call, ticket.call = ticket.call, None
    session, tag = book.name_of(ticket.session), hold.tags(book, ticket)
    if call is not None:
        book.refuse(call, error, session=session, tag=tag, ticket=ticket.ticket)
    _take_back(book, ticket)


def break_promise(book: Book, frame: Frame) -> None:
    """Have the ticket that counted on this frame wait again, at its old place; what it had got goes back."""
    if frame.ticket is None:
        return
    lose_frame(book, book.tickets[frame.ticket])


def lose_frame(book: Book, ticket: Ticket) -> None:
    """Have a ticket wait again that has lost something of what was set aside for it."""
    invariant(ticket.stage is Stage.ADMITTED, "only an admitted ticket has promises")
    if ticket.refill:
        withheld.give_up(book, ticket)
    elif ticket.slots:
        _take_back(book, ticket)
    else:
        hold.empty(book, ticket)
        hold.queue_again(book, ticket)


def _take_back(book: Book, ticket: Ticket) -> None:
    hold.empty(book, ticket)
    ticket.stage = Stage.UNDOING
    by_lease: dict[LeaseId, list[Slot]] = {}
    for number, lease in ticket.slots.items():
        slot = book.leases[lease].slots[number]
        if slot.state is SlotState.MAPPED:
            by_lease.setdefault(lease, []).append(slot)
    for lease, slots in by_lease.items():
        recall.vacate(book, book.leases[lease], slots, "its grant is undone")
    book.stir(ticket.ticket)


def grown_by(book: Book, ticket: TicketId | None) -> bool:
    """Tell whether a slot granted under this ticket is new, so that it goes away with its grant."""
    return ticket is not None and isinstance(book.tickets[ticket].demand, Growth)
