"""What the kernel offers: each feature is used once, since a version number says little about a vendor's kernel."""

import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from vrambroker.broker.adapters import host_memory
from vrambroker.broker.adapters.identity import SO_PEERPIDFD
from vrambroker.broker.doctor.finding import Finding, fail, ok, unseen, warn

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
NEWER_KERNEL = "# a newer kernel: 6.5 has all of it"


def kernel() -> Iterator[Finding]:
    """Look at the features that a daemon uses."""
    yield _pidfd()
    yield _peer_pidfd()
    yield _seals()
    yield _huge_pages()


def _pidfd() -> Finding:
    release = platform.release()
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return fail(
            "pidfd", f"pidfd_open: {error.strerror} (kernel {release}): nobody would see a worker end", NEWER_KERNEL
        )
    return ok("pidfd", f"a worker's end is seen by its pidfd (kernel {release})")


def _peer_pidfd() -> Finding:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        try:
            raw = here.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, struct.calcsize("i"))
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
                return unseen("peer-pidfd", f"SO_PEERPIDFD: {error.strerror}")
            text = "no SO_PEERPIDFD: who connects is looked up by pid and checked, which can refuse one that ends just then"
            return warn("peer-pidfd", text, NEWER_KERNEL)
        os.close(struct.unpack("i", raw)[0])
    return ok("peer-pidfd", "the kernel names who connects (SO_PEERPIDFD)")


def _seals() -> Finding:
    try:
        fd = host_memory.sealed_memfd(
            "vrambroker-probe", os.sysconf("SC_PAGE_SIZE"), fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        )
        try:
            sealed = host_memory.seal_against_writing(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return fail("memfd-seals", f"memfds can't be made or sealed: {error.strerror}", NEWER_KERNEL)
    if not sealed:
        return fail("memfd-seals", "a memfd that nobody maps can't be sealed against writing", NEWER_KERNEL)
    return ok("memfd-seals", "memfds can be sealed, so no client cuts the arena short")


def _huge_pages() -> Finding:
    setting = _shmem_enabled()
    try:
        collapses = host_memory.collapses()
    except OSError as error:
        return unseen("huge-pages", f"there is no memory to try huge pages with: {error.strerror}")
    if collapses:
        return ok("huge-pages", f"MADV_COLLAPSE makes huge pages of memfds (shmem_enabled is {setting})")
    text = (
        f"MADV_COLLAPSE makes no huge page (shmem_enabled is {setting}): pages of 4 KiB take four times as long to register"
        " with a GPU"
    )
    return warn("huge-pages", text, f"echo advise > {SHMEM_ENABLED}    # or free memory: it may be in pieces")


def _shmem_enabled() -> str:
    try:
        text = SHMEM_ENABLED.read_text()
    except OSError:
        return "not there"
    return text.partition("[")[2].partition("]")[0] or text.strip()
