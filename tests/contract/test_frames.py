"""What every implementation of the `Frames` port owes the runtime."""

import fcntl
import os
import threading
from itertools import pairwise

import pytest

from tests.contract.benches import DEVICE_BYTES, FakeFramesBench, FramesBench, Heard, HostFramesBench, open_fds, run
from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId

SESSION = SessionId(7)


@pytest.fixture(params=[HostFramesBench, FakeFramesBench])
def bench_type(request: pytest.FixtureRequest) -> type[FramesBench]:
    found: type[FramesBench] = request.param
    return found


async def _created(bench: FramesBench, heard: Heard, *numbers: int) -> tuple[FrameId, ...]:
    frames = tuple(FrameId(number) for number in numbers)
    for frame in frames:
        bench.frames.create(frame, bench.frames.sizes_bytes()[0])
        assert await heard.next() == FrameCreated(frame=frame)
    return frames


def test_sizes_ascend_and_divide(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        bench = bench_type(Heard().deliver)
        sizes = bench.frames.sizes_bytes()
        assert sizes[0] > 0
        assert all(larger % size == 0 and larger > size for size, larger in pairwise(sizes))
        assert bench.frames.device_bytes() == DEVICE_BYTES
        bench.frames.close()

    run(test())


def test_a_new_frame_reads_as_zero(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        assert bench.frames.fd_of(frame) is not None
        assert bench.read(frame) == b"\0\0"
        bench.frames.close()

    run(test())


def test_frames_are_told_apart(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        frames = await _created(bench, heard, 1, 2, 3)
        assert len({bench.frames.fd_of(frame) for frame in frames}) == 3
        bench.frames.close()

    run(test())


def test_a_destroyed_frame_has_no_fd(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        frame, other = await _created(bench, heard, 1, 2)
        bench.frames.destroy(frame)
        assert bench.frames.fd_of(frame) is None
        assert await heard.next() == FrameDestroyed(frame=frame)
        assert bench.frames.fd_of(other) is not None
        bench.frames.close()

    run(test())


def test_a_frame_that_was_given_back_and_is_mapped_all_the_same_is_not_destroyed_yet(
    bench_type: type[FramesBench],
) -> None:
    """Or its memory would be counted as free while somebody has it."""

    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        mapped, free = await _created(bench, heard, 1, 2)
        bench.map(mapped)
        bench.frames.destroy(mapped)
        bench.frames.destroy(free)
        assert bench.frames.fd_of(mapped) is None
        assert await heard.next() == FrameDestroyed(frame=free)
        assert heard.nothing_more()
        bench.unmap(mapped)
        assert await heard.next() == FrameDestroyed(frame=mapped)
        bench.frames.close()

    run(test())


def test_a_refusal_by_the_driver_is_told_and_leaves_nothing(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        with bench.failing():
            bench.frames.create(FrameId(1), bench.frames.sizes_bytes()[0])
        failed = await heard.next()
        assert isinstance(failed, FrameCreateFailed)
        assert failed.frame == 1
        assert failed.driver_call
        assert failed.driver_result
        assert bench.frames.fd_of(FrameId(1)) is None
        await _created(bench, heard, 2)
        bench.frames.close()

    run(test())


def test_a_fence_holds_until_nobody_reaches_the_frame(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        mapped, free, mapped_too = await _created(bench, heard, 1, 2, 3)
        bench.map(mapped)
        bench.map(mapped_too)
        bench.frames.fence(SESSION, (mapped, free, mapped_too))
        assert bench.frames.fd_of(mapped) is None
        assert await heard.next() == FencePassed(session=SESSION, frames=(free,))
        bench.unmap(mapped_too)
        assert await heard.next() == FencePassed(session=SESSION, frames=(mapped_too,))
        assert heard.nothing_more()
        bench.unmap(mapped)
        assert await heard.next() == FencePassed(session=SESSION, frames=(mapped,))
        bench.frames.close()

    run(test())


def test_two_fences_do_not_wait_for_each_other(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        stuck, free = await _created(bench, heard, 1, 2)
        bench.map(stuck)
        bench.frames.fence(SESSION, (stuck,))
        bench.frames.fence(SessionId(8), (free,))
        assert await heard.next() == FencePassed(session=SessionId(8), frames=(free,))
        bench.unmap(stuck)
        assert await heard.next() == FencePassed(session=SESSION, frames=(stuck,))
        bench.frames.close()

    run(test())


def test_closing_leaves_no_fd_and_no_thread(bench_type: type[FramesBench]) -> None:
    async def test() -> None:
        fds, threads = open_fds(), threading.active_count()
        heard = Heard()
        bench = bench_type(heard.deliver)
        lent, fenced, destroyed = await _created(bench, heard, 1, 2, 3)
        bench.map(fenced)
        bench.frames.fence(SESSION, (fenced,))
        bench.frames.destroy(destroyed)
        bench.frames.close()
        bench.unmap(fenced)
        assert bench.frames.fd_of(lent) is None
        assert (open_fds(), threading.active_count()) == (fds, threads)

    run(test())


def test_host_frames_are_sealed_against_resizing_and_closed_on_exec() -> None:
    async def test() -> None:
        heard = Heard()
        bench = HostFramesBench(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        fd = bench.frames.fd_of(frame)
        assert fd is not None
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.fstat(fd).st_blocks == 0, "the daemon never touches a page"
        bench.frames.close()

    run(test())


def test_a_fenced_host_frame_can_never_be_mapped_for_writing_again() -> None:
    async def test() -> None:
        heard = Heard()
        bench = HostFramesBench(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        lent = bench.frames.fd_of(frame)
        assert lent is not None
        kept = os.dup(lent)
        bench.frames.fence(SESSION, (frame,))
        assert await heard.next() == FencePassed(session=SESSION, frames=(frame,))
        with pytest.raises(PermissionError):
            os.pwrite(kept, b"late", 0)
        os.close(kept)
        bench.frames.close()

    run(test())


def test_a_client_that_seals_its_frame_delays_the_fence_and_breaks_nothing() -> None:
    async def test() -> None:
        heard = Heard()
        bench = HostFramesBench(heard.deliver)
        mapped, free, read_only = await _created(bench, heard, 1, 2, 3)
        for frame, seals in ((mapped, 0), (free, 0), (read_only, fcntl.F_SEAL_WRITE)):
            lent = bench.frames.fd_of(frame)
            assert lent is not None
            fcntl.fcntl(lent, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        bench.map(mapped)
        bench.frames.fence(SESSION, (mapped, free, read_only))
        assert await heard.next() == FencePassed(session=SESSION, frames=(free, read_only))
        assert heard.nothing_more()
        bench.unmap(mapped)
        assert await heard.next() == FencePassed(session=SESSION, frames=(mapped,))
        bench.frames.close()

    run(test())
