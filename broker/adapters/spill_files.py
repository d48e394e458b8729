"""The spill store on disk: one file without a name, so that it is gone with the daemon, however that ends.

Its blocks are set aside when it is made: a disk that is full says so then, and not when contents must be kept. What is
written and read goes straight between the pages of the arena and the disk, in pieces, by several threads; the host's
cache, which is memory that the contents were to leave, has no part in it. Where a file system can't do that, the cache
is used and let go of again, and the log says so.
"""

import asyncio
import errno
import logging
import mmap
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vrambroker.broker.adapters import host_memory
from vrambroker.broker.core.effects import Extent, SpillPlace
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import TransferFailed, Transferred
from vrambroker.broker.core.ids import ArenaFileId, TransferId
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.ports import Deliver

log = logging.getLogger(__name__)

PIECE_BYTES = 8 * MIB
THREADS = 4
PREFIX = ".vrambroker-spill-"
# What a file system answers to a flag that it does not know (open(2)).
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR, errno.ENOENT)

Move = Callable[[int, memoryview, int], int]


class SpillFile:
    """The open file. Ownership: whoever made it, who closes it, and the space is the disk's again."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """Make the file and set its blocks aside; raises `InvalidArgument` if that can't be done."""
        self.folder = folder
        try:
            _remove_stale(folder)
            self.fd, self.direct = _open(folder)
        except OSError as error:
            raise InvalidArgument(
                message=f"spill_dir {folder} can't be used: {error.strerror}", argument="spill_dir"
            ) from error
        try:
            self._set_aside(size_bytes)
        except OSError as error:
            os.close(self.fd)
            raise InvalidArgument(
                message=f"spill_budget of {size_bytes} bytes is not to be had in {folder}: {error.strerror}",
                argument="spill_budget",
            ) from error
        if not self.direct:
            log.warning("%s takes no direct I/O: what is spilled there goes through the host's cache", folder)

    def close(self) -> None:
        os.close(self.fd)

    def _set_aside(self, size_bytes: int) -> None:
        try:
            host_memory.allocate(self.fd, size_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            log.warning(
                "%s can't set space aside: a disk that is full is noticed only when it is written to", self.folder
            )
            os.ftruncate(self.fd, size_bytes)


class SpillFiles:
    """The `Spill` port, on threads of its own. `fd_of` lends the fd of an arena file for as long as a transfer takes."""

    def __init__(self, *, deliver: Deliver, fd_of: Callable[[ArenaFileId], int | None], file: SpillFile) -> None:
        self._deliver = deliver
        self._fd_of = fd_of
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._pieces = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="spill")

    def write(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Begin to write an extent to the disk; delivers `Transferred` or `TransferFailed`."""
        self._begin("pwritev", _write, transfer, extent, place)

    def read(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Begin to read into an extent what is on the disk; delivers `Transferred` or `TransferFailed`."""
        self._begin("preadv", _read, transfer, extent, place)

    def close(self) -> None:
        """Leave off, and end the threads; the file is its owner's to close."""
        self._pieces.shutdown(wait=True, cancel_futures=True)

    def _begin(self, call: str, move: Move, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        call = f"{call} in {self._file.folder}"
        memory_fd = self._fd_of(extent.file)
        if memory_fd is None:
            self._deliver(TransferFailed(transfer=transfer, driver_call=call, reason="the arena's file is gone"))
            return
        pieces = list(_pieces(extent, place))
        over = _Countdown(len(pieces), partial(self._over, transfer, call))
        for memory_at, at, size_bytes in pieces:
            job = self._pieces.submit(over.do, partial(self._move, move, memory_fd, memory_at, at, size_bytes))
            job.add_done_callback(self._raise_a_bug)

    def _raise_a_bug(self, job: Future[None]) -> None:
        """Raise on the loop what is no expected failure: there the daemon's outermost frame gets it."""
        bug = None if job.cancelled() else job.exception()
        if bug is not None:
            self._loop.call_soon_threadsafe(_raise, bug)

    def _over(self, transfer: TransferId, call: str, failure: OSError | None) -> None:
        if failure is None:
            self._deliver(Transferred(transfer=transfer))
            return
        log.warning("%s failed: %s", call, failure.strerror)
        reason = failure.strerror or type(failure).__name__
        self._deliver(TransferFailed(transfer=transfer, driver_call=call, reason=reason))

    def _move(self, move: Move, memory_fd: int, memory_at: int, at: int, size_bytes: int) -> None:
        """Move one piece, mapped here for so long only; raises OSError. On a thread of the pool."""
        fd = self._file.fd
        with mmap.mmap(memory_fd, size_bytes, offset=memory_at) as memory, memoryview(memory) as view:
            done = 0
            while done < size_bytes:
                with view[done:] as rest:
                    moved = move(fd, rest, at + done)
                if not moved:
                    raise OSError(errno.EIO, "the file is shorter than it was made")
                done += moved
        if not self._file.direct:
            _drop_from_cache(fd, at, size_bytes)


class NoSpill:
    """The `Spill` port of a daemon that has no spill store, and so is never asked for one."""

    def write(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Raise: there is nowhere to write to."""
        raise RuntimeError(f"transfer {transfer} is ordered, and there is no spill store")

    def read(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Raise: there is nowhere to read from."""
        raise RuntimeError(f"transfer {transfer} is ordered, and there is no spill store")

    def close(self) -> None:
        """There is nothing to close."""


class _Countdown:
    """Tells, once, when all of so many jobs are over, and the first failure among them."""

    def __init__(self, number: int, over: Callable[[OSError | None], None]) -> None:
        self._left = number
        self._over = over
        self._failure: OSError | None = None
        self._lock = threading.Lock()

    def do(self, job: Callable[[], None]) -> None:
        failure: OSError | None = None
        try:
            job()
        except OSError as error:
            failure = error
        with self._lock:
            self._left -= 1
            self._failure = self._failure or failure
            last = not self._left
        if last:
            self._over(self._failure)


def _raise(bug: BaseException) -> None:
    raise bug


def _write(fd: int, memory: memoryview, at: int) -> int:
    return os.pwritev(fd, [memory], at)


def _read(fd: int, memory: memoryview, at: int) -> int:
    return os.preadv(fd, [memory], at)


def _pieces(extent: Extent, place: SpillPlace) -> Iterator[tuple[int, int, int]]:
    """Yield where each piece is in the arena's file and in the spill file, and how long it is."""
    for start in range(0, extent.size_bytes, PIECE_BYTES):
        size_bytes = min(PIECE_BYTES, extent.size_bytes - start)
        yield extent.offset_bytes + start, place.offset_bytes + start, size_bytes


def _drop_from_cache(fd: int, at: int, size_bytes: int) -> None:
    """Have the host's cache let go of what was moved, once it is on the disk."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, at, size_bytes, os.POSIX_FADV_DONTNEED)


def _open(folder: Path) -> tuple[int, bool]:
    """Return an fd on a new file without a name, and whether it takes direct I/O; raises OSError."""
    for flags in (os.O_DIRECT, 0):
        fd = _open_nameless(folder, os.O_RDWR | os.O_CLOEXEC | flags)
        if fd is None:
            continue
        if not flags or _takes_direct(fd):
            return fd, bool(flags)
        os.close(fd)
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _open_nameless(folder: Path, flags: int) -> int | None:
    """Return an fd; None if the file system takes no such flags."""
    try:
        return os.open(folder, flags | os.O_TMPFILE | os.O_EXCL, 0o600)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    path = folder / f"{PREFIX}{uuid.uuid4().hex}"
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.EINVAL:
            path.unlink(missing_ok=True)
            return None
        raise
    path.unlink(missing_ok=True)
    return fd


def _takes_direct(fd: int) -> bool:
    """Tell whether a page can be written straight from memory: some file systems say so only then."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            return os.pwritev(fd, [page], 0) == mmap.PAGESIZE
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False


def _remove_stale(folder: Path) -> None:
    """Remove files whose daemon has died between making them and taking their name away."""
    for path in folder.glob(f"{PREFIX}*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            path.unlink(missing_ok=True)
