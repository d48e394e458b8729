"""A lease's priority: what somebody has set it to, or else what the plan says while a phase that lists it is entered."""

from collections.abc import Iterable

from vrambroker.broker.core.book import Book
from vrambroker.broker.core.ids import LeaseId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.lending import take_turn


def rank(book: Book, lease: Lease) -> None:
    """Give a lease the priority that it is to have now, and what waits for it its place in the queue."""
    planned = book.listing.priority_in(book.phase, lease.lease)
    priority = planned if lease.asked_priority is None else lease.asked_priority
    if priority == lease.priority:
        return
    lease.priority = priority
    book.touch(lease, f"its priority is {priority} now")
    for ticket in map(book.tickets.__getitem__, lease.comebacks):
        take_turn(book, ticket)


def rank_all(book: Book, leases: Iterable[LeaseId]) -> None:
    """Bring leases that the plan has a priority for in line with the phase that is entered."""
    for number in tuple(leases):
        rank(book, book.leases[number])
