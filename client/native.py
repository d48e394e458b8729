"""The binding to libvrambroker.so: its C ABI (`native/include/vrambroker/vrambroker.h`) in Python's types.

Every call lets go of the GIL while it is in the library, is thread-safe, and raises what the library answers as the
`BrokerError` that its daemon meant. The library is loaded when first needed, not at import.
"""

import ctypes
import math
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cache
from importlib import resources

from vrambroker.broker.core import errors

ABI_VERSION = 1
DETAIL_BYTES_MAX = 8192
# As many tags as a call may name, each as long as it may be.
PROCESS_TAGS_BYTES_MAX = 256 * 65
_U32_MAX = (1 << 32) - 1
_LABEL = re.compile(r"[A-Za-z0-9_.:@+-]{1,64}")


class Status(IntEnum):
    """`vrb_status`: what a call came to."""

    OK = 0
    REFUSED = 1
    INVALID = 2
    WRONG_STATE = 3
    NOT_QUIESCENT = 4
    UNAVAILABLE = 5
    LOST = 6
    DEVICE = 7
    VERSION = 8
    FORKED = 9
    UNKNOWN_TAG = 10


class NoticeKind(IntEnum):
    """`vrb_notice_kind`: what a thread that waits for notices hears of."""

    CLOSED = 0
    PAUSE_ASKED = 1
    RESUMED = 2


class _Notice(ctypes.Structure):
    kind: int
    same_pages: int
    order: int
    tags: bytes

    _fields_ = (("kind", c_uint32), ("same_pages", c_uint32), ("order", c_uint64), ("tags", c_char * 16644))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A pause that somebody else asks for, under an order's number; or tags that are back, with the same pages or not."""

    kind: NoticeKind
    order: int
    tags: tuple[str, ...]
    same_pages: bool


class _Error(ctypes.Structure):
    name: bytes
    message: bytes
    subject: bytes
    detail_size: int
    detail: "ctypes.Array[c_uint8]"

    _fields_ = (
        ("name", c_char * 64),
        ("message", c_char * 512),
        ("subject", c_char * 128),
        ("detail_size", c_uint32),
        ("detail", c_uint8 * DETAIL_BYTES_MAX),
    )


class _Info(ctypes.Structure):
    session: int
    token: "ctypes.Array[c_uint8]"
    capacity_bytes: int
    frame_bytes_min: int
    name: bytes
    device: bytes
    version: bytes

    _fields_ = (
        ("session", c_uint64),
        ("token", c_uint8 * 16),
        ("capacity_bytes", c_uint64),
        ("frame_bytes_min", c_uint64),
        ("name", c_char * 128),
        ("device", c_char * 128),
        ("version", c_char * 64),
    )


class _Stats(ctypes.Structure):
    leases: int
    reserved_bytes: int
    mapped_bytes: int
    allocated_bytes: int
    allocations: int
    copied_out_bytes: int
    copied_in_bytes: int
    requests: int
    reconnects: int

    _fields_ = (
        ("leases", c_uint64),
        ("reserved_bytes", c_uint64),
        ("mapped_bytes", c_uint64),
        ("allocated_bytes", c_uint64),
        ("allocations", c_uint64),
        ("copied_out_bytes", c_uint64),
        ("copied_in_bytes", c_uint64),
        ("requests", c_uint64),
        ("reconnects", c_uint64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Who this client is to its daemon; `name` is as the daemon gave it."""

    session: int
    token: bytes
    capacity_bytes: int
    frame_bytes_min: int
    name: str
    device: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The native client's books; the last four count from when it was opened."""

    leases: int
    reserved_bytes: int
    mapped_bytes: int
    allocated_bytes: int
    allocations: int
    copied_out_bytes: int
    copied_in_bytes: int
    requests: int
    reconnects: int


class _Place(ctypes.Structure):
    contents: int
    paused: int
    tag: bytes

    _fields_ = (("contents", c_uint32), ("paused", c_uint32), ("tag", c_char * 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose memory some bytes are."""

    tag: str
    contents: str
    paused: bool


_CONTENTS = {"keep": 1, "drop": 2, "zero": 3}
_CONTENTS_NAMES = {number: name for name, number in _CONTENTS.items()}

_SIGNATURES: dict[str, tuple[object, ...]] = {
    "vrb_connect": (c_char_p, c_char_p, c_char_p, c_char_p, c_uint32, POINTER(c_void_p), POINTER(_Error)),
    "vrb_close": (c_void_p, POINTER(_Error)),
    "vrb_get_info": (c_void_p, POINTER(_Info), POINTER(_Error)),
    "vrb_get_stats": (c_void_p, POINTER(_Stats), POINTER(_Error)),
    "vrb_lease_open": (c_void_p, c_char_p, c_int, POINTER(c_void_p), POINTER(_Error)),
    "vrb_malloc": (c_void_p, c_size_t, c_uint32, POINTER(c_void_p), POINTER(_Error)),
    "vrb_free": (c_void_p, c_void_p, POINTER(_Error)),
    "vrb_pause": (c_void_p, POINTER(c_char_p), c_uint32, c_int, c_int, c_uint32, POINTER(_Error)),
    "vrb_resume": (c_void_p, POINTER(c_char_p), c_uint32, c_uint32, POINTER(c_uint8), POINTER(_Error)),
    "vrb_seal": (c_void_p, POINTER(c_char_p), c_uint32, c_uint32, POINTER(_Error)),
    "vrb_unseal": (c_void_p, POINTER(c_char_p), c_uint32, c_uint32, POINTER(_Error)),
    "vrb_tag_sealed": (c_void_p, c_char_p, POINTER(c_int), POINTER(_Error)),
    "vrb_use_enter": (c_void_p, POINTER(c_char_p), c_uint32, c_char_p, POINTER(_Error)),
    "vrb_use_enter_resuming": (c_void_p, POINTER(c_char_p), c_uint32, c_char_p, c_uint32, POINTER(_Error)),
    "vrb_watch": (c_void_p, c_int, c_char_p, POINTER(_Error)),
    "vrb_next_notice": (c_void_p, POINTER(_Notice), POINTER(_Error)),
    "vrb_begin_callback": (c_void_p, c_uint64, c_char_p, c_char_p, POINTER(_Error)),
    "vrb_consent": (c_void_p, c_uint64, POINTER(_Error)),
    "vrb_decline": (c_void_p, c_uint64, c_char_p, c_char_p, c_char_p, POINTER(_Error)),
    "vrb_use_exit": (c_void_p, POINTER(c_char_p), c_uint32, c_char_p, POINTER(_Error)),
    "vrb_fill_begin": (c_void_p, POINTER(_Error)),
    "vrb_fill_end": (c_void_p, POINTER(_Error)),
    "vrb_is_lost": (c_void_p, c_uint32, POINTER(c_int), POINTER(_Error)),
    "vrb_tag_paused": (c_void_p, c_char_p, POINTER(c_int), POINTER(_Error)),
    "vrb_tag_allocated": (c_void_p, c_char_p, POINTER(c_uint64), POINTER(_Error)),
    "vrb_tensor": (c_void_p, c_size_t, c_uint32, POINTER(c_void_p), POINTER(_Error)),
    "vrb_find": (c_void_p, c_void_p, c_size_t, POINTER(_Place), POINTER(_Error)),
    "vrb_parked_tensor": (c_void_p, c_void_p, c_size_t, c_uint32, POINTER(c_void_p), POINTER(_Error)),
    "vrb_send": (c_void_p, c_void_p, c_size_t, c_int, c_uint32, c_void_p, POINTER(_Error)),
    "vrb_send_again": (c_void_p, c_char_p, c_uint32, POINTER(_Error)),
    "vrb_unexport": (c_void_p, c_uint32, POINTER(_Error)),
    "vrb_take_settled": (c_void_p, c_void_p, c_uint32, POINTER(c_uint32), POINTER(_Error)),
    "vrb_receive": (c_void_p, c_char_p, c_uint64, c_size_t, c_uint32, c_void_p, POINTER(_Error)),
    "vrb_end_read": (c_void_p, c_uint64, POINTER(_Error)),
    "vrb_received_tensor": (c_void_p, c_void_p, c_size_t, POINTER(c_void_p), POINTER(_Error)),
    "vrb_torch_hook": (c_void_p, POINTER(c_uint32), POINTER(_Error)),
    "vrb_torch_last_error": (POINTER(_Error),),
    "vrb_attached": (c_char_p, POINTER(c_void_p), POINTER(_Error)),
    "vrb_process_tags": (c_void_p, c_char_p, c_size_t, POINTER(_Error)),
    "vrb_process_divert": (c_void_p, c_int, POINTER(_Error)),
    "vrb_thread_leases": (c_int,),
}


@cache
def library_path() -> str:
    """Return where libvrambroker.so lies; nothing says that it is there."""
    with resources.as_file(resources.files("vrambroker") / "_native" / "libvrambroker.so") as path:
        return str(path)


@cache
def library() -> ctypes.CDLL:
    """Load libvrambroker.so from the package, once.

    Raises `BrokerUnavailable` if it is not there, `VersionMismatch` if it is of another ABI.
    """
    try:
        loaded = ctypes.CDLL(library_path())
    except OSError as error:
        raise errors.BrokerUnavailable(
            message=f"libvrambroker.so can't be loaded ({error}): reinstall vrambroker, or build it with `make setup`",
            path=library_path(),
        ) from error
    loaded.vrb_abi_version.argtypes = ()
    loaded.vrb_abi_version.restype = c_int
    found = int(loaded.vrb_abi_version())
    if found != ABI_VERSION:
        raise errors.VersionMismatch(
            message=f"libvrambroker.so has ABI {found}, this client needs {ABI_VERSION}: reinstall vrambroker",
            client_version=str(ABI_VERSION),
            broker_version=str(found),
        )
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = c_int
    return loaded


def check_label(text: object, argument: str) -> bytes:
    """Return a name, tag or scope as the library takes it. Raises `InvalidArgument` (a C string would end at a NUL)."""
    if not isinstance(text, str) or not _LABEL.fullmatch(text):
        shown = f"{text[:61]}..." if isinstance(text, str) and len(text) > 64 else text
        raise errors.InvalidArgument(
            message=f"{argument} {shown!r}: expected 1 to 64 characters of A-Z a-z 0-9 _ . : @ + -", argument=argument
        )
    return text.encode("ascii")


def milliseconds(timeout_s: object) -> int:
    """Return a timeout as the library takes it: rounded up, so that only 0 means "at once"; capped at 49 days.

    Raises `InvalidArgument` for a negative one or none at all.
    """
    # Not math.isnan, which can't take an integer beyond all floats.
    if not (isinstance(timeout_s, int | float) and timeout_s >= 0):
        raise errors.InvalidArgument(message=f"timeout {timeout_s!r}: expected seconds, 0 or more", argument="timeout")
    return _U32_MAX if timeout_s * 1000 >= _U32_MAX else math.ceil(timeout_s * 1000)


def whole_number(value: object, argument: str, bits: int) -> int:
    """Return a number that fits so many bits, signed if they are 32. Raises `InvalidArgument`."""
    low, high = (-(1 << 31), (1 << 31) - 1) if bits == 32 else (0, (1 << 64) - 1)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise errors.InvalidArgument(
            message=f"{argument} {str(value)[:64]}: expected a whole number of {low} to {high}", argument=argument
        )
    return value


def contents_number(contents: object) -> int:
    """Return `vrb_contents` for a policy's name. Raises `InvalidArgument`."""
    number = _CONTENTS.get(contents) if isinstance(contents, str) else None
    if number is None:
        raise errors.InvalidArgument(message=f"contents {contents!r}: expected keep, drop or zero", argument="contents")
    return number


class Client:
    """One attached native client (`vrb_client`). Thread-safe. Ownership: the library's, until the process ends."""

    def __init__(self, *, socket_path: str, name: str, device: str, version: str, timeout_s: float) -> None:
        """Attach this process. `device` is the kind of device, `host` or `cuda`."""
        self._library = library()
        self._handle = c_void_p()
        error = _Error()
        status = self._library.vrb_connect(
            os.fsencode(socket_path),
            check_label(name, "name"),
            device.encode(),
            version.encode(),
            milliseconds(timeout_s),
            byref(self._handle),
            byref(error),
        )
        _raise_unless_ok(status, error)

    def divert_process(self, *, elsewhere: bool) -> None:
        """Have the process's own memory come from elsewhere than from what it has, or from anywhere again."""
        self._call("vrb_process_divert", int(elsewhere))

    @classmethod
    def attached(cls, socket_path: str) -> "Client | None":
        """Return the client by which this process is attached to a daemon already: the preload library comes before Python."""
        found = cls.__new__(cls)
        found._library = library()
        found._handle = c_void_p()
        error = _Error()
        status = found._library.vrb_attached(os.fsencode(socket_path), byref(found._handle), byref(error))
        _raise_unless_ok(status, error)
        return found if found._handle else None

    def process_tags(self) -> tuple[str, ...]:
        """Return the tags of the process's own memory; none where it leases none."""
        names = ctypes.create_string_buffer(PROCESS_TAGS_BYTES_MAX)
        self._call("vrb_process_tags", names, len(names))
        return tuple(names.value.decode().split())

    def close(self) -> None:
        self._call("vrb_close")

    def info(self) -> Info:
        raw = _Info()
        self._call("vrb_get_info", byref(raw))
        return Info(
            session=raw.session,
            token=bytes(raw.token),
            capacity_bytes=raw.capacity_bytes,
            frame_bytes_min=raw.frame_bytes_min,
            name=raw.name.decode(),
            device=raw.device.decode(),
            version=raw.version.decode(),
        )

    def is_lost(self, *, timeout_s: float) -> bool:
        """Whether no daemon knows this session any more; a retry that is under way is waited for, for so long."""
        lost = c_int()
        self._call("vrb_is_lost", milliseconds(timeout_s), byref(lost))
        return bool(lost.value)

    def stats(self) -> Stats:
        raw = _Stats()
        self._call("vrb_get_stats", byref(raw))
        return Stats(**{field.name: int(getattr(raw, field.name)) for field in fields(Stats)})

    def open_lease(self, tag: str, contents: str) -> "Lease":
        """Find or make the range for a tag and policy; asks the daemon for nothing."""
        handle = c_void_p()
        number = contents_number(contents)
        self._call("vrb_lease_open", check_label(tag, "tag"), number, byref(handle))
        return Lease(tag=tag, contents=contents, handle=handle, library=self._library)

    def free(self, address: int) -> None:
        """Free what `Lease.malloc` gave, in any state of its tag. Raises `InvalidArgument` for any other address."""
        self._call("vrb_free", address)

    def find(self, address: int, size_bytes: int) -> Place:
        """Tell whose memory this is. Raises `InvalidArgument` for what is in no allocation of this client."""
        raw = _Place()
        self._call("vrb_find", address, size_bytes, byref(raw))
        return Place(tag=raw.tag.decode(), contents=_CONTENTS_NAMES[raw.contents], paused=bool(raw.paused))

    def parked_tensor(self, address: int, size_bytes: int, *, timeout_s: float) -> int:
        """Return the address of a `DLManagedTensor` over what is parked of this memory: bytes on the CPU, read-only.

        Ownership: the caller's, until consumed. Raises `WrongState` if some of it has not left, or nothing is kept.
        """
        managed = c_void_p()
        self._call("vrb_parked_tensor", address, size_bytes, milliseconds(timeout_s), byref(managed))
        if managed.value is None:
            raise RuntimeError("libvrambroker answered VRB_OK without a tensor")
        return managed.value

    def pause(self, tags: Sequence[str], *, release: bool, timeout_s: float, discard: bool = False) -> None:
        how = int(bool(release)), int(bool(discard))
        self._call("vrb_pause", _labels(tags), len(tags), *how, milliseconds(timeout_s))

    def resume(self, tags: Sequence[str], *, timeout_s: float) -> dict[str, bool]:
        """Bring tags back; tell of each whether its pages are the same."""
        same_pages = (c_uint8 * len(tags))()
        self._call("vrb_resume", _labels(tags), len(tags), milliseconds(timeout_s), same_pages)
        return {tag: bool(same) for tag, same in zip(tags, same_pages, strict=True)}

    def seal(self, tags: Sequence[str], *, timeout_s: float) -> None:
        """Map tags read-only; see `Memory.seal`."""
        self._call("vrb_seal", _labels(tags), len(tags), milliseconds(timeout_s))

    def unseal(self, tags: Sequence[str], *, timeout_s: float) -> None:
        """Map tags writable again."""
        self._call("vrb_unseal", _labels(tags), len(tags), milliseconds(timeout_s))

    def use_enter(self, tags: Sequence[str], scope: str) -> None:
        self._call("vrb_use_enter", _labels(tags), len(tags), check_label(scope, "name"))

    def use_enter_resuming(self, tags: Sequence[str], scope: str, *, timeout_s: float) -> None:
        """Enter, after a resume if need be."""
        label = check_label(scope, "name")
        self._call("vrb_use_enter_resuming", _labels(tags), len(tags), label, milliseconds(timeout_s))

    def watch(self, kind: NoticeKind, tag: str | None) -> None:
        """Have notices made of a tag, or of all."""
        self._call("vrb_watch", int(kind), None if tag is None else check_label(tag, "tag"))

    def next_notice(self) -> Notice:
        """Wait for the next one, without the GIL; `CLOSED` is the last."""
        raw = _Notice()
        self._call("vrb_next_notice", byref(raw))
        return Notice(
            kind=NoticeKind(raw.kind),
            order=raw.order,
            tags=tuple(raw.tags.decode().split()),
            same_pages=bool(raw.same_pages),
        )

    def begin_callback(self, order: int, tag: str, callback: str) -> None:
        """Say which callback is running, for whoever waits for the order."""
        self._call("vrb_begin_callback", order, tag.encode(), callback.encode())

    def consent(self, order: int) -> None:
        """Say that an order may take effect."""
        self._call("vrb_consent", order)

    def decline(self, order: int, tag: str, callback: str, why: str) -> None:
        """Say that an order is not to take effect."""
        self._call("vrb_decline", order, tag.encode(), callback.encode(), why.encode())

    def use_exit(self, tags: Sequence[str], scope: str) -> None:
        self._call("vrb_use_exit", _labels(tags), len(tags), check_label(scope, "name"))

    def is_paused(self, tag: str) -> bool:
        paused = c_int()
        self._call("vrb_tag_paused", check_label(tag, "tag"), byref(paused))
        return bool(paused.value)

    def allocated_bytes(self, tag: str) -> int:
        """Return what is allocated under a tag, paused or not. Raises `UnknownTag`."""
        allocated = c_uint64()
        self._call("vrb_tag_allocated", check_label(tag, "tag"), byref(allocated))
        return allocated.value

    def is_sealed(self, tag: str) -> bool:
        sealed = c_int()
        self._call("vrb_tag_sealed", check_label(tag, "tag"), byref(sealed))
        return bool(sealed.value)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the library about this client, for the other files that bind to it."""
        self._call(name, *arguments)

    def _call(self, name: str, *arguments: object) -> None:
        function: Callable[..., int] = getattr(self._library, name)
        error = _Error()
        _raise_unless_ok(function(self._handle, *arguments, byref(error)), error)


class Lease:
    """One range of the native client (`vrb_lease`). Ownership: the client's."""

    def __init__(self, *, tag: str, contents: str, handle: c_void_p, library: ctypes.CDLL) -> None:
        self.tag = tag
        self.contents = contents
        self._handle = handle
        self._library = library

    def malloc(self, size_bytes: int, *, timeout_s: float) -> int:
        """Return the address of a new allocation. Ownership: the caller's, who gives it to `Client.free`."""
        error = _Error()
        pointer = c_void_p()
        status = self._library.vrb_malloc(
            self._handle, size_bytes, milliseconds(timeout_s), byref(pointer), byref(error)
        )
        _raise_unless_ok(status, error)
        return pointer.value or 0

    def byte_tensor(self, size_bytes: int, *, timeout_s: float) -> int:
        """Return the address of a `DLManagedTensor` over a new allocation. Ownership: the caller's, until consumed."""
        error = _Error()
        managed = c_void_p()
        status = self._library.vrb_tensor(
            self._handle, size_bytes, milliseconds(timeout_s), byref(managed), byref(error)
        )
        _raise_unless_ok(status, error)
        if managed.value is None:
            raise RuntimeError("libvrambroker answered VRB_OK without a tensor")
        return managed.value

    @contextmanager
    def filling(self) -> Generator[None]:
        """Write to new memory of this lease in the block: no pause takes effect before its end.

        Raises `WrongState` if the tag is paused, or about to be.
        """
        error = _Error()
        _raise_unless_ok(self._library.vrb_fill_begin(self._handle, byref(error)), error)
        try:
            yield
        finally:
            self._library.vrb_fill_end(self._handle, byref(error))

    def torch_hook(self) -> int:
        """Return the number of this lease's malloc hook for torch. Raises `InvalidArgument` when there are no more."""
        error = _Error()
        hook = c_uint32()
        _raise_unless_ok(self._library.vrb_torch_hook(self._handle, byref(hook), byref(error)), error)
        return hook.value


def thread_leases(lease: bool) -> bool:
    """Have this thread's share of the process's own memory leased from now on, or not; returns what was so before."""
    return bool(library().vrb_thread_leases(int(lease)))


@cache
def is_preloaded() -> bool:
    """Whether the library that stands in front of CUDA's runtime was loaded when this process began."""
    return hasattr(ctypes.CDLL(None), "vrb_preload_understands")


def preload_path() -> str:
    """Return where the library for LD_PRELOAD lies; nothing says that it is there."""
    return library_path().replace("libvrambroker.so", "libvrambroker_preload.so")


def torch_last_error() -> errors.BrokerError | None:
    """Return what the last call of a malloc hook in this thread came to; None if it worked."""
    error = _Error()
    status = library().vrb_torch_last_error(byref(error))
    return None if status == Status.OK else _exception(status, error)


def _labels(tags: Sequence[str]) -> "ctypes.Array[c_char_p]":
    return (c_char_p * len(tags))(*(check_label(tag, "tag") for tag in tags))


def _raise_unless_ok(status: int, error: _Error) -> None:
    if status != Status.OK:
        raise _exception(status, error)


def _exception(status: int, error: _Error) -> errors.BrokerError:
    return exception_of(
        Status(status),
        name=error.name.decode(errors="replace"),
        message=error.message.decode(errors="replace"),
        subject=error.subject.decode(errors="replace"),
        detail=bytes(error.detail[: min(error.detail_size, DETAIL_BYTES_MAX)]),
    )


def exception_of(status: Status, *, name: str, message: str, subject: str, detail: bytes) -> errors.BrokerError:
    """Return the exception for a failed call: the daemon's own if it sent one, else the library's by its status."""
    if status is Status.REFUSED:
        return _refusal(name, message, detail)
    text = message or f"libvrambroker answered {status.name}"
    match status:
        case Status.INVALID:
            return errors.InvalidArgument(message=text, argument=subject)
        case Status.WRONG_STATE:
            return errors.WrongState(message=text, tag=subject)
        case Status.NOT_QUIESCENT:
            return errors.NotQuiescent(message=text, scope=subject)
        case Status.UNAVAILABLE:
            return errors.BrokerUnavailable(message=text, path=subject)
        case Status.LOST:
            return errors.BrokerLost(message=text)
        case Status.VERSION:
            return errors.VersionMismatch(message=text)
        case Status.UNKNOWN_TAG:
            return errors.UnknownTag(message=text, tag=subject)
        case Status.FORKED:
            return errors.WrongState(
                message="this process was forked from the one that connected, and owns none of its memory: "
                "call vrambroker.client.connect() again here",
                state="forked",
            )
        case _:
            return errors.DriverFailed(message=text, driver_call=subject, driver_result=name)


def _refusal(name: str, message: str, detail: bytes) -> errors.BrokerError:
    if detail:
        return decoded(detail)
    # The detail is left out when it is too long for vrb_error; the class and the message are still the daemon's.
    found: object = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, errors.BrokerError):
        return found(message=message)
    return errors.DriverFailed(message=f"{name}: {message}", driver_call="libvrambroker", driver_result=name)


def decoded(detail: bytes) -> errors.BrokerError:
    """Return the error in a serialized `vrambroker.v1.ErrorDetail`, as the daemon raised it."""
    from vrambroker.broker.adapters.error_detail import from_detail
    from vrambroker.v1 import broker_pb2

    message = broker_pb2.ErrorDetail()
    message.ParseFromString(detail)
    return from_detail(message)
