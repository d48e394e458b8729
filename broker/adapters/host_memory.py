"""The calls to Linux that Python lacks or makes while holding the GIL: seals, aligned maps, populate, punch.

`ctypes` lets go of the GIL around each call, so a thread that populates memory never stops the daemon's loop.
"""

import ctypes
import errno
import fcntl
import os
from pathlib import Path

HUGE_PAGE_BYTES = 2 << 20

_PROT_NONE, _PROT_READ_WRITE = 0, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 0x01, 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def sealed_memfd(name: str, size_bytes: int, seals: int) -> int:
    """Return a new memfd of this size with these seals, all zero and without a page. The caller owns it; OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal_against_writing(fd: int) -> bool:
    """Bar everybody from writing to a memfd for good; False while some process still maps it writable (fcntl(2)).

    A client may have put the last seal on the file itself, so that this one can't be added: then whether a process
    still maps it has to do, as far as /proc shows.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError as error:
        if error.errno == errno.EPERM:
            return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE) or not _is_mapped(fd)
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def _is_mapped(fd: int) -> bool:
    inode = f" {os.fstat(fd).st_ino} "
    try:
        return any(_maps(process, inode) for process in Path("/proc").iterdir() if process.name.isdigit())
    except OSError:
        return True  # no fd to look with, say: then it may well be


def _maps(process: Path, inode: str) -> bool:
    try:
        lines = (process / "maps").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # it has ended, or is somebody's whom no frame is lent to
    return any(inode in line and "memfd:vrambroker" in line for line in lines)


def populate(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Bring every page of this part of a memfd into memory, as huge pages where the kernel can; contents stay.

    `offset_bytes` is a multiple of `HUGE_PAGE_BYTES`, and so is the address it is mapped at meanwhile, or there would
    be nothing to collapse. One touched byte gives each 2 MiB a page to collapse around, which works on a stock kernel
    from 6.1 on, whatever `shmem_enabled` says. Raises OSError (ENOMEM) if there is no memory.
    """
    base, address = _map_aligned(fd, offset_bytes, size_bytes)
    try:
        for at in range(address, address + size_bytes, HUGE_PAGE_BYTES):
            ctypes.c_byte.from_address(at).value |= 0
        if _libc.madvise(address, size_bytes, _MADV_COLLAPSE) != 0:
            _populate_plainly(address, size_bytes)
    finally:
        _libc.munmap(base, size_bytes + HUGE_PAGE_BYTES)


def collapses() -> bool:
    """Tell whether the kernel makes a huge page of a memfd on request, by having it make one; OSError without memory."""
    fd = sealed_memfd("vrambroker-probe", HUGE_PAGE_BYTES, 0)
    try:
        base, address = _map_aligned(fd, 0, HUGE_PAGE_BYTES)
        ctypes.c_byte.from_address(address).value |= 0
        collapsed = bool(_libc.madvise(address, HUGE_PAGE_BYTES, _MADV_COLLAPSE) == 0)
        _libc.munmap(base, 2 * HUGE_PAGE_BYTES)
        return collapsed
    finally:
        os.close(fd)


def punch(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Give the pages of this part of a memfd back, so that it reads as zero; OSError."""
    mode = _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
    if _libc.fallocate(fd, mode, offset_bytes, size_bytes) != 0:
        raise _os_error()


def allocate(fd: int, size_bytes: int) -> None:
    """Make a file this long and set the space for it aside on its file system; OSError."""
    if _libc.fallocate(fd, 0, 0, size_bytes) != 0:
        raise _os_error()


def _map_aligned(fd: int, offset_bytes: int, size_bytes: int) -> tuple[int, int]:
    """Map a part of a file at a huge page's border; returns the reservation's address and the mapping's."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    base = _libc.mmap(None, size_bytes + HUGE_PAGE_BYTES, _PROT_NONE, flags, -1, 0)
    if base == _MAP_FAILED:
        raise _os_error()
    address = -(-base // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    mapped = _libc.mmap(address, size_bytes, _PROT_READ_WRITE, _MAP_SHARED | _MAP_FIXED, fd, offset_bytes)
    if mapped == _MAP_FAILED:
        error = _os_error()
        _libc.munmap(base, size_bytes + HUGE_PAGE_BYTES)
        raise error
    return base, address


def _populate_plainly(address: int, size_bytes: int) -> None:
    """Fall back to pages of 4 KiB: the kernel is older than 6.1 (or 5.14: then touch), or has no huge page to spare."""
    if _libc.madvise(address, size_bytes, _MADV_POPULATE_WRITE) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:
        raise _os_error()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    for at in range(address, address + size_bytes, page_bytes):
        ctypes.c_byte.from_address(at).value |= 0


def _os_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
