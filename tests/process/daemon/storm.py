"""A hostile process: `storm.py HANDLES SEED PACKETS` sends so many random packets with fds, many others, and ends.

A packet with fds ends its connection, and so does what can't be decoded; so before that come whole records, with numbers
and words that may mean something. It comes back with its token, until that is worth nothing. It prints how many packets
it has sent of each kind.
"""

import array
import json
import os
import random
import select
import socket
import sys
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.process.daemon.raw_client import NO_TOKEN, Gone, Refused, connect, say_hello
from vrambroker.broker.adapters import records

VECTORS = [
    bytes.fromhex(line.partition(" | ")[2])
    for line in (Path(__file__).parents[3] / "proto" / "handles.vectors").read_text().splitlines()
    if " | " in line and not line.startswith("#")
]
WORDS = ("weights", "kv", "kv", "", "a/b", "x" * 65, "\x1b[31m", "\N{PILE OF POO}")
SIZES = (0, 1, 2 << 20, 4 << 20, 31 << 20, 1 << 40, (1 << 64) - 1)
ACCEPTED: tuple[type[records.Record], ...] = (
    *(kind for kind in records.FROM_CLIENT if kind not in (records.Hello, records.Bye)),
    records.Lease,
    records.Pause,
)
# Of the connections, how many are a worker's; the packet that ends one has fds, or is spoiled.
GREETED = 0.3
SPOILED = 0.2


def _value(kind: str | records.ListOf, name: str, chance: random.Random, heard: Sequence[int]) -> object:
    """Return a field's value: often one that means something, as a number that was heard does."""
    if isinstance(kind, records.ListOf):
        return tuple(_entry(kind.entry, name, chance, heard) for _ in range(chance.choice((0, 1, 1, 2, 40))))
    if kind == "token":
        # The key of an export: one of few, so that some are read.
        return bytes([chance.randrange(4)]) * 16
    if kind == "str":
        return chance.choice(WORDS)
    if name == "size_bytes":
        return chance.choice(SIZES)
    bits = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}[kind]
    if name == "timeout_ms":
        return chance.choice((0, 1, 50, 4_000_000_000))
    if name.startswith(("lease", "slot", "order", "batch", "claim")) and heard and chance.random() < 0.8:
        return chance.choice(heard)
    return chance.choice((0, 1, 2, chance.randrange(200), chance.getrandbits(bits))) % (1 << bits)


def _entry(kind: str | type[Any], name: str, chance: random.Random, heard: Sequence[int]) -> object:
    if isinstance(kind, str):
        return _value(kind, name, chance, heard)
    return kind(**{field: _value(layout, field, chance, heard) for field, layout in kind.LAYOUT})


def record(chance: random.Random, heard: Sequence[int]) -> bytes:
    """Return a whole record of a worker's."""
    kind = chance.choice(ACCEPTED) if chance.random() < 0.97 else records.Bye
    values: dict[str, Any] = {name: _value(layout, name, chance, heard) for name, layout in kind.LAYOUT}
    return records.encode(kind(**values))


def spoiled(chance: random.Random) -> bytes:
    """Return noise, or a record with some bytes changed."""
    if chance.random() < 0.5:
        return chance.randbytes(chance.randint(1, 200))
    packet = bytearray(chance.choice(VECTORS))
    for _ in range(chance.randint(1, 3)):
        packet[chance.randrange(len(packet))] = chance.randrange(256)
    return bytes(packet)


def drain(connection: socket.socket, heard: deque[int]) -> None:
    """Read what came, without waiting, close the fds, and note the numbers in it; raises `Gone`."""
    room = socket.CMSG_SPACE(4 * records.FDS_PER_PACKET_MAX)
    while select.select([connection], [], [], 0)[0]:
        data, control, _, _ = connection.recvmsg(records.PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise Gone
        fds = array.array("i")
        for _, _, rights in control:
            fds.frombytes(rights)
        for fd in fds:
            os.close(fd)
        told = records.decode(data, len(fds), records.FROM_DAEMON)
        for name in ("batch", "lease", "order", "claim"):
            heard.extend([getattr(told, name)] if getattr(told, name, 0) else [])
        if isinstance(told, records.Grant | records.Recall):
            heard.extend(one.slot for one in told.slots)


def storm(handles: Path, chance: random.Random, fd: int, token: bytes, sent: Counter[str], heard: deque[int]) -> bytes:
    """Send packets over one connection until it is cut off, and count them. Returns the token to come back with."""
    with connect(handles) as connection:
        try:
            greeted = chance.random() < GREETED
            if greeted:
                token = say_hello(connection, "stranger", token=token).token
            for _ in range(chance.randint(1, 12) if greeted else 0):
                sent["whole"] += 1
                connection.send(record(chance, heard))
                drain(connection, heard)
            kind = "spoiled" if chance.random() < SPOILED else "with fds"
            sent[kind] += 1
            fds = array.array("i", [fd] * chance.choice((1, 3, 16, 253)) if kind == "with fds" else [])
            packet = spoiled(chance) if chance.random() < 0.5 or not fds else record(chance, heard)
            connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
            drain(connection, heard)
        except Refused:
            return NO_TOKEN
        except (Gone, BrokenPipeError, ConnectionResetError):
            pass
    return token


def main(handles: Path, seed: int, packets: int) -> None:
    chance = random.Random(seed)
    fd = os.open("/dev/null", os.O_RDONLY)
    sent: Counter[str] = Counter()
    token = NO_TOKEN
    heard: deque[int] = deque(maxlen=12)
    while sent["with fds"] < packets:
        token = storm(handles, chance, fd, token, sent, heard)
    print(json.dumps(sent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
