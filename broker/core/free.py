"""How much there is for a session: what a program that sizes its memory by what is free is told."""

from vrambroker.broker.core import budgets, hold, rooms
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Free
from vrambroker.broker.core.events import AskFree
from vrambroker.broker.core.scheduler import Reach


def tell(book: Book, event: AskFree) -> None:
    """Answer with what a lease would be lent at once.

    All of the device but for what the session has in use, what others have and can't give, what is kept free for memory
    outside of leases, and, while somebody waits, what is idle; no more than its budget leaves.
    """
    session = book.sessions.get(event.session)
    session.require_authority(event.call.actor)
    reach = Reach.ALL if hold.first_in_line(book) is None else Reach.FREE
    free_bytes = book.supply().reachable_bytes(reach, frozenset()) + rooms.kept_bytes(book, session.session)
    left_bytes = budgets.left_bytes(book, session)
    if left_bytes is not None:
        free_bytes = min(free_bytes, left_bytes)
    smallest = book.limits.frame_sizes_bytes[0]
    book.reply(event.call.call, Free(free_bytes=free_bytes // smallest * smallest))
