"""Copies that nobody needs just now: what is parked of sealed leases that are resident. A cache, given up when others
must keep contents and find no place for them.
"""

from collections.abc import Iterable, Mapping

from vrambroker.broker.core.arena import Arena, Room, Use
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.ids import ArenaFileId, Domain
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ticket import bytes_of


def make_room(book: Book, domain: Domain, need: Mapping[int, int], spared: Iterable[Lease]) -> Room | None:
    """Give up as few copies as it takes for the need to fit, or none if all of them are not enough."""
    given = _try_without(book.arena, domain, need, _sparable(book, domain, spared))
    for extent, use in given.items():
        lease = book.leases[use.lease]
        lease.displace(lease.slots[use.slot])
        book.touch(lease, f"its copy gave way: others need {extent.size_bytes} bytes of the arena")
    return book.arena.room_for(domain, need) if given else None


def sparable_bytes(book: Book, domain: Domain, spared: Iterable[Lease]) -> int:
    """Return what a domain could get if all of them were given up: of another's file it is the file or nothing."""
    by_file: dict[ArenaFileId, int] = {}
    for extent in _sparable(book, domain, spared):
        by_file[extent.file] = by_file.get(extent.file, 0) + extent.size_bytes
    files = [(book.arena.files[number], size_bytes) for number, size_bytes in by_file.items()]
    own = (size_bytes for file, size_bytes in files if file.domain == domain)
    emptied = (file.size_bytes for file, size in files if file.domain != domain and size == file.used_bytes)
    return sum(own) + sum(emptied)


def _sparable(book: Book, domain: Domain, spared: Iterable[Lease]) -> list[Extent]:
    """Return the copies in the order in which they go: the domain's own first, and file by file."""
    needed = {lease.lease for lease in spared}
    sealed = map(book.leases.__getitem__, book.sealed)
    leases = (one for one in sealed if not one.paused and one.lease not in needed)
    slots = (slot for lease in leases if lease.host_bytes for slot in lease.slots.values())
    extents = [slot.extent for slot in slots if slot.extent is not None]
    files = book.arena.files
    return sorted(extents, key=lambda one: (files[one.file].domain != domain, one.file, one.offset_bytes))


def _try_without(arena: Arena, domain: Domain, need: Mapping[int, int], extents: list[Extent]) -> dict[Extent, Use]:
    """Put copies back into the arena until the need fits; returns them, or nothing, and nothing has changed."""
    given: dict[Extent, Use] = {}
    roomier = arena.roomier
    needed_bytes = bytes_of(need)
    for extent in extents:
        given[extent] = arena.files[extent.file].uses[extent.offset_bytes]
        arena.give(extent)
        # Of another's file the last copy brings all of the file.
        if arena.free_bytes(domain) >= needed_bytes and arena.room_for(domain, need) is not None:
            _take_back_the_needless(arena, domain, need, given)
            return given
    for extent, use in given.items():
        arena.take_again(extent, use)
    arena.roomier = roomier
    return {}


def _take_back_the_needless(arena: Arena, domain: Domain, need: Mapping[int, int], given: dict[Extent, Use]) -> None:
    for extent, use in tuple(given.items()):
        arena.take_again(extent, use)
        if arena.room_for(domain, need) is None:
            arena.give(extent)
        else:
            del given[extent]
