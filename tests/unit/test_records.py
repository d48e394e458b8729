"""The Python side of the handle plane against the vectors that both sides are tested with, and against garbage."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vrambroker.broker.adapters import records

VECTORS = Path(__file__).parents[2] / "proto" / "handles.vectors"
NAMES = {
    name.upper().replace("_", ""): record
    for record in (*records.FROM_CLIENT, *records.FROM_DAEMON)
    for name in [record.__name__]
} | {"ARENA": records.ArenaFile}


@dataclass(frozen=True)
class Vector:
    name: str
    fds: int
    record: records.Record
    packet: bytes


def _scalar(kind: str, text: str) -> Any:
    if kind == "str":
        return "" if text == "-" else text
    if kind in ("token", "bytes"):
        return b"" if text == "-" else bytes.fromhex(text)
    return int(text)


def _list(entry: Any, text: str) -> tuple[Any, ...]:
    items = text.removeprefix("[").removesuffix("]").split(";") if text != "[]" else []
    if isinstance(entry, str):
        return tuple(_scalar(entry, item) for item in items)
    return tuple(_entry(entry, item) for item in items)


def _entry(entry: Any, text: str) -> Any:
    values = text.removeprefix("(").removesuffix(")").split(",")
    return entry(**{name: _scalar(kind, value) for (name, kind), value in zip(entry.LAYOUT, values, strict=True)})


def _vector(line: str) -> Vector:
    told, _, packet = line.partition(" | ")
    name, fds, *words = told.split()
    record = NAMES[name.replace("_", "")]
    layout = dict(record.LAYOUT)
    values: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        kind = layout[key]
        if isinstance(kind, records.ListOf):
            values[key] = _list(kind.entry, text)
        else:
            # In a free text a space is written '_'; in a name or tag it is itself.
            values[key] = _scalar(kind, text.replace("_", " ") if key in ("message", "failure") else text)
    return Vector(name=name, fds=int(fds), record=record(**values), packet=bytes.fromhex(packet))


def _vectors() -> list[Vector]:
    return [_vector(line) for line in VECTORS.read_text().splitlines() if line and not line.startswith("#")]


def _failure_words(vector: Vector) -> records.Record:
    """A driver's error name has underscores of its own; the vector file can't tell them from spaces."""
    decoded = records.decode(vector.packet, vector.fds, (type(vector.record),))
    if isinstance(decoded, records.Left):
        return records.Left(lease=decoded.lease, slots=decoded.slots, failure=decoded.failure.replace("_", " "))
    return decoded


@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: vector.name)
def test_a_vector_decodes_to_its_fields(vector: Vector) -> None:
    assert _failure_words(vector) == vector.record


@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: vector.name)
def test_a_record_encodes_to_its_vector(vector: Vector) -> None:
    decoded = records.decode(vector.packet, vector.fds, (type(vector.record),))
    assert records.encode(decoded, vector.fds) == vector.packet


def test_every_record_has_a_vector() -> None:
    assert {type(vector.record) for vector in _vectors()} == set(records.FROM_CLIENT + records.FROM_DAEMON)


def _cut(packet: bytes) -> bytes:
    return packet[:-1]


def _grown(packet: bytes) -> bytes:
    return packet + b"\0"


def _with_fds(packet: bytes) -> bytes:
    return packet[:2] + b"\x09\x00" + packet[4:]


def _of_another_type(packet: bytes) -> bytes:
    return b"\xff\x7f" + packet[2:]


def _longer_by_its_own_account(packet: bytes) -> bytes:
    grown = packet + b"\0"
    return grown[:4] + len(grown).to_bytes(4, "little") + grown[8:]


@pytest.mark.parametrize("spoil", [_cut, _grown, _with_fds, _of_another_type, _longer_by_its_own_account])
@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: vector.name)
def test_a_spoiled_packet_is_refused(vector: Vector, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(records.BadRecord):
        records.decode(spoil(vector.packet), vector.fds, records.FROM_CLIENT + records.FROM_DAEMON)


def test_a_side_takes_only_what_the_other_may_send() -> None:
    for vector in _vectors():
        other = records.FROM_DAEMON if type(vector.record) in records.FROM_CLIENT else records.FROM_CLIENT
        with pytest.raises(records.BadRecord):
            records.decode(vector.packet, vector.fds, other)


def test_garbage_raises_bad_record_and_nothing_else() -> None:
    chance = random.Random(1)
    packets = [vector.packet for vector in _vectors()]
    for _ in range(5_000):
        packet = bytearray(chance.choice(packets))
        for _ in range(chance.randint(1, 4)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        try:
            records.decode(bytes(packet), packet[2], records.FROM_CLIENT + records.FROM_DAEMON)
        except records.BadRecord:
            continue


def test_a_record_longer_than_a_packet_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="longer than a packet"):
        records.encode(records.Arrived(lease=1, slots=tuple(range(5_000)), failure=""))
