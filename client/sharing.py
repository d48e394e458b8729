"""Tensors that travel: torch's own pickling of tensors, for memory that is leased or was received.

torch sends a tensor's storage as a handle, by functions of `torch.multiprocessing.reductions` that others call and
replace as well (SGLang, verl, vLLM). So what is replaced here lies below those: how a storage on a GPU makes its handle
and is made of one, and how one on the CPU does; a handle of ours names the export, and everything else is as ever.
Whoever unpickles with torch's own pickler needs no preparation, since the pickle brings this module along; others, who
allow nothing but torch's functions, must be attached or started by `broker run`.
"""

import os
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.multiprocessing import reductions as _reductions

from vrambroker.broker.core.errors import BrokerError, InvalidArgument, UnknownLease, WrongState
from vrambroker.client import discovery, native, native_sharing
from vrambroker.client.memory import Memory, attached_memories
from vrambroker.client.native_sharing import Export
from vrambroker.client.saver.attaching import attached
from vrambroker.client.tensors import consumed

MAGIC = b"vrambroker/1"
# A handle is never twice the same: torch would take what it has received under it before, and nobody would hear of it.
NONCE_BYTES = 8
_LAYOUT = struct.Struct(f"<{len(MAGIC)}s{NONCE_BYTES}s{native_sharing.KEY_BYTES}sQQB")

Storage = torch.UntypedStorage
# torch leaves these untyped.
reductions: Any = _reductions
Rebuild = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What travels in the place of torch's own handle: the export, and whose broker it is of."""

    export: Export
    device: str

    def packed(self) -> bytes:
        export = self.export
        head = _LAYOUT.pack(
            MAGIC, os.urandom(NONCE_BYTES), export.key, export.offset_bytes, export.size_bytes, export.read_only
        )
        return head + self.device.encode()


def is_ours(handle: object) -> bool:
    """Whether a handle in a pickled tensor names an export."""
    return isinstance(handle, bytes) and handle.startswith(MAGIC)


def unpacked(handle: bytes) -> Handle:
    """Return what a handle says. Raises `InvalidArgument` for one that was cut."""
    if len(handle) <= _LAYOUT.size:
        raise InvalidArgument(message="this is no handle of a leased tensor", argument="handle")
    _, _, key, offset_bytes, size_bytes, read_only = _LAYOUT.unpack_from(handle)
    export = Export(key=key, offset_bytes=offset_bytes, size_bytes=size_bytes, read_only=bool(read_only))
    return Handle(export=export, device=handle[_LAYOUT.size :].decode(errors="replace"))


@dataclass(slots=True, kw_only=True, eq=False)
class _Sent:
    """A storage that is kept until its export is settled: its memory would be used for something else."""

    storage: Storage
    export: Export
    memory: Memory


class _WeakStorage(Protocol):
    """torch's `StorageWeakRef`."""

    cdata: int

    def expired(self) -> bool: ...


Place = tuple[int, int, bool]


@dataclass(slots=True, kw_only=True, eq=False)
class _Travel:
    """What this process has sent, by key and by where it is, and what it has received and is alive."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    sent: dict[bytes, _Sent] = field(default_factory=dict[bytes, _Sent])
    places: dict[Place, bytes] = field(default_factory=dict[Place, bytes])
    received: dict[bytes, _WeakStorage] = field(default_factory=dict[bytes, _WeakStorage])

    def forget(self, key: bytes) -> None:
        """Let go of what is settled."""
        gone = self.sent.pop(key, None)
        if gone is not None:
            self.places = {place: other for place, other in self.places.items() if other != key}

    def reset(self) -> None:
        """Begin anew in a forked child, whose parent all of it is about; a lock may be another thread's."""
        self.lock = threading.RLock()
        self.sent, self.places, self.received = {}, {}, {}


_travel = _Travel()
os.register_at_fork(after_in_child=_travel.reset)

RECEIVED_MAX = 1_024


def collect(memory: Memory) -> None:
    """Let go of what this memory has sent and nobody uses any more."""
    with _travel.lock:
        for key in native_sharing.take_settled(memory.native_client()):
            _travel.forget(key)


def forget_sent(memory: Memory, *, timeout_s: float) -> None:
    """Let go of what this memory has sent and nobody has received, and of what is settled."""
    native_sharing.unexport(memory.native_client(), timeout_s=timeout_s)
    collect(memory)


def leave(memory: Memory) -> None:
    """Let go of all that a memory has sent, which is closed: what others have received of it stays theirs."""
    with _travel.lock:
        for key in [key for key, sent in _travel.sent.items() if sent.memory is memory]:
            _travel.forget(key)


# Sending.


def handle_of(storage: Storage) -> bytes | None:
    """Send a storage, if it is leased or was received: return its handle, or None.

    It is kept alive until everybody has received it and let go.
    """
    size_bytes = storage.nbytes()
    if size_bytes == 0:
        return None
    for memory in _memories_for(storage.device):
        if _is_of(memory, storage.device):
            sent = _send(memory, storage, size_bytes)
            if sent is not None:
                return Handle(export=sent.export, device=memory.device).packed()
    return None


def _memories_for(device: torch.device) -> tuple[Memory, ...]:
    """Return what this process is attached to; also where that was not this program's doing, but the preload library's."""
    known = attached_memories()
    if known or device.type != "cuda" or not native.is_preloaded():
        return known
    with suppress(BrokerError):
        return (attached(f"cuda:{device.index}", _program()),)
    return ()


def _is_of(memory: Memory, device: torch.device) -> bool:
    # Which GPU it is takes a context to know, which a process that sends what is on the CPU may not have.
    if discovery.is_host(memory.device) or device.type != "cuda":
        return discovery.is_host(memory.device) and device.type == "cpu"
    return memory.torch_device == device


def _send(memory: Memory, storage: Storage, size_bytes: int) -> _Sent | None:
    client, address = memory.native_client(), storage.data_ptr()
    read_only = _is_read_only(memory, client, address, size_bytes)
    with _travel.lock:
        collect(memory)
        place = (address, size_bytes, read_only)
        known = _travel.sent.get(_travel.places.get(place, b""))
        if known is not None and known.memory is memory and _is_sent_again(client, known.export, memory.timeout_s):
            return known
        try:
            export = native_sharing.send(client, address, size_bytes, read_only=read_only, timeout_s=memory.timeout_s)
        except InvalidArgument as error:
            if error.argument:
                raise
            return None
        sent = _travel.sent[export.key] = _Sent(storage=storage, export=export, memory=memory)
        _travel.places[place] = export.key
        return sent


def _is_read_only(memory: Memory, client: native.Client, address: int, size_bytes: int) -> bool:
    try:
        tag = client.find(address, size_bytes).tag
        return memory.is_shared_read_only(tag) or client.is_sealed(tag)
    except InvalidArgument:
        # What was received is as its owner has sent it.
        return False


def _is_sent_again(client: native.Client, export: Export, timeout_s: float) -> bool:
    try:
        native_sharing.send_again(client, export, timeout_s=timeout_s)
    except UnknownLease:
        return False
    return True


# Receiving.


def storage_of(handle: bytes) -> Storage:
    """Return the storage that a handle stands for: the same one as long as it is alive.

    Raises `WrongState` while its tag is paused, `UnknownLease` where it is not there any more, and what `connect` does
    where this process was not attached yet and can't be.
    """
    wanted = unpacked(handle)
    memory = _attached_to(wanted.device)
    client = memory.native_client()
    with _travel.lock:
        received = native_sharing.receive(client, wanted.export, timeout_s=memory.timeout_s)
        if not received.own:
            return _of_others(client, wanted.export, received)
        try:
            return _own(received.address, received.size_bytes)
        finally:
            native_sharing.end_read(client, received)


def _of_others(client: native.Client, export: Export, received: native_sharing.Received) -> Storage:
    known = _travel.received.get(export.key)
    alive = None if known is None else _alive(known)
    if alive is not None:
        native_sharing.end_read(client, received)
        return alive
    storage = consumed(native_sharing.received_tensor(client, received)).untyped_storage()
    if len(_travel.received) >= RECEIVED_MAX:
        _travel.received = {key: one for key, one in _travel.received.items() if not one.expired()}
    _travel.received[export.key] = reductions.StorageWeakRef(storage)
    return storage


def _alive(known: _WeakStorage) -> Storage | None:
    make: Callable[[int], Storage | None] = getattr(Storage, "_new_with_weak_ptr")  # noqa: B009 (torch does not type it)
    return make(known.cdata)


def _own(address: int, size_bytes: int) -> Storage:
    """Return the storage that this process has sent itself; it is alive for as long as others have it."""
    for sent in _travel.sent.values():
        if (sent.storage.data_ptr(), sent.storage.nbytes()) == (address, size_bytes):
            return sent.storage
    raise UnknownLease(message="what was sent is this process's own, and it has let go of it")


def _program() -> str:
    return Path(sys.argv[0]).stem or "python"


def _attached_to(device: str) -> Memory:
    there = next((memory for memory in attached_memories() if memory.device == device), None)
    if there is not None:
        return there
    try:
        return attached(device, _program())
    except BrokerError as error:
        error.add_note(
            f"a tensor was received that is leased from the broker of {device}: connect() to that before it is unpickled, "
            "or start the program by `broker run`"
        )
        raise


# torch's own functions.


def install() -> None:
    """Have torch send and receive leased tensors. Once a process; more often is no error."""
    if getattr(Storage, "_share_cuda_") is _share_cuda:  # noqa: B009
        return
    setattr(Storage, "_share_cuda_", _share_cuda)  # noqa: B010
    setattr(Storage, "_new_shared_cuda", staticmethod(_new_shared_cuda))  # noqa: B010
    setattr(Storage, "_release_ipc_counter_cuda", staticmethod(_release_ipc_counter_cuda))  # noqa: B010
    setattr(Storage, "_new_shared_filename_cpu", staticmethod(_new_shared_filename_cpu))  # noqa: B010
    reductions.reduce_storage = reduce_storage
    _register()


def _register() -> None:
    """Have torch's own pickler bring this module along. Where others have put their own function in its place, that stays,
    and nothing is pickled that whoever unpickles it may not allow.
    """
    known: dict[type, Rebuild] = getattr(ForkingPickler, "_extra_reducers")  # noqa: B009
    pickled = _pickled_storage if _is_torchs_reduce_tensor(known[torch.Tensor]) else reduce_storage
    for kind, reducer in tuple(known.items()):
        if reducer is _TORCH_REDUCE_STORAGE:
            ForkingPickler.register(kind, pickled)
        elif _is_torchs_reduce_tensor(reducer):
            ForkingPickler.register(kind, _pickled_tensor)


def _is_torchs_reduce_tensor(reducer: Rebuild) -> bool:
    return reducer.__module__ == reductions.__name__ and reducer.__name__ == "reduce_tensor"


_TORCH_REDUCE_STORAGE: Rebuild = reductions.reduce_storage
_TORCH_SHARE_CUDA: Rebuild = getattr(Storage, "_share_cuda_")  # noqa: B009
_TORCH_NEW_SHARED_CUDA: Rebuild = getattr(Storage, "_new_shared_cuda")  # noqa: B009
_TORCH_RELEASE_IPC_COUNTER: Rebuild = getattr(Storage, "_release_ipc_counter_cuda")  # noqa: B009
_TORCH_NEW_SHARED_FILENAME: Rebuild = getattr(Storage, "_new_shared_filename_cpu")  # noqa: B009


def _share_cuda(storage: Storage, *arguments: Any) -> Any:
    handle = handle_of(storage)
    if handle is None:
        return _TORCH_SHARE_CUDA(storage, *arguments)
    if torch.cuda.is_current_stream_capturing():
        raise WrongState(message="a CUDA graph is being captured: send tensors before or after it", state="capturing")
    # torch has the receiver wait for an event of the sender's stream; here the sender waits for that.
    torch.cuda.current_stream(storage.device).synchronize()
    return storage.device.index, handle, storage.nbytes(), 0, MAGIC, 0, b"", False


def _new_shared_cuda(*arguments: Any) -> Any:
    return storage_of(arguments[1]) if is_ours(arguments[1]) else _TORCH_NEW_SHARED_CUDA(*arguments)


def _release_ipc_counter_cuda(*arguments: Any) -> Any:
    return None if is_ours(arguments[0]) else _TORCH_RELEASE_IPC_COUNTER(*arguments)


def _new_shared_filename_cpu(*arguments: Any) -> Any:
    return storage_of(arguments[1]) if is_ours(arguments[1]) else _TORCH_NEW_SHARED_FILENAME(*arguments)


def reduce_storage(storage: Storage) -> Any:
    """Return what torch pickles a CPU storage as: by its own function for a file's name, which is a handle here."""
    handle = handle_of(storage) if storage.device.type == "cpu" else None
    if handle is None:
        return _TORCH_REDUCE_STORAGE(storage)
    return reductions.rebuild_storage_filename, (type(storage), b"", handle, storage.nbytes())


def received(rebuild: Rebuild, arguments: tuple[Any, ...]) -> Any:
    """Rebuild what was sent, in a process that may not have known that this can be."""
    install()
    return rebuild(*arguments)


def _pickled_storage(storage: Storage) -> Any:
    reduced = reduce_storage(storage)
    return _brought_along(reduced) if any(is_ours(argument) for argument in reduced[1]) else reduced


def _pickled_tensor(tensor: torch.Tensor) -> Any:
    reduced = reductions.reduce_tensor(tensor)
    return _brought_along(reduced) if any(is_ours(argument) for argument in reduced[1]) else reduced


def _brought_along(reduced: tuple[Any, ...]) -> Any:
    return received, (reduced[0], reduced[1])
