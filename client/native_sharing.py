"""The binding to what the native client sends and receives (`vrb_send`, `vrb_receive` and their like)."""

import ctypes
from ctypes import byref, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field

from vrambroker.client import native

KEY_BYTES = 16
SETTLED_AT_ONCE = 256


class _Export(ctypes.Structure):
    key: "ctypes.Array[c_uint8]"
    offset_bytes: int
    read_only: int

    _fields_ = (("key", c_uint8 * KEY_BYTES), ("offset_bytes", c_uint64), ("read_only", c_uint32))


class _Received(ctypes.Structure):
    number: int
    address: int | None
    own: int
    writable: int

    _fields_ = (("number", c_uint64), ("address", c_void_p), ("own", c_uint32), ("writable", c_uint32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was sent: under which key, and where it is from the beginning of its lease's range."""

    key: bytes = field(repr=False)
    offset_bytes: int
    size_bytes: int
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What was received: at which address, and whether that is this process's own lease. Ends by its number."""

    number: int
    address: int
    size_bytes: int
    own: bool
    writable: bool


def send(client: native.Client, address: int, size_bytes: int, *, read_only: bool, timeout_s: float) -> Export:
    """Let others map this memory that know the key. The sender keeps it allocated until that is settled.

    Raises `InvalidArgument` for what is neither leased nor received by this process.
    """
    raw = _Export()
    client.call("vrb_send", address, size_bytes, int(read_only), native.milliseconds(timeout_s), byref(raw))
    return Export(
        key=bytes(raw.key), offset_bytes=raw.offset_bytes, size_bytes=size_bytes, read_only=bool(raw.read_only)
    )


def send_again(client: native.Client, export: Export, *, timeout_s: float) -> None:
    """Expect the same to be received once more. Raises `UnknownLease` if it is settled."""
    client.call("vrb_send_again", export.key, native.milliseconds(timeout_s))


def unexport(client: native.Client, *, timeout_s: float) -> None:
    """Settle what nobody has received."""
    client.call("vrb_unexport", native.milliseconds(timeout_s))


def take_settled(client: native.Client) -> list[bytes]:
    """Return the keys of exports that are settled; each is told once."""
    settled: list[bytes] = []
    keys = (c_uint8 * (KEY_BYTES * SETTLED_AT_ONCE))()
    count = c_uint32(SETTLED_AT_ONCE)
    while count.value == SETTLED_AT_ONCE:
        client.call("vrb_take_settled", keys, SETTLED_AT_ONCE, byref(count))
        told = bytes(keys)[: count.value * KEY_BYTES]
        settled.extend(told[at : at + KEY_BYTES] for at in range(0, len(told), KEY_BYTES))
    return settled


def receive(client: native.Client, export: Export, *, timeout_s: float) -> Received:
    """Map what was sent. Ownership: the caller's, who ends it by `end_read` or by the deleter of `received_tensor`.

    Raises `WrongState` while its tag is paused or about to be, `UnknownLease` where it is not there any more.
    """
    raw = _Received()
    milliseconds = native.milliseconds(timeout_s)
    client.call("vrb_receive", export.key, export.offset_bytes, export.size_bytes, milliseconds, byref(raw))
    return Received(
        number=raw.number,
        address=raw.address or 0,
        size_bytes=export.size_bytes,
        own=bool(raw.own),
        writable=bool(raw.writable),
    )


def end_read(client: native.Client, received: Received) -> None:
    """Say that nothing made of it is left."""
    client.call("vrb_end_read", received.number)


def received_tensor(client: native.Client, received: Received) -> int:
    """Return the address of a `DLManagedTensor` of bytes, whose deleter ends the read. Ownership: the caller's."""
    raw = _Received(number=received.number, address=received.address)
    managed = c_void_p()
    client.call("vrb_received_tensor", byref(raw), received.size_bytes, byref(managed))
    if managed.value is None:
        raise RuntimeError("libvrambroker answered VRB_OK without a tensor")
    return managed.value
