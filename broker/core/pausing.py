"""Pause: make leases idle, once they are known to be quiet and what must be kept has its place in the arena."""

from vrambroker.broker.core import files, reading, recall
from vrambroker.broker.core.book import HOLDERS_MAX, Book, Clearing, PauseOrder, Release, names_of
from vrambroker.broker.core.effects import (
    Paused,
    SendLeaseState,
    SendPauseCancelled,
    SendPauseOrder,
)
from vrambroker.broker.core.errors import (
    BrokerError,
    InvalidArgument,
    NotQuiescent,
    OutOfHostMemory,
    WaitExpired,
    invariant,
)
from vrambroker.broker.core.events import Busy, Calling, Contents, Declined, Pause, Quiet, Seal, StillBusy
from vrambroker.broker.core.ids import CallId, Instant, OrderId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import require_few_waits, wrong_state
from vrambroker.broker.core.reader import Reader
from vrambroker.broker.core.session import Session, printable, require_word


def pause(book: Book, event: Pause) -> None:
    """Pause at once if the owner says that it is quiet; otherwise ask its agent first."""
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    if event.quiet:
        session.require_process(event.call.actor)
    require_tags(book, event.tags)
    leases = book.leases_of(session, event.tags)
    _require_pausable(book, leases)
    if event.discard:
        _require_discardable(book, event, leases)
    asked = tuple(dict.fromkeys(lease.tag for lease in leases if not lease.paused))
    if event.quiet and reading.readers_of(book, leases):
        require_few_waits(book, session)
        clear(book, session, event, event.deadline, leases)
        return
    if event.quiet or not asked:
        release_by = event.deadline if event.release else None
        _take_effect(book, session, event.call.call, leases, release_by, discard=event.discard)
        return
    require_few_waits(book, session)
    order = PauseOrder(
        order=OrderId(book.draw_id()),
        call=event.call.call,
        session=session.session,
        tags=event.tags,
        asked=asked,
        release=event.release,
        deadline=event.deadline,
    )
    book.orders[order.order] = order
    book.wait(order.call, order)
    book.emit(SendPauseOrder(session=session.session, order=order.order, tags=asked))


def clear(book: Book, session: Session, event: Pause | Seal, deadline: Instant, leases: list[Lease]) -> None:
    """Have a call of the owner's wait until all readers of these leases have let go; then it is made again."""
    waiting = Clearing(call=event.call.call, session=session.session, what=event, deadline=deadline, read={})
    book.wait(waiting.call, waiting)
    _await_readers(book, waiting, leases)


def _await_readers(book: Book, waiting: Clearing | PauseOrder, leases: list[Lease]) -> None:
    waiting.read = {lease.lease: None for lease in leases if lease.readers}
    for lease in map(book.leases.__getitem__, waiting.read):
        lease.clearings[waiting.call] = None
    reading.close(book, awaited_readers(book, waiting))


def awaited_readers(book: Book, waiting: Clearing | PauseOrder) -> list[Reader]:
    """Return whom a call waits for: those who may write, if it is to seal; a lease that is gone has none."""
    leases = [book.leases[number] for number in waiting.read if number in book.leases]
    to_seal = isinstance(waiting, Clearing) and isinstance(waiting.what, Seal)
    return reading.writers_of(book, leases) if to_seal else reading.readers_of(book, leases)


def distrust(book: Book, session: Session) -> None:
    """Take no gate of a session for closed any more, since its agent can't be reached; it is asked again."""
    for order in book.orders.values():
        if order.session == session.session:
            book.stop_clearing(order)


def require_tags(book: Book, tags: tuple[str, ...]) -> None:
    """Raise `InvalidArgument` for no tags, too many, or one that is no tag."""
    most = book.limits.tags_per_call_max
    if not 0 < len(tags) <= most:
        raise InvalidArgument(message=f"{len(tags)} tags are not between 1 and {most}", argument="tags")
    for tag in tags:
        require_word("tag", tag, book.limits.tag_length_max)


def _require_pausable(book: Book, leases: list[Lease]) -> None:
    for lease in leases:
        if lease.growing:
            raise wrong_state(book, lease, "growing: frames are on their way to it")
        if lease.lock is not None:
            raise wrong_state(book, lease, "being resumed")


def _require_discardable(book: Book, event: Pause, leases: list[Lease]) -> None:
    """Only the owner knows that nobody wants its contents; and those that are sealed were promised to stay."""
    if not event.quiet:
        raise InvalidArgument(message="only a tag's own process discards its contents", argument="discard")
    for lease in leases:
        if lease.sealed:
            raise wrong_state(book, lease, "sealed, so that its contents stay: unseal it before discarding them")


def _take_effect(
    book: Book,
    session: Session,
    call: CallId,
    leases: list[Lease],
    release_by: Instant | None,
    *,
    discard: bool = False,
) -> None:
    """Pause these leases as one: if the arena has no room for all that must be kept, none of them. `release_by`: when
    their frames are to have left, if they are to leave.
    """
    fresh = [lease for lease in leases if not lease.paused]
    unsure = [lease for lease in leases if lease.paused and not lease.takeable]
    placed = _place(book, session, [*([] if discard else fresh), *unsure])
    for lease in fresh:
        lease.discarded = discard and lease.contents is Contents.KEEP
        make_idle(book, lease, "paused")
    for lease in unsure:
        if release_by is not None or lease in placed:
            lease.takeable = True
            book.touch(lease, "may be taken again")
    paused = tuple(lease.lease for lease in leases)
    if release_by is None or not _release(book, session, call, leases, release_by):
        book.reply(call, Paused(leases=paused))


def make_idle(book: Book, lease: Lease, why: str) -> None:
    """Pause a lease that is out of use, and whose contents have their place."""
    invariant(not lease.readers, "a paused lease has no readers")
    lease.paused, lease.moved, lease.takeable = True, False, True
    lease.pauses += 1
    lease.uncopied = False
    lease.idle_since = book.now
    book.touch(lease, why)
    book.emit(SendLeaseState(session=lease.session, lease=lease.lease, paused=True))


def _place(book: Book, session: Session, leases: list[Lease]) -> list[Lease]:
    """Set arena extents aside for all contents that must be kept; raise `OutOfHostMemory` (nothing changed) if they
    don't fit.

    Returns the leases that got some.
    """
    placed = files.place(book, session.peer.domain, leases)
    if placed is None:
        raise _out_of_host_memory(book, session, leases)
    return placed


def _out_of_host_memory(book: Book, session: Session, leases: list[Lease]) -> OutOfHostMemory:
    free_bytes = files.free_bytes(book, session.peer.domain, leases)
    requested_bytes = sum(slot.size_bytes for lease in leases for slot in lease.unplaced())
    room = files.room_text(book, session.peer.domain, leases)
    return OutOfHostMemory(
        message=f"{session.name} must keep {requested_bytes} bytes and {room}",
        requested_bytes=requested_bytes,
        free_bytes=free_bytes,
        capacity_bytes=book.limits.host_budget_bytes + book.spill.budget_bytes,
        holders=book.host_holders(),
    )


def _release(book: Book, session: Session, call: CallId, leases: list[Lease], deadline: Instant) -> bool:
    """Recall these leases now; tells whether the call has to wait for that."""
    leaving = [lease for lease in leases if lease.mapped_bytes or lease.recalled]
    if not leaving:
        return False
    release = Release(
        call=call,
        session=session.session,
        paused=tuple(lease.lease for lease in leases),
        outstanding={lease.lease: None for lease in leaving},
        deadline=deadline,
        moved_at=book.now,
    )
    book.wait(call, release)
    for lease in leaving:
        lease.releases[call] = None
        recall.want_all(book, lease, "released on request")
    return True


def expire_release(book: Book, release: Release) -> None:
    """Refuse a pause whose frames have not left in time: what has not been ordered out stays, what has been may still
    leave. The pause itself stands.
    """
    late = [book.leases[lease] for lease in release.outstanding]
    holders = tuple(book.holder(lease, lease.device_bytes) for lease in late[:HOLDERS_MAX])
    error = WaitExpired(
        message=f"{names_of(holders)} had not let go of its memory when the time was up, and stays paused",
        requested_bytes=sum(lease.device_bytes for lease in late),
        holders=holders,
    )
    recall.end_release(book, release, error)
    for lease in late:
        recall.call_off_if_needless(book, lease)


def quiet(book: Book, event: Quiet) -> None:
    """Carry out a pause whose gates are closed."""
    order = book.orders.get(event.order)
    if order is None or order.session != event.session:
        if event.session in book.sessions.live:
            book.emit(SendPauseCancelled(session=event.session, order=event.order))
        return
    session = book.sessions.get(order.session)
    known = (book.leases[number] for tag in order.asked for number in session.by_tag.get(tag, {}).values())
    order.vouched = {lease.lease: lease.pauses for lease in known}
    carry_out(book, order)


def carry_out(book: Book, order: PauseOrder) -> None:
    """Carry out a pause whose gates are closed, or have its readers let go first."""
    session = book.sessions.get(order.session)
    try:
        leases = book.leases_of(session, order.tags)
        _require_pausable(book, leases)
        reopened = next((one for one in leases if not one.paused and not _is_vouched(order, one)), None)
        if reopened is not None:
            raise _not_quiescent(session, reopened.tag, "resumed while the order was under way")
    except BrokerError as error:
        cancel(book, order, error)
        return
    book.stop_clearing(order)
    if reading.readers_of(book, leases):
        _await_readers(book, order, leases)
        return
    _close(book, order)
    try:
        _take_effect(book, session, order.call, leases, order.deadline if order.release else None)
    except OutOfHostMemory as error:
        book.refuse(order.call, error, session=session.name)
    # The states told keep the gates closed from here on. Not all are heard: of what its owner has paused itself
    # meanwhile none is told, and of what it is returning just now it knows nothing any more.
    book.end_order(order.session, order.order)


def _is_vouched(order: PauseOrder, lease: Lease) -> bool:
    """Tell whether the gate is closed still: who has been paused and resumed meanwhile has opened it."""
    return lease.tag in order.asked and order.vouched.get(lease.lease, lease.pauses) == lease.pauses


def busy(book: Book, event: Busy) -> None:
    """Refuse a pause whose gates can't be closed; they are open."""
    order = _order_about(book, event)
    if order is None:
        return
    _close(book, order)
    session = book.sessions.get(order.session)
    why = "has no scopes or callbacks, so that nobody but its owner can say when it is quiet"
    book.refuse(order.call, _not_quiescent(session, event.tag, why), session=session.name, tag=event.tag)


def still_busy(book: Book, event: StillBusy) -> None:
    """Note which scope keeps a pause waiting."""
    order = _order_about(book, event)
    if order is not None:
        order.busy_tag, order.busy_scope, order.busy_callback = event.tag, printable(event.scope), ""


def calling(book: Book, event: Calling) -> None:
    """Note which of the application's callbacks keeps a pause waiting."""
    order = _order_about(book, event)
    if order is not None:
        order.busy_tag, order.busy_scope, order.busy_callback = event.tag, "", printable(event.callback)


def declined(book: Book, event: Declined) -> None:
    """Refuse a pause that the application does not want; its gates are open."""
    order = _order_about(book, event)
    if order is None:
        return
    _close(book, order)
    session = book.sessions.get(order.session)
    callback, reason = printable(event.callback), printable(event.why)
    why = f"is not to be paused now: {reason or 'no reason given'} (its callback {callback!r})"
    book.refuse(order.call, _not_quiescent(session, event.tag, why, callback), session=session.name, tag=event.tag)


def _order_about(book: Book, event: Busy | StillBusy | Calling | Declined) -> PauseOrder | None:
    """Return the order that a report is about, if it was given to this session and for this tag."""
    order = book.orders.get(event.order)
    known = order is not None and order.session == event.session and event.tag in order.asked
    return order if known else None


def expire(book: Book, order: PauseOrder) -> None:
    """Refuse a pause that did not become quiet in time, and have its gates opened again."""
    session = book.sessions.get(order.session)
    if order.read:
        cancel(book, order, still_read(book, order))
        return
    tag = order.busy_tag or order.asked[0]
    why = "was not said to be quiet in time"
    if order.busy_callback:
        why = f"was not brought to rest in time by its callback {order.busy_callback!r}"
    elif order.busy_scope:
        why = f"is in use by the scope {order.busy_scope!r}"
    cancel(book, order, _not_quiescent(session, tag, why, order.busy_callback or order.busy_scope))


def expire_clearing(book: Book, waiting: Clearing) -> None:
    """Refuse a call whose readers have not let go in time."""
    error = still_read(book, waiting)
    book.refuse(waiting.call, error, session=error.session, tag=error.tag)


def still_read(book: Book, waiting: Clearing | PauseOrder) -> NotQuiescent:
    """Return the error that says who has not let go of what others wait for."""
    readers = awaited_readers(book, waiting)
    lease, who = book.leases[readers[0].lease], reading.names_of(book, readers)
    return _not_quiescent(book.sessions.get(lease.session), lease.tag, f"is in use by {who}, who received it", who)


def cancel(book: Book, order: PauseOrder, error: BrokerError) -> None:
    _close(book, order)
    book.end_order(order.session, order.order)
    book.refuse(order.call, error, session=book.name_of(order.session), tag=order.busy_tag)


def _close(book: Book, order: PauseOrder) -> None:
    del book.orders[order.order]


def _not_quiescent(session: Session, tag: str, why: str, scope: str = "") -> NotQuiescent:
    return NotQuiescent(message=f"{session.name}/{tag} {why}", session=session.name, tag=tag, scope=scope)
