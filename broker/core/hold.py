"""Filling and emptying holds: how frames come to a ticket, and how they go back when it is given up."""

from collections.abc import Set

from vrambroker.broker.core import recall
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import CreateFrame, DestroyFrame, Kind
from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.ids import OUTSIDE, Domain, FrameId, LeaseId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame
from vrambroker.broker.core.scheduler import Need, Plan
from vrambroker.broker.core.snapshot import FramePlace
from vrambroker.broker.core.ticket import Comeback, Growth, Hold, Room, Stage, Ticket, bytes_of, compose


def needed_bytes(book: Book, ticket: Ticket) -> int:
    """Return what the ticket takes as things are now; a lease may have lost frames meanwhile."""
    match ticket.demand:
        case Growth(parts=parts):
            return bytes_of(parts)
        case Comeback(leases=leases):
            return sum(book.leases[lease].absent_bytes for lease in leases)
        case Room(size_bytes=size_bytes):
            return size_bytes


def total_bytes(book: Book, ticket: Ticket) -> int:
    """Return what there is on the device of a ticket's leases when it is met, and for them alone."""
    match ticket.demand:
        case Growth(parts=parts):
            return bytes_of(parts)
        case Comeback(leases=leases):
            return sum(book.leases[lease].total_bytes for lease in leases)
        case Room(size_bytes=size_bytes):
            return size_bytes


def need_of(book: Book, ticket: Ticket) -> Need:
    """Return the ticket's need, frame by frame."""
    match ticket.demand:
        case Growth(parts=parts):
            return Need(parts=parts, domain=_domain(book, ticket), spared=frozenset())
        case Comeback(leases=leases):
            return Need(parts=absent_parts(book, leases), domain=_domain(book, ticket), spared=spared(book, ticket))
        case Room(size_bytes=size_bytes):
            return room_need(book, size_bytes)


def _domain(book: Book, ticket: Ticket) -> Domain:
    return book.sessions.live[ticket.session].peer.domain


def room_need(book: Book, size_bytes: int) -> Need:
    """Return the need for capacity that is no frame yet, so that nobody's domain matters."""
    smallest = book.limits.frame_sizes_bytes[:1]
    return Need(parts=compose(size_bytes, smallest), domain=Domain(""), spared=frozenset(), bare=True)


def spared(book: Book, ticket: Ticket) -> Set[LeaseId]:
    """Return whose frames must not be taken for a ticket: its own leases, and what comes together with them."""
    if not ticket.together or book.handover is None:
        return frozenset(ticket.leases)
    return book.handover.come.keys()


def absent_parts(book: Book, leases: dict[LeaseId, None]) -> dict[int, int]:
    """Return how many frames of each size these leases lack, those about to leave included."""
    parts: dict[int, int] = {}
    for lease in (book.leases[number] for number in leases):
        if not lease.absent_bytes:
            continue
        for slot in lease.slots.values():
            if lease.is_absent(slot):
                parts[slot.size_bytes] = parts.get(slot.size_bytes, 0) + 1
    return parts


def first_in_line(book: Book) -> Ticket | None:
    """Return the ticket whose turn it is: what is idle or leaving is not for anybody who came later."""
    queued = (book.tickets[number] for number in book.queue)
    return next((ticket for ticket in queued if not being_resumed(book, ticket)), None)


def being_resumed(book: Book, ticket: Ticket) -> bool:
    """Another ticket is bringing one of its leases back already; what this one needs is known after that."""
    return any(book.leases[lease].lock is not None for lease in ticket.leases)


def is_aged(book: Book, ticket: Ticket) -> bool:
    """Tell whether it has waited for so long that nobody else who waits is let past it any more."""
    return book.now - ticket.since >= book.limits.ageing_ns


def admit(book: Book, ticket: Ticket, plan: Plan) -> None:
    """Set aside for the ticket what the plan names; from here on it can't fail on bytes."""
    invariant(ticket.stage is Stage.QUEUED, "only a queued ticket is admitted")
    ticket.stage = Stage.ADMITTED
    ticket.hold = hold = _hold_of(ticket, plan)
    book.ledger.reserve(plan.reserve_bytes)
    # A ticket may name thousands of leases, and take from as many.
    who = label(book, ticket) if plan.recalls else ""
    for giver, frames in plan.recalls.items():
        _recall(book, book.leases[giver], frames, who)
    hold.exact.update(dict.fromkeys(plan.exact))
    hold.melting.update(dict.fromkeys(plan.melting))
    for frame in (book.frame(number) for number in (*plan.exact, *plan.melting)):
        book.ledger.promise(frame, ticket.ticket)
        if frame.place is FramePlace.HELD:
            _in_hold(book, ticket, frame)
    if isinstance(ticket.demand, Comeback):
        for lease in (book.leases[number] for number in ticket.leases):
            lease.lock = ticket.ticket
            book.touch(lease, "its room is set aside")
    _fill(book, ticket)
    _publish_admitted(book, ticket)
    book.stir(ticket.ticket)


def _hold_of(ticket: Ticket, plan: Plan) -> Hold:
    match ticket.demand:
        case Room():
            return Hold(keep_bytes=bytes_of(plan.to_create), reserved_bytes=plan.reserve_bytes)
        case Growth() | Comeback():
            return Hold(to_create=dict(plan.to_create), reserved_bytes=plan.reserve_bytes)


def _recall(book: Book, lease: Lease, frames: Set[FrameId], who: str) -> None:
    slots = [slot for slot in lease.staying() if slot.frame in frames]
    size_bytes = sum(slot.size_bytes for slot in slots)
    of_all = "all of it" if len(slots) == len(lease.slots) else f"{size_bytes} of {lease.total_bytes} bytes"
    why = f"idle, its contents {lease.worth}, and {who} needs the room: {of_all}"
    recall.want(book, lease, slots, why)


def _publish_admitted(book: Book, ticket: Ticket) -> None:
    why = f"{label(book, ticket)}: all it needs is in hand or promised"
    session = book.name_of(ticket.session)
    book.publish(Kind.TICKET_ADMITTED, why, session=session, tag=tags(book, ticket), ticket=ticket.ticket)


def label(book: Book, ticket: Ticket) -> str:
    name = book.name_of(ticket.session)
    if ticket.session == OUTSIDE:
        return name
    return f"{name}, for later," if isinstance(ticket.demand, Room) else f"{name}/{tags(book, ticket)}"


def tags(book: Book, ticket: Ticket) -> str:
    return ",".join(dict.fromkeys(book.leases[lease].tag for lease in ticket.leases))


def give_back(book: Book, frame: Frame) -> None:
    """Take a frame back from its session and pass it to whom it is promised, or to the pool."""
    book.ledger.come_back(frame)
    if frame.ticket is None:
        book.supply_grew = True
    else:
        _in_hold(book, book.tickets[frame.ticket], frame)


def created(book: Book, frame: Frame) -> None:
    """Put a new frame where it is wanted."""
    book.ledger.created(frame)
    if frame.ticket is None:
        book.supply_grew = True
        return
    ticket = book.tickets[frame.ticket]
    if frame.frame in ticket.hold.creating:
        del ticket.hold.creating[frame.frame]
        ticket.hold.exact[frame.frame] = None
    _in_hold(book, ticket, frame)


def _in_hold(book: Book, ticket: Ticket, frame: Frame) -> None:
    """Keep a frame that has come as it is, or make room of it."""
    if frame.frame in ticket.hold.exact:
        del ticket.hold.exact[frame.frame]
        ticket.hold.take_in_hand(frame.frame, frame.size_bytes)
        book.stir(ticket.ticket)
    else:
        invariant(frame.frame in ticket.hold.melting, "a frame with a ticket is in its hold")
        destroy(book, frame)


def destroy(book: Book, frame: Frame) -> None:
    book.ledger.destroy(frame)
    book.emit(DestroyFrame(frame=frame.frame))


def destroyed(book: Book, frame: Frame) -> None:
    """Use the capacity that a destroyed frame left behind."""
    ticket = book.tickets[frame.ticket] if frame.ticket is not None else None
    book.ledger.vanish(frame)
    if ticket is None:
        book.supply_grew = True
        return
    del ticket.hold.melting[frame.frame]
    ticket.hold.reserved_bytes += frame.size_bytes
    _fill(book, ticket)


def _fill(book: Book, ticket: Ticket) -> None:
    """Make frames out of what is reserved; what is left when all are being made goes back."""
    hold = ticket.hold
    for size in sorted(hold.to_create, reverse=True):
        while hold.to_create.get(size) and hold.reserved_bytes >= size:
            frame = FrameId(book.draw_id())
            book.ledger.create(frame, size, ticket.ticket)
            hold.reserved_bytes -= size
            hold.creating[frame] = None
            hold.to_create[size] -= 1
            if not hold.to_create[size]:
                del hold.to_create[size]
            book.emit(CreateFrame(frame=frame, size_bytes=size))
    if not hold.to_create and hold.reserved_bytes >= hold.keep_bytes and (hold.melting or hold.spare_bytes):
        book.ledger.unreserve(hold.spare_bytes)
        hold.reserved_bytes = hold.keep_bytes
        melting, hold.melting = hold.melting, {}
        _let_go(book, melting)
    book.stir(ticket.ticket)


def _let_go(book: Book, frames: dict[FrameId, None]) -> None:
    """Withdraw promises; recalls that were only meant for them are called off."""
    givers: dict[LeaseId, None] = {}
    for frame in (book.frame(number) for number in frames):
        if frame.lease is not None:
            givers[frame.lease] = None
        book.ledger.release(frame)
    for giver in givers:
        recall.call_off_if_needless(book, book.leases[giver])
    book.supply_grew = True


def empty(book: Book, ticket: Ticket) -> None:
    """Give back everything that is set aside for the ticket, in hand or promised."""
    hold, ticket.hold = ticket.hold, Hold()
    ticket.fetching.clear()
    book.ledger.unreserve(hold.reserved_bytes)
    _let_go(book, dict.fromkeys(hold.frames_in_hand()) | hold.creating | hold.exact | hold.melting)


def queue_again(book: Book, ticket: Ticket) -> None:
    """Put a ticket that has nothing any more back into the queue, at its old place."""
    if isinstance(ticket.demand, Growth):
        lease, growth = book.leases[ticket.demand.lease], ticket.demand
        lease.pending_slots += sum(growth.asked.values()) - sum(growth.parts.values())
        growth.parts = dict(growth.asked)
    _unlock(book, ticket)
    ticket.stage = Stage.QUEUED
    book.queue.add(ticket)
    book.bound(ticket)


def _unlock(book: Book, ticket: Ticket) -> None:
    for lease in (book.leases[number] for number in ticket.leases if number in book.leases):
        if lease.lock == ticket.ticket:
            lease.lock = None
            book.touch(lease, "left alone again")
    book.supply_grew = True


def close(book: Book, ticket: Ticket) -> None:
    """Forget a ticket that is met, refused or undone; what it held goes back."""
    empty(book, ticket)
    book.queue.discard(ticket.ticket)
    if ticket.claim is not None:
        book.claims.pop(ticket.claim, None)
    del book.tickets[ticket.ticket]
    book.stirred.pop(ticket.ticket, None)
    book.outside.refills.pop(ticket.ticket, None)
    session = book.sessions.live.get(ticket.session)
    if session is not None:
        session.tickets.pop(ticket.ticket, None)
    _unlock(book, ticket)
    match ticket.demand:
        case Growth(lease=number, parts=parts):
            lease = book.leases[number]
            del lease.growing[ticket.ticket]
            lease.pending_slots -= sum(parts.values())
            book.touch(lease, "its growth is over")
            drop_if_never_opened(book, lease)
        case Comeback(leases=leases):
            for lease in (book.leases[number] for number in leases):
                del lease.comebacks[ticket.ticket]
                drop_if_never_opened(book, lease)
        case Room():
            pass


def drop_if_never_opened(book: Book, lease: Lease) -> None:
    """Forget a lease in which nothing was ever granted, once there is nothing on the way to it either."""
    if not (lease.opened or lease.slots or lease.growing or lease.comebacks):
        book.drop_lease(lease)
