"""Phases: a plan is set, a phase is entered. A change of phase is checked first, then waits for what is in use
(`gathering.py`), then moves (`moving.py`). There is one at a time; another is refused rather than kept waiting, since
what it was checked against would have changed by then.
"""

from vrambroker.broker.core import budgets, copies, files, gathering, moving, ranks, rooms
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Done, Kind
from vrambroker.broker.core.errors import BrokerError, Draining, NotOwner, UnknownPhase, WaitExpired, WrongState
from vrambroker.broker.core.events import Declined, Enter, Peer, SetPlan
from vrambroker.broker.core.handover import Going, Handover
from vrambroker.broker.core.ids import Domain, Instant, SessionId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import out_of_device_memory
from vrambroker.broker.core.phase import Order, Phase, PhasePlan, require_sound_plan
from vrambroker.broker.core.scheduler import Reach
from vrambroker.broker.core.ticket import Ticket


def set_plan(book: Book, event: SetPlan) -> None:
    """Put a plan in the place of another, which only who set that, or root, may do."""
    require_sound_plan(event.plan)
    _require_no_handover(book)
    actor = event.call.actor
    if book.plan is not None and actor.uid not in (book.plan_uid, 0):
        raise NotOwner(message=f"uid {actor.uid} may not replace the plan of uid {book.plan_uid}", uid=actor.uid)
    book.plan, book.plan_uid = event.plan, actor.uid
    names = [phase.name for phase in event.plan.phases]
    if book.phase not in names:
        book.phase = ""
    leases = ((lease.lease, book.name_of(lease.session), lease.tag) for lease in book.leases.values())
    ranked = dict.fromkeys(book.listing.ranked())
    book.listing.renew(event.plan, leases)
    ranks.rank_all(book, ranked | dict.fromkeys(book.listing.ranked()))
    book.publish(Kind.PLAN_SET, f"phases {', '.join(names)}; order {event.plan.order.value}")
    book.reply(event.call.call, Done())


def enter(book: Book, event: Enter) -> None:
    """Begin a change of phase, if it can succeed as things are."""
    if book.draining:
        raise Draining(message="the daemon is shutting down and enters no phase")
    if book.plan is None:
        raise UnknownPhase(message=f"there is no plan, so no phase {event.phase!r}", phase=event.phase)
    phase = book.plan.phase(event.phase)
    _require_no_handover(book)
    handover = Handover(
        call=event.call.call, actor=event.call.actor, phase=phase, since=book.now, deadline=event.deadline
    )
    leave, come = gathering.leaving(book, handover), moving.coming(book, phase)
    _require_authority(book, event.call.actor, [*leave, *come])
    _require_device(book, book.plan, phase, leave, come)
    _require_budgets(book, book.plan, leave, come)
    _require_host(book, book.plan, leave, come)
    book.handover = handover
    why = f"{phase.name}: {len(leave)} leases leave, {len(come)} come"
    book.publish(Kind.PHASE_ENTERING, why, phase=phase.name)


def _require_no_handover(book: Book) -> None:
    if book.handover is not None:
        name = book.handover.phase.name
        raise WrongState(message=f"phase {name} is being entered: one change of phase at a time", state=f"to {name}")


def _require_authority(book: Book, actor: Peer, leases: list[Lease]) -> None:
    for session in dict.fromkeys(lease.session for lease in leases):
        book.sessions.get(session).require_authority(actor)


def _require_device(book: Book, plan: PhasePlan, phase: Phase, leave: list[Lease], come: list[Lease]) -> None:
    """Raise `OutOfDeviceMemory` if what comes does not fit even when all has left that leaves before it."""
    if plan.order is Order.HOST:
        _require_room(book, phase, moving.expendable(leave), moving.kept(come))
    _require_room(book, phase, leave, come)


def _require_room(book: Book, phase: Phase, leave: list[Lease], come: list[Lease]) -> None:
    spared = {lease.lease for lease in come}
    needed_bytes = sum(lease.absent_bytes for lease in come)
    there_bytes = book.supply().reachable_bytes(Reach.ALL, spared) + sum(lease.device_bytes for lease in leave)
    there_bytes += _own_bytes(book, come)
    if needed_bytes > there_bytes:
        more = f"; {needed_bytes - there_bytes} bytes too few, with all that is idle or leaves before"
        raise out_of_device_memory(book, needed_bytes, f"phase {phase.name}", more)


def _require_budgets(book: Book, plan: PhasePlan, leave: list[Lease], come: list[Lease]) -> None:
    if plan.order is Order.HOST:
        budgets.require_room_for_change(book, moving.expendable(leave), moving.kept(come))
    budgets.require_room_for_change(book, leave, come)


def _own_bytes(book: Book, come: list[Lease]) -> int:
    """Return what sessions have set aside for what they bring back."""
    absent: dict[SessionId, int] = {}
    for lease in come:
        absent[lease.session] = absent.get(lease.session, 0) + lease.absent_bytes
    return sum(min(size_bytes, rooms.kept_bytes(book, session)) for session, size_bytes in absent.items())


def _require_host(book: Book, plan: PhasePlan, leave: list[Lease], come: list[Lease]) -> None:
    """Raise `OutOfHostMemory` if what leaves and must be kept would find no place."""
    by_domain: dict[Domain, list[Lease]] = {}
    for lease in moving.kept(leave):
        by_domain.setdefault(lease.domain, []).append(lease)
    for domain, leases in by_domain.items():
        needed_bytes = sum(moving.unplaced_bytes(lease) for lease in leases)
        there_bytes = files.free_bytes(book, domain, leave)
        if plan.order is Order.HOST:
            there_bytes += sum(lease.host_bytes + lease.spill_bytes for lease in come if lease.domain == domain)
        if needed_bytes > there_bytes or not (plan.order is Order.HOST or _has_room(book, domain, leases, leave)):
            raise moving.out_of_host_memory(book, domain, needed_bytes)


def _has_room(book: Book, domain: Domain, leases: list[Lease], leave: list[Lease]) -> bool:
    return files.may_fit(book, domain, leases) or copies.sparable_bytes(book, domain, leave) > 0


def advance(book: Book) -> bool:
    """Take a change of phase as far as it can go now; tells whether that was any further."""
    handover = book.handover
    if handover is None:
        return False
    if handover.orders and book.touched:
        gathering.forget_paused(book, handover)
    match handover.going:
        case Going.GATHERING:
            return _gather(book, handover)
        case Going.MOVING:
            return moving.go_on(book, handover)
        case Going.UNDOING:
            return moving.undo_on(book, handover)


def _gather(book: Book, handover: Handover) -> bool:
    if not gathering.is_stirred(book, handover):
        return False
    leave = gathering.leaving(book, handover)
    try:
        _require_authority(book, handover.actor, leave)
    except NotOwner as error:
        moving.fail(book, handover, error)
        return True
    if not gathering.is_ready(book, handover, leave):
        return False
    moving.begin_step(book, handover, leave)
    return True


def expire(book: Book) -> None:
    """Give up a change of phase that has waited too long for what is in use."""
    handover = book.handover
    if handover is not None and gathering.is_over(book, handover):
        leave = gathering.leaving(book, handover)
        moving.fail(book, handover, gathering.too_late(book, handover, leave))


def declined(book: Book, event: Declined) -> bool:
    """Give up a change of phase that an application declines; tells whether the report was about one."""
    error = gathering.declined(book, event)
    if error is None or book.handover is None:
        return False
    moving.fail(book, book.handover, error)
    return True


def cancel(book: Book, ticket: Ticket, error: BrokerError) -> bool:
    """Undo the whole change of phase that a ticket is part of; tells whether it is of one."""
    handover = book.handover
    if handover is None or not ticket.together or ticket.ticket not in handover.tickets.values():
        return False
    moving.fail(book, handover, error)
    return True


def brings_back(book: Book, ticket: Ticket) -> bool:
    """Tell whether a ticket undoes a change of phase: what it is about was there before, within its budget or not."""
    return ticket.call in book.parts and not ticket.together


def abandon(book: Book) -> None:
    """Give up a change of phase that nobody waits for, if nothing has moved yet."""
    handover = book.handover
    if handover is not None and handover.going is Going.GATHERING and not handover.step:
        error: BrokerError = WaitExpired(message="the caller went away")
        moving.fail(book, handover, error)


def next_deadline(book: Book) -> Instant | None:
    """Return when `expire` has something to do."""
    waits = book.handover is not None and book.handover.going is Going.GATHERING
    return book.handover.deadline if waits and book.handover is not None else None
