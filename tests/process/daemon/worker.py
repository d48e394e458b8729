"""A worker process for tests that need one to kill: `worker.py HANDLES DIE_AT` lives the whole life of a session.

It kills itself at its DIE_AT-th message on the handle socket, sent or received; 0 is before it connects. It tells a
line on stdout and waits for one on stdin at the point where the test's other client needs the memory.
"""

import os
import signal
import sys
from pathlib import Path

from tests.process.daemon.raw_client import DROP, RawClient
from vrambroker.broker.adapters import records

MIB = 1 << 20


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tell(line: str) -> None:
    print(line, flush=True)


def main(handles: Path, die_at: int) -> None:
    def count(record: records.Record, number: int) -> None:
        if number == die_at:
            die()

    if die_at == 0:
        die()
    client = RawClient(handles, "mortal", on_message=count)
    lease = client.lease("weights", 4 * MIB)
    client.fill(lease, 1)
    client.lease("cache", 2 * MIB, DROP)
    client.pause("weights", "cache")
    tell("paused")
    sys.stdin.readline()
    client.resume("weights", "cache", timeout_ms=10_000)
    if not client.intact(lease, 1):
        sys.exit("contents are lost")
    client.give_back(lease)
    client.bye()
    tell(f"messages {client.messages}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
