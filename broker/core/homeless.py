"""Contents that must be kept and have lost their place: nobody may count on their frames until they have another."""

from vrambroker.broker.core import grant, recall
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import OutOfHostMemory
from vrambroker.broker.core.lease import Lease


def call_off(book: Book, lease: Lease, reason: str, size_bytes: int) -> None:
    """Leave a lease idle whose contents have lost their place, and withdraw what was promised of it."""
    lease.takeable = False
    book.homeless[lease.lease] = None
    if lease.going:
        for slot in [lease.slots[number] for number in lease.going]:
            grant.break_promise(book, book.frame_of(slot))
        error = OutOfHostMemory(
            message=f"{book.label_of(lease)} has no place to be kept: {reason}",
            requested_bytes=size_bytes,
            free_bytes=book.arena.free_bytes(lease.domain) + book.spill.free_bytes,
            capacity_bytes=book.limits.host_budget_bytes + book.spill.budget_bytes,
            holders=book.host_holders(),
        )
        recall.refuse_releases(book, lease, error)
        recall.call_off_if_needless(book, lease)
    book.touch(lease, f"no place to be kept: {reason}")
