"""Reads a daemon's metrics as a scraper does, over a socket."""

import re
import socket
from pathlib import Path

from tests.process.daemon.harness import DEADLINE_S, Daemon

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
TOLD_AT = re.compile(r"metrics are told at \('127\.0\.0\.1', (\d+)\)")


def port_of(daemon: Daemon) -> int:
    """Return the port that the daemon chose for its metrics."""
    found = TOLD_AT.search(daemon.log())
    assert found is not None, daemon.log()
    return int(found[1])


def connect(where: int | Path) -> socket.socket:
    """Return a connection to a port of the loopback or a unix socket; the caller's."""
    made = socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(DEADLINE_S)
    made.connect(("127.0.0.1", where) if isinstance(where, int) else str(where))
    return made


def ask(where: int | Path, request: bytes = GET) -> tuple[str, dict[str, str], str]:
    """Return the status line, the fields of the head and the body of the answer; empty if there is none."""
    with connect(where) as made:
        made.sendall(request)
        parts: list[bytes] = []
        while part := made.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return status, fields, body


def value_of(body: str, name: str, **labels: str) -> float:
    """Return the value of the one sample of this name that has these labels."""
    (found,) = (
        line.rpartition(" ")[2]
        for line in body.splitlines()
        if re.match(rf"{name}[{{ ]", line) and all(f'{label}="{value}"' in line for label, value in labels.items())
    )
    return float(found)
