"""Regions on a GPU: torch's own pluggable allocator, in a memory pool for each use of a lease.

torch's allocator stays in charge of streams, splitting and reuse; what it asks the driver for, segments of 2 or 20 MiB
or as large as a tensor, comes from the lease instead (`native/src/torch_hooks.cpp`). A pool takes one entry at a time, so
each region has one to itself, and the next one on the same lease takes it over with what it has cached. A pool that
nobody is in is let go of before a pause: torch gives back then what it caches there, and tensors that are alive stay.
"""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch.cuda.memory import CUDAPluggableAllocator, MemPool

from vrambroker.broker.core.errors import InvalidArgument, NotQuiescent, WrongState
from vrambroker.client import native
from vrambroker.client.discovery import gpu_name
from vrambroker.client.tensors import Allocate

# torch gives nothing back of its default pool while a region asks for memory, so that happens on entry, when what it
# caches there is more than this share of what is free.
CACHED_SHARE_MAX = 0.5


class CudaTensors:
    """What torch does with one GPU's leases in this process. Thread-safe."""

    def __init__(self, uuid: str) -> None:
        """Raises `InvalidArgument` if torch does not see the GPU of this UUID (`GPU-…`)."""
        self._pid = os.getpid()
        self._index = _index_of(uuid)
        self.device = torch.device("cuda", self._index)
        self._lock = threading.Lock()
        self._idle: dict[native.Lease, list[MemPool]] = {}
        self._entered: dict[native.Lease, int] = {}
        self._graph_pools: dict[native.Lease, MemPool] = {}

    @contextmanager
    def region(self, lease: native.Lease, *, timeout_s: float) -> Generator[None]:
        """Have this thread's allocations on this GPU come from the lease; see `Memory.region`.

        Out of memory is torch's own error, with a note that names the holders. `timeout_s` has no effect: an allocation
        waits for what is certain to come, for ten seconds at most.
        """
        del timeout_s
        self._make_room()
        with self._inside(lease):
            yield

    def allocator(self, lease: native.Lease, *, timeout_s: float) -> Allocate:
        """Return what makes storages in the lease, for `empty` and `place`."""
        del timeout_s
        self._make_room()

        def allocate(size_bytes: int) -> torch.UntypedStorage:
            if lease.contents != "zero":
                return self._memory(lease, size_bytes)
            with lease.filling():
                storage = self._memory(lease, size_bytes)
                # It may have held another tensor of this lease.
                torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage).zero_()
                self.wait_for_work()
            return storage

        return allocate

    def _memory(self, lease: native.Lease, size_bytes: int) -> torch.UntypedStorage:
        with self._inside(lease):
            return torch.empty(size_bytes, dtype=torch.uint8, device=self.device).untyped_storage()

    def graph_pool(self, lease: native.Lease) -> tuple[int, int]:
        """Return the id of the pool that CUDA graphs of this lease share; it lives as long as this object."""
        with self._lock:
            pool = self._graph_pools.get(lease)
            if pool is None:
                pool = self._graph_pools[lease] = self._make_pool(lease)
        return pool.id

    def before_pause(self, tags: tuple[str, ...]) -> None:
        """Give back what torch caches under these tags. Raises `NotQuiescent` while this thread captures a graph."""
        if torch.cuda.is_current_stream_capturing():
            raise NotQuiescent(message="a CUDA graph is being captured: pause before or after it", scope="capture")
        with self._lock:
            idle = [self._idle.pop(lease) for lease in tuple(self._idle) if lease.tag in tags]
        # Not under the lock: with the last reference torch calls the free hook, which waits for streams.
        del idle

    def before_seal(self, tags: tuple[str, ...]) -> None:
        """Have no pool left that would hand out or write to memory of these tags. Raises `WrongState` for one that would."""
        self.before_pause(tags)
        with self._lock:
            regions = {lease.tag: "a region is open on it" for lease, users in self._entered.items() if users}
            graphs = {lease.tag: "memory of CUDA graphs is under it" for lease in self._graph_pools}
        for tag, why in (graphs | regions).items():
            if tag in tags:
                raise WrongState(message=f"tag {tag} can't be sealed: {why}", tag=tag, state="in use")

    def wait_for_work(self) -> None:
        """Wait for this thread's current stream; what is captured into a graph does not run, and is not waited for.

        In a forked child there is nothing to wait for: CUDA does not work there.
        """
        if os.getpid() == self._pid and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(self.device).synchronize()

    def close(self) -> None:
        """Let go of every pool that is not for graphs; tensors that are alive stay."""
        with self._lock:
            idle, self._idle = self._idle, {}
        del idle

    @contextmanager
    def _inside(self, lease: native.Lease) -> Generator[None]:
        pool = self._take(lease)
        try:
            with torch.cuda.use_mem_pool(pool, device=self._index), told_why():
                yield
        finally:
            with self._lock:
                self._entered[lease] -= 1
                self._idle.setdefault(lease, []).append(pool)

    def _take(self, lease: native.Lease) -> MemPool:
        with self._lock:
            idle = self._idle.get(lease)
            pool = idle.pop() if idle else self._make_pool(lease)
            self._entered[lease] = self._entered.get(lease, 0) + 1
            return pool

    def _make_pool(self, lease: native.Lease) -> MemPool:
        allocator = _allocator_of(lease.torch_hook())
        # A pool is one of the device that is current when it is made.
        with torch.cuda.device(self._index):
            return MemPool(allocator.allocator())  # type: ignore[no-untyped-call]  # torch's

    def _make_room(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        cached_bytes = torch.cuda.memory_reserved(self._index) - torch.cuda.memory_allocated(self._index)
        free_bytes, _ = torch.cuda.mem_get_info(self._index)
        if cached_bytes > CACHED_SHARE_MAX * free_bytes:
            torch.cuda.empty_cache()


@contextmanager
def told_why() -> Generator[None]:
    """Add to torch's error why the lease did not grow: a note when memory ran out, else the broker's own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        refusal = native.torch_last_error()
        if refusal is not None:
            error.add_note(f"vrambroker: {type(refusal).__name__}: {refusal.message}")
        raise
    except RuntimeError as error:
        refusal = native.torch_last_error()
        if refusal is not None and str(error).startswith(f"{type(refusal).__name__}: "):
            raise refusal from error
        raise


@cache
def _allocator_of(hook: int) -> CUDAPluggableAllocator:
    # Never let go of: torch keeps a bare pointer to it, for as long as there is memory from it.
    return CUDAPluggableAllocator(native.library_path(), f"vrb_torch_malloc_{hook:02x}", "vrb_torch_free")


def _index_of(uuid: str) -> int:
    # torch knows no prefix; the daemon's says whether it is a GPU or a MIG instance.
    wanted = uuid.partition("-")[2]
    for index in range(torch.cuda.device_count()):
        if gpu_name(index).partition("-")[2] == wanted:
            return index
    raise InvalidArgument(
        message=f"torch does not see {uuid} in this process (CUDA_VISIBLE_DEVICES?)", argument="device"
    )
