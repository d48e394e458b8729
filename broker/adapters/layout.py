"""How fields are laid out on the handle plane: their wire types, and values of these to bytes and back."""

from dataclasses import dataclass
from typing import Any, ClassVar


class BadRecord(Exception):
    """The packet is not a record of this protocol; nothing was taken from it."""


class Reader:
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


def _get(kind: str, reader: Reader) -> Any:
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
class Record(Entry):
    """The base of all records; `TYPE` is the number on the wire."""

    TYPE: ClassVar[int] = 0


def put_fields(value: Entry, out: bytearray) -> None:
    """Put a value's fields behind what is there."""
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
                put_fields(one, out)


def get_fields(entry: type[Entry], reader: Reader) -> dict[str, Any]:
    """Cut an entry's fields off the front. Raises `BadRecord`."""
    values: dict[str, Any] = {}
    for name, kind in entry.LAYOUT:
        if isinstance(kind, str):
            values[name] = _get(kind, reader)
        else:
            values[name] = tuple(_get_one(kind.entry, reader) for _ in range(reader.number(2)))
    return values


def _get_one(kind: str | type[Entry], reader: Reader) -> Any:
    return _get(kind, reader) if isinstance(kind, str) else kind(**get_fields(kind, reader))
