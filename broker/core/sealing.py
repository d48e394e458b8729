"""Seal and unseal: contents that nobody can write to are copied out once, and their copy outlives the resume.

The owner's memory is read-only before it says `Seal`, and stays so until `Unseal` is answered; so all the while that
the core calls a lease sealed, what was parked of it is what is in it. Both are legal whether it is paused or not.
"""

from vrambroker.broker.core import files, reading
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Done, Kind
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import Contents, Seal, Unseal
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import require_few_waits, wrong_state
from vrambroker.broker.core.pausing import clear, require_tags


def seal(book: Book, event: Seal) -> None:
    """Keep what is parked of these tags from now on, and lend them no more. Sealing what is sealed is no error."""
    leases = _own_leases(book, event)
    _require_kept(book, leases)
    for lease in leases:
        _require_sealable(book, lease)
    if reading.writers_of(book, leases):
        session = book.sessions.get(event.session)
        require_few_waits(book, session)
        clear(book, session, event, Instant(book.now + book.limits.seal_ns), leases)
        return
    for lease in leases:
        if not lease.sealed:
            lease.sealed = True
            book.sealed[lease.lease] = None
            _publish(book, lease, Kind.LEASE_SEALED, "its memory is read-only: it is copied out once at most")
    book.reply(event.call.call, Done())


def unseal(book: Book, event: Unseal) -> None:
    """Give up the copies that are about to become untrue. What is parked of a paused lease stays until it is back."""
    for lease in _own_leases(book, event):
        if not lease.sealed:
            continue
        lease.sealed = False
        del book.sealed[lease.lease]
        if not lease.paused:
            files.unplace(book, lease)
        _publish(book, lease, Kind.LEASE_UNSEALED, "its memory can be written to again")
    book.reply(event.call.call, Done())


def _own_leases(book: Book, event: Seal | Unseal) -> list[Lease]:
    """Return the leases that are meant; only their own process can know how they are mapped."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    require_tags(book, event.tags)
    return book.leases_of(session, event.tags)


def _require_kept(book: Book, leases: list[Lease]) -> None:
    """Raise for what can never be sealed; before anything is said of what can't be now."""
    for lease in leases:
        if lease.contents is not Contents.KEEP:
            raise InvalidArgument(
                message=f"{book.label_of(lease)} has contents that are {lease.worth} at a pause: only kept ones are sealed",
                argument="tags",
            )


def _require_sealable(book: Book, lease: Lease) -> None:
    if lease.discarded:
        raise wrong_state(book, lease, "paused and its contents discarded: resume it before sealing it")
    if lease.growing:
        raise wrong_state(book, lease, "growing: frames are on their way to it")


def _publish(book: Book, lease: Lease, kind: Kind, why: str) -> None:
    book.touch(lease, why)
    book.publish(kind, why, session=book.name_of(lease.session), tag=lease.tag, lease=lease.lease)
