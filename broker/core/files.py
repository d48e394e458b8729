"""Files of the arena as they come and go: made when contents need them, destroyed when nobody does, or others do more.

Destroying takes as long as the clients take to let go. So what comes in a destroyed file's place is planned: contents
have their place in it at once, and leave for it when it is made.
"""

from collections.abc import Iterable, Mapping

from vrambroker.broker.core import copies
from vrambroker.broker.core.arena import ArenaFile
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import CreateArenaFile, DestroyArenaFile, OfferArenaFile
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import ArenaFileId, Domain
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.session import Session


def _make_room(book: Book, domain: Domain, need: Mapping[int, int], spared: Iterable[Lease]) -> bool:
    """See to it that so many extents of each size can be set aside; tells whether they can be (if not, nothing has
    changed). Copies that nobody needs just now are given up for it, but not those of `spared`.
    """
    room = book.arena.room_for(domain, need) or copies.make_room(book, domain, need, spared)
    if room is None:
        return False
    for number in room.give_up:
        _give_up(book, book.arena.files[number])
    for size_bytes in room.make:
        book.arena.add_file(ArenaFileId(book.draw_id()), domain, size_bytes)
    begin_planned(book)
    return True


def prepare(book: Book, lease: Lease) -> None:
    """Have as much of the arena made as the session that has grown may have to park: populating it takes longer than
    the copies do. Nothing of others is given up for that, and their room is not counted on.
    """
    if not book.limits.arena_ahead or lease.contents is not Contents.KEEP:
        return
    session = book.sessions.live[lease.session]
    for size_bytes in book.arena.files_ahead(lease.domain, session.kept_bytes):
        book.arena.add_file(ArenaFileId(book.draw_id()), lease.domain, size_bytes)
    begin_planned(book)
    for file in book.arena.ready(lease.domain):
        if file.file not in session.offered:
            _offer(book, session, file)


def offer(book: Book, file: ArenaFile) -> None:
    """Let those have a new file who may have to park something: mapping and registering it takes them time, too."""
    if not book.limits.arena_ahead:
        return
    for session in book.sessions.live.values():
        if session.kept_bytes and session.peer.domain == file.domain:
            _offer(book, session, file)


def _offer(book: Book, session: Session, file: ArenaFile) -> None:
    session.offered[file.file] = None
    book.emit(OfferArenaFile(session=session.session, file=file.file))


def place(book: Book, domain: Domain, leases: list[Lease], *, beside: Iterable[Lease] = ()) -> list[Lease] | None:
    """Set extents aside for all contents of these leases that must be kept; returns the leases that got some, or None
    (and nothing has changed) if they don't fit. `beside`: others that are about to be paused as well, so that what is
    set aside for them, and copied of them, stays.
    """
    unplaced = [(lease, slot) for lease in leases for slot in lease.unplaced()]
    need: dict[int, int] = {}
    for _, slot in unplaced:
        need[slot.size_bytes] = need.get(slot.size_bytes, 0) + 1
    if not _make_room(book, domain, need, [*leases, *beside]):
        return None
    for lease, slot in unplaced:
        lease.place(slot, book.arena.take(domain, slot.size_bytes, lease.lease, slot.slot))
        book.homeless.pop(lease.lease, None)
    return [lease for lease, _ in unplaced]


def unplace(book: Book, lease: Lease) -> None:
    """Put a resident lease's places back; a sealed one keeps what is parked of it, until somebody needs the room."""
    for slot in lease.slots.values():
        if lease.sealed and slot.copied:
            continue
        extent = lease.displace(slot)
        if extent is not None:
            book.arena.give(extent)


def free_bytes(book: Book, domain: Domain, spared: Iterable[Lease]) -> int:
    """Return what a domain could still set aside, if copies are given up for it that nobody needs just now."""
    return book.arena.free_bytes(domain) + copies.sparable_bytes(book, domain, spared)


def rehouse(book: Book) -> None:
    """Find another place for contents that have lost theirs, so that their frames may be taken after all. A file that
    could not be made may fail again, so this is tried when somebody needs the frames or the arena has more room, and
    not again and again.
    """
    for lease in [book.leases[number] for number in book.homeless]:
        if lease.paused and place(book, lease.domain, [lease]) is None:
            continue
        book.homeless.pop(lease.lease, None)
        lease.takeable = True
        book.touch(lease, "has a place in the arena again")


def begin_planned(book: Book) -> None:
    """Have the files made that there is room for now."""
    for file in book.arena.begin_planned():
        book.emit(CreateArenaFile(file=file.file, domain=file.domain, size_bytes=file.size_bytes))


def _give_up(book: Book, file: ArenaFile) -> None:
    if book.arena.give_up(file):
        destroy(book, file)


def destroy(book: Book, file: ArenaFile) -> None:
    """Have every client let go of a file, and then the file destroyed."""
    for session in book.sessions.live.values():
        session.offered.pop(file.file, None)
    book.emit(DestroyArenaFile(file=file.file))


def give_up_if_deserted(book: Book, domain: Domain) -> None:
    """Give up the empty files of a domain that has nobody left."""
    if book.sessions.lives_in(domain):
        return
    for file in book.arena.disused(domain):
        _give_up(book, file)
