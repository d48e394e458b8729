"""Recall: taking frames of an idle lease back, no more than are needed, once what must be kept has its place.

A slot's recall is decided, then sent: between the two lies the time until the arena's file is populated. One that is
only decided can still be called off, and is, if nobody needs it any more.
"""

from collections.abc import Iterable

from vrambroker.broker.core.arena import ArenaFile
from vrambroker.broker.core.book import Book, Release
from vrambroker.broker.core.effects import Kind, Paused, RecalledSlot, SendRecall
from vrambroker.broker.core.errors import BrokerError, invariant
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.snapshot import SlotState


def want(book: Book, lease: Lease, slots: Iterable[Slot], why: str) -> None:
    """Decide that the lease gives up these slots' frames, and order them out as soon as that can be obeyed."""
    fresh = [slot for slot in slots if slot.state is SlotState.MAPPED and slot.slot not in lease.going]
    if not fresh:
        return
    invariant(lease.paused and (lease.lock is None or bool(lease.releases)), "what comes back is not recalled")
    invariant(not lease.keeps or all(slot.placed for slot in fresh), "what must be kept has its place before it leaves")
    for slot in fresh:
        lease.go(slot)
        book.ledger.leave(book.frame_of(slot))
    book.supply_grew = True
    book.touch(lease, why)
    book.publish(Kind.RECALLED, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)
    for slot in fresh:
        if slot.needs_staging:
            book.spill.waiting.setdefault(slot.slot, lease.lease)
    send_if_ready(book, lease)


def want_all(book: Book, lease: Lease, why: str) -> None:
    """Decide that the lease gives up all that it has."""
    want(book, lease, list(lease.staying()), why)


def send_if_ready(book: Book, lease: Lease) -> None:
    """Order out what is decided and has its place in a file that is populated, where nobody else writes any more; the rest
    waits for that.
    """
    ready = [slot for slot in map(lease.slots.__getitem__, lease.going) if has_place(book, lease, slot)]
    if ready:
        _order(book, lease, ready, "recalled")
    for number in lease.files_to_park_in():
        book.arena_of(number).files[number].waiting[lease.lease] = None


def has_place(book: Book, lease: Lease, slot: Slot) -> bool:
    """Tell whether a slot can be ordered out now. One that its agent copies there just now can: it does both in order."""
    if slot.park is None:
        return not slot.needs_staging
    if book.arena_of(slot.park.file).is_usable(slot.park):
        return True
    order = book.copies.get(lease.session)
    return order is not None and order.is_about(lease) and order.slots.get(slot.slot) == slot.park


def vacate(book: Book, lease: Lease, slots: list[Slot], why: str) -> None:
    """Order slots out whose grant is being undone; what is parked of them is parked already."""
    for slot in slots:
        book.ledger.leave(book.frame_of(slot))
    book.supply_grew = True
    _order(book, lease, slots, why)


def _order(book: Book, lease: Lease, slots: list[Slot], why: str) -> None:
    for slot in slots:
        book.step(lease, slot, Step.RECALL, why)
    book.emit(resend(lease, slots))


def resend(lease: Lease, slots: Iterable[Slot]) -> SendRecall:
    """Return the order for slots that are leaving."""
    recalled = tuple(RecalledSlot(slot=slot.slot, park=slot.park) for slot in slots)
    return SendRecall(session=lease.session, lease=lease.lease, slots=recalled)


def file_ready(book: Book, file: ArenaFile) -> None:
    """Send the recalls that waited for this file, or a place in it."""
    waiting, file.waiting = file.waiting, {}
    for number in waiting:
        lease = book.leases.get(number)
        if lease is not None:
            send_if_ready(book, lease)


def call_off_if_needless(book: Book, lease: Lease) -> None:
    """Leave idle after all what was not ordered out yet, if nobody waits for its frames."""
    if lease.releases:
        return
    slots = [lease.slots[number] for number in lease.going]
    needless = [slot for slot in slots if book.frame_of(slot).ticket is None]
    if not needless:
        return
    for slot in needless:
        lease.stay(slot)
        book.ledger.stay(book.frame_of(slot))
    book.touch(lease, "recall called off: nobody needs it any more")
    if lease.comebacks:
        # Nothing has become free, but what waits for the lease to come back needs less now.
        book.supply_grew = True
    book.stir(lease.lock)


def end_if_done(book: Book, lease: Lease) -> None:
    """Answer who waited for the lease's frames, when nothing is leaving any more."""
    if lease.recalled:
        return
    book.touch(lease, "all of it has left" if not lease.mapped_bytes else "recall is over")
    book.stir(lease.lock)
    if not lease.mapped_bytes:
        _answer_releases(book, lease)


def note_progress(book: Book, lease: Lease) -> None:
    """Give the pauses more time that wait for this lease's frames, some of which have just left."""
    for release in _releases(book, lease):
        release.moved_at = book.now


def _releases(book: Book, lease: Lease) -> list[Release]:
    releases = [book.waits[call] for call in lease.releases]
    return [release for release in releases if isinstance(release, Release)]


def _answer_releases(book: Book, lease: Lease) -> None:
    for release in _releases(book, lease):
        del release.outstanding[lease.lease]
        if not release.outstanding:
            book.reply(release.call, Paused(leases=release.paused))
    lease.releases.clear()


def refuse_releases(book: Book, lease: Lease, error: BrokerError) -> None:
    """Refuse the pauses that waited for this lease's frames: they stay where they are."""
    for release in _releases(book, lease):
        end_release(book, release, error)


def end_release(book: Book, release: Release, error: BrokerError) -> None:
    for number in release.outstanding:
        lease = book.leases[number]
        del lease.releases[release.call]
    label = book.name_of(release.session)
    book.refuse(release.call, error, session=label)
