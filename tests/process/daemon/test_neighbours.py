"""Users who share a device: one's empty part of the arena is no reason to refuse another's contents a place."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.process.daemon.harness import DEADLINE_S, MIB, ROOT, Daemon
from tests.process.daemon.raw_client import KEEP
from vrambroker.broker.adapters import records

NEIGHBOUR = "tests.process.daemon.neighbour"
GID = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def _neighbour(daemon: Daemon, *manners: str) -> Iterator["subprocess.Popen[str]"]:
    """Let another user in, with the whole arena theirs and nothing in it."""
    for path in (daemon.handles, daemon.folder / "rpc.sock"):
        os.chown(path, -1, GID)
    command = [sys.executable, "-m", NEIGHBOUR, str(daemon.handles), str(GID), *manners]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert _hear(process) == "back"
            host = daemon.operator.status().host
            assert (host.used_bytes, host.file_bytes) == (0, host.budget_bytes)
            yield process
        finally:
            process.kill()


def _hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable, "the neighbour says nothing"
    return process.stdout.readline().strip()


def test_an_empty_file_goes_when_another_user_needs_its_room(daemon: Daemon) -> None:
    client = daemon.client("trainer")
    lease = client.lease("weights", 32 * MIB, KEEP)
    client.fill(lease, 2)
    with _neighbour(daemon) as neighbour:
        client.pause("weights", release=True)
        assert client.leases[lease].mapped_bytes == 0
        host = daemon.operator.status().host
        assert (host.used_bytes, host.file_bytes) == (32 * MIB, 64 * MIB)
        client.resume("weights")
        assert client.intact(lease, 2)
        assert neighbour.stdin is not None
        neighbour.stdin.write("\n")
        neighbour.stdin.flush()
        assert _hear(neighbour) == "intact True, arena files 0"


def test_who_does_not_let_go_keeps_the_frames_waiting_until_its_end_and_no_contents_are_lost(daemon: Daemon) -> None:
    client = daemon.client("trainer")
    lease = client.lease("weights", 32 * MIB, KEEP)
    client.fill(lease, 2)
    with _neighbour(daemon, "deaf") as neighbour:
        client.pause("weights")
        waiting = client.begin(
            lambda number: records.Pause(request=number, release=1, discard=0, timeout_ms=0, tags=("weights",))
        )
        daemon.operator.wait_until(lambda status: status.host.used_bytes == 32 * MIB)
        assert client.leases[lease].mapped_bytes == 32 * MIB
        neighbour.kill()
        client.answer(waiting)
    assert client.leases[lease].mapped_bytes == 0
    client.resume("weights", timeout_ms=10_000)
    assert client.intact(lease, 2)
