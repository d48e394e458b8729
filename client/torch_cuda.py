"""Regions on a GPU: torch's own pluggable allocator, in a memory pool for each use of a lease.

torch's allocator stays in charge of streams, splitting and reuse; what it asks the driver for, segments of 2 or 20 MiB
or as large as a tensor, comes from the lease instead (`native/src/torch_hooks.cpp`). A pool takes one entry at a time, so
each region has one to itself, and the next one on the same lease takes it over with what it has cached. A pool that
nobody is in is let go of before a pause: torch gives back then what it caches there, and tensors that are alive stay.

A pool object never dies. Its destructor ends the process if any thread allocates from any pool of the GPU meanwhile, or
captures there, or did so and failed (pytorch#182062); so its reference is given up as `use_mem_pool` gives up its own.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from inspect import signature
from typing import cast

import torch
from torch.cuda.memory import (  # type: ignore[attr-defined]  # torch's
    CUDAPluggableAllocator,
    MemPool,
    _cuda_beginAllocateToPool,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    _cuda_endAllocateToPool,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    _cuda_releasePool,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    memory_snapshot,  # pyright: ignore[reportUnknownVariableType]
)

from vrambroker.broker.core.errors import InvalidArgument, NotQuiescent, WrongState
from vrambroker.client import native
from vrambroker.client.discovery import gpu_name
from vrambroker.client.tensors import Allocate

# torch gives nothing back of its default pool while a region asks for memory, so that happens on entry, when what it
# caches is more than this share of the room that there is at most.
CACHED_SHARE_MAX = 0.5

# Before it, torch may allocate in the outer one of two pools (pytorch#168382).
NESTING_RELEASE = (2, 11)

# torch looks whether it is there, not what it says.
NO_CACHING_VARIABLE = "PYTORCH_NO_CUDA_MEMORY_CACHING"


def torch_release() -> tuple[int, int]:
    """Return torch's major and minor number."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


class CudaTensors:
    """What torch does with one GPU's leases in this process. Thread-safe."""

    def __init__(self, uuid: str, *, room_bytes: Callable[[], int]) -> None:
        """Raises `InvalidArgument` if torch does not see the GPU of this UUID (`GPU-…`), and if its caching is switched off.

        `room_bytes` says how much more the broker may lend to this process, at most.
        """
        if NO_CACHING_VARIABLE in os.environ:
            raise InvalidArgument(
                message=f"with {NO_CACHING_VARIABLE} torch asks the driver itself, whatever the region: unset it",
                argument=NO_CACHING_VARIABLE,
            )
        self._pid = os.getpid()
        self._index = _index_of(uuid)
        self.device = torch.device("cuda", self._index)
        self._room_bytes = room_bytes
        self._closed = False
        self._lock = threading.Lock()
        # The regions of each thread, outermost first.
        self._around = threading.local()
        # No lease stands for memory that is not leased, where the process's own is.
        self._idle: dict[native.Lease | None, list[MemPool]] = {}
        self._entered: dict[native.Lease | None, int] = {}
        self._graph_pools: dict[native.Lease, MemPool] = {}
        # Let go of while tensors were alive there: what torch caches of them since is known to nobody else.
        self._let_go_of: dict[native.Lease | None, list[MemPool]] = {}
        # Where all threads allocate while the process's own memory is paused.
        self._asleep: MemPool | None = None
        # What was cached still when torch had emptied its caches: it won't go by doing that again.
        self._stuck_bytes = 0

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

    @contextmanager
    def unleased(self) -> Generator[None]:
        """Have this thread's allocations on this GPU be torch's own, where the process leases its own memory."""
        before = native.thread_leases(False)
        try:
            with self._inside(None):
                yield
        finally:
            native.thread_leases(before)

    def fall_asleep(self) -> None:
        """Have every thread allocate elsewhere than in the process's own memory, which is about to be paused.

        torch gives back what it caches there; what it keeps of it, between tensors that are alive, it hands out to nobody
        before `wake`. Raises `NotQuiescent` if a region is open: its thread would allocate elsewhere, too.
        """
        with self._lock:
            if any(self._entered.values()):
                raise NotQuiescent(
                    message="a region is open: leave it before the process's own memory is paused", scope="region"
                )
            before = self._asleep
            if before is None:
                # Once a pool is open to all threads, torch gives nothing back of its default pool.
                torch.cuda.empty_cache()
            self._asleep = self._make_pool(None)
            _cuda_beginAllocateToPool(self._index, self._asleep.id)
            self._end(before)

    def wake(self) -> None:
        """Have every thread allocate where it did before `fall_asleep`; once more is no error."""
        with self._lock:
            before, self._asleep = self._asleep, None
            self._end(before)

    def _end(self, pool: MemPool | None) -> None:
        if pool is not None:
            _cuda_endAllocateToPool(self._index, pool.id)
            _cuda_releasePool(self._index, pool.id)
            self._let_go([pool])

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
        """Return the id of the pool that CUDA graphs of this lease share; it lives until `close`."""
        with self._lock:
            pool = self._graph_pools.get(lease)
            if pool is None:
                pool = self._graph_pools[lease] = self._make_pool(lease)
        return pool.id

    def before_pause(self, tags: tuple[str, ...]) -> None:
        """Give back what torch caches under these tags. Raises `NotQuiescent` while this thread captures a graph."""
        if self._is_capturing():
            raise NotQuiescent(message="a CUDA graph is being captured: pause before or after it", scope="capture")
        self._stuck_bytes = 0
        with self._lock:
            idle = _taken_out(self._idle, tags)
            before = _taken_out(self._let_go_of, tags)
        self._release([pool for _, pool in idle])
        left = idle + before
        try:
            looked_at = [(lease, pool, _segments(pool)) for lease, pool in before]
            if idle or any(_caches(segments) for _, _, segments in looked_at):
                torch.cuda.empty_cache()
                looked_at = [(lease, pool, _segments(pool)) for lease, pool in left]
            left = [(lease, pool) for lease, pool, segments in looked_at if segments]
        except RuntimeError as error:
            raise NotQuiescent(message=f"the GPU's work can't be waited for: {error}") from error
        finally:
            with self._lock:
                for lease, pool in left:
                    self._let_go_of.setdefault(lease, []).append(pool)

    def before_seal(self, tags: tuple[str, ...]) -> None:
        """Have no pool left that would hand out or write to memory of these tags. Raises `WrongState` for one that would."""
        self.before_pause(tags)
        with self._lock:
            regions = {lease.tag: "a region is open on it" for lease, users in self._entered.items() if lease and users}
            graphs = {lease.tag: "memory of CUDA graphs is under it" for lease in self._graph_pools}
        for tag, why in (graphs | regions).items():
            if tag in tags:
                raise WrongState(message=f"tag {tag} can't be sealed: {why}", tag=tag, state="in use")

    def wait_for_work(self) -> None:
        """Wait for this thread's current stream; what is captured into a graph does not run, and is not waited for.

        In a forked child there is nothing to wait for: CUDA does not work there.
        """
        if os.getpid() == self._pid and not self._is_capturing():
            torch.cuda.current_stream(self.device).synchronize()

    def close(self) -> None:
        """Let go of every pool; tensors and graphs that are alive stay, with what they have of it."""
        with self._lock:
            self._closed = True
            pools = [pool for idle in self._idle.values() for pool in idle] + list(self._graph_pools.values())
            before = [pool for let_go in self._let_go_of.values() for pool in let_go]
            self._idle, self._graph_pools, self._let_go_of = {}, {}, {}
        # After a fault of the GPU there is nothing to give back.
        with suppress(RuntimeError):
            if pools or any(_caches(_segments(pool)) for pool in before):
                self._let_go(pools)

    def _is_capturing(self) -> bool:
        # torch asks about the stream of whichever GPU is current.
        with torch.cuda.device(self._index):
            return torch.cuda.is_current_stream_capturing()

    def _let_go(self, pools: list[MemPool]) -> None:
        """Have torch free what nothing uses in these pools, and in those of before, now; the rest when it does so again."""
        self._release(pools)
        torch.cuda.empty_cache()

    def _release(self, pools: list[MemPool]) -> None:
        for pool in pools:
            _cuda_releasePool(self._index, pool.id)

    @contextmanager
    def _inside(self, lease: native.Lease | None) -> Generator[None]:
        around: list[native.Lease | None] = self._around.__dict__.setdefault("leases", [])
        outer_pool = self._asleep is not None or any(outer is not lease for outer in around)
        if outer_pool and torch_release() < NESTING_RELEASE:
            raise WrongState(
                message=f"regions of two tags nest on a GPU from torch 2.11 on, as does one in a process that sleeps, and this "
                f"is {torch.__version__}: it may lease what is allocated under the outer tag",
                tag=lease.tag if lease else "",
                state="nested",
            )
        pool = self._take(lease)
        around.append(lease)
        try:
            with torch.cuda.use_mem_pool(pool, device=self._index), told_why() if lease else nullcontext():
                yield
        finally:
            around.pop()
            self._put_back(lease, pool)

    def _put_back(self, lease: native.Lease | None, pool: MemPool) -> None:
        with self._lock:
            self._entered[lease] -= 1
            if not self._closed:
                self._idle.setdefault(lease, []).append(pool)
                return
        self._let_go([pool])

    def _take(self, lease: native.Lease | None) -> MemPool:
        with self._lock:
            idle = self._idle.get(lease)
            pool = idle.pop() if idle else self._make_pool(lease)
            self._entered[lease] = self._entered.get(lease, 0) + 1
            return pool

    def _make_pool(self, lease: native.Lease | None) -> MemPool:
        allocator = None if lease is None else _allocator_of(lease.torch_hook()).allocator()  # type: ignore[no-untyped-call]  # torch's
        # A pool is one of the device that is current when it is made.
        with torch.cuda.device(self._index):
            pool = MemPool(allocator)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))
        return pool

    def _make_room(self) -> None:
        """Have torch give back what it caches, if the device, or what the broker lends of it, is tight.

        Also what it caches of pools that were let go of: tensors there may have died since.
        """
        if self._is_capturing():
            return
        free_bytes, _ = torch.cuda.mem_get_info(self._index)
        room_bytes = min(free_bytes, self._room_bytes())
        if self._cached_bytes() > max(self._stuck_bytes, CACHED_SHARE_MAX * room_bytes):
            torch.cuda.empty_cache()
            self._stuck_bytes = self._cached_bytes()

    def _cached_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._index) - torch.cuda.memory_allocated(self._index)


def _segments(pool: MemPool) -> list[dict[str, object]]:
    segments: list[dict[str, object]] = memory_snapshot(pool.id, **_without_traces())  # type: ignore[no-untyped-call]  # torch's
    return segments


@cache
def _without_traces() -> dict[str, bool]:
    # A recorded history may be long, and takes as long to read; older ones can't be told to leave it out.
    names = signature(cast("Callable[..., object]", memory_snapshot)).parameters
    return {"include_traces": False} if "include_traces" in names else {}


def _caches(segments: list[dict[str, object]]) -> bool:
    return any(segment["allocated_size"] == 0 for segment in segments)


def _taken_out(
    pools: dict[native.Lease | None, list[MemPool]], tags: tuple[str, ...]
) -> list[tuple[native.Lease, MemPool]]:
    return [
        (lease, pool) for lease in tuple(pools) if lease is not None and lease.tag in tags for pool in pools.pop(lease)
    ]


@contextmanager
def told_why() -> Generator[None]:
    """Add to torch's error why the lease did not grow: a note when memory ran out, else the broker's own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        refusal = native.torch_last_error()
        if refusal is not None:
            note = f"vrambroker: {type(refusal).__name__}: {refusal.message}"
            # On its way out of nested regions it has it already.
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
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
