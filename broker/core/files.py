"""Files of the arena as they come and go: made when contents need them, destroyed when nobody does, or others do more.

Destroying takes as long as the clients take to let go. So what comes in a destroyed file's place is planned: contents
have their place in it at once, and leave for it when it is made.
"""

from collections.abc import Mapping

from vrambroker.broker.core.arena import ArenaFile
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import CreateArenaFile, DestroyArenaFile
from vrambroker.broker.core.ids import ArenaFileId, Domain


def make_room(book: Book, domain: Domain, need: Mapping[int, int]) -> bool:
    """See to it that so many extents of each size can be set aside; tells whether they can be (if not, nothing has
    changed).
    """
    room = book.arena.room_for(domain, need)
    if room is None:
        return False
    for number in room.give_up:
        _give_up(book, book.arena.files[number])
    for size_bytes in room.make:
        book.arena.add_file(ArenaFileId(book.draw_id()), domain, size_bytes)
    begin_planned(book)
    return True


def begin_planned(book: Book) -> None:
    """Have the files made that there is room for now."""
    for file in book.arena.begin_planned():
        book.emit(CreateArenaFile(file=file.file, domain=file.domain, size_bytes=file.size_bytes))


def _give_up(book: Book, file: ArenaFile) -> None:
    if book.arena.give_up(file):
        destroy(book, file)


def destroy(book: Book, file: ArenaFile) -> None:
    """Have every client let go of a file, and then the file destroyed."""
    book.emit(DestroyArenaFile(file=file.file))


def give_up_if_deserted(book: Book, domain: Domain) -> None:
    """Give up the empty files of a domain that has nobody left."""
    if book.sessions.lives_in(domain):
        return
    for file in book.arena.disused(domain):
        _give_up(book, file)
