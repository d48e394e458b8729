"""A hostile process: `storm.py HANDLES SEED PACKETS` sends so many random packets, some with fds, and ends."""

import array
import os
import random
import select
import socket
import sys
from pathlib import Path

from tests.process.daemon.raw_client import Gone, Refused, connect, say_hello
from vrambroker.broker.adapters import records

PACKETS_PER_CONNECTION = 200
VECTORS = [
    bytes.fromhex(line.partition(" | ")[2])
    for line in (Path(__file__).parents[3] / "proto" / "handles.vectors").read_text().splitlines()
    if " | " in line and not line.startswith("#")
]


def packet(chance: random.Random) -> bytes:
    """Return noise, or a record with some bytes changed, which gets further."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randint(1, 200))
    spoiled = bytearray(chance.choice(VECTORS))
    for _ in range(chance.randint(0, 3)):
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    return bytes(spoiled)


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


def storm(handles: Path, chance: random.Random, fd: int) -> int:
    """Send packets over one connection until it is cut off; returns how many it took."""
    with connect(handles) as connection:
        sent = 0
        try:
            if chance.random() < 0.7:
                say_hello(connection, "stranger")
            while sent < PACKETS_PER_CONNECTION:
                fds = array.array("i", [fd] * chance.choice((0, 0, 1, 3, 16)))
                sent += 1
                connection.sendmsg([packet(chance)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
                drain(connection)
        except (Gone, Refused, BrokenPipeError, ConnectionResetError):
            pass
        return sent


def main(handles: Path, seed: int, packets: int) -> None:
    chance = random.Random(seed)
    fd = os.open("/dev/null", os.O_RDONLY)
    sent = 0
    while sent < packets:
        sent += storm(handles, chance, fd)
    print(sent)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
