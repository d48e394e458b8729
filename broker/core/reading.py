"""Exports and readers: how memory of one process comes to be mapped by others, and how they let go of it again.

The rule is that a paused lease has no readers. Who pauses it, or seals it against those who may write, waits until they
have let go (`clear`); what is mapped without being in use goes at once. A frame that its owner returns lingers until
nobody maps it, and is closed for good if one of those who could write to it has died.
"""

from collections.abc import Iterable

from vrambroker.broker.core import hold
from vrambroker.broker.core.book import NAMED_MAX, Book
from vrambroker.broker.core.effects import (
    Done,
    EndReader,
    Kind,
    ReadGranted,
    SendCloseReader,
    SendExportSettled,
    SendReadGrant,
    SharedSlot,
)
from vrambroker.broker.core.errors import InvalidArgument, QuotaExceeded, UnknownLease, WrongState
from vrambroker.broker.core.events import EndRead, ReaderClosed
from vrambroker.broker.core.events import Export as ExportCall
from vrambroker.broker.core.events import Read as ReadCall
from vrambroker.broker.core.events import Unexport as UnexportCall
from vrambroker.broker.core.handover import Going
from vrambroker.broker.core.ids import ReaderId, SlotId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import SPOILT, Frame
from vrambroker.broker.core.reader import Export, Reader, SharedFrame
from vrambroker.broker.core.session import Session
from vrambroker.broker.core.slot import Slot
from vrambroker.broker.core.snapshot import FramePlace, SlotState

KEY_BYTES = 16


def export(book: Book, event: ExportCall) -> None:
    """Remember what may be read under a key; or that it was sent once more."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    if event.again:
        _own_export(book, session, event).sends += 1
    else:
        _require_exportable(book, session, event)
        made = Export(
            key=event.key,
            session=session.session,
            lease=event.lease,
            read_only=event.read_only,
            slots=event.slots,
        )
        book.exports[event.key] = made
        session.exports[event.key] = None
        book.leases[event.lease].exports[event.key] = None
    book.reply(event.call.call, Done())


def _own_export(book: Book, session: Session, event: ExportCall) -> Export:
    known = book.exports.get(event.key)
    if known is None or known.session != session.session:
        raise UnknownLease(message="what was sent is settled", lease=event.lease)
    return known


def _require_exportable(book: Book, session: Session, event: ExportCall) -> None:
    limits = book.limits
    if len(session.exports) >= limits.exports_per_session_max:
        raise _quota("exports_per_session_max", limits.exports_per_session_max)
    if not 0 < len(event.slots) <= limits.slots_per_export_max:
        raise InvalidArgument(
            message=f"{len(event.slots)} slots are not between 1 and {limits.slots_per_export_max}", argument="slots"
        )
    if len(event.key) != KEY_BYTES or event.key in book.exports:
        raise InvalidArgument(message="this key is none, or is in use", argument="key")
    lease = book.leases.get(event.lease)
    if lease is None:
        raise UnknownLease(message=f"there is no lease {event.lease}", lease=event.lease)
    may_read, may_write = _may_have(book, session, lease)
    unknown = next((one.slot for one in event.slots if one.slot not in may_read), None)
    if unknown is not None:
        raise UnknownLease(message=f"{session.name!r} has no slot {unknown} in lease {event.lease}", lease=unknown)
    if not (event.read_only or all(one.slot in may_write for one in event.slots)):
        raise InvalidArgument(message="what is mapped read-only is exported read-only", argument="read_only")


def _may_have(book: Book, session: Session, lease: Lease) -> tuple[set[SlotId], set[SlotId]]:
    """Return the slots of a lease that a session has mapped, and those that it may write to."""
    if lease.session == session.session:
        return set(lease.slots), set(lease.slots)
    own = [book.readers[one] for one in lease.readers if book.readers[one].session == session.session]
    may_read = {slot for reader in own for slot in reader.shared}
    return may_read, {slot for reader in own if reader.writable for slot in reader.shared}


def _quota(limit: str, value: int) -> QuotaExceeded:
    return QuotaExceeded(message=f"the limit {limit} of {value} is reached", limit=limit, limit_value=value)


def unexport(book: Book, event: UnexportCall) -> None:
    """Expect nobody any more who has not received what was sent."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    for key in tuple(session.exports):
        sent = book.exports[key]
        sent.sends = min(sent.sends, sent.arrivals)
        _settle_if_over(book, sent)
    book.reply(event.call.call, Done())


def read(book: Book, event: ReadCall) -> None:
    """Have a session's process map what is exported; the reader is recorded before any frame is sent."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    found = book.exports.get(event.key)
    lease = book.leases[found.lease] if found is not None else None
    if found is None or lease is None or lease.domain != session.peer.domain:
        why = "it was received and let go of already, its sender is gone, or it is of another broker or user"
        raise UnknownLease(message=f"what was sent is not there any more: {why}")
    if event.number in session.reads:
        raise InvalidArgument(message=f"{event.number} is in use for another read", argument="number")
    reader = None if lease.session == session.session else _grant(book, session, lease, found)
    found.arrivals += 1
    found.reads[session.session, event.number] = None
    session.reads[event.number] = found.key
    book.reply(event.call.call, ReadGranted(lease=lease.lease, reader=reader))


def _grant(book: Book, session: Session, lease: Lease, found: Export) -> ReaderId:
    _require_readable(book, lease, found)
    reader = _reader_for(book, session, lease, writable=not found.read_only)
    fresh: dict[SlotId, SharedFrame] = {}
    for one in found.slots:
        slot = lease.slots[one.slot]
        if slot.slot not in reader.shared:
            frame = book.frame_of(slot).frame
            fresh[slot.slot] = SharedFrame(frame=frame, offset_bytes=one.offset_bytes, size_bytes=slot.size_bytes)
    reader.shared.update(fresh)
    if fresh:
        book.emit(_shared(reader, fresh))
    return reader.reader


def _shared(reader: Reader, shared: dict[SlotId, SharedFrame]) -> SendReadGrant:
    return SendReadGrant(
        session=reader.session,
        reader=reader.reader,
        lease=reader.lease,
        writable=reader.writable,
        slots=tuple(
            SharedSlot(slot=slot, frame=one.frame, offset_bytes=one.offset_bytes, size_bytes=one.size_bytes)
            for slot, one in shared.items()
        ),
    )


def _require_readable(book: Book, lease: Lease, found: Export) -> None:
    label = book.label_of(lease)
    if lease.paused:
        raise _unreadable(book, lease, f"{label} is paused: it must be resumed before others can receive it")
    if lease.clearings or _leaves_with_a_phase(book, lease):
        raise _unreadable(book, lease, f"{label} is about to be paused or sealed, so that nobody receives it now")
    if lease.sealed and not found.read_only:
        raise _unreadable(book, lease, f"{label} is sealed, and was sent to be written to")
    for one in found.slots:
        slot = lease.slots.get(one.slot)
        if slot is None or slot.state is not SlotState.MAPPED or slot.ticket is not None:
            raise _unreadable(book, lease, f"{label} has given up memory that was sent")


def _leaves_with_a_phase(book: Book, lease: Lease) -> bool:
    handover = book.handover
    if handover is None or handover.going is Going.UNDOING:
        return False
    return book.listing.is_for_others(handover.phase.name, lease.lease)


def _unreadable(book: Book, lease: Lease, message: str) -> WrongState:
    return WrongState(message=message, session=book.name_of(lease.session), tag=lease.tag, state=lease.state.value)


def _reader_for(book: Book, session: Session, lease: Lease, *, writable: bool) -> Reader:
    """Return the session's reader of a lease that is open for more, made if there is none."""
    for reader in map(book.readers.__getitem__, lease.readers):
        if reader.session == session.session and reader.writable == writable and not reader.closing:
            return reader
    most = book.limits.readers_per_session_max
    if len(session.readers) >= most:
        raise _quota("readers_per_session_max", most)
    made = Reader(reader=ReaderId(book.draw_id()), session=session.session, lease=lease.lease, writable=writable)
    book.readers[made.reader] = made
    session.readers[made.reader] = None
    lease.readers[made.reader] = None
    how = "may write to it, too" if writable else "can't write to it"
    _publish(book, lease, f"{session.name} maps it as well, and {how}")
    return made


def _publish(book: Book, lease: Lease, why: str) -> None:
    book.touch(lease, why)
    book.publish(Kind.LEASE_READ, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)


def end_read(book: Book, event: EndRead) -> None:
    """Note that something received is in use no longer; its mapping stays until it is asked for."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    _end_read(book, session, event.number)
    book.reply(event.call.call, Done())


def _end_read(book: Book, session: Session, number: int) -> None:
    key = session.reads.pop(number, None)
    found = book.exports.get(key) if key is not None else None
    if found is not None:
        found.reads.pop((session.session, number), None)
        _settle_if_over(book, found)


def _settle_if_over(book: Book, sent: Export) -> None:
    if sent.settled:
        _forget(book, sent)


def _forget(book: Book, sent: Export) -> None:
    """End an export, and tell who has made it, who keeps its memory until then."""
    del book.exports[sent.key]
    lease = book.leases.get(sent.lease)
    if lease is not None:
        del lease.exports[sent.key]
    session = book.sessions.live[sent.session]
    del session.exports[sent.key]
    session.settle(sent.key)
    book.emit(SendExportSettled(session=sent.session, key=sent.key))


def readers_of(book: Book, leases: Iterable[Lease]) -> list[Reader]:
    return [book.readers[reader] for lease in leases for reader in lease.readers]


def writers_of(book: Book, leases: Iterable[Lease]) -> list[Reader]:
    return [reader for reader in readers_of(book, leases) if reader.writable]


def names_of(book: Book, readers: Iterable[Reader]) -> str:
    """Return whose they are, as an error says it."""
    names = list(dict.fromkeys(book.name_of(reader.session) for reader in readers))
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def close(book: Book, readers: Iterable[Reader]) -> None:
    """Ask readers to let go, those that were not asked yet."""
    for reader in readers:
        if not reader.closing:
            reader.closing = True
            book.emit(SendCloseReader(session=reader.session, reader=reader.reader))


def closed(book: Book, event: ReaderClosed) -> None:
    """Take note that a reader has let go; also if nobody has asked it to."""
    reader = book.readers.get(event.reader)
    if reader is not None and reader.session == event.session:
        _end(book, reader)


def _end(book: Book, reader: Reader) -> None:
    del book.readers[reader.reader]
    del book.sessions.live[reader.session].readers[reader.reader]
    book.emit(EndReader(reader=reader.reader))
    lease = book.leases.get(reader.lease)
    if lease is not None:
        del lease.readers[reader.reader]
        _publish(book, lease, f"{book.name_of(reader.session)} maps it no longer")
        book.cleared.update(lease.clearings)
    for shared in reader.shared.values():
        lingering = book.lingering.get(shared.frame)
        if lingering is not None:
            lingering.pop(reader.reader, None)
            if not lingering:
                _end_lingering(book, book.frame(shared.frame))


def _end_lingering(book: Book, frame: Frame) -> None:
    del book.lingering[frame.frame]
    if frame.domain == SPOILT:
        hold.destroy(book, frame)
    else:
        book.ledger.linger_no_more(frame)
        book.supply_grew = True


def take_back(book: Book, lease: Lease, slot: Slot, frame: Frame) -> None:
    """Take a frame that its owner returns: nobody gets it before all readers have let go of it."""
    readers = [reader for reader in readers_of(book, (lease,)) if slot.slot in reader.shared]
    if not readers:
        hold.give_back(book, frame)
        return
    book.ledger.linger(frame)
    book.lingering[frame.frame] = {reader.reader: None for reader in readers}
    close(book, readers)


def leave_lease(book: Book, lease: Lease) -> None:
    """Take a lease that is about to be forgotten out of what names it; its readers keep what they have mapped."""
    close(book, readers_of(book, (lease,)))
    lease.readers.clear()
    for key in tuple(lease.exports):
        _forget(book, book.exports[key])
    book.cleared.update(lease.clearings)


def end_session(book: Book, session: Session, *, died: bool) -> None:
    """End what a session reads and has exported. One that died may write for a while yet to what it could write to."""
    for number in tuple(session.reads):
        _end_read(book, session, number)
    for reader in [book.readers[number] for number in session.readers]:
        if died and reader.writable:
            _spoil(book, reader)
        _end(book, reader)
    for key in tuple(session.exports):
        _forget(book, book.exports[key])


def _spoil(book: Book, reader: Reader) -> None:
    for shared in reader.shared.values():
        frame = book.ledger.frames.get(shared.frame)
        if frame is not None and frame.place in (FramePlace.LENT, FramePlace.LINGERING):
            book.ledger.spoil(frame)


def resend(book: Book, session: Session) -> None:
    """Tell an agent that is there again what it may have missed of what it reads and has exported."""
    for reader in map(book.readers.__getitem__, session.readers):
        if reader.closing:
            book.emit(SendCloseReader(session=session.session, reader=reader.reader))
        elif reader.shared:
            book.emit(_shared(reader, reader.shared))
    for key in session.settled:
        book.emit(SendExportSettled(session=session.session, key=key))
