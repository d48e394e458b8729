"""Contents that the host has no room for, over the real sockets and on a real disk."""

from pathlib import Path

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import MIB, Daemon
from tests.process.daemon.raw_client import DROP, RawClient, Refused
from vrambroker.v1 import broker_pb2 as v1

WHOLE = 128 * MIB


@pytest.fixture
def spilling(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    """A daemon with 128 MiB to lend, 32 MiB to park in, 32 MiB of staging room, and 256 MiB on a disk."""
    return start_daemon(
        capacity="128MiB",
        host_budget="64MiB",
        options=("--spill-dir", str(tmp_path), "--spill-budget", "256MiB"),
    )


def _told(daemon: Daemon, kind: str) -> list[str]:
    lines = daemon.operator.stub.Watch(v1.WatchRequest(history=True, until_now=True), timeout=20)
    return [line.why for line in lines if line.kind == kind]


def _fill(client: RawClient, tag: str, seed: int) -> int:
    lease = client.lease(tag, WHOLE)
    client.fill(lease, seed)
    return lease


def test_two_swap_more_than_the_host_can_hold(spilling: Daemon) -> None:
    trainer, rollout = spilling.client("trainer"), spilling.client("rollout")
    weights = _fill(trainer, "weights", 1)
    trainer.pause("weights")
    cache = _fill(rollout, "cache", 100_000)
    for _ in range(3):
        rollout.pause("cache")
        assert trainer.resume("weights", timeout_ms=20_000) == {"weights": False}
        assert trainer.intact(weights, 1)
        status = spilling.operator.status()
        assert status.host.spill_used_bytes >= WHOLE - 32 * MIB
        assert status.host.file_bytes <= status.host.budget_bytes == 64 * MIB
        trainer.pause("weights")
        assert rollout.resume("cache", timeout_ms=20_000) == {"cache": False}
        assert rollout.intact(cache, 100_000)
    told = _told(spilling, "spilled")
    arena = f"the arena has {32 * MIB} left"
    assert told[0] == f"trainer/weights: {WHOLE - 32 * MIB} bytes go to the spill directory: {arena}"
    rollout.give_back(cache)
    trainer.give_back(weights)
    freed = spilling.operator.wait_until(lambda status: not status.host.used_bytes)
    assert not freed.host.spill_used_bytes


def test_what_fits_in_neither_is_refused_with_both_named(spilling: Daemon) -> None:
    first, second, third = (spilling.client(name) for name in ("first", "second", "third"))
    lease = _fill(first, "a", 1)
    first.pause("a", release=True)
    _fill(second, "b", 50_000)
    second.pause("b", release=True)
    kept = third.lease("c", WHOLE)
    third.fill(kept, 90_000)
    with pytest.raises(Refused, match="the arena has room for 0 and the spill directory for 33554432") as caught:
        third.pause("c")
    assert caught.value.name == "OutOfHostMemory"
    assert third.intact(kept, 90_000)
    third.give_back(kept)
    first.resume("a", timeout_ms=20_000)
    assert first.intact(lease, 1)


def test_a_client_that_goes_leaves_nothing_in_the_store(spilling: Daemon) -> None:
    other = spilling.client("other")
    leaver = spilling.client("leaver")
    _fill(leaver, "weights", 1)
    leaver.pause("weights", release=True)
    assert spilling.operator.status().host.spill_used_bytes == WHOLE - 32 * MIB
    leaver.bye()
    freed = spilling.operator.wait_until(lambda status: not status.host.spill_used_bytes)
    assert len(freed.sessions) == 1
    lease = other.lease("cache", WHOLE, DROP)
    other.give_back(lease)
