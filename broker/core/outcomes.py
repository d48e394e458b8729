"""How slow work of the daemon's own ended: frames made and destroyed, arena files populated, punched and gone."""

from vrambroker.broker.core import files, grant, hold, homeless, outside, recall
from vrambroker.broker.core.arena import Use
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import DriverFailed, invariant
from vrambroker.broker.core.events import (
    ArenaFileDestroyed,
    ArenaFileFailed,
    ArenaFileReady,
    ExtentPunched,
    FrameCreated,
    FrameCreateFailed,
    FrameDestroyed,
)
from vrambroker.broker.core.ids import FrameId, Instant
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame
from vrambroker.broker.core.lending import give_up
from vrambroker.broker.core.snapshot import FileState, FramePlace


def _frame(book: Book, frame: FrameId, place: FramePlace) -> Frame:
    known = book.ledger.frames.get(frame)
    invariant(known is not None and known.place is place, f"frame {frame} is {place.value}, as its outcome says")
    assert known is not None
    return known


def frame_created(book: Book, event: FrameCreated) -> None:
    hold.created(book, _frame(book, event.frame, FramePlace.CREATING))


def frame_create_failed(book: Book, event: FrameCreateFailed) -> None:
    """Have the ticket wait on that the frame was for, if others have the memory just now; otherwise fail it."""
    frame = _frame(book, event.frame, FramePlace.CREATING)
    ticket = book.tickets.get(frame.ticket) if frame.ticket is not None else None
    if ticket is not None and frame.frame in ticket.hold.melting:
        hold.destroyed(book, frame)
        return
    if ticket is not None and event.out_of_memory and not ticket.certain and book.limits.device_bytes is not None:
        grant.lose_frame(book, ticket)
        outside.refused(book, frame.size_bytes)
    elif ticket is not None:
        label = hold.label(book, ticket)
        error = DriverFailed(
            message=f"{label}: {event.driver_call} failed with {event.driver_result}",
            driver_call=event.driver_call,
            driver_result=event.driver_result,
        )
        give_up(book, ticket, error)
    book.ledger.vanish(frame)
    book.supply_grew = True


def frame_destroyed(book: Book, event: FrameDestroyed) -> None:
    hold.destroyed(book, _frame(book, event.frame, FramePlace.DESTROYING))


def arena_file_ready(book: Book, event: ArenaFileReady) -> None:
    """Let the recalls go on that waited for the file; or destroy it, if nobody wants it any more."""
    file = book.arena_of(event.file).made(event.file)
    if file.state is FileState.READY:
        files.offer(book, file)
        recall.file_ready(book, file)
    else:
        files.destroy(book, file)


def arena_file_failed(book: Book, event: ArenaFileFailed) -> None:
    """Take their place from the leases that had theirs in the file; nobody may count on their frames until they have
    another. What only went through the file waits for its turn again.
    """
    arena = book.arena_of(event.file)
    file = arena.fail_file(event.file)
    arena.retry_at = Instant(book.now + book.limits.retry_ns)
    losers: dict[Lease, None] = {}
    for use in file.uses.values():
        losers[_displace(book, use)] = None
    for lease in losers:
        if arena is book.arena:
            homeless.call_off(book, lease, event.reason, file.size_bytes)
        else:
            book.touch(lease, f"no room to go through the host's memory: {event.reason}")
    files.begin_planned(book)


def _displace(book: Book, use: Use) -> Lease:
    lease = book.leases[use.lease]
    slot = lease.slots[use.slot]
    invariant(not slot.copied, "nothing is parked in a file before it is ready")
    lease.displace(slot)
    if book.spill.staged.pop(use.slot, None) is not None:
        book.spill.waiting.setdefault(use.slot, use.lease)
    return lease


def arena_file_destroyed(book: Book, event: ArenaFileDestroyed) -> None:
    """Have made what was to come in the file's place."""
    book.arena_of(event.file).destroyed(event.file)
    files.begin_planned(book)


def extent_punched(book: Book, event: ExtentPunched) -> None:
    """Count a dead client's extent as free."""
    file = book.arena_of(event.file).punched(event.file, event.offset_bytes)
    files.give_up_if_deserted(book, file.domain)
