"""The first half of a change of phase: nothing is paused before all that is to leave is known to be out of use.

Agents are ordered to close gates and keep them closed. A tag without scopes has no gate to close: its owner must pause
it itself. Until then nothing has changed but that gates are closed, so giving up is to open them.
"""

from collections.abc import Iterator
from itertools import islice

from vrambroker.broker.core import reading
from vrambroker.broker.core.book import NAMED_MAX, Book
from vrambroker.broker.core.effects import SendPauseOrder
from vrambroker.broker.core.errors import BrokerError, NotQuiescent, WaitExpired
from vrambroker.broker.core.events import Busy, Calling, Declined, Quiet, StillBusy
from vrambroker.broker.core.handover import GateOrder, Going, Handover
from vrambroker.broker.core.ids import OrderId, SessionId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.session import Session, printable


def leaving(book: Book, handover: Handover) -> list[Lease]:
    """Return the leases that are in use, or may be, and that only other phases list."""
    listed = map(book.leases.__getitem__, book.listing.of_others(handover.phase.name))
    return [lease for lease in listed if _in_use(lease)]


def _in_use(lease: Lease) -> bool:
    return not lease.paused and bool(lease.slots or lease.growing)


def is_stirred(book: Book, handover: Handover) -> bool:
    """Tell whether anything has happened to what leaves, so that nobody looks at all leases for what others do."""
    stirred, handover.stirred = handover.stirred, False
    phase = handover.phase.name
    return stirred or any(
        number not in book.leases or book.listing.is_for_others(phase, number) for number in book.touched
    )


def is_ready(book: Book, handover: Handover, leases: list[Lease]) -> bool:
    """Tell whether all of these can be paused at once; asks for what is not known to be out of use yet: its owners first,
    then whoever else has it mapped.
    """
    forget_paused(book, handover)
    _ask(book, handover, leases)
    still = (lease for lease in leases if not handover.is_closed(lease.session, lease.tag))
    moving = (lease for lease in leases if lease.growing or lease.lock is not None)
    if next(still, None) is not None or next(moving, None) is not None:
        return False
    readers = reading.readers_of(book, leases)
    reading.close(book, readers)
    return not readers


def forget_paused(book: Book, handover: Handover) -> None:
    """Take out of the orders what they do not answer for any more: a tag that its owner has paused, or returned."""
    touched = [book.leases.get(number) for number in book.touched]
    there = [lease for lease in touched if lease is not None]
    # Nobody knows any more of which tag a lease was that is gone.
    known = ((lease.session, lease.tag) for lease in there)
    for session, tag in dict.fromkeys(known if len(there) == len(touched) else handover.asked):
        order = handover.order_for(session, tag)
        if order is not None and not _is_in_use(book, session, tag):
            del order.tags[tag]
            if not order.tags:
                cancel(book, handover, order)


def _is_in_use(book: Book, session: SessionId, tag: str) -> bool:
    live = book.sessions.live.get(session)
    numbers = live.by_tag.get(tag, {}).values() if live is not None else ()
    return any(_in_use(book.leases[number]) for number in numbers)


def _ask(book: Book, handover: Handover, leases: list[Lease]) -> None:
    unasked: dict[SessionId, dict[str, None]] = {}
    for lease in leases:
        known = (lease.session, lease.tag) in handover.unscoped
        if not known and handover.order_for(lease.session, lease.tag) is None:
            unasked.setdefault(lease.session, {})[lease.tag] = None
    for session, tags in unasked.items():
        remaining = iter(tags)
        while some := tuple(islice(remaining, book.limits.tags_per_call_max)):
            order = GateOrder(order=OrderId(book.draw_id()), session=session, asked=some, tags=dict.fromkeys(some))
            handover.orders[order.order] = order
            handover.asked.update(dict.fromkeys(((session, tag) for tag in some), order))
            book.emit(SendPauseOrder(session=session, order=order.order, tags=some))


def cancel(book: Book, handover: Handover, order: GateOrder) -> None:
    """Have an order's gates opened, as far as no lease behind them is paused."""
    del handover.orders[order.order]
    book.end_order(order.session, order.order)


def cancel_all(book: Book, handover: Handover) -> None:
    for order in tuple(handover.orders.values()):
        cancel(book, handover, order)


def quiet(book: Book, event: Quiet) -> bool:
    """Note that an order's gates are closed; tells whether the report was about one of a handover's."""
    order = _order_about(book, event)
    if order is not None and book.handover is not None:
        order.closed = True
        if all(one.closed for one in book.handover.orders.values()):
            _stir(book)
    return order is not None


def busy(book: Book, event: Busy) -> bool:
    """Note that a tag has no scopes, so that only its owner can pause it; the order's gates are open."""
    order = _order_about(book, event)
    if order is None or book.handover is None:
        return False
    if event.tag in order.asked:
        del book.handover.orders[order.order]
        book.handover.unscoped[order.session, event.tag] = None
        _stir(book)
    return True


def still_busy(book: Book, event: StillBusy) -> bool:
    """Note which scope keeps an order waiting."""
    order = _order_about(book, event)
    if order is not None and event.tag in order.asked:
        order.busy_tag, order.busy_scope, order.busy_callback = event.tag, printable(event.scope), ""
    return order is not None


def calling(book: Book, event: Calling) -> bool:
    """Note which callback keeps an order waiting."""
    order = _order_about(book, event)
    if order is not None and event.tag in order.asked:
        order.busy_tag, order.busy_scope, order.busy_callback = event.tag, "", printable(event.callback)
    return order is not None


def declined(book: Book, event: Declined) -> NotQuiescent | None:
    """Return why a change of phase is over, if an application doesn't want its tags paused for it."""
    order = _order_about(book, event)
    if order is None or book.handover is None or event.tag not in order.asked:
        return None
    del book.handover.orders[order.order]
    session, reason = book.sessions.live[order.session], printable(event.why) or "no reason given"
    callback = printable(event.callback)
    return NotQuiescent(
        message=f"{session.name}/{event.tag} is not to be paused now: {reason} (its callback {callback!r})",
        session=session.name,
        tag=event.tag,
        scope=callback,
    )


def _order_about(book: Book, event: Quiet | Busy | StillBusy | Calling | Declined) -> GateOrder | None:
    order = book.handover.orders.get(event.order) if book.handover is not None else None
    return order if order is not None and order.session == event.session else None


def _stir(book: Book) -> None:
    if book.handover is not None:
        book.handover.stirred = True


def distrust(book: Book, session: Session) -> list[GateOrder]:
    """Take no gate of a session for closed any more, since its agent can't be reached; returns the orders to it."""
    orders = book.handover.orders.values() if book.handover is not None else ()
    found = [order for order in orders if order.session == session.session]
    for order in found:
        order.closed = False
    return found


def resend(book: Book, session: Session) -> None:
    """Give an agent that is there again the orders that it may have missed, or forgotten."""
    for order in distrust(book, session):
        book.emit(SendPauseOrder(session=session.session, order=order.order, tags=order.asked))


def too_late(book: Book, handover: Handover, leases: list[Lease]) -> BrokerError:
    """Return the error that says who kept the change of phase waiting."""
    open_ = [lease for lease in leases if not handover.is_closed(lease.session, lease.tag)]
    reasons = list(dict.fromkeys(_reasons(book, handover, open_)))
    more = f" and {len(reasons) - NAMED_MAX} more" if len(reasons) > NAMED_MAX else ""
    who = "; ".join(reasons[:NAMED_MAX]) + more
    message = f"phase {handover.phase.name} waited in vain: {who or 'memory was on its way'}"
    if not open_ and (readers := reading.readers_of(book, leases)):
        lease = next(lease for lease in leases if lease.readers)
        name = reading.names_of(book, readers)
        message = (
            f"phase {handover.phase.name} waited in vain: {book.label_of(lease)} is in use by {name}, who received it"
        )
        return NotQuiescent(message=message, session=book.name_of(lease.session), tag=lease.tag, scope=name)
    if not open_:
        holders = tuple(book.holder(lease, lease.device_bytes) for lease in leases)
        return WaitExpired(message=message, holders=holders)
    orders = (handover.order_for(lease.session, lease.tag) for lease in open_)
    named = next((order for order in orders if order is not None and order.busy_tag), None)
    if named is not None:
        session, tag, scope = book.name_of(named.session), named.busy_tag, named.busy_scope or named.busy_callback
    else:
        session, tag, scope = book.name_of(open_[0].session), open_[0].tag, ""
    return NotQuiescent(message=message, session=session, tag=tag, scope=scope)


def _reasons(book: Book, handover: Handover, leases: list[Lease]) -> Iterator[str]:
    for lease in leases:
        label = book.label_of(lease)
        order = handover.order_for(lease.session, lease.tag)
        if order is None:
            yield f"{label} has no scopes, and its owner did not pause it"
        elif order.busy_scope and order.busy_tag == lease.tag:
            yield f"{label} is in use by the scope {order.busy_scope!r}"
        elif order.busy_callback and order.busy_tag == lease.tag:
            yield f"{label} was not brought to rest in time by its callback {order.busy_callback!r}"
        else:
            yield f"{label} was not said to be quiet"


def is_over(book: Book, handover: Handover) -> bool:
    """Tell whether a handover has waited for others as long as it may."""
    return handover.going is Going.GATHERING and handover.deadline <= book.now
