"""Another user's worker: `neighbour.py HANDLES GID [deaf]` parks, comes back, and so leaves the arena full of nothing.

A deaf one keeps its arena mapped when it is told to let go. It tells a line on stdout when it is back, waits for one on
stdin, and tells how much of the arena it maps then.
"""

import os
import sys
from pathlib import Path

from tests.process.daemon.raw_client import RawClient
from vrambroker.broker.adapters import records

MIB = 1 << 20
NOBODY = 65534


def main(handles: Path, gid: int, deaf: bool) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(NOBODY)
    client = RawClient(handles, "neighbour")
    if deaf:
        client.held.add(records.ArenaGone)
    lease = client.lease("weights", 32 * MIB)
    client.fill(lease, 1)
    client.pause("weights", release=True)
    client.resume("weights")
    print("back", flush=True)
    sys.stdin.readline()
    print(f"intact {client.intact(lease, 1)}, arena files {len(client.arena)}", flush=True)
    client.bye()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "deaf" in sys.argv[3:])
