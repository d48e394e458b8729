"""The records of the handle plane, as `proto/HANDLES.md` lays them out: frozen dataclasses to bytes and back.

A record's layout is the list of its fields with their wire types, so that this file reads like the page. Decoding is
strict: whatever is short, long, unknown or left over raises `BadRecord`, and the connection is closed.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

PROTOCOL = 1
PACKET_BYTES_MAX = 32_768
FDS_PER_PACKET_MAX = 16
HEADER = struct.Struct("<HHI")

ROLE_WORKER = 1
ROLE_OPERATOR = 2
SLOT_DIRTY = 1
SLOT_RESTORE = 2
SLOT_PARK = 1
EXPORT_READ_ONLY = 1
EXPORT_AGAIN = 2


class BadRecord(Exception):
    """The packet is not a record of this protocol; nothing was taken from it."""


class _Reader:
    """Cuts fields off the front of a packet."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._at = offset

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise BadRecord("the packet is too short for its fields")
        cut = self._data[self._at : end]
        self._at = end
        return cut

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def finished(self) -> bool:
        return self._at == len(self._data)


_NUMBERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def _put(kind: str, value: Any, out: bytearray) -> None:
    if kind in _NUMBERS:
        out += int(value).to_bytes(_NUMBERS[kind], "little")
    elif kind == "token":
        if len(value) != 16:
            raise ValueError("a token has 16 bytes")
        out += value
    elif kind in ("str", "bytes"):
        raw = value.encode() if kind == "str" else value
        out += len(raw).to_bytes(2, "little") + raw
    else:
        raise ValueError(f"no wire type {kind}")


def _get(kind: str, reader: _Reader) -> Any:
    if kind in _NUMBERS:
        return reader.number(_NUMBERS[kind])
    if kind == "token":
        return reader.take(16)
    raw = reader.take(reader.number(2))
    if kind == "bytes":
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("a string is not UTF-8") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The base of what is in a list, and of all records; `LAYOUT` names the fields in order, with their wire types."""

    LAYOUT: ClassVar["Layout"] = ()


@dataclass(frozen=True, slots=True)
class ListOf:
    """The wire type of a list of numbers, strings or entries."""

    entry: str | type[Entry]


Layout = tuple[tuple[str, str | ListOf], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSlot(Entry):
    slot: int
    size_bytes: int
    flags: int
    file: int
    offset_bytes: int

    LAYOUT: ClassVar[Layout] = (
        ("slot", "u64"),
        ("size_bytes", "u64"),
        ("flags", "u8"),
        ("file", "u64"),
        ("offset_bytes", "u64"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSlot(Entry):
    slot: int
    flags: int
    file: int
    offset_bytes: int

    LAYOUT: ClassVar[Layout] = (("slot", "u64"), ("flags", "u8"), ("file", "u64"), ("offset_bytes", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySlot(Entry):
    slot: int
    file: int
    offset_bytes: int

    LAYOUT: ClassVar[Layout] = (("slot", "u64"), ("file", "u64"), ("offset_bytes", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSlot(Entry):
    slot: int
    offset_bytes: int

    LAYOUT: ClassVar[Layout] = (("slot", "u64"), ("offset_bytes", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSlot(Entry):
    slot: int
    offset_bytes: int
    size_bytes: int

    LAYOUT: ClassVar[Layout] = (("slot", "u64"), ("offset_bytes", "u64"), ("size_bytes", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneLease(Entry):
    lease: int
    same_pages: int
    tag: str

    LAYOUT: ClassVar[Layout] = (("lease", "u64"), ("same_pages", "u8"), ("tag", "str"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Entry):
    """The base of all records; `TYPE` is the number on the wire."""

    TYPE: ClassVar[int] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Record):
    protocol: int
    role: int
    token: bytes = field(repr=False)
    name: str
    version: str

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[Layout] = (
        ("protocol", "u16"),
        ("role", "u8"),
        ("token", "token"),
        ("name", "str"),
        ("version", "str"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Record):
    request: int
    contents: int
    size_bytes: int
    spare_bytes: int = 0
    timeout_ms: int
    tag: str

    TYPE: ClassVar[int] = 2
    LAYOUT: ClassVar[Layout] = (
        ("request", "u64"),
        ("contents", "u8"),
        ("size_bytes", "u64"),
        ("spare_bytes", "u64"),
        ("timeout_ms", "u32"),
        ("tag", "str"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Return(Record):
    request: int
    lease: int
    slots: tuple[int, ...]

    TYPE: ClassVar[int] = 3
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("lease", "u64"), ("slots", ListOf("u64")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Record):
    request: int
    release: int
    discard: int
    timeout_ms: int
    tags: tuple[str, ...]

    TYPE: ClassVar[int] = 4
    LAYOUT: ClassVar[Layout] = (
        ("request", "u64"),
        ("release", "u8"),
        ("discard", "u8"),
        ("timeout_ms", "u32"),
        ("tags", ListOf("str")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Record):
    request: int
    timeout_ms: int
    tags: tuple[str, ...]

    TYPE: ClassVar[int] = 5
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("timeout_ms", "u32"), ("tags", ListOf("str")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(Record):
    request: int
    claim: int

    TYPE: ClassVar[int] = 6
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("claim", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye(Record):
    request: int

    TYPE: ClassVar[int] = 7
    LAYOUT: ClassVar[Layout] = (("request", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFree(Record):
    request: int

    TYPE: ClassVar[int] = 8
    LAYOUT: ClassVar[Layout] = (("request", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRoom(Record):
    request: int
    size_bytes: int
    lasts_ms: int
    timeout_ms: int

    TYPE: ClassVar[int] = 9
    LAYOUT: ClassVar[Layout] = (
        ("request", "u64"),
        ("size_bytes", "u64"),
        ("lasts_ms", "u32"),
        ("timeout_ms", "u32"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Record):
    request: int
    key: bytes = field(repr=False)
    lease: int
    flags: int
    slots: tuple[ExportSlot, ...]

    TYPE: ClassVar[int] = 10
    LAYOUT: ClassVar[Layout] = (
        ("request", "u64"),
        ("key", "token"),
        ("lease", "u64"),
        ("flags", "u8"),
        ("slots", ListOf(ExportSlot)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexport(Record):
    request: int

    TYPE: ClassVar[int] = 11
    LAYOUT: ClassVar[Layout] = (("request", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Record):
    request: int
    key: bytes = field(repr=False)

    TYPE: ClassVar[int] = 14
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("key", "token"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRead(Record):
    request: int
    read: int

    TYPE: ClassVar[int] = 15
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("read", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(Record):
    request: int
    tags: tuple[str, ...]

    TYPE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("tags", ListOf("str")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseal(Record):
    request: int
    tags: tuple[str, ...]

    TYPE: ClassVar[int] = 13
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("tags", ListOf("str")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken(Record):
    batch: int

    TYPE: ClassVar[int] = 16
    LAYOUT: ClassVar[Layout] = (("batch", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Record):
    lease: int
    slots: tuple[int, ...]
    failure: str

    TYPE: ClassVar[int] = 17
    LAYOUT: ClassVar[Layout] = (("lease", "u64"), ("slots", ListOf("u64")), ("failure", "str"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Record):
    lease: int
    slots: tuple[int, ...]
    failure: str

    TYPE: ClassVar[int] = 18
    LAYOUT: ClassVar[Layout] = (("lease", "u64"), ("slots", ListOf("u64")), ("failure", "str"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet(Record):
    order: int

    TYPE: ClassVar[int] = 19
    LAYOUT: ClassVar[Layout] = (("order", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy(Record):
    order: int
    final: int
    tag: str
    scope: str

    TYPE: ClassVar[int] = 20
    LAYOUT: ClassVar[Layout] = (("order", "u64"), ("final", "u8"), ("tag", "str"), ("scope", "str"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied(Record):
    order: int
    slots: tuple[int, ...]
    failure: str

    TYPE: ClassVar[int] = 21
    LAYOUT: ClassVar[Layout] = (("order", "u64"), ("slots", ListOf("u64")), ("failure", "str"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderClosed(Record):
    reader: int

    TYPE: ClassVar[int] = 22
    LAYOUT: ClassVar[Layout] = (("reader", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback(Record):
    order: int
    declined: int
    tag: str
    callback: str
    why: str

    TYPE: ClassVar[int] = 29
    LAYOUT: ClassVar[Layout] = (
        ("order", "u64"),
        ("declined", "u8"),
        ("tag", "str"),
        ("callback", "str"),
        ("why", "str"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Record):
    protocol: int
    session: int
    token: bytes = field(repr=False)
    capacity_bytes: int
    frame_sizes_bytes: tuple[int, ...]
    name: str
    device: str
    version: str

    TYPE: ClassVar[int] = 64
    LAYOUT: ClassVar[Layout] = (
        ("protocol", "u16"),
        ("session", "u64"),
        ("token", "token"),
        ("capacity_bytes", "u64"),
        ("frame_sizes_bytes", ListOf("u64")),
        ("name", "str"),
        ("device", "str"),
        ("version", "str"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Record):
    batch: int
    lease: int
    contents: int
    tag: str
    slots: tuple[GrantSlot, ...]

    TYPE: ClassVar[int] = 65
    LAYOUT: ClassVar[Layout] = (
        ("batch", "u64"),
        ("lease", "u64"),
        ("contents", "u8"),
        ("tag", "str"),
        ("slots", ListOf(GrantSlot)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFile(Record):
    batch: int
    file: int
    size_bytes: int

    TYPE: ClassVar[int] = 66
    LAYOUT: ClassVar[Layout] = (("batch", "u64"), ("file", "u64"), ("size_bytes", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaGone(Record):
    batch: int
    file: int

    TYPE: ClassVar[int] = 67
    LAYOUT: ClassVar[Layout] = (("batch", "u64"), ("file", "u64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall(Record):
    lease: int
    slots: tuple[RecallSlot, ...]

    TYPE: ClassVar[int] = 68
    LAYOUT: ClassVar[Layout] = (("lease", "u64"), ("slots", ListOf(RecallSlot)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseOrder(Record):
    order: int
    tags: tuple[str, ...]

    TYPE: ClassVar[int] = 69
    LAYOUT: ClassVar[Layout] = (("order", "u64"), ("tags", ListOf("str")))


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseCancelled(Record):
    order: int

    TYPE: ClassVar[int] = 70
    LAYOUT: ClassVar[Layout] = (("order", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState(Record):
    lease: int
    paused: int

    TYPE: ClassVar[int] = 71
    LAYOUT: ClassVar[Layout] = (("lease", "u64"), ("paused", "u8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining(Record):
    TYPE: ClassVar[int] = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Record):
    order: int
    lease: int
    slots: tuple[CopySlot, ...]

    TYPE: ClassVar[int] = 73
    LAYOUT: ClassVar[Layout] = (("order", "u64"), ("lease", "u64"), ("slots", ListOf(CopySlot)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadGrant(Record):
    batch: int
    reader: int
    writable: int
    lease: int
    slots: tuple[SharedSlot, ...]

    TYPE: ClassVar[int] = 74
    LAYOUT: ClassVar[Layout] = (
        ("batch", "u64"),
        ("reader", "u64"),
        ("writable", "u8"),
        ("lease", "u64"),
        ("slots", ListOf(SharedSlot)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseReader(Record):
    reader: int

    TYPE: ClassVar[int] = 75
    LAYOUT: ClassVar[Layout] = (("reader", "u64"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettled(Record):
    key: bytes = field(repr=False)

    TYPE: ClassVar[int] = 76
    LAYOUT: ClassVar[Layout] = (("key", "token"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Record):
    request: int
    lease: int = 0
    claim: int = 0
    free_bytes: int = 0
    leases: tuple[DoneLease, ...] = field(default_factory=tuple[DoneLease, ...])

    TYPE: ClassVar[int] = 80
    LAYOUT: ClassVar[Layout] = (
        ("request", "u64"),
        ("lease", "u64"),
        ("claim", "u64"),
        ("free_bytes", "u64"),
        ("leases", ListOf(DoneLease)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(Record):
    request: int
    error: str
    message: str
    detail: bytes

    TYPE: ClassVar[int] = 81
    LAYOUT: ClassVar[Layout] = (("request", "u64"), ("error", "str"), ("message", "str"), ("detail", "bytes"))


FROM_CLIENT: tuple[type[Record], ...] = (
    Hello,
    Lease,
    Return,
    Pause,
    Resume,
    Claim,
    Bye,
    AskFree,
    MakeRoom,
    Export,
    Unexport,
    Read,
    EndRead,
    Seal,
    Unseal,
    Taken,
    Arrived,
    Left,
    Quiet,
    Busy,
    Copied,
    ReaderClosed,
    Callback,
)
FROM_DAEMON: tuple[type[Record], ...] = (
    Welcome,
    Grant,
    ArenaFile,
    ArenaGone,
    Recall,
    PauseOrder,
    PauseCancelled,
    LeaseState,
    Draining,
    Copy,
    ReadGrant,
    CloseReader,
    ExportSettled,
    Done,
    Error,
)
_BY_TYPE = {record.TYPE: record for record in FROM_CLIENT + FROM_DAEMON}


def _put_fields(value: Entry, out: bytearray) -> None:
    for name, kind in value.LAYOUT:
        item = getattr(value, name)
        if isinstance(kind, str):
            _put(kind, item, out)
            continue
        out += len(item).to_bytes(2, "little")
        for one in item:
            if isinstance(kind.entry, str):
                _put(kind.entry, one, out)
            else:
                _put_fields(one, out)


def _get_fields(entry: type[Entry], reader: _Reader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in entry.LAYOUT:
        if isinstance(kind, str):
            values[name] = _get(kind, reader)
        else:
            values[name] = tuple(_get_one(kind.entry, reader) for _ in range(reader.number(2)))
    return values


def _get_one(kind: str | type[Entry], reader: _Reader) -> Any:
    return _get(kind, reader) if isinstance(kind, str) else kind(**_get_fields(kind, reader))


def encode(record: Record, fds: int = 0) -> bytes:
    """Return the packet for a record that travels with this many fds.

    Raises ValueError if the packet would be longer than `PACKET_BYTES_MAX`.
    """
    body = bytearray()
    _put_fields(record, body)
    size = HEADER.size + len(body)
    if size > PACKET_BYTES_MAX:
        raise ValueError(f"{type(record).__name__} of {size} bytes: longer than a packet may be")
    return HEADER.pack(record.TYPE, fds, size) + bytes(body)


def decode(packet: bytes, fds: int, accept: tuple[type[Record], ...]) -> Record:
    """Return the record in a packet that came with this many fds.

    `accept`: the records that this side may receive. Raises `BadRecord`; ownership of the fds stays with the caller.
    """
    if len(packet) < HEADER.size or len(packet) > PACKET_BYTES_MAX:
        raise BadRecord("the packet has no valid header")
    number, fds_told, size = HEADER.unpack_from(packet)
    record = _BY_TYPE.get(number)
    if record is None or record not in accept:
        raise BadRecord(f"no record of type {number} is expected here")
    if size != len(packet) or fds_told != fds or fds > FDS_PER_PACKET_MAX:
        raise BadRecord("the header does not fit the packet")
    reader = _Reader(packet, HEADER.size)
    values = _get_fields(record, reader)
    if not reader.finished():
        raise BadRecord("the packet is longer than its fields")
    return record(**values)
