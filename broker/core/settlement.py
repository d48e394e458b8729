"""The end of every event: tickets go as far as they can, the pool is held to its size, and the change is published."""

from dataclasses import dataclass

from vrambroker.broker.core import (
    background,
    budgets,
    clearing,
    files,
    grant,
    hold,
    phases,
    rings,
    rooms,
    spilling,
    withheld,
)
from vrambroker.broker.core.book import Book, Told
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import Instant, LeaseId
from vrambroker.broker.core.lending import out_of_device_memory, withdraw
from vrambroker.broker.core.scheduler import Reach
from vrambroker.broker.core.ticket import Stage, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a line about the device tells, and a status: the latter never changes without the former."""

    lent_bytes: int
    free_bytes: int
    held_bytes: int
    host_bytes: int
    host_file_bytes: int
    spill_bytes: int


def totals(book: Book) -> Totals:
    """Return where the device's and the arena's bytes are now."""
    return Totals(
        lent_bytes=book.ledger.lent_bytes,
        free_bytes=book.ledger.free_bytes,
        held_bytes=book.ledger.held_bytes,
        host_bytes=book.arena.used_bytes + book.spill.staging.used_bytes,
        host_file_bytes=book.arena.size_bytes + book.spill.staging.size_bytes,
        spill_bytes=book.spill.used_bytes,
    )


def settle(book: Book, told: Totals) -> Totals:
    """Follow what the event has stirred until nothing moves any more, then publish what has changed. Returns the totals that
    are told now.
    """
    _follow(book)
    while phases.advance(book):
        _follow(book)
    if withheld.press(book):
        _follow(book)
    _trim_pool(book)
    background.go_on(book)
    _publish_leases(book)
    after = totals(book)
    if after != told:
        _publish_device(book, after)
    return after


def _follow(book: Book) -> None:
    while book.arena.roomier or book.stirred or book.supply_grew or spilling.go_on(book) or clearing.go_on(book):
        if book.arena.roomier:
            book.arena.roomier = False
            files.rehouse(book)
        _progress_stirred(book)
        if book.supply_grew:
            book.supply_grew = False
            withheld.refill(book)
            _admit_queued(book)
            rings.refuse(book)


def _progress_stirred(book: Book) -> None:
    while book.stirred:
        number = next(iter(book.stirred))
        del book.stirred[number]
        ticket = book.tickets.get(number)
        if ticket is not None:
            grant.progress(book, ticket)


def _admit_queued(book: Book) -> None:
    """Admit waiting tickets in their order; past the first that can't be, only what fits in what is free, and past one
    that has waited for long, only what does not wait. One that needs those behind it to go on first is no bar to them.
    """
    reach, patient = Reach.ALL, True
    waiting = rings.waiters(book) if len(book.queue) > 1 else None
    for number in tuple(book.queue):
        ticket = book.tickets.get(number)
        if ticket is None or ticket.stage is not Stage.QUEUED or hold.being_resumed(book, ticket):
            continue
        over = None if phases.brings_back(book, ticket) else budgets.fault_of(book, ticket)
        if over is not None:
            withdraw(book, ticket, over)
            continue
        if (patient or ticket.certain) and _admit(book, ticket, reach):
            continue
        if ticket.certain:
            label = hold.label(book, ticket)
            withdraw(book, ticket, out_of_device_memory(book, hold.needed_bytes(book, ticket), label))
        elif waiting is None or not waiting.block(book, ticket):
            reach, patient = Reach.FREE, patient and not hold.is_aged(book, ticket)


def _admit(book: Book, ticket: Ticket, reach: Reach) -> bool:
    spared = hold.spared(book, ticket)
    beyond_bytes = hold.needed_bytes(book, ticket) - rooms.kept_bytes(book, ticket.session)
    if not book.supply().covers(beyond_bytes, reach, spared):
        return False
    found = rooms.plan(book, ticket.session, hold.need_of(book, ticket), reach)
    if found is None:
        return False
    book.queue.discard(ticket.ticket)
    hold.admit(book, ticket, found)
    return True


def _trim_pool(book: Book) -> None:
    """Destroy the frames that nobody took and that there is no room for in the pool, once their time is over."""
    pool, limits = book.ledger.pool, book.limits
    grew, book.pooled_bytes = pool.size_bytes > book.pooled_bytes, pool.size_bytes
    if pool.size_bytes <= limits.pool_bytes_max:
        book.pool_until = None
        return
    if withheld.keeps_nothing_to_spare(book):
        book.pool_until = None
    elif grew and limits.pool_ns:
        book.pool_until = Instant(book.now + limits.pool_ns)
    if book.pool_until is not None and book.now < book.pool_until:
        return
    for frame in list(pool):
        if pool.size_bytes > limits.pool_bytes_max:
            hold.destroy(book, frame)
    book.pool_until, book.pooled_bytes = None, pool.size_bytes


def _publish_leases(book: Book) -> None:
    """Publish one line for each lease whose state or bytes the event has changed."""
    touched, book.touched = book.touched, {}
    for number, why in touched.items():
        lease = book.leases.get(number)
        if lease is None:
            _publish_gone(book, number, why)
            continue
        book.device_holdings.update(number, lease.device_bytes)
        book.host_holdings.update(number, lease.host_bytes + lease.spill_bytes)
        before = book.told.get(number)
        now = Told(
            session=book.name_of(lease.session),
            tag=lease.tag,
            state=lease.state,
            device_bytes=lease.device_bytes,
            host_bytes=lease.host_bytes,
            spill_bytes=lease.spill_bytes,
            copied_bytes=lease.copied_bytes,
        )
        if before == now:
            continue
        if before is None or before.state is not now.state:
            lease.since = book.now
        book.told[number] = now
        _publish_lease(book, number, now, why)


def _publish_gone(book: Book, number: LeaseId, why: str) -> None:
    book.device_holdings.update(number, 0)
    book.host_holdings.update(number, 0)
    before = book.told.pop(number, None)
    if before is not None:
        gone = Told(session=before.session, tag=before.tag, state=None, device_bytes=0, host_bytes=0, spill_bytes=0)
        _publish_lease(book, number, gone, why)


def _publish_lease(book: Book, number: LeaseId, now: Told, why: str) -> None:
    line = Publish(
        kind=Kind.LEASE_CHANGED,
        at=book.now,
        why=why,
        session=now.session,
        tag=now.tag,
        lease=number,
        state=now.state,
        device_bytes=now.device_bytes,
        host_bytes=now.host_bytes,
        spill_bytes=now.spill_bytes,
        copied_bytes=now.copied_bytes,
    )
    book.emit(line)


def _publish_device(book: Book, after: Totals) -> None:
    line = Publish(
        kind=Kind.DEVICE_CHANGED,
        at=book.now,
        why="memory has changed hands",
        lent_bytes=after.lent_bytes,
        free_bytes=after.free_bytes,
        held_bytes=after.held_bytes,
        host_bytes=after.host_bytes,
        host_file_bytes=after.host_file_bytes,
        spill_bytes=after.spill_bytes,
    )
    book.emit(line)
