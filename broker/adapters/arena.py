"""The arena: host memory for parked contents, as memfds that the daemon populates ahead of need.

Whoever first touches a page of shared memory is charged for it, so the daemon touches every page and the clients only
copy. Populating a GiB takes most of a second, so it is done in pieces by threads, and unmapped again. A file can't be
resized, nor sealed by a client; wiping an extent is punching it out and populating it anew.
"""

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vrambroker.broker.adapters import host_memory
from vrambroker.broker.adapters.job_thread import JobThread
from vrambroker.broker.adapters.memory_limit import MemoryLimit, tightest_memory_limit
from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.events import ArenaFileDestroyed, ArenaFileFailed, ArenaFileReady, ExtentPunched
from vrambroker.broker.core.ids import ArenaFileId, Domain
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.ports import Deliver

log = logging.getLogger(__name__)

PIECE_BYTES = 32 * MIB
THREADS_MAX = 16
# Left for everybody else under a limit: a file that would eat into it is refused. So much at least, and a share of it.
RESERVE_BYTES, RESERVE_SHARE = 64 * MIB, 128


def room_under(limit: MemoryLimit) -> int:
    """Return how much may be populated under this bound."""
    return limit.available_bytes - max(RESERVE_BYTES, limit.limit_bytes // RESERVE_SHARE)


class HostArena:
    """The `Arena` port, for one running loop. Files are made one after the other, each by all threads.

    `tightest` tells which limit is the nearest one, where the OOM killer would answer. Others use memory as well, so it is
    asked for each piece that is populated. Every fd is owned here.
    """

    def __init__(self, *, deliver: Deliver, tightest: Callable[[], MemoryLimit] = tightest_memory_limit) -> None:
        self._deliver = deliver
        self._tightest = tightest
        self._fds: dict[ArenaFileId, int] = {}
        self._closing = threading.Event()
        self._jobs = JobThread("arena")
        workers = min(THREADS_MAX, os.cpu_count() or 1)
        self._pieces = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="arena-piece")

    def create(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None:
        """Begin to make and populate a file; delivers `ArenaFileReady` or `ArenaFileFailed`."""
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        try:
            fd = host_memory.sealed_memfd(f"vrambroker-arena-{file}", size_bytes, seals)
        except OSError as error:
            self._deliver(ArenaFileFailed(file=file, reason=f"memfd_create: {error.strerror}"))
            return
        self._fds[file] = fd
        self._jobs.run(lambda: self._make(fd, size_bytes), lambda failure: self._made(file, failure))

    def destroy(self, file: ArenaFileId) -> None:
        """Close a file that every client has let go of; delivers `ArenaFileDestroyed` when its memory has gone back."""
        fd = self._fds.pop(file)
        self._jobs.run(lambda: os.close(fd), lambda _: self._deliver(ArenaFileDestroyed(file=file)))

    def punch(self, extent: Extent) -> None:
        """Wipe an extent and populate it anew; delivers `ExtentPunched`."""
        fd = self._fds[extent.file]
        punched = ExtentPunched(file=extent.file, offset_bytes=extent.offset_bytes)
        self._jobs.run(lambda: self._wipe(fd, extent), lambda _: self._deliver(punched))

    def fd_of(self, file: ArenaFileId) -> int | None:
        """Return the file's fd, which stays owned here; None once the file is on its way out."""
        return self._fds.get(file)

    def close(self) -> None:
        """Stop populating, end the threads and close every fd."""
        self._closing.set()
        self._jobs.close()
        self._pieces.shutdown(wait=True)
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _made(self, file: ArenaFileId, failure: str | None) -> None:
        if failure is None:
            self._deliver(ArenaFileReady(file=file))
            return
        log.warning("arena file %d is not to be had: %s", file, failure)
        fd = self._fds.pop(file)
        self._jobs.run(lambda: os.close(fd), lambda _: self._deliver(ArenaFileFailed(file=file, reason=failure)))

    def _make(self, fd: int, size_bytes: int) -> str | None:
        """Populate a new file; returns why that can't be done. On the job thread."""
        try:
            self._require_room(size_bytes)
            self._populate(fd, 0, size_bytes)
        except OSError as error:
            return f"populate: {error.strerror}"
        return None

    def _require_room(self, size_bytes: int) -> None:
        """Raise OSError if so much more memory would come too near to a limit."""
        limit = self._tightest()
        room_bytes = max(0, room_under(limit))
        if size_bytes > room_bytes:
            under = f"the memory limit of {limit.source}, {limit.limit_bytes}"
            raise OSError(errno.ENOMEM, f"{size_bytes} bytes wanted and {room_bytes} to be had under {under}")

    def _wipe(self, fd: int, extent: Extent) -> None:
        """Punch an extent out; it reads as zero from then on, even if there is no memory to populate it again."""
        host_memory.punch(fd, extent.offset_bytes, extent.size_bytes)
        try:
            self._populate(fd, extent.offset_bytes, extent.size_bytes)
        except OSError as error:
            log.warning("an extent of arena file %d is not populated: %s", extent.file, error.strerror)

    def _populate(self, fd: int, offset_bytes: int, size_bytes: int) -> None:
        """Populate in pieces on all threads, and wait for them; a failure is raised once all have ended."""
        end = offset_bytes + size_bytes

        def populate_piece(start: int) -> None:
            piece_bytes = min(PIECE_BYTES, end - start)
            if not self._closing.is_set():
                self._require_room(piece_bytes)
                host_memory.populate(fd, start, piece_bytes)

        pieces = [self._pieces.submit(populate_piece, start) for start in range(offset_bytes, end, PIECE_BYTES)]
        failures = [failure for piece in pieces if (failure := piece.exception()) is not None]
        if failures:
            raise failures[0]
