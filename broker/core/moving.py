"""The second half of a change of phase: what leaves is paused, what comes is brought back, and all of it opens together.

Under the order `device`, that is one step. Under `host` there are two: dropped contents leave and kept ones come; once
these have arrived they give up their places in the arena (they are *seated*), and kept contents leave and dropped ones
come. Whatever fails undoes it all: what came goes back, then what left is brought back.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from vrambroker.broker.core import files, gathering, grant, places, ranks
from vrambroker.broker.core.book import NAMED_MAX, Book
from vrambroker.broker.core.effects import Entered, EnteredTag, Kind, Resumed
from vrambroker.broker.core.errors import (
    BrokerError,
    OutOfHostMemory,
    UnknownLease,
    UnknownSession,
    UnknownTag,
    invariant,
)
from vrambroker.broker.core.events import Call
from vrambroker.broker.core.handover import Going, Handover
from vrambroker.broker.core.ids import CallId, Domain, Instant, RequestId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import give_up, open_ticket, withdraw
from vrambroker.broker.core.pausing import make_idle
from vrambroker.broker.core.phase import Order, Phase
from vrambroker.broker.core.ticket import Comeback, Stage, Ticket

GONE = (UnknownSession, UnknownTag, UnknownLease)
"""What becomes of a part whose lease was returned, or whose session ended: there is nothing left to bring back."""


def coming(book: Book, phase: Phase) -> list[Lease]:
    """Return the paused leases that a phase lists."""
    listed = map(book.leases.__getitem__, book.listing.of(phase.name))
    return [lease for lease in listed if lease.paused]


def kept(leases: Iterable[Lease]) -> list[Lease]:
    return [lease for lease in leases if lease.keeps]


def expendable(leases: Iterable[Lease]) -> list[Lease]:
    """Return the leases of tags of which nothing is kept: a tag is paused whole, as its gate is for all of it."""
    known = list(leases)
    tags = {(lease.session, lease.tag) for lease in kept(known)}
    return [lease for lease in known if (lease.session, lease.tag) not in tags]


def _order(book: Book) -> Order:
    invariant(book.plan is not None, "a handover is between phases of a plan")
    assert book.plan is not None
    return book.plan.order


def begin_step(book: Book, handover: Handover, leases: list[Lease]) -> None:
    """Pause what leaves in this step, all of which is out of use, and ask for room for what comes in it."""
    first_of_two = _order(book) is Order.HOST and not handover.step
    refused = _pause(book, handover, expendable(leases) if first_of_two else leases)
    if refused is not None:
        fail(book, handover, refused)
        return
    gathering.forget_paused(book, handover)
    come = coming(book, handover.phase)
    # A part of the step before is gone if its session is.
    tickets = (book.tickets[number] for number in handover.tickets.values() if number in book.tickets)
    asked = {lease for ticket in tickets for lease in ticket.leases}
    fresh = [lease for lease in (kept(come) if first_of_two else come) if lease.lease not in asked]
    files.rehouse(book)
    for part in _parts(book, fresh):
        _open_part(book, handover, part, handover.deadline, together=True)
    handover.going = Going.MOVING


def _parts(book: Book, leases: list[Lease]) -> list[list[Lease]]:
    """Return leases by session, those of higher priority first."""

    def key(lease: Lease) -> tuple[int, int]:
        return (-book.listing.priority_of(lease.lease), lease.session)

    return [list(part) for _, part in groupby(sorted(leases, key=key), key=key)]


def _open_part(book: Book, handover: Handover, leases: list[Lease], deadline: Instant, *, together: bool) -> None:
    session = book.sessions.live[leases[0].session]
    demand = Comeback(leases={lease.lease: None for lease in leases})
    part = Call(call=book.draw_part(), actor=handover.actor, request=RequestId("part of a handover"))
    ticket = open_ticket(book, session, demand, part, deadline, certain=False)
    # Its process may be doing anything meanwhile: it is no part of a ring.
    ticket.together, ticket.own = together, False
    for lease in leases:
        lease.comebacks[ticket.ticket] = None
    book.queue.add(ticket)
    handover.tickets[part.call] = ticket.ticket
    if together:
        handover.come.update(demand.leases)
    book.supply_grew = True


def _pause(book: Book, handover: Handover, leases: list[Lease]) -> OutOfHostMemory | None:
    """Pause leases as one, in all domains; or none of them, if what must be kept does not fit."""
    refused = _place(book, leases)
    if refused is not None:
        return refused
    for lease in leases:
        session = book.name_of(lease.session)
        handover.paused[lease.lease] = EnteredTag(session=session, tag=lease.tag, lease=lease.lease, same_pages=True)
        make_idle(book, lease, f"paused for phase {handover.phase.name}")
    return None


def _place(book: Book, leases: list[Lease]) -> OutOfHostMemory | None:
    placed: list[Lease] = []
    by_domain: dict[Domain, list[Lease]] = {}
    for lease in leases:
        by_domain.setdefault(lease.domain, []).append(lease)
    for domain, these in by_domain.items():
        found = files.place(book, domain, these, beside=leases)
        if found is None:
            for lease in placed:
                files.unplace(book, lease)
            return out_of_host_memory(book, domain, sum(unplaced_bytes(lease) for lease in these))
        placed.extend(found)
    return None


def unplaced_bytes(lease: Lease) -> int:
    """Return what a lease would have set aside in the arena if it were paused."""
    return sum(slot.size_bytes for slot in lease.unplaced())


def out_of_host_memory(book: Book, domain: Domain, needed_bytes: int) -> OutOfHostMemory:
    """Return the error that says who has the arena."""
    free_bytes = files.free_bytes(book, domain, ())
    return OutOfHostMemory(
        message=f"{needed_bytes} bytes of what leaves must be kept and {files.room_text(book, domain, ())}",
        requested_bytes=needed_bytes,
        free_bytes=free_bytes,
        capacity_bytes=book.limits.host_budget_bytes + book.spill.budget_bytes,
        holders=book.host_holders(),
    )


def go_on(book: Book, handover: Handover) -> bool:
    """Take the next step when all parts of this one have arrived, or undo all if one has failed; tells whether anything
    was done.
    """
    answered = {call: book.parts[call] for call in handover.tickets}
    error = next((one for one in answered.values() if isinstance(one, BrokerError) and not isinstance(one, GONE)), None)
    if error is not None:
        fail(book, handover, error)
        return True
    for call in [call for call, answer in answered.items() if answer is not None]:
        _forget_part(book, handover, call)
    if not all(book.tickets[number].arrived for number in handover.tickets.values()):
        return False
    if _order(book) is Order.HOST and not handover.step:
        for number in handover.tickets.values():
            _seat(book, book.tickets[number])
        handover.step, handover.going, handover.stirred = 1, Going.GATHERING, True
    else:
        _finish(book, handover)
    return True


def _forget_part(book: Book, handover: Handover, call: CallId) -> None:
    del handover.tickets[call]
    del book.parts[call]


def _seat(book: Book, ticket: Ticket) -> None:
    """Give up the places in the arena of what has arrived: from here on its contents are on the device alone."""
    for lease in (book.leases[number] for number in ticket.leases):
        if lease.paused:
            for slot in lease.slots.values():
                places.let_go(book, lease, slot)
            lease.seated = True
            lease.pauses += 1
            book.touch(lease, "all of it is back, and opens with the rest")


def _finish(book: Book, handover: Handover) -> None:
    resumed: list[EnteredTag] = []
    for call, number in tuple(handover.tickets.items()):
        ticket = book.tickets[number]
        session = book.name_of(ticket.session)
        grant.complete(book, ticket)
        outcome = book.parts[call]
        assert isinstance(outcome, Resumed)
        resumed.extend(
            EnteredTag(session=session, tag=one.tag, lease=one.lease, same_pages=one.same_pages)
            for one in outcome.leases
        )
        _forget_part(book, handover, call)
    gathering.cancel_all(book, handover)
    book.handover, book.phase = None, handover.phase.name
    ranks.rank_all(book, book.listing.ranked())
    still = (lease for lease in handover.paused if lease in book.leases and book.leases[lease].paused)
    paused = tuple(handover.paused[lease] for lease in still)
    why = f"{handover.phase.name}: paused {_names(paused)}; resumed {_names(resumed)}"
    book.publish(Kind.PHASE_ENTERED, why, phase=handover.phase.name)
    book.reply(handover.call, Entered(phase=handover.phase.name, paused=paused, resumed=tuple(resumed)))


def _names(tags: Iterable[EnteredTag]) -> str:
    names = list(dict.fromkeys(f"{one.session}/{one.tag}" for one in tags))
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return (", ".join(names[:NAMED_MAX]) or "nothing") + more


def fail(book: Book, handover: Handover, error: BrokerError) -> None:
    """Undo a handover: what came goes back, and what it has paused is brought back before the call is refused."""
    gathering.cancel_all(book, handover)
    for call, number in tuple(handover.tickets.items()):
        ticket = book.tickets.get(number)
        if ticket is not None and book.parts[call] is None:
            _send_back(book, ticket, error)
        _forget_part(book, handover, call)
    handover.error, handover.going = error, Going.UNDOING
    deadline = Instant(book.now + book.limits.undo_ns)
    paused = [book.leases[number] for number in handover.paused if number in book.leases]
    for part in _parts(book, [lease for lease in paused if lease.paused]):
        _open_part(book, handover, part, deadline, together=False)


def _send_back(book: Book, ticket: Ticket, error: BrokerError) -> None:
    seated = [lease for lease in map(book.leases.__getitem__, ticket.leases) if lease.seated]
    if seated:
        _unseat(book, ticket, seated, error)
    elif ticket.stage is Stage.UNDOING:
        call, ticket.call = ticket.call, None
        if call is not None:
            book.refuse(call, error, session=book.name_of(ticket.session), ticket=ticket.ticket)
        book.stir(ticket.ticket)
    else:
        give_up(book, ticket, error)


def _unseat(book: Book, ticket: Ticket, leases: list[Lease], error: BrokerError) -> None:
    """Leave idle what is on the device alone: paused as it was, and with a place in the arena as soon as there is one."""
    for slot, number in ticket.slots.items():
        book.leases[number].slots[slot].ticket = None
    ticket.slots.clear()
    for lease in leases:
        lease.seated = False
        lease.idle_since = book.now
        lease.takeable = not lease.unplaced()
        if not lease.takeable:
            book.homeless[lease.lease] = None
        book.touch(lease, "left in place, paused")
    book.arena.roomier = True
    withdraw(book, ticket, error)


def undo_on(book: Book, handover: Handover) -> bool:
    """Refuse the call once all that was paused is back, or can't be brought back in time; tells whether that is so."""
    if any(book.parts[call] is None for call in handover.tickets):
        return False
    failed = [book.parts[call] for call in handover.tickets]
    late = [one for one in failed if isinstance(one, BrokerError) and not isinstance(one, GONE)]
    for call in tuple(handover.tickets):
        _forget_part(book, handover, call)
    error = handover.error
    assert error is not None
    if late:
        error = replace(error, message=f"{error.message}; and not undone: {late[0].message}")
    book.handover = None
    book.publish(Kind.PHASE_REFUSED, f"{handover.phase.name}: {error.message}", phase=handover.phase.name)
    book.refuse(handover.call, error)
    return True
