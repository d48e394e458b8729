"""Lend, claim, return: how a lease grows and shrinks."""

from vrambroker.broker.core import budgets, files, hold, places, reading, recall, rooms, scheduler
from vrambroker.broker.core.book import NAMED_MAX, Book
from vrambroker.broker.core.effects import Done, Kind
from vrambroker.broker.core.errors import (
    BrokerError,
    Draining,
    InvalidArgument,
    OutOfDeviceMemory,
    QuotaExceeded,
    UnknownLease,
    UnknownTag,
    WrongState,
)
from vrambroker.broker.core.events import Call, Claim, Return
from vrambroker.broker.core.events import Lease as LeaseCall
from vrambroker.broker.core.grant import undo
from vrambroker.broker.core.ids import Instant, SessionId, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.scheduler import Need, Plan, Reach
from vrambroker.broker.core.session import Session, require_word
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.ticket import Comeback, Demand, Growth, Stage, Ticket, bytes_of, compose


def lend(book: Book, event: LeaseCall) -> None:
    """Admit a demand for new frames at once, or refuse it: malloc waits only for what is certain, and nothing is that
    others have waited for before.
    """
    if book.draining:
        raise Draining(message="the daemon is shutting down and lends no more")
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    require_word("tag", event.tag, book.limits.tag_length_max)
    require_size(book, event.size_bytes)
    parts = compose(event.size_bytes, book.limits.frame_sizes_bytes)
    _require_room_to_grow(book, session, event, sum(parts.values()))
    budgets.require_room_for(book, session, event.tag, bytes_of(parts))
    need = Need(parts=parts, domain=session.peer.domain, spared=frozenset())
    ample = _plan_with_spare(book, session, event)
    if ample is not None:
        parts, found = ample
    else:
        found = plan_at_once(book, session.session, need, event.size_bytes, f"{session.name}/{event.tag}")
    lease = book.open_lease(session, event.tag, event.contents)
    growth = Growth(lease=lease.lease, asked=parts, parts=dict(parts), claimed=event.claimed)
    ticket = open_ticket(book, session, growth, event.call, event.deadline, certain=True)
    lease.growing[ticket.ticket] = None
    lease.pending_slots += sum(parts.values())
    book.touch(lease, "lent")
    hold.admit(book, ticket, found)


# A spare frame of which little is used stays with its lease: none is a larger share of it than this.
SPARE_SHARE = 2


def _plan_with_spare(book: Book, session: Session, event: LeaseCall) -> tuple[dict[int, int], Plan] | None:
    """Return the frames for a demand and what is to spare, and their plan; None where that takes more than what is
    free as it is, a limit is in the way, or the session has set something aside, which comes first.
    """
    if not event.spare_bytes or hold.first_in_line(book) is not None or rooms.kept_bytes(book, session.session):
        return None
    limits = book.limits
    known = session.by_tag.get(event.tag, {}).get(event.contents)
    has = 0 if known is None else len(book.leases[known].slots) + book.leases[known].pending_slots
    has_bytes = 0 if known is None else book.leases[known].total_bytes
    smallest = limits.frame_sizes_bytes[0]
    largest_bytes = max(event.size_bytes, has_bytes // SPARE_SHARE, smallest)
    sizes_bytes = tuple(size for size in limits.frame_sizes_bytes if size <= largest_bytes)
    parts = compose(min(event.size_bytes + event.spare_bytes, limits.capacity_bytes), sizes_bytes)
    if has + sum(parts.values()) > limits.slots_per_lease_max:
        return None
    if not budgets.has_room_for(book, session, event.tag, bytes_of(parts)):
        return None
    need = Need(parts=parts, domain=session.peer.domain, spared=frozenset())
    found = scheduler.plan(need, book.supply(), Reach.FREE)
    return None if found is None or found.melting else (parts, found)


def plan_at_once(book: Book, session: SessionId, need: Need, requested_bytes: int, label: str) -> Plan:
    """Return how a demand is met that does not wait for room, or raise `OutOfDeviceMemory`. It gets what its session has
    set aside and its share of what is free, but no more than that while somebody waits: what is idle or leaving goes to
    those first.
    """
    first = hold.first_in_line(book)
    reach = Reach.ALL if first is None else Reach.FREE
    found = rooms.plan(book, session, need, reach)
    if found is None and book.homeless and reach is Reach.ALL:
        files.rehouse(book)
        found = rooms.plan(book, session, need, reach)
    if found is None:
        before = "" if first is None else f"; {hold.label(book, first)} has waited longer"
        raise out_of_device_memory(book, requested_bytes, label, before)
    return found


def require_size(book: Book, size_bytes: int) -> None:
    """Raise `InvalidArgument` for nothing at all, and for more than the device has."""
    if not 0 < size_bytes <= book.limits.capacity_bytes:
        raise InvalidArgument(
            message=f"{size_bytes} bytes are not between 1 and the device's {book.limits.capacity_bytes}",
            argument="size_bytes",
        )


def _require_room_to_grow(book: Book, session: Session, event: LeaseCall, slots: int) -> None:
    limits = book.limits
    require_few_waits(book, session)
    same_tag = session.by_tag.get(event.tag, {})
    paused = next((lease for lease in map(book.leases.__getitem__, same_tag.values()) if lease.paused), None)
    if paused is not None:
        raise wrong_state(book, paused, "paused, and can't grow before it is resumed")
    sealed = next((lease for lease in map(book.leases.__getitem__, same_tag.values()) if lease.sealed), None)
    if sealed is not None:
        raise wrong_state(book, sealed, "sealed, and can't grow before it is unsealed")
    if event.contents not in same_tag and len(session.leases) >= limits.leases_per_session_max:
        raise _quota("leases_per_session_max", limits.leases_per_session_max)
    known = same_tag.get(event.contents)
    has = len(book.leases[known].slots) + book.leases[known].pending_slots if known is not None else 0
    if has + slots > limits.slots_per_lease_max:
        raise _quota("slots_per_lease_max", limits.slots_per_lease_max)


def require_few_waits(book: Book, session: Session) -> None:
    """Raise `QuotaExceeded` if too many calls about this session wait already."""
    most = book.limits.tickets_per_session_max
    if max(len(session.waits), len(session.tickets)) >= most:
        raise _quota("tickets_per_session_max", most)


def _quota(limit: str, value: int) -> QuotaExceeded:
    return QuotaExceeded(message=f"the limit {limit} of {value} is reached", limit=limit, limit_value=value)


def wrong_state(book: Book, lease: Lease, why: str) -> WrongState:
    label = book.label_of(lease)
    return WrongState(
        message=f"{label} is {why}", session=book.name_of(lease.session), tag=lease.tag, state=lease.state.value
    )


def out_of_device_memory(book: Book, requested_bytes: int, label: str, more: str = "") -> OutOfDeviceMemory:
    """Return the error that says who has what this demand lacks."""
    free_bytes, holders = book.ledger.free_bytes, book.holders()
    who = ", ".join(f"{one.session}/{one.tag} {one.size_bytes} {one.state}" for one in holders[:NAMED_MAX])
    return OutOfDeviceMemory(
        message=f"{label} needs {requested_bytes} bytes and {free_bytes} are free; held by {who or 'nobody'}{more}",
        requested_bytes=requested_bytes,
        free_bytes=free_bytes,
        capacity_bytes=book.limits.capacity_bytes,
        holders=holders,
    )


def open_ticket(
    book: Book, session: Session, demand: Demand, call: Call, deadline: Instant, *, certain: bool
) -> Ticket:
    """Make a ticket for a call; it is neither queued nor admitted yet."""
    ticket = Ticket(
        ticket=TicketId(book.draw_id()),
        session=session.session,
        demand=demand,
        since=book.now,
        deadline=deadline,
        certain=certain,
        own=session.is_process(call.actor),
        call=call.call,
    )
    ticket.priority = priority_of(book, ticket)
    book.tickets[ticket.ticket] = ticket
    session.tickets[ticket.ticket] = None
    book.wait(call.call, ticket)
    why = f"{hold.label(book, ticket)} asks for room"
    book.publish(Kind.TICKET_QUEUED, why, session=session.name, tag=hold.tags(book, ticket), ticket=ticket.ticket)
    return ticket


def priority_of(book: Book, ticket: Ticket) -> int:
    """Return the priority of the most urgent of the leases that a ticket is about."""
    return max((book.leases[lease].priority for lease in ticket.leases), default=0)


def take_turn(book: Book, ticket: Ticket) -> None:
    """Give a ticket the place in the queue that its leases give it now, if it is there."""
    ticket.priority = priority_of(book, ticket)
    if ticket.ticket in book.queue:
        book.queue.add(ticket)
        book.supply_grew = True


def withdraw(book: Book, ticket: Ticket, error: BrokerError) -> None:
    """Refuse a ticket that was not granted; what it had goes back."""
    call, ticket.call = ticket.call, None
    session, tag = book.name_of(ticket.session), hold.tags(book, ticket)
    if call is not None:
        book.refuse(call, error, session=session, tag=tag, ticket=ticket.ticket)
    elif ticket.stage is Stage.CLAIMABLE:
        book.publish(Kind.TICKET_REFUSED, error.message, session=session, tag=tag, ticket=ticket.ticket)
    hold.close(book, ticket)


def give_up(book: Book, ticket: Ticket, error: BrokerError) -> None:
    """Refuse a ticket; what was granted under it already goes back as its peer lets go of it."""
    if ticket.slots:
        undo(book, ticket, error)
    else:
        withdraw(book, ticket, error)


def claim(book: Book, event: Claim) -> None:
    """Send the grant that an unclaimed lease left waiting."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    ticket = book.tickets.get(book.claims.get(event.claim, TicketId(0)))
    if ticket is None or ticket.session != session.session or not isinstance(ticket.demand, Growth):
        raise UnknownLease(message=f"there is no claim {event.claim}", lease=event.claim)
    del book.claims[event.claim]
    ticket.call = event.call.call
    ticket.deadline = Instant(book.now + book.limits.claim_ns)
    book.wait(event.call.call, ticket)
    ticket.stage, ticket.demand.claimed = Stage.ADMITTED, True
    book.stir(ticket.ticket)


def give(book: Book, event: Return) -> None:
    """Take slots back in whatever state they are; the whole lease, if none are named."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    lease = book.leases.get(event.lease)
    if lease is None or lease.session != session.session:
        raise UnknownLease(message=f"{session.name!r} has no lease {event.lease}", lease=event.lease)
    unknown = next((slot for slot in event.slots if slot not in lease.slots), None)
    if unknown is not None:
        raise UnknownLease(message=f"lease {event.lease} has no slot {unknown}", lease=unknown)
    if event.slots:
        for slot in dict.fromkeys(event.slots):
            return_slot(book, lease, lease.slots[slot])
        after_return(book, lease)
        hold.drop_if_never_opened(book, lease)
    else:
        return_lease(book, lease)
    book.reply(event.call.call, Done())


def return_slot(book: Book, lease: Lease, slot: Slot) -> None:
    """Take one slot back, as a live process that has let go of it returns it."""
    frame, slot.frame = slot.frame, None
    detach_slot(book, lease, slot, wipe=False)
    if frame is not None:
        reading.take_back(book, lease, slot, book.frame(frame))


def detach_slot(book: Book, lease: Lease, slot: Slot, *, wipe: bool) -> None:
    """Take the slot out of its lease, its ticket and the arena; its frame is the caller's concern."""
    ticket = book.tickets.get(slot.ticket) if slot.ticket is not None else None
    if ticket is not None:
        ticket.slots.pop(slot.slot, None)
        ticket.outstanding.pop(slot.slot, None)
        book.stir(ticket.ticket)
    places.let_go(book, lease, slot, wipe=wipe)
    book.step(lease, slot, Step.RETURN, "returned")
    lease.remove(slot)
    book.count_kept(lease, -slot.size_bytes)


def after_return(book: Book, lease: Lease) -> None:
    """Bring what depends on a lease in line after it has lost slots."""
    if lease.lease in book.homeless and not lease.unplaced():
        # What had no place to be kept in is gone: the rest may be taken again.
        del book.homeless[lease.lease]
        lease.takeable = True
    book.touch(lease, "returned")
    if lease.comebacks:
        # Nothing has become free, but what waits for the lease to come back needs less now.
        book.supply_grew = True
    recall.end_if_done(book, lease)


def return_lease(book: Book, lease: Lease) -> None:
    """Take all of the lease back, and the lease itself."""
    end_demands(book, lease)
    for slot in list(lease.slots.values()):
        return_slot(book, lease, slot)
    after_return(book, lease)
    reading.leave_lease(book, lease)
    book.drop_lease(lease)


def end_demands(book: Book, lease: Lease) -> None:
    """End the tickets that name a lease about to go: its growth is refused, a resume goes on without it."""
    lease.opened = True
    for number in tuple(lease.growing):
        error = UnknownLease(message=f"lease {lease.lease} was returned meanwhile", lease=lease.lease)
        withdraw(book, book.tickets[number], error)
    for number in tuple(lease.comebacks):
        ticket = book.tickets[number]
        assert isinstance(ticket.demand, Comeback)
        name = book.name_of(lease.session)
        if len(ticket.demand.leases) == 1 and ticket.stage is not Stage.UNDOING:
            gone = UnknownTag(message=f"{name}/{lease.tag} was returned meanwhile", session=name, tag=lease.tag)
            withdraw(book, ticket, gone)
        else:
            leave_comeback(book, ticket, ticket.demand, lease)


def leave_comeback(book: Book, ticket: Ticket, demand: Comeback, lease: Lease) -> None:
    """Take a lease out of a ticket that brings back others as well."""
    del demand.leases[lease.lease]
    del lease.comebacks[ticket.ticket]
    if lease.lock == ticket.ticket:
        lease.lock = None
    for slot in lease.slots.values():
        if slot.ticket == ticket.ticket:
            slot.ticket = None
            ticket.slots.pop(slot.slot, None)
            ticket.outstanding.pop(slot.slot, None)
    ticket.fetching = {slot: number for slot, number in ticket.fetching.items() if number != lease.lease}
    book.supply_grew = True
    # The one that is gone may have been its most urgent.
    take_turn(book, ticket)
    book.stir(ticket.ticket)
