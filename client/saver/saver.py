"""`TorchMemorySaver`: the interface of torch_memory_saver 0.0.10, on leased memory.

What its callers rely on is here under the same names, also where those are private: `_impl`, which is None until the first
use; `_impl._binary_wrapper.cdll.tms_{get,set}_interesting_region`; `_impl_ctor_kwargs`; `_ensure_initialized`.
"""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vrambroker.client.saver import SHIM_FOLDER
from vrambroker.client.saver import settings as environment
from vrambroker.client.saver.regions import Regions
from vrambroker.client.saver.settings import BACKENDS, DEFAULT_TAG, Settings

if TYPE_CHECKING:
    import torch

HOOK_MODES = ("preload", "torch")


class Functions:
    """What callers look up in the original's library, by the same names."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def tms_get_interesting_region(self) -> bool:
        """Whether this thread's allocations are leased."""
        return self._regions.settings.interesting

    def tms_set_interesting_region(self, interesting: bool) -> None:
        """Have this thread's allocations leased, or not, until told otherwise."""
        self._regions.switch(replace(self._regions.settings, interesting=bool(interesting)))

    def tms_get_current_tag(self) -> bytes:
        """Return this thread's tag."""
        return self._regions.settings.tag.encode()

    def tms_set_current_tag(self, tag: bytes) -> None:
        """Set this thread's tag."""
        self._regions.switch(replace(self._regions.settings, tag=tag.decode()))

    def tms_get_enable_cpu_backup(self) -> bool:
        """Whether what this thread allocates keeps its contents."""
        return self._regions.settings.cpu_backup

    def tms_set_enable_cpu_backup(self, enable: bool) -> None:
        """Have what this thread allocates keep its contents, or not."""
        self._regions.switch(replace(self._regions.settings, cpu_backup=bool(enable)))


class _Impl:
    """What there is from the first use on."""

    def __init__(self) -> None:
        self.regions = Regions()
        self._binary_wrapper = SimpleNamespace(cdll=Functions(self.regions))


class TorchMemorySaver:
    """Memory that is paused and resumed by tag, leased from the broker; the interface is torch_memory_saver's.

    Nothing happens until the first use of a region, a pause or a resume: then this process attaches to its device's broker
    (`BrokerUnavailable` where there is none). Any method may raise what `Memory` raises; nothing ends the process.
    """

    def __init__(self) -> None:
        self._impl: _Impl | None = None
        self._impl_ctor_kwargs: dict[str, str] = {"hook_mode": HOOK_MODES[0]}
        self._retain_cpu_backup: bool | None = None
        self._memory_margin_bytes = 0
        self._disk_backup_dir: str | None = None
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def region(
        self,
        tag: str = DEFAULT_TAG,
        enable_cpu_backup: bool = False,
        enable_disk_backup: bool = False,
        cpu_backup_backend: str | None = None,
    ) -> Generator[None]:
        """Lease what this thread's torch operators allocate in the block, under the tag; see `Memory.region`.

        With a backup, of either kind, contents are kept across a pause, in the broker's host memory; without, they are zero
        after it. Of nested regions the innermost counts. A tag that is paused is no error: what is allocated then has
        memory at once, and is paused and resumed with the tag from the next time on.
        Raises `ValueError` and `AssertionError` for arguments that contradict each other.
        """
        _check_backend(cpu_backup_backend, enable_cpu_backup)
        regions = self._ensure_initialized().regions
        assert not (enable_cpu_backup and enable_disk_backup), "a backup is on the CPU or on a disk, not on both"
        now = regions.settings
        settings = replace(
            now,
            interesting=True,
            tag=tag,
            cpu_backup=enable_cpu_backup,
            disk_backup=enable_disk_backup,
            backend=cpu_backup_backend or now.backend,
        )
        with regions.changed(settings):
            yield

    @contextmanager
    def cuda_graph(
        self,
        cuda_graph: "torch.cuda.CUDAGraph",
        pool: Any = None,
        stream: "torch.cuda.Stream | None" = None,
        capture_error_mode: str = "global",
        tag: str = DEFAULT_TAG,
        enable_cpu_backup: bool = False,
        cpu_backup_backend: str | None = None,
    ) -> Generator[None]:
        """Capture the block into a graph whose memory is leased under the tag.

        `pool` says, as for torch, which graphs share memory; that is not in torch's pool of this name, though, but in one
        of the lease. Raises what `Memory.graph_pool` does: on `host`, `InvalidArgument`.
        """
        import torch

        _check_backend(cpu_backup_backend, enable_cpu_backup)
        regions = self._ensure_initialized().regions
        settings = replace(Settings(), tag=tag, cpu_backup=enable_cpu_backup)
        shared = None if pool is None else _pool_key(pool)
        leased: Any = regions.graph_pool(settings, shared)
        with (
            regions.outside(),
            torch.cuda.graph(cuda_graph, pool=leased, stream=stream, capture_error_mode=capture_error_mode),
        ):
            yield

    @contextmanager
    def disable(self) -> Generator[None]:
        """Have this thread's allocations in the block be torch's own, whatever region it is in; also while all is paused."""
        import torch

        regions = self._ensure_initialized().regions
        assert regions.settings.interesting, "disable() is for a thread whose allocations are leased"
        with regions.outside():
            yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
            torch.cuda.empty_cache()

    def pause(self, tag: str | None = None) -> None:
        """Let a tag's memory go when somebody needs it (every tag's, if none is named); twice is no error.

        A tag that nothing was allocated under is no error either. Raises what `Memory.pause` does.
        """
        self._ensure_initialized().regions.pause(tag or None)

    def resume(self, tag: str | None = None) -> None:
        """Bring a tag's memory back (every tag's, if none is named), all or none; twice is no error.

        Waits for room for VRAMBROKER_TIMEOUT seconds (60). Raises `OutOfDeviceMemory`, with the holders, if there is none
        (`WaitExpired` if it has yet to leave somebody); then it can be called again.
        """
        self._ensure_initialized().regions.resume(tag or None)

    @property
    def enabled(self) -> bool:
        """True."""
        return True

    @property
    def hook_mode(self) -> str:
        """Not to be read: AttributeError."""
        raise AttributeError("hook_mode can only be set")

    @hook_mode.setter
    def hook_mode(self, hook_mode: str) -> None:
        """Take note of it, at any time: both modes are the same here. Raises `ValueError` for what is none."""
        if hook_mode not in HOOK_MODES:
            raise ValueError(f"hook_mode {hook_mode!r}: expected {' or '.join(HOOK_MODES)}")
        self._impl_ctor_kwargs["hook_mode"] = hook_mode

    @property
    def memory_margin_bytes(self) -> int:
        """Not to be read: NotImplementedError."""
        raise NotImplementedError("memory_margin_bytes can only be set")

    @memory_margin_bytes.setter
    def memory_margin_bytes(self, value: int) -> None:
        """Take note of it, to no effect: what stays free of a device is its daemon's `--keep-free`."""
        self._ensure_initialized()
        if value < 0:
            raise ValueError(f"memory_margin_bytes {value}: expected bytes, 0 or more")
        self._memory_margin_bytes = value

    @property
    def retain_cpu_backup(self) -> bool:
        """Whether host memory is to be kept for the next pause. To no effect: the broker always does, until it is needed."""
        self._ensure_initialized()
        if self._retain_cpu_backup is None:
            self._retain_cpu_backup = environment.retains_backup(os.environ)
        return self._retain_cpu_backup

    @retain_cpu_backup.setter
    def retain_cpu_backup(self, value: bool) -> None:
        self._ensure_initialized()
        self._retain_cpu_backup = bool(value)

    def get_cpu_backup(self, x: "torch.Tensor", zero_copy: bool = False) -> "torch.Tensor | None":
        """Return what a tensor of a paused tag holds, as a CPU tensor; None while it is not paused.

        With `zero_copy` it is a view of the broker's host memory: read-only, true until the tag is resumed, and not pinned.
        Raises `WrongState` if the contents have no backup, `InvalidArgument` if the tensor is not leased.
        """
        regions = self._ensure_initialized().regions
        assert x.is_cuda or regions.is_leased_here(x), f"a tensor on {x.device} has no backup"
        assert x.is_contiguous(), "only a contiguous tensor has a backup"
        return regions.read_paused(x, zero_copy=zero_copy)

    def set_disk_backup_dir(self, path: str) -> None:
        """Make the folder. Nothing is written to it: what has a backup is in the broker's host memory."""
        self._ensure_initialized()
        Path(path).mkdir(parents=True, exist_ok=True)
        self._disk_backup_dir = path

    def _ensure_initialized(self) -> _Impl:
        with self._lock:
            if self._impl is None:
                self._impl = _Impl()
            return self._impl

    def _forget(self) -> None:
        # A forked child has nothing of its parent's, and a lock may be held by a thread that it has not.
        self._lock = threading.RLock()
        self._impl = None


# The one that programs share; nothing is attached by making it.
torch_memory_saver = TorchMemorySaver()


@contextmanager
def configure_subprocess() -> Generator[None]:
    """Have processes that are started in the block find this package as well, by PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    folders = [] if before is None else before.split(os.pathsep)
    if str(SHIM_FOLDER) not in folders:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SHIM_FOLDER), *folders])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _check_backend(backend: str | None, enable_cpu_backup: bool) -> None:
    if backend is None:
        return
    if not enable_cpu_backup:
        raise ValueError("cpu_backup_backend needs enable_cpu_backup=True")
    if backend not in BACKENDS:
        raise ValueError(f"cpu_backup_backend {backend!r}: expected {' or '.join(BACKENDS)}")


def _pool_key(pool: Any) -> tuple[int, ...]:
    """Return what a pool is known by: torch takes its id or the pool itself."""
    return tuple(getattr(pool, "id", pool))
