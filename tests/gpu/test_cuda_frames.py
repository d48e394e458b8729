"""The frames of a real GPU: the port's suite, and what only a driver can show. Skipped loudly where there is none."""

import fcntl
import functools
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import test_frames as suite
from tests.contract.benches import Heard, run
from tests.gpu.gpu_bench import GpuFramesBench, HolderProcess
from vrambroker.broker.adapters.cuda_frames import CudaPlace, open_cuda
from vrambroker.broker.core.errors import DriverFailed, InvalidArgument
from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId
from vrambroker.broker.core.limits import GIB, MIB
from vrambroker.broker.ports import Deliver

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]
SESSION = SessionId(7)
# What a process's death may free or a driver may take meanwhile, beside what a test looks at.
NOISE_BYTES = 16 * MIB
BenchType = Callable[[Deliver], GpuFramesBench]


@pytest.fixture(scope="session")
def place() -> CudaPlace:
    try:
        opened = open_cuda("cuda:0")
    except DriverFailed as failure:
        if "VRAMBROKER_GPU_REQUIRED" in os.environ:
            raise
        pytest.skip(f"NO GPU TEST RUNS HERE: {failure.message}")
    # The driver opens files of its own when it first makes memory.
    os.close(opened.gpu.make_frame(32 * MIB))
    return opened


@pytest.fixture
def holder(place: CudaPlace) -> Iterator[HolderProcess]:
    process = HolderProcess()
    yield process
    process.close()


@pytest.fixture
def bench_type(place: CudaPlace, holder: HolderProcess) -> BenchType:
    return functools.partial(GpuFramesBench, place=place, holder=holder)


test_a_destroyed_frame_has_no_fd = suite.test_a_destroyed_frame_has_no_fd
test_a_new_frame_reads_as_zero = suite.test_a_new_frame_reads_as_zero
test_a_refusal_by_the_driver_is_told_and_leaves_nothing = suite.test_a_refusal_by_the_driver_is_told_and_leaves_nothing
test_closing_leaves_no_fd_and_no_thread = suite.test_closing_leaves_no_fd_and_no_thread
test_frames_are_told_apart = suite.test_frames_are_told_apart
test_two_fences_do_not_wait_for_each_other = suite.test_two_fences_do_not_wait_for_each_other


async def _created(bench: GpuFramesBench, heard: Heard, *numbers: int, size: int = 0) -> tuple[FrameId, ...]:
    frames = tuple(FrameId(number) for number in numbers)
    for frame in frames:
        bench.frames.create(frame, bench.frames.sizes_bytes()[size])
        assert await heard.next() == FrameCreated(frame=frame)
    return frames


def test_the_daemon_makes_no_context_and_costs_little(place: CudaPlace) -> None:
    driver: Any = importlib.import_module("cuda.bindings.driver")
    result, _, active = driver.cuDevicePrimaryCtxGetState(0)
    assert result == driver.CUresult.CUDA_SUCCESS
    assert active == 0
    assert place.baseline_bytes <= 8 * MIB
    _note("daemon_device_bytes", place.baseline_bytes)


def test_a_device_is_found_by_its_name(place: CudaPlace) -> None:
    again = open_cuda(place.name)
    assert (again.name, again.gpu.uuid) == (place.name, place.gpu.uuid)
    again.meter.close()
    with pytest.raises(InvalidArgument):
        open_cuda("cuda:4096")
    with pytest.raises(InvalidArgument):
        open_cuda("GPU-00000000-0000-0000-0000-000000000000")


def test_sizes_are_what_the_driver_can_make(bench_type: BenchType, place: CudaPlace) -> None:
    async def test() -> None:
        bench = bench_type(Heard().deliver)
        small, *_, large = bench.frames.sizes_bytes()
        assert small % place.gpu.granularity_bytes == 0
        assert large % small == 0
        assert bench.frames.device_bytes() == place.gpu.total_bytes >= 16 * large
        bench.frames.close()

    run(test())


def test_fds_are_closed_on_exec(bench_type: BenchType) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        fd = bench.frames.fd_of(frame)
        assert fd is not None
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        bench.frames.close()

    run(test())


def test_memory_is_in_use_until_the_frame_is_destroyed(bench_type: BenchType, place: CudaPlace) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        before = place.meter.used_bytes()
        frames = await _created(bench, heard, 1, 2, size=1)
        size_bytes = 2 * bench.frames.sizes_bytes()[1]
        assert abs(place.meter.used_bytes() - before - size_bytes) < NOISE_BYTES
        for frame in frames:
            bench.frames.destroy(frame)
            assert await heard.next() == FrameDestroyed(frame=frame)
        assert abs(place.meter.used_bytes() - before) < NOISE_BYTES
        bench.frames.close()

    run(test())


def test_the_fd_alone_keeps_what_a_process_wrote(bench_type: BenchType) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        (frame,) = await _created(bench, heard, 1)
        bench.map(frame)
        bench.holder.ask("fill", name=str(frame), byte=0xA5)
        bench.holder.kill()
        bench.holder = HolderProcess()
        assert bench.read(frame) == b"\xa5\xa5"
        bench.holder.close()
        bench.frames.close()

    run(test())


def test_frames_of_a_killed_process_pass_their_fence_at_once(bench_type: BenchType) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        small = await _created(bench, heard, 1, 2, 3, 4)
        large = await _created(bench, heard, 5, 6, size=1)
        for frame in small:
            bench.map(frame)
        for frame in large:
            bench.map(frame, size=1)
        bench.holder.kill()
        begin = time.perf_counter()
        bench.frames.fence(SESSION, small + large)
        assert await heard.next() == FencePassed(session=SESSION, frames=small + large)
        _note("fence_2gib_s", time.perf_counter() - begin)
        bench.frames.close()

    run(test())


def test_frames_that_a_forked_child_keeps_pass_when_it_ends(bench_type: BenchType) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        kept = await _created(bench, heard, 1, 2, 3)
        (free,) = await _created(bench, heard, 4)
        for frame in kept:
            bench.map(frame)
        bench.holder.ask("fork")
        bench.holder.kill()
        bench.frames.fence(SESSION, (*kept, free))
        assert await heard.next() == FencePassed(session=SESSION, frames=(free,))
        await bench.looked(readings=6)
        assert heard.nothing_more()
        bench.holder.let_child_go()
        assert await heard.next() == FencePassed(session=SESSION, frames=kept)
        bench.frames.close()

    run(test())


def test_what_others_allocate_is_foreign(bench_type: BenchType) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        await _created(bench, heard, 1, size=1)
        bench.holder.ask("alloc", size_bytes=2 * MIB)
        before = bench.frames.foreign_bytes()
        bench.holder.ask("alloc", size_bytes=512 * MIB)
        assert abs(bench.frames.foreign_bytes() - before - 512 * MIB) < NOISE_BYTES
        _note("context_device_bytes", before)
        bench.frames.close()

    run(test())


def test_a_full_device_says_so_by_name(place: CudaPlace, holder: HolderProcess) -> None:
    async def test() -> None:
        heard = Heard()
        bench = GpuFramesBench(heard.deliver, place=place, holder=holder, ahead_frames=4)
        small, *_, large = bench.frames.sizes_bytes()
        made: list[FrameId] = []
        begin = time.perf_counter()
        for size_bytes in (large, small):
            while True:
                frame = FrameId(len(made) + 1)
                bench.frames.create(frame, size_bytes)
                heard_of = await heard.next()
                if isinstance(heard_of, FrameCreateFailed):
                    break
                made.append(frame)
            assert (heard_of.driver_call, heard_of.driver_result) == ("cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY")
        _note("fill_device_s", time.perf_counter() - begin)
        assert len(made) >= (place.gpu.total_bytes - 4 * GIB) // large
        bench.frames.destroy(made[0])
        assert await heard.next() == FrameDestroyed(frame=made[0])
        bench.frames.create(FrameId(1_000_000), large)
        assert await heard.next() == FrameCreated(frame=FrameId(1_000_000))
        bench.frames.close()

    run(test())


def test_figures_for_the_record(bench_type: BenchType, place: CudaPlace) -> None:
    async def test() -> None:
        heard = Heard()
        bench = bench_type(heard.deliver)
        number = 0
        for size, count in ((0, 64), (1, 8)):
            spans: list[float] = []
            frames: list[FrameId] = []
            for _ in range(count):
                number += 1
                begin = time.perf_counter()
                frames.extend(await _created(bench, heard, number, size=size))
                spans.append(time.perf_counter() - begin)
            name = f"{bench.frames.sizes_bytes()[size] // MIB}mib"
            _note(f"create_{name}_median_s", statistics.median(spans))
            begin = time.perf_counter()
            for frame in frames:
                bench.frames.destroy(frame)
            for _ in frames:
                assert isinstance(await heard.next(), FrameDestroyed)
            _note(f"destroy_{count}x{name}_s", time.perf_counter() - begin)
        spans = []
        for _ in range(100):
            begin = time.perf_counter()
            place.meter.used_bytes()
            spans.append(time.perf_counter() - begin)
        _note("reading_median_s", statistics.median(spans))
        _note("reading_max_s", max(spans))
        bench.frames.close()

    run(test())


def _note(name: str, value: float) -> None:
    """Print a figure, and keep it where the run's results go."""
    print(f"{name}: {value}")
    out = os.environ.get("OUT")
    if out:
        with (Path(out) / "frames_figures.jsonl").open("a") as file:
            file.write(json.dumps({"name": name, "value": value}) + "\n")
