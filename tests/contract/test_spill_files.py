"""What the spill store owes the runtime: contents that come back as they were, and nothing left when the daemon is gone."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.benches import Heard, open_fds, run
from vrambroker.broker.adapters import host_memory, spill_files
from vrambroker.broker.adapters.spill_files import PIECE_BYTES, PREFIX, SpillFile, SpillFiles
from vrambroker.broker.core.effects import Extent, SpillPlace
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import TransferFailed, Transferred
from vrambroker.broker.core.ids import ArenaFileId, TransferId
from vrambroker.broker.core.limits import MIB

FILE, ONE, TWO = ArenaFileId(3), TransferId(1), TransferId(2)
# More than one piece, and the last one a short one.
SIZE_BYTES = 2 * PIECE_BYTES + 2 * MIB
BUDGET_BYTES = 48 * MIB
HOLD_OPEN = """
import os, sys, time
from pathlib import Path
from vrambroker.broker.adapters.spill_files import SpillFile
file = SpillFile(Path(sys.argv[1]), 48 << 20)
print("open", flush=True)
time.sleep(60)
"""


class Bench:
    """A spill store and one file of the arena."""

    def __init__(self, folder: Path) -> None:
        self.heard = Heard()
        self.memory = host_memory.sealed_memfd("vrambroker-test", 4 * SIZE_BYTES, fcntl.F_SEAL_GROW)
        self.file = SpillFile(folder, BUDGET_BYTES)
        self.spill = SpillFiles(deliver=self.heard.deliver, fd_of={FILE: self.memory}.get, file=self.file)

    def close(self) -> None:
        self.spill.close()
        self.file.close()
        os.close(self.memory)


def _mapped_here(name: str) -> bool:
    return name in Path("/proc/self/maps").read_text()


def extent(at: int, size_bytes: int = SIZE_BYTES) -> Extent:
    return Extent(file=FILE, offset_bytes=at, size_bytes=size_bytes)


def place(at: int, size_bytes: int = SIZE_BYTES) -> SpillPlace:
    return SpillPlace(offset_bytes=at, size_bytes=size_bytes)


def pattern(seed: int) -> bytes:
    return b"".join((seed + page).to_bytes(8, "little") * 512 for page in range(SIZE_BYTES // 4096))


def _never(fd: int) -> bool:
    return False


@pytest.fixture(params=["direct", "through the cache"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if request.param != "direct":
        monkeypatch.setattr(spill_files, "_takes_direct", _never)
    yield tmp_path
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_contents_come_back_as_they_were_and_elsewhere(folder: Path) -> None:
    async def test() -> None:
        bench = Bench(folder)
        os.pwrite(bench.memory, pattern(1), 2 * MIB)
        bench.spill.write(ONE, extent(2 * MIB), place(4 * MIB))
        assert await bench.heard.next() == Transferred(transfer=ONE)
        os.pwrite(bench.memory, bytes(SIZE_BYTES), 2 * MIB)
        bench.spill.read(TWO, extent(2 * SIZE_BYTES), place(4 * MIB))
        assert await bench.heard.next() == Transferred(transfer=TWO)
        assert os.pread(bench.memory, SIZE_BYTES, 2 * SIZE_BYTES) == pattern(1)
        assert not os.pread(bench.memory, SIZE_BYTES, 2 * MIB).strip(b"\0"), "nothing else is touched"
        bench.close()

    run(test())


def test_places_side_by_side_keep_apart(folder: Path) -> None:
    async def test() -> None:
        bench = Bench(folder)
        for number, seed in ((0, 7), (1, 70_000)):
            os.pwrite(bench.memory, pattern(seed), number * SIZE_BYTES)
            bench.spill.write(TransferId(number), extent(number * SIZE_BYTES), place(number * SIZE_BYTES))
        assert {await bench.heard.next(), await bench.heard.next()} == {
            Transferred(transfer=TransferId(0)),
            Transferred(transfer=TransferId(1)),
        }
        for number in (0, 1):
            bench.spill.read(TransferId(number), extent((3 - number) * SIZE_BYTES), place(number * SIZE_BYTES))
        for _ in (0, 1):
            assert isinstance(await bench.heard.next(), Transferred)
        assert os.pread(bench.memory, SIZE_BYTES, 3 * SIZE_BYTES) == pattern(7)
        assert os.pread(bench.memory, SIZE_BYTES, 2 * SIZE_BYTES) == pattern(70_000)
        bench.close()

    run(test())


def test_nothing_of_the_arena_stays_mapped_and_no_fd_is_left(folder: Path) -> None:
    async def test() -> None:
        fds, threads = open_fds(), threading.active_count()
        bench = Bench(folder)
        bench.spill.write(ONE, extent(0), place(0))
        assert await bench.heard.next() == Transferred(transfer=ONE)
        assert not _mapped_here("vrambroker-test")
        bench.close()
        assert (open_fds(), threading.active_count()) == (fds, threads)

    run(test())


def test_the_space_is_set_aside_from_the_start(tmp_path: Path) -> None:
    file = SpillFile(tmp_path, BUDGET_BYTES)
    assert os.fstat(file.fd).st_blocks * 512 >= BUDGET_BYTES
    file.close()


def test_more_than_the_disk_has_is_refused_at_the_start(tmp_path: Path) -> None:
    fds = open_fds()
    with pytest.raises(InvalidArgument, match="spill_budget") as caught:
        SpillFile(tmp_path, 1 << 50)
    assert caught.value.argument == "spill_budget"
    assert open_fds() == fds
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SpillFile(tmp_path / "nowhere", BUDGET_BYTES)
    assert caught.value.argument == "spill_dir"


def test_a_failure_names_the_call_and_the_folder_once(folder: Path) -> None:
    async def test() -> None:
        bench = Bench(folder)
        os.ftruncate(bench.file.fd, PIECE_BYTES)
        bench.spill.read(ONE, extent(0), place(0))
        failed = await bench.heard.next()
        assert isinstance(failed, TransferFailed)
        assert failed.transfer == ONE
        assert failed.driver_call == f"preadv in {folder}"
        assert failed.reason
        await asyncio.sleep(0)
        assert bench.heard.nothing_more()
        bench.close()

    run(test())


def test_a_transfer_for_an_arena_file_that_is_gone_fails(folder: Path) -> None:
    async def test() -> None:
        bench = Bench(folder)
        gone = Extent(file=ArenaFileId(9), offset_bytes=0, size_bytes=2 * MIB)
        bench.spill.write(ONE, gone, place(0, 2 * MIB))
        assert isinstance(await bench.heard.next(), TransferFailed)
        bench.close()

    run(test())


def test_closing_in_the_middle_leaves_no_thread(folder: Path) -> None:
    async def test() -> None:
        fds, threads = open_fds(), threading.active_count()
        bench = Bench(folder)
        for number in range(8):
            bench.spill.write(TransferId(number), extent(0), place(0))
        bench.close()
        assert (open_fds(), threading.active_count()) == (fds, threads)

    run(test())


def test_without_nameless_files_the_name_is_taken_away_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", 0)
    file = SpillFile(tmp_path, BUDGET_BYTES)
    assert not list(tmp_path.iterdir())
    assert os.fstat(file.fd).st_nlink == 0
    file.close()


def test_what_a_dead_daemon_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}0123").write_bytes(b"left")
    (tmp_path / "mine").write_bytes(b"kept")
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "mine")
    SpillFile(tmp_path, BUDGET_BYTES).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}link", "mine"]


def test_a_killed_daemon_leaves_no_file(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD_OPEN, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        (fd,) = (fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if str(tmp_path) in str(fd.readlink()))
        assert fd.stat().st_nlink == 0
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert not list(tmp_path.iterdir())
