"""Regions on a GPU without one: torch's pools on books, which refuse what torch refuses and end what it ends."""

import gc
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from vrambroker.broker.core.errors import InvalidArgument, NotQuiescent, OutOfDeviceMemory, WrongState
from vrambroker.client import native, torch_cuda
from vrambroker.client.torch_cuda import CudaTensors

GIB = 1 << 30
DEADLINE_S = 20.0


class FakeTorch:
    """What `torch_cuda` asks of torch. Device 0 is current unless somebody says otherwise, as in a new process."""

    def __init__(self) -> None:
        self.current = 0
        self.entered: list[tuple[int, FakePool]] = []
        self.captured: set[int] = set()
        self.broken = False
        self.pools: dict[tuple[int, int], FakePool] = {}
        # What is alive in each segment of a pool, in bytes.
        self.segments: dict[tuple[int, int], list[int]] = {}
        self.released: set[tuple[int, int]] = set()
        # Pools that all threads allocate from, or did: those have one use more to give up.
        self.everybodys: dict[tuple[int, int], bool] = {}
        self.emptied_beside: list[int] = []
        self.made = self.died = 0
        self.reserved_bytes = self.allocated_bytes = self.emptied = 0
        self.free_bytes = 64 * GIB
        self.waits = self.snapshots = 0

    @contextmanager
    def device(self, index: int) -> Generator[None]:
        before, self.current = self.current, index
        yield
        self.current = before

    @contextmanager
    def use_mem_pool(self, pool: "FakePool", device: int) -> Generator[None]:
        assert all(pool is not other for _, other in self.entered), "already recording to mempool_id"
        assert pool.index == device
        self.entered.append((device, pool))
        try:
            yield
        finally:
            self.entered.remove((device, pool))

    def is_current_stream_capturing(self) -> bool:
        return self.current in self.captured

    def begin_pool(self, index: int, number: tuple[int, int]) -> None:
        assert self.pools[number].index == index
        assert number not in self.everybodys
        self.everybodys[number] = True

    def end_pool(self, index: int, number: tuple[int, int]) -> None:
        assert self.pools[number].index == index
        assert self.everybodys[number]
        self.everybodys[number] = False

    def release_pool(self, index: int, number: tuple[int, int]) -> None:
        assert self.pools[number].index == index
        if number in self.everybodys:
            assert not self.everybodys.pop(number), "it is ended before it is released"
            return
        assert number not in self.released, "its use count is below zero"
        self.released.add(number)

    def memory_reserved(self, _index: int) -> int:
        return self.reserved_bytes

    def memory_allocated(self, _index: int) -> int:
        return self.allocated_bytes

    def mem_get_info(self, _index: int) -> tuple[int, int]:
        return self.free_bytes, 80 * GIB

    def empty_cache(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.emptied += 1
        self.emptied_beside.append(sum(self.everybodys.values()))
        for number in self.released:
            self.segments[number] = [alive for alive in self.segments.get(number, []) if alive]
            if not self.segments[number]:
                self.pools.pop(number, None)

    def memory_snapshot(
        self, number: tuple[int, int], include_traces: bool = True
    ) -> list[dict[str, int]]:  # without traces: they may be long
        assert not include_traces
        self.snapshots += 1
        return [{"allocated_size": alive} for alive in self.segments.get(number, [])]

    def current_stream(self, _device: torch.device) -> SimpleNamespace:
        def wait() -> None:
            self.waits += 1

        return SimpleNamespace(synchronize=wait)


class FakePool:
    """Must never die: a real one ends the process if it does so at the wrong time."""

    def __init__(self, _allocator: object, *, fake: FakeTorch) -> None:
        self.fake = fake
        self.index = fake.current
        fake.made += 1
        self.id = (0, fake.made)
        fake.pools[self.id] = self

    def __del__(self) -> None:
        self.fake.died += 1


class FakeLease:
    contents = "keep"

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def torch_hook(self) -> int:
        return 0


def lease(tag: str) -> native.Lease:
    return cast("native.Lease", FakeLease(tag))


def allocator_of(_hook: int) -> SimpleNamespace:
    return SimpleNamespace(allocator=lambda: None)


def index_of(uuid: str) -> int:
    return int(uuid[-1])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorch]:
    fake = FakeTorch()
    monkeypatch.setattr(torch_cuda, "MemPool", partial(FakePool, fake=fake))
    monkeypatch.setattr(torch_cuda, "_allocator_of", allocator_of)
    monkeypatch.setattr(torch_cuda, "_index_of", index_of)
    for name in (
        *("device", "use_mem_pool", "is_current_stream_capturing", "memory_reserved"),
        *("memory_allocated", "mem_get_info", "empty_cache", "current_stream"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch_cuda, "memory_snapshot", fake.memory_snapshot)
    monkeypatch.setattr(torch_cuda, "_cuda_releasePool", fake.release_pool)
    monkeypatch.setattr(torch_cuda, "_cuda_beginAllocateToPool", fake.begin_pool)
    monkeypatch.setattr(torch_cuda, "_cuda_endAllocateToPool", fake.end_pool)
    yield fake
    gc.collect()
    assert fake.died == 0


def tensors(device: int = 0, room_bytes: int = 64 * GIB) -> CudaTensors:
    return CudaTensors(f"GPU-{device}", room_bytes=lambda: room_bytes)


def test_the_next_region_takes_the_pool_over_and_ten_thousand_need_no_more(fake: FakeTorch) -> None:
    side, weights = tensors(), lease("weights")
    for _ in range(10_000):
        with side.region(weights, timeout_s=1):
            pass
    assert len(fake.pools) == 1
    for _ in range(100):
        with side.region(weights, timeout_s=1):
            pass
        side.before_pause(("weights",))
    assert not fake.pools


def test_nested_regions_have_a_pool_each(fake: FakeTorch) -> None:
    side, weights, cache = tensors(), lease("weights"), lease("cache")
    with side.region(weights, timeout_s=1), side.region(weights, timeout_s=1), side.region(cache, timeout_s=1):
        assert len(fake.entered) == 3
    assert len(fake.pools) == 3


def test_regions_of_two_tags_do_not_nest_where_torch_mixes_them_up(
    fake: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    side, weights, cache = tensors(), lease("weights"), lease("cache")
    refused = pytest.raises(WrongState, match=r"2\.10\.1")
    with side.region(weights, timeout_s=1), side.region(weights, timeout_s=1), refused, side.region(cache, timeout_s=1):
        pass
    with side.region(cache, timeout_s=1):
        pass
    assert not fake.entered


def test_a_torch_that_caches_nothing_is_refused(fake: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")
    with pytest.raises(InvalidArgument, match="unset it"):
        tensors()
    assert not fake.pools


def test_a_pause_in_a_region_and_beside_one_lets_only_idle_pools_go(fake: FakeTorch) -> None:
    side, weights, cache = tensors(), lease("weights"), lease("cache")
    with side.region(cache, timeout_s=1):
        pass
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with side.region(weights, timeout_s=1):
            inside.set()
            done.wait(DEADLINE_S)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(DEADLINE_S)
    with side.region(weights, timeout_s=1):
        side.before_pause(("cache", "weights"))
        assert len(fake.pools) == 2
    side.close()
    assert len(fake.pools) == 1
    done.set()
    thread.join(DEADLINE_S)
    assert not fake.pools, "a region that was open at the end lets go of its own"


def test_a_pause_on_a_gpu_that_failed_is_refused(fake: FakeTorch) -> None:
    side, weights = tensors(), lease("weights")
    with side.region(weights, timeout_s=1):
        pass
    fake.broken = True
    with pytest.raises(NotQuiescent, match="illegal memory access"):
        side.before_pause(("weights",))
    with side.region(weights, timeout_s=1):
        pass
    side.close()


def test_what_dies_after_a_pause_that_was_refused_goes_back_at_the_next_one(fake: FakeTorch) -> None:
    side = tensors()
    with side.region(lease("weights"), timeout_s=1):
        alive = fake.segments[fake.entered[0][1].id] = [GIB]
    fake.broken = True
    with pytest.raises(NotQuiescent):
        side.before_pause(("weights",))
    fake.broken = False
    alive[0] = 0
    side.before_pause(("weights",))
    assert not fake.pools


def _paused_with_two_tensors(fake: FakeTorch, side: CudaTensors) -> list[int]:
    """Pause a tag of two segments; returns what is alive in each, to be written to."""
    with side.region(lease("weights"), timeout_s=1):
        alive = fake.segments[fake.entered[0][1].id] = [GIB, GIB]
    side.before_pause(("weights",))
    assert fake.emptied == 1
    (number,) = fake.pools
    assert fake.segments[number] == alive
    return fake.segments[number]


def test_what_dies_after_a_pause_goes_back_at_the_next_one(fake: FakeTorch) -> None:
    side = tensors()
    alive = _paused_with_two_tensors(fake, side)
    side.before_pause(("weights",))
    side.before_pause(("cache",))
    assert fake.emptied == 1, "nothing died, so torch keeps its other caches"
    alive[0] = 0
    side.before_pause(("cache",))
    assert fake.emptied == 1, "nothing of this tag died"
    side.before_pause(("weights",))
    assert fake.emptied == 2
    assert list(fake.segments.values()) == [[GIB]]
    next(iter(fake.segments.values()))[0] = 0
    side.before_pause(("weights",))
    assert not fake.pools
    looked_at = fake.snapshots
    side.before_pause(("weights",))
    assert fake.emptied == 3
    assert fake.snapshots == looked_at, "nothing is left to look at"


def test_what_dies_after_a_pause_goes_back_at_the_end(fake: FakeTorch) -> None:
    side = tensors()
    _paused_with_two_tensors(fake, side)[:] = [0, 0]
    side.close()
    assert not fake.pools


def test_a_capture_on_another_gpu_is_another_matter(fake: FakeTorch) -> None:
    side = tensors(device=1)
    fake.captured = {0}
    side.before_pause(("weights",))
    side.wait_for_work()
    assert fake.waits == 1
    fake.captured = {1}
    side.wait_for_work()
    assert fake.waits == 1
    with pytest.raises(NotQuiescent):
        side.before_pause(("weights",))


def test_pools_of_graphs_live_until_the_end(fake: FakeTorch) -> None:
    side, graphs = tensors(), lease("graphs")
    assert side.graph_pool(graphs) == side.graph_pool(graphs)
    side.before_pause(("graphs",))
    assert len(fake.pools) == 1
    side.close()
    assert not fake.pools


def test_what_torch_caches_goes_where_the_device_or_the_broker_is_tight(fake: FakeTorch) -> None:
    fake.reserved_bytes, fake.allocated_bytes = 30 * GIB, 10 * GIB
    with tensors().region(lease("weights"), timeout_s=1):
        assert fake.emptied == 0
    with tensors(room_bytes=30 * GIB).region(lease("weights"), timeout_s=1):
        assert fake.emptied == 1
    fake.free_bytes = 30 * GIB
    side = tensors()
    with side.region(lease("weights"), timeout_s=1), side.region(lease("cache"), timeout_s=1):
        assert fake.emptied == 2
    with side.region(lease("weights"), timeout_s=1):
        assert fake.emptied == 2, "it can't go, so it is not tried again"
    fake.reserved_bytes += GIB
    with side.region(lease("weights"), timeout_s=1):
        assert fake.emptied == 3


def test_an_error_out_of_nested_regions_is_told_once(fake: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    del fake
    monkeypatch.setattr(native, "torch_last_error", lambda: OutOfDeviceMemory(message="rollout holds it"))
    side = tensors()
    with (
        pytest.raises(torch.OutOfMemoryError) as caught,
        side.region(lease("weights"), timeout_s=1),
        side.region(lease("cache"), timeout_s=1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert caught.value.__notes__ == ["vrambroker: OutOfDeviceMemory: rollout holds it"]


def test_a_process_that_sleeps_allocates_elsewhere_until_it_wakes(fake: FakeTorch) -> None:
    side = tensors()
    side.fall_asleep()
    assert fake.emptied_beside == [0], "torch gives nothing back of its default pool later"
    assert list(fake.everybodys.values()) == [True]
    side.fall_asleep()
    assert fake.emptied_beside == [0, 1], "at no time is nothing there to allocate from"
    assert list(fake.everybodys.values()) == [True]
    side.wake()
    side.wake()
    assert not fake.everybodys
    assert not fake.pools


def test_a_process_does_not_fall_asleep_beside_an_open_region(fake: FakeTorch) -> None:
    side = tensors()
    with side.region(lease("weights"), timeout_s=1), pytest.raises(NotQuiescent):
        side.fall_asleep()
    assert not fake.everybodys
    side.fall_asleep()
    side.wake()


def test_what_is_left_out_has_pools_of_its_own_and_its_thread_leases_nothing(
    fake: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def thread_leases(lease: bool) -> bool:
        told.append(lease)
        return True

    monkeypatch.setattr(native, "thread_leases", thread_leases)
    side = tensors()
    with side.region(lease("weights"), timeout_s=1), side.unleased():
        assert len(fake.entered) == 2
        assert told == [False]
    assert told == [False, True]
    with side.unleased():
        assert len(fake.pools) == 2, "the same one"
    side.before_pause(("weights",))
    assert len(fake.pools) == 1, "nothing of what is left out is paused"
