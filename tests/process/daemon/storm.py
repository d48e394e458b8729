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
from collections import Counter
from pathlib import Path

from tests.process.daemon.raw_client import NO_TOKEN, Gone, Refused, connect, say_hello
from vrambroker.broker.adapters import records

VECTORS = [
    bytes.fromhex(line.partition(" | ")[2])
    for line in (Path(__file__).parents[3] / "proto" / "handles.vectors").read_text().splitlines()
    if " | " in line and not line.startswith("#")
]
WORDS = ("weights", "kv", "kv", "", "a/b", "x" * 65, "\x1b[31m", "\N{PILE OF POO}")
SIZES = (0, 1, 2 << 20, 4 << 20, 31 << 20, 1 << 40, (1 << 64) - 1)
ACCEPTED = tuple(record for record in records.FROM_CLIENT if record is not records.Hello)
# Of the connections, how many are a worker's; the packet that ends one has fds, or is spoiled.
GREETED = 0.3
SPOILED = 0.2


def _value(kind: str | records.ListOf, name: str, chance: random.Random) -> object:
    """Return a field's value: often one that means something, since numbers count up from 1."""
    if isinstance(kind, records.ListOf):
        assert isinstance(kind.entry, str)
        return tuple(_value(kind.entry, name, chance) for _ in range(chance.choice((0, 1, 1, 2, 40))))
    if kind == "str":
        return chance.choice(WORDS)
    if name == "size_bytes":
        return chance.choice(SIZES)
    bits = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}[kind]
    if name == "timeout_ms":
        return chance.choice((0, 1, 50, 4_000_000_000))
    return chance.choice((0, 1, 2, 3, chance.randrange(40), chance.randrange(200), chance.getrandbits(bits))) % (
        1 << bits
    )


def record(chance: random.Random) -> bytes:
    """Return a whole record of a worker's."""
    kind = chance.choice(ACCEPTED)
    values = {name: _value(layout, name, chance) for name, layout in kind.LAYOUT}
    return records.encode(kind(**values))


def spoiled(chance: random.Random) -> bytes:
    """Return noise, or a record with some bytes changed."""
    if chance.random() < 0.5:
        return chance.randbytes(chance.randint(1, 200))
    packet = bytearray(chance.choice(VECTORS))
    for _ in range(chance.randint(1, 3)):
        packet[chance.randrange(len(packet))] = chance.randrange(256)
    return bytes(packet)


def drain(connection: socket.socket) -> None:
    """Read what came, without waiting, and close the fds; raises `Gone`."""
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


def storm(handles: Path, chance: random.Random, fd: int, token: bytes, sent: Counter[str]) -> bytes:
    """Send packets over one connection until it is cut off, and count them. Returns the token to come back with."""
    with connect(handles) as connection:
        try:
            greeted = chance.random() < GREETED
            if greeted:
                token = say_hello(connection, "stranger", token=token).token
            for _ in range(chance.randint(1, 12) if greeted else 0):
                sent["whole"] += 1
                connection.send(record(chance))
                drain(connection)
            kind = "spoiled" if chance.random() < SPOILED else "with fds"
            sent[kind] += 1
            fds = array.array("i", [fd] * chance.choice((1, 3, 16, 253)) if kind == "with fds" else [])
            packet = spoiled(chance) if chance.random() < 0.5 or not fds else record(chance)
            connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
            drain(connection)
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
    while sent["with fds"] < packets:
        token = storm(handles, chance, fd, token, sent)
    print(json.dumps(sent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
