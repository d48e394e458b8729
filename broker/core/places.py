"""The places that a slot has for its contents, in the arena and in the spill store, and how they are given back."""

from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Extent, PunchExtent, SpillPlace
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.slot import Slot


def let_go(book: Book, lease: Lease, slot: Slot, *, wipe: bool = False) -> None:
    """Give back all that is set aside for a slot's contents. What a transfer uses is given back when that is over.
    `wipe`: its owner is dead, and others must not find them.
    """
    extent, place = lease.displace(slot), lease.unspill(slot)
    ticket = book.tickets.get(lease.lock) if lease.lock is not None else None
    if ticket is not None:
        ticket.fetching.pop(slot.slot, None)
    if not book.spill.forget(slot.slot, wipe=wipe):
        give(book, extent, place, wipe=wipe)


def give(book: Book, extent: Extent | None, place: SpillPlace | None, *, wipe: bool) -> None:
    """Put back an extent and a place in the spill store that nobody has any more."""
    if place is not None:
        book.spill.give(place)
        book.arena.roomier = True
    if extent is None:
        return
    arena = book.arena_of(extent.file)
    if not wipe:
        arena.give(extent)
    elif arena.begin_punching(extent):
        book.emit(PunchExtent(extent=extent))
