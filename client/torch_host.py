"""Regions without an allocator hook: a dispatch mode that re-homes every new CPU storage into leased memory.

torch has no hook for CPU allocations that Python can set, so the mode looks at what each operator gives back. A storage
that none of its arguments had is new: its bytes move to leased memory, and the same tensor goes on over that. Views,
in-place results and memory that torch did not allocate itself are left as they are.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client import native
from vrambroker.client.tensors import Allocate, is_plain, leased_storage

_aten = torch.ops.aten

# These hand on a storage that was made out of the dispatcher's sight (torch.tensor): their argument is new as well.
_LIFTING = frozenset((_aten.lift_fresh.default, _aten.lift.default))

# What these make holds nothing yet, so there is nothing to copy.
_UNINITIALISED = frozenset(
    (
        _aten.empty.memory_format,
        _aten.empty_strided.default,
        _aten.empty_like.default,
        _aten.empty_permuted.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    )
)


class HostTensors:
    """What torch does with the leases of `host` in this process."""

    device = torch.device("cpu")

    @contextmanager
    def region(self, lease: native.Lease, *, timeout_s: float) -> Generator[None]:
        """Have what this thread's operators allocate come from the lease; see `Memory.region`."""
        with RegionMode(self.allocator(lease, timeout_s=timeout_s), lease.filling):
            yield

    def allocator(self, lease: native.Lease, *, timeout_s: float) -> Allocate:
        """Return what makes storages in the lease."""
        return partial(leased_storage, lease, timeout_s=timeout_s)

    def graph_pool(self, lease: native.Lease) -> tuple[int, int]:
        """Raise `InvalidArgument`: there are no CUDA graphs here."""
        raise InvalidArgument(message=f"tag {lease.tag}: there are no CUDA graphs on the host", argument="device")

    def before_pause(self, tags: tuple[str, ...]) -> None:
        """Do nothing: nothing is cached, and what a thread does is done when it pauses."""

    def unleased(self) -> AbstractContextManager[None]:
        """Do nothing: what is not in a region is not leased."""
        return nullcontext()

    def fall_asleep(self) -> None:
        """Do nothing: a process leases no memory here but that of its regions."""

    def wake(self) -> None:
        """Do nothing."""

    def before_seal(self, tags: tuple[str, ...]) -> None:
        """Do nothing: a region in another thread is refused more memory, and has none that is not in use."""

    def wait_for_work(self) -> None:
        """Do nothing: an operator has done its work when it returns."""

    def close(self) -> None:
        """Do nothing."""


class _Depth(threading.local):
    """Whether this thread is inside a region's own work, where regions further out must keep still."""

    busy = False


_depth = _Depth()


@contextmanager
def apart() -> Generator[None]:
    """Have this thread's operators allocate as ever in the block, whatever region it is in."""
    before, _depth.busy = _depth.busy, True
    try:
        yield
    finally:
        _depth.busy = before


class RegionMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, what this thread's operators allocate on the CPU comes from `allocate`.

    Of nested regions the innermost acts. The mode belongs to the thread that enters it, and to backward passes begun
    there; in a forked child it does nothing, as the memory is the parent's.
    """

    def __init__(self, allocate: Allocate, filling: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._allocate = allocate
        self._filling = filling
        self._pid = os.getpid()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then move what it allocated. Raises what `allocate` raises; the result is dropped then."""
        named = kwargs or {}
        if _depth.busy or os.getpid() != self._pid:
            return func(*args, **named)
        known = set[int]() if func in _LIFTING else _storages_of((*args, *named.values()))
        _depth.busy = True
        try:
            result = func(*args, **named)
            moved: dict[int, torch.UntypedStorage] = {}
            for tensor in _tensors_in((result,)):
                if is_new(tensor, known):
                    self._move(tensor, moved, copied=func not in _UNINITIALISED)
        finally:
            _depth.busy = False
        return result

    def _move(self, tensor: torch.Tensor, moved: dict[int, torch.UntypedStorage], *, copied: bool) -> None:
        old = tensor.untyped_storage()
        new = moved.get(old.data_ptr())
        if new is None:
            with self._filling():
                new = moved[old.data_ptr()] = self._allocate(old.nbytes())
                if copied or torch.are_deterministic_algorithms_enabled():
                    new.copy_(old)
        tensor.set_(new, tensor.storage_offset(), tensor.size(), tensor.stride())


def is_new(tensor: torch.Tensor, known: set[int]) -> bool:
    """Whether torch itself has just allocated this tensor's bytes, given the storages it had before.

    A storage is known by itself, since an operator may resize it, and by its address, since another may be made over it.
    Memory that came from elsewhere (leased memory, numpy, files, shared memory) can't be resized; torch's own can.
    """
    if not is_plain(tensor):
        return False
    storage = tensor.untyped_storage()
    return storage.nbytes() > 0 and not known.intersection(_marks_of(storage)) and storage.resizable()


def _marks_of(storage: torch.UntypedStorage) -> tuple[int, int]:
    # One without bytes has no contents that views share: what it becomes is new.
    return (storage._cdata if storage.nbytes() else 0), storage.data_ptr()  # pyright: ignore[reportPrivateUsage]  # its identity


def _storages_of(values: Iterable[Any]) -> set[int]:
    found: set[int] = set()
    for value in _walk(values):
        if isinstance(value, torch.Tensor) and is_plain(value):
            found.update(_marks_of(value.untyped_storage()))
        elif isinstance(value, torch.UntypedStorage) and value.device.type == "cpu":
            found.update(_marks_of(value))
    return found


def _tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in _walk(values) if isinstance(value, torch.Tensor))


def _walk(values: Iterable[Any]) -> Iterator[Any]:
    # Operators take and give tensors, lists and tuples of them, and no deeper containers.
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _walk(cast(Iterable[Any], value))
        else:
            yield value
