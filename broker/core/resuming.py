"""Resume: bring leases back, all or none."""

from itertools import islice

from vrambroker.broker.core import budgets, files, hold
from vrambroker.broker.core.book import HOLDERS_MAX, Book, names_of
from vrambroker.broker.core.effects import Kind
from vrambroker.broker.core.errors import Draining, Holder, WaitExpired
from vrambroker.broker.core.events import Resume
from vrambroker.broker.core.grant import bring_back, undo
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import (
    give_up,
    open_ticket,
    out_of_device_memory,
    plan_at_once,
    require_few_waits,
    withdraw,
)
from vrambroker.broker.core.pausing import require_tags
from vrambroker.broker.core.scheduler import Need, Plan
from vrambroker.broker.core.session import Session
from vrambroker.broker.core.ticket import Comeback, Stage, Ticket


def resume(book: Book, event: Resume) -> None:
    """Answer at once if no frame has to move; otherwise queue, or refuse what is not certain."""
    if book.draining:
        raise Draining(message="the daemon is shutting down and resumes nothing")
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    require_tags(book, event.tags)
    leases = book.leases_of(session, event.tags)
    _require_fits_device(book, session, event, leases)
    budgets.require_room_to_come_back(book, session, leases)
    if all(lease.lock is None and not lease.absent_bytes for lease in leases):
        book.reply(event.call.call, bring_back(book, leases))
        return
    require_few_waits(book, session)
    found = None
    if not event.wait and all(lease.lock is None for lease in leases):
        found = _certain_plan(book, session, event, leases)
    demand = Comeback(leases={lease.lease: None for lease in leases})
    ticket = open_ticket(book, session, demand, event.call, event.deadline, certain=not event.wait)
    for lease in leases:
        lease.comebacks[ticket.ticket] = None
    if found is not None:
        hold.admit(book, ticket, found)
    else:
        files.rehouse(book)
        book.queue.add(ticket)
        book.supply_grew = True


def _require_fits_device(book: Book, session: Session, event: Resume, leases: list[Lease]) -> None:
    total_bytes = sum(lease.total_bytes for lease in leases)
    if total_bytes > book.limits.capacity_bytes:
        raise out_of_device_memory(book, total_bytes, f"{session.name}/{','.join(event.tags)}")


def _certain_plan(book: Book, session: Session, event: Resume, leases: list[Lease]) -> Plan:
    named = {lease.lease: None for lease in leases}
    need = Need(parts=hold.absent_parts(book, named), domain=session.peer.domain, spared=named.keys())
    needed_bytes = sum(lease.absent_bytes for lease in leases)
    return plan_at_once(book, session.session, need, needed_bytes, f"{session.name}/{','.join(event.tags)}")


def expire(book: Book, ticket: Ticket) -> None:
    """Refuse a ticket whose deadline has passed: for want of room, or for a peer that has not done its part. What was
    granted goes back as the peer lets go of it.
    """
    if ticket.stage is Stage.KEPT:
        why = f"room of {ticket.hold.keep_bytes} bytes is kept no longer: its time is over"
        book.publish(Kind.OUTSIDE_CHANGED, why, session=hold.label(book, ticket))
        hold.close(book, ticket)
    elif ticket.stage is Stage.CLAIMABLE:
        withdraw(book, ticket, WaitExpired(message=f"{hold.label(book, ticket)}: its claim was not presented in time"))
    elif ticket.stage is Stage.GRANTED:
        undo(book, ticket, _too_late(book, ticket, "map its memory"))
    elif ticket.stage is Stage.QUEUED and not hold.being_resumed(book, ticket):
        label = hold.label(book, ticket)
        withdraw(book, ticket, out_of_device_memory(book, hold.needed_bytes(book, ticket), label))
    else:
        give_up(book, ticket, _too_late(book, ticket, "let go of its memory"))


def _too_late(book: Book, ticket: Ticket, what: str) -> WaitExpired:
    late = awaited(book, ticket)
    who = names_of(late) or ("the spill directory" if ticket.fetching else "the driver")
    return WaitExpired(
        message=f"{hold.label(book, ticket)} was waiting for {who} to {what} when its time was up",
        requested_bytes=hold.needed_bytes(book, ticket),
        holders=late,
    )


def awaited(book: Book, ticket: Ticket) -> tuple[Holder, ...]:
    """Return whom this ticket waits for, or the one that it waits behind: who has yet to let go of what was promised,
    its own leases too, if they are on their way out; and who has yet to map what was granted.
    """
    late: dict[Lease, int] = {}
    locks = [lock for lock in (book.leases[lease].lock for lease in ticket.leases) if lock is not None]
    tickets = [book.tickets[number] for number in dict.fromkeys([ticket.ticket, *locks])]
    for one in tickets:
        for frame in (book.frame(number) for number in (*one.hold.exact, *one.hold.melting)):
            if frame.lease is not None:
                giver = book.leases[frame.lease]
                late[giver] = late.get(giver, 0) + frame.size_bytes
        for slot, number in one.outstanding.items():
            taker = book.leases[number]
            late[taker] = late.get(taker, 0) + taker.slots[slot].size_bytes
    for lease in (book.leases[number] for one in tickets for number in one.leases):
        if isinstance(ticket.demand, Comeback) and not lease.settled:
            late.setdefault(lease, lease.device_bytes)
    return tuple(book.holder(lease, size_bytes) for lease, size_bytes in islice(late.items(), HOLDERS_MAX))
