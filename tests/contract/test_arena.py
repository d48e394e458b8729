"""What the arena owes the runtime: memory that is there before it is needed, reads as zero, and goes back."""

import asyncio
import fcntl
import mmap
import os
import threading
from pathlib import Path

import pytest

from tests.contract.benches import Heard, open_fds, run
from vrambroker.broker.adapters import host_memory
from vrambroker.broker.adapters.arena import RESERVE_BYTES, HostArena, room_under
from vrambroker.broker.adapters.memory_limit import MemoryLimit
from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.events import ArenaFileDestroyed, ArenaFileFailed, ArenaFileReady, ExtentPunched
from vrambroker.broker.core.ids import ArenaFileId, Domain
from vrambroker.broker.core.limits import GIB, MIB

DOMAIN = Domain("uid:0")
FILE = ArenaFileId(3)
# More than one piece, and the last one a short one.
SIZE_BYTES = 36 * MIB


def limit(available_bytes: int) -> MemoryLimit:
    return MemoryLimit(limit_bytes=available_bytes, used_bytes=0, source="/pod")


def _resident_bytes(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def _mappings_here(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(name)


async def _ready(arena: HostArena, heard: Heard, size_bytes: int = SIZE_BYTES) -> int:
    arena.create(FILE, DOMAIN, size_bytes)
    assert await heard.next() == ArenaFileReady(file=FILE)
    fd = arena.fd_of(FILE)
    assert fd is not None
    return fd


def test_a_ready_file_is_all_in_memory_and_zero() -> None:
    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        fd = await _ready(arena, heard)
        assert os.fstat(fd).st_size == _resident_bytes(fd) == SIZE_BYTES
        with mmap.mmap(fd, 0) as memory:
            assert not memory.read().strip(b"\0")
        arena.close()

    run(test())


def test_nobody_can_resize_or_seal_a_file() -> None:
    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        fd = await _ready(arena, heard, 2 * MIB)
        for size_bytes in (0, SIZE_BYTES * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size_bytes)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        arena.close()

    run(test())


def test_the_daemon_keeps_nothing_mapped() -> None:
    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        # A client in this process may have mapped files of another daemon.
        before = _mappings_here("vrambroker-arena")
        await _ready(arena, heard)
        assert _mappings_here("vrambroker-arena") == before
        arena.close()

    run(test())


def test_punching_wipes_one_extent_and_keeps_it_in_memory() -> None:
    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        fd = await _ready(arena, heard)
        os.pwrite(fd, b"\xaa" * 6 * MIB, 0)
        arena.punch(Extent(file=FILE, offset_bytes=2 * MIB, size_bytes=2 * MIB))
        assert await heard.next() == ExtentPunched(file=FILE, offset_bytes=2 * MIB)
        assert os.pread(fd, 6 * MIB, 0) == b"\xaa" * 2 * MIB + bytes(2 * MIB) + b"\xaa" * 2 * MIB
        assert _resident_bytes(fd) == SIZE_BYTES
        arena.close()

    run(test())


def test_a_destroyed_file_goes_back() -> None:
    async def test() -> None:
        fds = open_fds()
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        await _ready(arena, heard, 2 * MIB)
        arena.destroy(FILE)
        assert arena.fd_of(FILE) is None
        assert await heard.next() == ArenaFileDestroyed(file=FILE)
        arena.close()
        assert open_fds() == fds

    run(test())


def test_a_file_beyond_the_memory_limit_is_refused_before_it_is_touched() -> None:
    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver, tightest=lambda: limit(GIB))
        fds = open_fds()
        arena.create(FILE, DOMAIN, GIB - RESERVE_BYTES + 2 * MIB)
        failed = await heard.next()
        assert isinstance(failed, ArenaFileFailed)
        assert "the memory limit of /pod, 1073741824" in failed.reason
        assert arena.fd_of(FILE) is None
        assert open_fds() == fds
        await _ready(arena, heard, 2 * MIB)
        arena.close()

    run(test())


def test_a_file_is_given_up_when_others_take_the_memory_meanwhile() -> None:
    left = [GIB, GIB]

    async def test() -> None:
        heard = Heard()
        fds = open_fds()
        arena = HostArena(deliver=heard.deliver, tightest=lambda: limit(left.pop() if left else RESERVE_BYTES))
        arena.create(FILE, DOMAIN, SIZE_BYTES)
        failed = await heard.next()
        assert isinstance(failed, ArenaFileFailed)
        assert "0 to be had" in failed.reason
        assert arena.fd_of(FILE) is None
        arena.close()
        assert open_fds() == fds

    run(test())


def test_of_a_large_machine_more_is_left_to_others() -> None:
    assert room_under(limit(GIB)) == GIB - RESERVE_BYTES
    assert room_under(limit(1024 * GIB)) == 1024 * GIB - 8 * GIB


def test_a_file_that_cannot_be_populated_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(fd: int, offset_bytes: int, size_bytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    async def test() -> None:
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        fds = open_fds()
        arena.create(FILE, DOMAIN, SIZE_BYTES)
        assert await heard.next() == ArenaFileFailed(file=FILE, reason="populate: Cannot allocate memory")
        assert (open_fds(), arena.fd_of(FILE)) == (fds, None)
        arena.close()

    monkeypatch.setattr(host_memory, "populate", out_of_memory)
    run(test())


def test_closing_in_the_middle_leaves_no_fd_and_no_thread() -> None:
    async def test() -> None:
        fds, threads = open_fds(), threading.active_count()
        heard = Heard()
        arena = HostArena(deliver=heard.deliver)
        for number in range(4):
            arena.create(ArenaFileId(number), DOMAIN, SIZE_BYTES)
        await asyncio.sleep(0)
        arena.close()
        assert (open_fds(), threading.active_count()) == (fds, threads)

    run(test())


@pytest.mark.parametrize("size_bytes", [2 * MIB, 6 * MIB])
def test_populating_keeps_contents(size_bytes: int) -> None:
    fd = host_memory.sealed_memfd("vrambroker-test", 8 * MIB, fcntl.F_SEAL_GROW)
    os.pwrite(fd, b"\x55" * 8 * MIB, 0)
    host_memory.populate(fd, 2 * MIB, size_bytes)
    assert os.pread(fd, 8 * MIB, 0) == b"\x55" * 8 * MIB
    os.close(fd)
