"""Calls that waited until readers had let go, and go on."""

from vrambroker.broker.core import pausing, sealing
from vrambroker.broker.core.book import Book, Clearing, PauseOrder
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.events import Pause, Seal


def go_on(book: Book) -> bool:
    """Let the calls go on that nobody keeps waiting any more; tells whether there were any."""
    calls, book.cleared = book.cleared, {}
    for call in calls:
        match book.waits.get(call):
            case PauseOrder() as order:
                if _is_clear(book, order):
                    pausing.carry_out(book, order)
            case Clearing() as waiting:
                if _is_clear(book, waiting):
                    _make_again(book, waiting)
            case _:
                pass
    return bool(calls)


def _is_clear(book: Book, waiting: PauseOrder | Clearing) -> bool:
    """Tell whether it has waited for readers, and none is left."""
    return bool(waiting.read) and not pausing.awaited_readers(book, waiting)


def _make_again(book: Book, waiting: Clearing) -> None:
    what, session = waiting.what, book.name_of(waiting.session)
    book.stop_waiting(waiting.call)
    try:
        match what:
            case Pause():
                pausing.pause(book, what)
            case Seal():
                sealing.seal(book, what)
    except BrokerError as error:
        book.refuse(waiting.call, error, session=session, tag=what.tags[0])
