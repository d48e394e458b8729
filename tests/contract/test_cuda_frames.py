"""The frames of a GPU, on books instead of a driver: the port's suite, fences by memory in use, frames made ahead."""

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

import pytest

from tests.contract import test_frames as suite
from tests.contract.benches import DEVICE_BYTES, FramesBench, Heard, open_fds, run
from tests.contract.fake_gpu import FakeGpu
from vrambroker.broker.adapters.cuda_driver import parse_uuid
from vrambroker.broker.adapters.cuda_frames import CudaFrames, frame_sizes_bytes
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId
from vrambroker.broker.core.limits import GIB, MIB
from vrambroker.broker.ports import Deliver, Frames

SESSION = SessionId(7)
BASELINE_BYTES = 3 * MIB


class CudaFramesBench:
    def __init__(self, deliver: Deliver, ahead_frames: int = 0) -> None:
        self.gpu = FakeGpu(DEVICE_BYTES)
        self.frames: Frames = CudaFrames(
            deliver=deliver,
            gpu=self.gpu,
            meter=self.gpu,
            baseline_bytes=BASELINE_BYTES,
            ahead_frames=ahead_frames,
        )
        self._reached: dict[FrameId, int] = {}

    def map(self, frame: FrameId) -> None:
        fd = self.frames.fd_of(frame)
        assert fd is not None
        self._reached[frame] = self.gpu.reach(fd)

    def unmap(self, frame: FrameId) -> None:
        self.gpu.unreach(self._reached.pop(frame))

    def read(self, frame: FrameId) -> bytes:
        fd = self.frames.fd_of(frame)
        assert fd is not None
        return os.pread(fd, 1, 0) + os.pread(fd, 1, os.fstat(fd).st_size - 1)

    async def looked(self) -> None:
        """Wait until the frames have taken a reading that begins from now on, and drawn their conclusions."""
        loop = asyncio.get_running_loop()
        readings: asyncio.Queue[None] = asyncio.Queue()

        def read() -> None:
            loop.call_soon_threadsafe(readings.put_nowait, None)

        self.gpu.on_reading = read
        for _ in range(3):
            # Each is begun by what came of the one before.
            await readings.get()
        self.gpu.on_reading = lambda: None

    @contextmanager
    def failing(self) -> Generator[None]:
        self.gpu.refusals = 1
        yield


@pytest.fixture
def bench_type() -> type[FramesBench]:
    return CudaFramesBench


# The port's own suite, on this bench.
test_a_destroyed_frame_has_no_fd = suite.test_a_destroyed_frame_has_no_fd
test_a_new_frame_reads_as_zero = suite.test_a_new_frame_reads_as_zero
test_a_refusal_by_the_driver_is_told_and_leaves_nothing = suite.test_a_refusal_by_the_driver_is_told_and_leaves_nothing
test_closing_leaves_no_fd_and_no_thread = suite.test_closing_leaves_no_fd_and_no_thread
test_frames_are_told_apart = suite.test_frames_are_told_apart
test_sizes_ascend_and_divide = suite.test_sizes_ascend_and_divide
test_two_fences_do_not_wait_for_each_other = suite.test_two_fences_do_not_wait_for_each_other


async def _created(bench: CudaFramesBench, heard: Heard, *numbers: int, size: int = 0) -> tuple[FrameId, ...]:
    frames = tuple(FrameId(number) for number in numbers)
    for frame in frames:
        bench.frames.create(frame, bench.frames.sizes_bytes()[size])
        assert await heard.next() == FrameCreated(frame=frame)
    return frames


def test_a_fence_tells_at_once_what_nobody_holds_and_the_rest_when_all_of_it_has_gone() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        mapped, free, mapped_too = await _created(bench, heard, 1, 2, 3)
        bench.map(mapped)
        bench.map(mapped_too)
        bench.frames.fence(SESSION, (mapped, free, mapped_too))
        assert bench.frames.fd_of(mapped) is None
        assert await heard.next() == FencePassed(session=SESSION, frames=(free,))
        bench.unmap(mapped_too)
        (other,) = await _created(bench, heard, 4)
        bench.frames.destroy(other)
        assert await heard.next() == FrameDestroyed(frame=other)
        bench.unmap(mapped)
        assert await heard.next() == FencePassed(session=SESSION, frames=(mapped, mapped_too))
        bench.frames.close()

    run(test())


def test_frames_that_come_and_go_meanwhile_are_not_taken_for_fenced_ones() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        (stuck,) = await _created(bench, heard, 1)
        bench.map(stuck)
        bench.frames.fence(SESSION, (stuck,))
        for number in range(2, 30):
            (frame,) = await _created(bench, heard, number)
            bench.frames.destroy(frame)
            assert await heard.next() == FrameDestroyed(frame=frame)
        bench.unmap(stuck)
        assert await heard.next() == FencePassed(session=SESSION, frames=(stuck,))
        bench.frames.close()

    run(test())


def test_a_process_that_starts_meanwhile_does_not_keep_a_fence_for_good() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        (stuck,) = await _created(bench, heard, 1)
        bench.map(stuck)
        bench.frames.fence(SESSION, (stuck,))
        await bench.looked()
        bench.gpu.others_bytes = 500 * MIB
        assert bench.frames.foreign_bytes() == 500 * MIB - BASELINE_BYTES
        await bench.looked()
        bench.unmap(stuck)
        assert await heard.next() == FencePassed(session=SESSION, frames=(stuck,))
        bench.frames.close()

    run(test())


def test_fences_of_different_sizes_share_what_falls() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        (small,) = await _created(bench, heard, 1)
        (large,) = await _created(bench, heard, 2, size=1)
        bench.map(small)
        bench.map(large)
        bench.frames.fence(SESSION, (small,))
        bench.frames.fence(SessionId(8), (large,))
        await bench.looked()
        bench.unmap(small)
        assert await heard.next() == FencePassed(session=SESSION, frames=(small,))
        bench.unmap(large)
        assert await heard.next() == FencePassed(session=SessionId(8), frames=(large,))
        bench.frames.close()

    run(test())


def test_a_meter_that_fails_for_a_while_delays_a_fence_and_does_not_pass_it() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        bench.frames.foreign_bytes()
        bench.gpu.unreadable = 4
        bench.frames.fence(SESSION, (frame,))
        assert await heard.next() == FencePassed(session=SESSION, frames=(frame,))
        assert bench.gpu.unreadable == 0
        bench.frames.close()

    run(test())


def test_a_meter_that_fails_as_frames_are_closed_keeps_no_fence_for_good() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        bench.gpu.others_bytes = BASELINE_BYTES
        bench.frames.foreign_bytes()
        # Nothing of these is in the last reading.
        frames = await _created(bench, heard, *range(1, 9), size=1)
        bench.gpu.unreadable = 1
        bench.frames.fence(SESSION, frames)
        assert await heard.next() == FencePassed(session=SESSION, frames=frames)
        bench.frames.close()

    run(test())


def test_foreign_is_what_is_neither_ours_nor_fenced() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver)
        lent, stuck, free = await _created(bench, heard, 1, 2, 3)
        assert bench.frames.foreign_bytes() == 0
        bench.gpu.others_bytes = BASELINE_BYTES + 100 * MIB
        assert bench.frames.foreign_bytes() == 100 * MIB
        bench.map(stuck)
        bench.frames.fence(SESSION, (stuck, free))
        assert await heard.next() == FencePassed(session=SESSION, frames=(free,))
        assert bench.frames.foreign_bytes() == 100 * MIB
        bench.unmap(stuck)
        assert await heard.next() == FencePassed(session=SESSION, frames=(stuck,))
        assert bench.frames.foreign_bytes() == 100 * MIB
        assert bench.frames.fd_of(lent) is not None
        bench.frames.close()

    run(test())


def test_a_frame_made_ahead_is_handed_out_and_made_up_for() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver, ahead_frames=2)
        await _created(bench, heard, 1, 2, 3, size=1)
        before = len(bench.gpu.made)
        for number in range(4, 9):
            frame = FrameId(number)
            ahead = list(bench.gpu.made)
            bench.frames.create(frame, bench.frames.sizes_bytes()[0])
            if number == 4:
                assert bench.frames.fd_of(frame) in ahead, "it was there when it was asked for"
            assert await heard.next() == FrameCreated(frame=frame)
        assert len(bench.gpu.made) >= before + 3
        assert len({bench.frames.fd_of(FrameId(number)) for number in range(1, 9)}) == 8
        bench.frames.close()

    run(test())


def test_a_daemon_that_lends_nothing_takes_nothing() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver, ahead_frames=2)
        fds = open_fds()
        frames = await _created(bench, heard, 1, 2)
        while open_fds() != fds + 4:  # noqa: ASYNC110  its thread tells nobody
            await asyncio.sleep(0)
        for frame in frames:
            bench.frames.destroy(frame)
            assert await heard.next() == FrameDestroyed(frame=frame)
        while open_fds() != fds:  # noqa: ASYNC110
            await asyncio.sleep(0)
        bench.frames.close()

    run(test())


def test_frames_made_ahead_go_back_before_the_device_is_called_full() -> None:
    async def test() -> None:
        heard = Heard()
        bench = CudaFramesBench(heard.deliver, ahead_frames=2)
        small, *_, large = bench.frames.sizes_bytes()
        whole = DEVICE_BYTES // large
        await _created(bench, heard, *range(1, whole + 1), size=-1)
        bench.frames.create(FrameId(whole + 1), small)
        assert await heard.next() == FrameCreateFailed(
            frame=FrameId(whole + 1),
            driver_call="cuMemCreate",
            driver_result="CUDA_ERROR_OUT_OF_MEMORY",
            out_of_memory=True,
        )
        bench.frames.destroy(FrameId(1))
        assert await heard.next() == FrameDestroyed(frame=FrameId(1))
        await _created(bench, heard, whole + 2, size=-1)
        bench.frames.close()

    run(test())


def test_closing_with_creations_under_way_leaves_no_fd() -> None:
    async def test() -> None:
        fds = open_fds()
        bench = CudaFramesBench(Heard().deliver, ahead_frames=2)
        for number in range(1, 33):
            bench.frames.create(FrameId(number), bench.frames.sizes_bytes()[0])
        bench.frames.close()
        assert open_fds() == fds
        assert len(bench.gpu.made) < 33, "what nobody waits for is not made"

    run(test())


def test_sizes_fit_the_device() -> None:
    assert frame_sizes_bytes(80 * GIB, 2 * MIB) == (32 * MIB, 256 * MIB, GIB)
    assert frame_sizes_bytes(8 * GIB, 2 * MIB) == (8 * MIB, 64 * MIB, 256 * MIB)
    assert frame_sizes_bytes(80 * GIB, 64 * MIB) == (64 * MIB, 256 * MIB, GIB)
    assert frame_sizes_bytes(80 * GIB, 2 * GIB) == (2 * GIB,)


def test_a_device_is_named_by_its_uuid() -> None:
    uuid = UUID("a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf")
    for name in (f"GPU-{uuid}", f"MIG-{uuid}", str(uuid), f"GPU-{str(uuid).upper()}"):
        assert parse_uuid(name) == uuid
    for name in ("", "GPU-", "GPU-1234", "host"):
        with pytest.raises(InvalidArgument):
            parse_uuid(name)
