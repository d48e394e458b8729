"""Budgets: how much of the device a session, or one of its tags, may have in use, as people change it at run time.

Over the hard limit nothing is lent or brought back; what is there already stays. Memory of whoever is over the soft limit
is taken first when it is idle. What is idle does not count against the hard limit, since anybody can have it.
"""

from collections.abc import Iterable, Iterator, Set

from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import BudgetSet, BudgetState, Kind
from vrambroker.broker.core.errors import InvalidArgument, QuotaExceeded
from vrambroker.broker.core.events import SetBudget
from vrambroker.broker.core.ids import LeaseId, SessionId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.session import Budget, Session, require_word
from vrambroker.broker.core.ticket import Growth, Ticket, bytes_of

WHOLE_SESSION = ""


def set_budget(book: Book, event: SetBudget) -> None:
    """Replace a budget, if the caller knows the one that is to be replaced."""
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    _require_sound(book, event)
    before = session.budgets.get(event.tag, Budget())
    if before.revision != event.revision:
        book.reply(event.call.call, _answer(before, BudgetState.CONFLICT))
        return
    now = Budget(soft_bytes=event.soft_bytes, hard_bytes=event.hard_bytes, revision=before.revision + 1)
    if event.tag not in session.budgets and len(session.budgets) >= book.limits.budgets_per_session_max:
        most = book.limits.budgets_per_session_max
        raise QuotaExceeded(
            message=f"{session.name!r} has {most} budgets already", limit="budgets_per_session_max", limit_value=most
        )
    session.budgets[event.tag] = now
    book.rank_idle(session)
    over = now.hard_bytes is not None and used_bytes(book, session, event.tag) > now.hard_bytes
    state = BudgetState.DEFERRED if over else BudgetState.APPLIED
    why = f"budget of {_label(session, event.tag)}: soft {now.soft_bytes}, hard {now.hard_bytes} bytes, {state.value}"
    book.publish(Kind.BUDGET_CHANGED, why, session=session.name, tag=event.tag)
    book.reply(event.call.call, _answer(now, state))


def _require_sound(book: Book, event: SetBudget) -> None:
    if event.tag != WHOLE_SESSION:
        require_word("tag", event.tag, book.limits.tag_length_max)
    for name, size in (("soft_bytes", event.soft_bytes), ("hard_bytes", event.hard_bytes)):
        if size is not None and not 0 < size <= book.limits.capacity_bytes:
            raise InvalidArgument(
                message=f"{name} {size} is not between 1 and the device's {book.limits.capacity_bytes}", argument=name
            )
    if None not in (event.soft_bytes, event.hard_bytes) and (event.soft_bytes or 0) > (event.hard_bytes or 0):
        raise InvalidArgument(message="the soft limit is above the hard one", argument="soft_bytes")


def _answer(budget: Budget, state: BudgetState) -> BudgetSet:
    return BudgetSet(state=state, revision=budget.revision, soft_bytes=budget.soft_bytes, hard_bytes=budget.hard_bytes)


def used_bytes(book: Book, session: Session, tag: str, left: Set[LeaseId] = frozenset[LeaseId]()) -> int:
    """Return what counts against a hard limit: all that is in use, coming back, or on its way; but for `left`."""
    return sum(_in_use_bytes(book, lease) for lease in _leases(book, session, tag) if lease.lease not in left)


def _in_use_bytes(book: Book, lease: Lease) -> int:
    size_bytes = lease.total_bytes if not lease.paused or lease.lock is not None else 0
    for ticket in map(book.tickets.__getitem__, lease.growing):
        if isinstance(ticket.demand, Growth):
            size_bytes += bytes_of(ticket.demand.parts)
    return size_bytes


def _leases(book: Book, session: Session, tag: str) -> Iterator[Lease]:
    numbers = session.leases if tag == WHOLE_SESSION else session.by_tag.get(tag, {}).values()
    return map(book.leases.__getitem__, numbers)


def has_room_for(book: Book, session: Session, tag: str, size_bytes: int) -> bool:
    """Tell whether so much more under a tag is within the hard limits."""
    return all(_fault(book, session, budgeted, size_bytes) is None for budgeted in (WHOLE_SESSION, tag))


def left_bytes(book: Book, session: Session) -> int | None:
    """Return how much more a session may use; None where no hard limit says so."""
    budget = session.budgets.get(WHOLE_SESSION)
    if budget is None or budget.hard_bytes is None:
        return None
    return max(0, budget.hard_bytes - used_bytes(book, session, WHOLE_SESSION))


def require_room_for(book: Book, session: Session, tag: str, size_bytes: int) -> None:
    """Raise `QuotaExceeded` if so much more under a tag is over a hard limit."""
    for budgeted in (WHOLE_SESSION, tag):
        _require(book, session, budgeted, size_bytes)


def require_room_to_come_back(book: Book, session: Session, leases: Iterable[Lease]) -> None:
    """Raise `QuotaExceeded` if these leases, brought back, are over a hard limit."""
    if not session.budgets:
        return
    coming: dict[str, int] = {}
    for lease in leases:
        if lease.paused and lease.lock is None:
            for budgeted in (WHOLE_SESSION, lease.tag):
                coming[budgeted] = coming.get(budgeted, 0) + lease.total_bytes
    for budgeted, size_bytes in coming.items():
        _require(book, session, budgeted, size_bytes)


def require_room_for_change(book: Book, leave: Iterable[Lease], come: Iterable[Lease]) -> None:
    """Raise `QuotaExceeded` if what comes in a change of phase is over a hard limit when all has left that leaves before."""
    left = {lease.lease for lease in leave}
    coming: dict[tuple[SessionId, str], int] = {}
    for lease in come:
        for budgeted in (WHOLE_SESSION, lease.tag) if book.sessions.live[lease.session].budgets else ():
            known = coming.get((lease.session, budgeted), 0)
            coming[lease.session, budgeted] = known + (lease.total_bytes if lease.lock is None else 0)
    for (number, budgeted), size_bytes in coming.items():
        _require(book, book.sessions.live[number], budgeted, size_bytes, left)


def fault_of(book: Book, ticket: Ticket) -> QuotaExceeded | None:
    """Return what is wrong with bringing back a ticket's leases now: others may have come back since it was queued."""
    if not ticket.leases:
        return None
    try:
        session = book.sessions.live[ticket.session]
        require_room_to_come_back(book, session, (book.leases[lease] for lease in ticket.leases))
    except QuotaExceeded as error:
        return error
    return None


def _require(
    book: Book, session: Session, tag: str, size_bytes: int, left: Set[LeaseId] = frozenset[LeaseId]()
) -> None:
    fault = _fault(book, session, tag, size_bytes, left)
    if fault is not None:
        raise fault


def _fault(
    book: Book, session: Session, tag: str, size_bytes: int, left: Set[LeaseId] = frozenset[LeaseId]()
) -> QuotaExceeded | None:
    budget = session.budgets.get(tag)
    if budget is None or budget.hard_bytes is None:
        return None
    used = used_bytes(book, session, tag, left)
    if used + size_bytes <= budget.hard_bytes:
        return None
    return QuotaExceeded(
        message=f"{_label(session, tag)} uses {used} bytes, asks for {size_bytes}, and may use {budget.hard_bytes}",
        limit="hard_bytes",
        limit_value=budget.hard_bytes,
    )


def _label(session: Session, tag: str) -> str:
    return session.name if tag == WHOLE_SESSION else f"{session.name}/{tag}"
