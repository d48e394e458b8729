"""Files of the arena as they come and go: made when contents need them, destroyed when nobody does, or others do more.

Destroying takes as long as the clients take to let go. So what comes in a destroyed file's place is planned: contents
have their place in it at once, and leave for it when it is made.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from vrambroker.broker.core import copies, places
from vrambroker.broker.core.arena import Arena, ArenaFile, Room
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import CreateArenaFile, DestroyArenaFile, Kind, OfferArenaFile
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import ArenaFileId, Domain
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.session import Session
from vrambroker.broker.core.slot import Slot


def _make_room(book: Book, domain: Domain, need: Mapping[int, int], spared: Iterable[Lease]) -> bool:
    """See to it that so many extents of each size can be set aside; tells whether they can be (if not, nothing has
    changed). Copies that nobody needs just now are given up for it, but not those of `spared`.
    """
    room = book.arena.room_for(domain, need) or copies.make_room(book, domain, need, spared)
    if room is None:
        return False
    _make(book, book.arena, domain, room)
    return True


def _make(book: Book, arena: Arena, domain: Domain, room: Room) -> None:
    for number in room.give_up:
        _give_up(book, arena, arena.files[number])
    for size_bytes in room.make:
        arena.add_file(ArenaFileId(book.draw_id()), domain, size_bytes)
    begin_planned(book)


def make_staging(book: Book, domain: Domain, size_bytes: int) -> bool:
    """See to it that an extent of the staging room can be taken; tells whether it can be, or others must be done first."""
    room = book.spill.staging.room_for(domain, {size_bytes: 1})
    if room is None:
        return False
    _make(book, book.spill.staging, domain, room)
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
    """Set places aside for all contents of these leases that must be kept, in the arena as far as they fit; returns the
    leases that got some, or None (and nothing has changed) if they don't fit. `beside`: others that are about to be
    paused as well, so that what is set aside for them, and copied of them, stays.
    """
    unplaced = unplaced_of(leases)
    parked = _split(book, domain, unplaced, [*leases, *beside])
    if parked is None:
        return None
    _tell_of_spilled(book, domain, unplaced[parked:])
    for lease, slot in unplaced[:parked]:
        lease.place(slot, book.arena.take(domain, slot.size_bytes, lease.lease, slot.slot))
    for lease, slot in unplaced[parked:]:
        lease.spill(slot, book.spill.take(slot.size_bytes, lease.lease, slot.slot))
    if unplaced[parked:]:
        _prepare_staging(book, domain)
    for lease, _ in unplaced:
        book.homeless.pop(lease.lease, None)
    return [lease for lease, _ in unplaced]


def _prepare_staging(book: Book, domain: Domain) -> None:
    """Have some staging room made before it is needed, if nobody has it."""
    staging = book.spill.staging
    if staging.retry_at is None:
        for size_bytes in staging.files_ahead(domain, book.limits.frame_sizes_bytes[-1]):
            staging.add_file(ArenaFileId(book.draw_id()), domain, size_bytes)
        begin_planned(book)


def unplaced_of(leases: Iterable[Lease]) -> list[tuple[Lease, Slot]]:
    """Return the slots that need a place, those of higher priority first: the spill store is for the others."""
    ranked = sorted(leases, key=lambda lease: -lease.priority)
    return [(lease, slot) for lease in ranked for slot in lease.unplaced()]


def _split(book: Book, domain: Domain, slots: Sequence[tuple[Lease, Slot]], spared: Iterable[Lease]) -> int | None:
    """Return how many of the slots get their place in the arena, room for which is made, while the others fit in the
    spill store; None if they don't fit, whatever is done.
    """
    spared = list(spared)
    if _make_room(book, domain, _need_of(slots), spared):
        return len(slots)
    if not book.spill.budget_bytes:
        return None
    most = _most_in_arena(book, domain, slots)
    # If that is more than the spill store can take, copies that nobody needs just now give way.
    least = bisect_left(range(len(slots)), True, key=lambda number: book.spill.has_room(_need_of(slots[number:])))
    parked = max(most, least)
    return parked if _make_room(book, domain, _need_of(slots[:parked]), spared) else None


def _most_in_arena(book: Book, domain: Domain, slots: Sequence[tuple[Lease, Slot]]) -> int:
    """Return how many of the slots the arena has room for as it is."""
    numbers = range(1, len(slots) + 1)
    return bisect_left(numbers, True, key=lambda number: book.arena.room_for(domain, _need_of(slots[:number])) is None)


def _need_of(slots: Iterable[tuple[Lease, Slot]]) -> dict[int, int]:
    need: dict[int, int] = {}
    for _, slot in slots:
        need[slot.size_bytes] = need.get(slot.size_bytes, 0) + 1
    return need


def _tell_of_spilled(book: Book, domain: Domain, slots: Sequence[tuple[Lease, Slot]]) -> None:
    by_lease: dict[Lease, int] = {}
    for lease, slot in slots:
        by_lease[lease] = by_lease.get(lease, 0) + slot.size_bytes
    free_bytes = book.arena.free_bytes(domain)
    for lease, size_bytes in by_lease.items():
        why = f"{book.label_of(lease)}: {size_bytes} bytes go to the spill directory: the arena has {free_bytes} left"
        book.publish(Kind.SPILLED, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)


def may_fit(book: Book, domain: Domain, leases: Iterable[Lease]) -> bool:
    """Tell whether contents would fit as things are, copies that nobody needs left out."""
    slots = unplaced_of(leases)
    return book.spill.has_room(_need_of(slots[_most_in_arena(book, domain, slots) :]))


def unplace(book: Book, lease: Lease) -> None:
    """Put a resident lease's places back; a sealed one keeps what is parked of it, until somebody needs the room."""
    for slot in lease.slots.values():
        if not (lease.sealed and slot.copied and slot.spill is None):
            places.let_go(book, lease, slot)


def free_bytes(book: Book, domain: Domain, spared: Iterable[Lease]) -> int:
    """Return what a domain could still set aside, if copies are given up for it that nobody needs just now."""
    return book.arena.free_bytes(domain) + copies.sparable_bytes(book, domain, spared) + book.spill.free_bytes


def room_text(book: Book, domain: Domain, spared: Iterable[Lease]) -> str:
    """Return how much room there is and where, as an error's message says it."""
    arena_bytes = book.arena.free_bytes(domain) + copies.sparable_bytes(book, domain, spared)
    text = f"the arena has room for {arena_bytes}"
    if not book.spill.budget_bytes:
        return text
    trouble = f" ({book.spill.trouble})" if book.spill.retry_at is not None else ""
    return f"{text} and the spill directory for {book.spill.free_bytes}{trouble}"


def rehouse(book: Book) -> None:
    """Find another place for contents that have lost theirs, so that their frames may be taken after all. A file that
    could not be made may fail again, so this is tried when somebody needs the frames, the arena has more room or some
    time has passed, and not again and again.
    """
    for lease in [book.leases[number] for number in book.homeless]:
        if lease.paused and place(book, lease.domain, [lease]) is None:
            continue
        book.homeless.pop(lease.lease, None)
        lease.takeable = True
        book.touch(lease, "has a place to be kept again")


def begin_planned(book: Book) -> None:
    """Have the files made that there is room for now."""
    for arena in (book.arena, book.spill.staging):
        for file in arena.begin_planned():
            book.emit(CreateArenaFile(file=file.file, domain=file.domain, size_bytes=file.size_bytes))


def _give_up(book: Book, arena: Arena, file: ArenaFile) -> None:
    if arena.give_up(file):
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
    for arena in (book.arena, book.spill.staging):
        for file in arena.disused(domain):
            _give_up(book, arena, file)
