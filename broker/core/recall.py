"""Recall: taking an idle lease's frames back, once what must be kept has its place.

A recall is decided, then sent: between the two lies the time until the arena's files are populated. One that is only
decided can still be called off, and is, if nobody needs it any more.
"""

from collections.abc import Iterable

from vrambroker.broker.core.arena import NOT_YET, ArenaFile
from vrambroker.broker.core.book import Book, Release
from vrambroker.broker.core.effects import Kind, Paused, RecalledSlot, SendRecall
from vrambroker.broker.core.errors import BrokerError, invariant
from vrambroker.broker.core.lease import Lease, Recall
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.snapshot import FileState, SlotState


def want(book: Book, lease: Lease, why: str) -> None:
    """Decide that the lease gives up all its mapped frames, and send the order as soon as it can be obeyed."""
    if lease.recall is not Recall.NONE or not lease.mapped_bytes:
        return
    invariant(lease.paused and (lease.lock is None or bool(lease.releases)), "what comes back is not recalled")
    invariant(not lease.unplaced(), "what must be kept has its place before it leaves")
    lease.recall = Recall.WAITING
    for frame in book.mapped_frames(lease.lease):
        book.ledger.leave(frame)
    book.supply_grew = True
    book.touch(lease, why)
    book.publish(Kind.RECALLED, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)
    for number in lease.files_to_park_in():
        file = book.arena.files[number]
        if file.state in NOT_YET:
            file.waiting[lease.lease] = None
    send_if_ready(book, lease)


def send_if_ready(book: Book, lease: Lease) -> None:
    """Send a decided recall if every file that it parks in is populated."""
    files = (book.arena.files[number] for number in lease.files_to_park_in())
    if lease.recall is Recall.WAITING and all(file.state is FileState.READY for file in files):
        _order(book, lease, list(lease.in_state(SlotState.MAPPED)), "recalled")


def vacate(book: Book, lease: Lease, slots: list[Slot], why: str) -> None:
    """Order slots out whose grant is being undone; what is parked of them is parked already."""
    for slot in slots:
        book.ledger.leave(book.frame_of(slot))
    book.supply_grew = True
    _order(book, lease, slots, why)


def _order(book: Book, lease: Lease, slots: list[Slot], why: str) -> None:
    lease.recall = Recall.SENT
    for slot in slots:
        book.step(lease, slot, Step.RECALL, why)
    book.emit(resend(lease, slots))


def resend(lease: Lease, slots: Iterable[Slot]) -> SendRecall:
    """Return the order for slots that are leaving."""
    recalled = tuple(RecalledSlot(slot=slot.slot, park=slot.park) for slot in slots)
    return SendRecall(session=lease.session, lease=lease.lease, slots=recalled)


def file_ready(book: Book, file: ArenaFile) -> None:
    """Send the recalls that waited for this file alone."""
    waiting, file.waiting = file.waiting, {}
    for number in waiting:
        lease = book.leases.get(number)
        if lease is not None:
            send_if_ready(book, lease)


def call_off_if_needless(book: Book, lease: Lease) -> None:
    """Leave the lease idle after all, if its recall was not sent and nobody waits for its frames."""
    if lease.recall is not Recall.WAITING or lease.releases:
        return
    frames = list(book.mapped_frames(lease.lease))
    if any(frame.ticket is not None for frame in frames):
        return
    lease.recall = Recall.NONE
    for frame in frames:
        book.ledger.stay(frame)
    book.touch(lease, "recall called off: nobody needs it any more")
    book.stir(lease.lock)


def end_if_done(book: Book, lease: Lease) -> None:
    """Close a recall when nothing is leaving any more."""
    if lease.recall is Recall.NONE or lease.count[SlotState.LEAVING]:
        return
    if lease.recall is Recall.WAITING and lease.mapped_bytes:
        return
    lease.recall = Recall.NONE
    book.touch(lease, "all of it has left" if not lease.mapped_bytes else "recall is over")
    book.stir(lease.lock)
    if not lease.mapped_bytes:
        _answer_releases(book, lease)
    elif lease.releases:
        # A slot that could not leave before is asked again, since a release that came later waits for it.
        want(book, lease, "released on request")


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
