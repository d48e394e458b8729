"""The named invariants about exports and readers."""

from vrambroker.broker.core.book import Book, Clearing, PauseOrder
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.ids import FrameId, ReaderId
from vrambroker.broker.core.pausing import awaited_readers
from vrambroker.broker.core.reader import Reader
from vrambroker.broker.core.snapshot import FramePlace, SlotState

MAY_BE_READ = (FramePlace.LENT, FramePlace.LINGERING, FramePlace.FENCED)


def _hold(claim: bool, name: str, what: object) -> None:
    if not claim:
        raise InvariantViolation(f"{name}: {what}")


def readers_are_recorded(book: Book) -> None:
    """What a reader may have mapped is its lease's, or nobody's: no frame that has a reader is lent to others."""
    _registers_agree(book)
    lingering: dict[FrameId, dict[ReaderId, None]] = {}
    for reader in book.readers.values():
        for number in _frames_of(book, reader):
            frame = book.ledger.frames.get(number)
            if frame is None:
                continue
            _hold(frame.place in MAY_BE_READ, "a frame with a reader goes to nobody", frame)
            own = frame.place is not FramePlace.LENT or frame.lease == reader.lease
            _hold(own, "a frame with a reader goes to nobody", frame)
            if frame.place is FramePlace.LINGERING:
                lingering.setdefault(number, {})[reader.reader] = None
    _hold(lingering == book.lingering, "what lingers is read", (lingering, book.lingering))
    for frame in book.ledger.frames.values():
        lingers = frame.place is FramePlace.LINGERING
        _hold(lingers == (frame.frame in lingering), "what lingers is read", frame)


def _registers_agree(book: Book) -> None:
    name = "readers and exports are registered"
    for reader in book.readers.values():
        _hold(reader.reader in book.sessions.live[reader.session].readers, name, reader)
        lease = book.leases.get(reader.lease)
        _hold(lease is None or reader.reader in lease.readers, name, reader)
        _hold(lease is not None or reader.closing, "whose lease is gone is asked to let go", reader)
    for lease in book.leases.values():
        _hold(all(book.readers[one].lease == lease.lease for one in lease.readers), name, lease.lease)
        _hold(not (lease.paused and lease.readers), "a paused lease has no readers", lease.lease)
        writable = lease.sealed and any(book.readers[one].writable for one in lease.readers)
        _hold(not writable, "nobody writes to what is sealed", lease.lease)
        _hold(all(book.exports[key].lease == lease.lease for key in lease.exports), name, lease.lease)
    for export in book.exports.values():
        _hold(export.key in book.sessions.live[export.session].exports, name, export)
        _hold(export.key in book.leases[export.lease].exports, name, export)
        _hold(not export.settled, "what is settled is forgotten", export)
        for reading, number in export.reads:
            _hold(book.sessions.live[reading].reads.get(number) == export.key, name, export)
    for session in book.sessions.live.values():
        _hold(all(book.readers[one].session == session.session for one in session.readers), name, session.name)
        _hold(all(book.exports[one].session == session.session for one in session.exports), name, session.name)


def _frames_of(book: Book, reader: Reader) -> list[FrameId]:
    """Return what a reader may have mapped; what is its lease's still is where the reader has it."""
    lease = book.leases.get(reader.lease)
    for number, shared in reader.shared.items():
        slot = lease.slots.get(number) if lease is not None else None
        if slot is not None:
            there = slot.state is SlotState.MAPPED and slot.frame == shared.frame
            _hold(there and slot.size_bytes == shared.size_bytes, "a reader has what its lease has", (reader, slot))
    return [shared.frame for shared in reader.shared.values()]


def readers_keep_nobody_waiting_for_ever(book: Book) -> None:
    """Who waits for readers is known to their leases, waits for some that are there, and has asked them to let go."""
    name = "who waits for readers is told when they are gone"
    waiting = [what for what in book.waits.values() if isinstance(what, PauseOrder | Clearing)]
    for what in waiting:
        # One may have been returned meanwhile.
        leases = [book.leases[number] for number in what.read if number in book.leases]
        _hold(all(what.call in lease.clearings for lease in leases), name, what)
        readers = awaited_readers(book, what)
        _hold(bool(readers) or not leases, name, what)
        _hold(all(reader.closing for reader in readers), "readers that are waited for are asked to let go", what)
    calls = {what.call for what in waiting if what.read}
    for lease in book.leases.values():
        _hold(lease.clearings.keys() <= calls, name, lease.lease)
    _hold(not book.cleared, name, book.cleared)
