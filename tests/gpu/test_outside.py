"""Memory outside of leases on a full device: a process that knows nothing of the broker gets room, asked for or not."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from vrambroker.client import connect, make_room

if TYPE_CHECKING:
    from tests.gpu.conftest import StartGpuBroker
    from tests.process.conftest import Worker

pytestmark = pytest.mark.gpu

GIB = 1 << 30

# Takes a GiB at a time, as often as it is told to, and tries again while there is none, for at most 20 s in all.
GROWER = """
import time
import torch
torch.cuda.init()
parts, until = [], time.monotonic() + 20
tell("there")
while number := told():
    failed = 0
    for _ in range(int(number)):
        while True:
            try:
                parts.append(torch.ones(1 << 30, dtype=torch.uint8, device="cuda"))
                break
            except torch.cuda.OutOfMemoryError:
                failed += 1
                if time.monotonic() > until:
                    raise
    tell(len(parts), failed)
"""


def fill(start_broker: "StartGpuBroker") -> int:
    """Start a daemon that lends all but 2 GiB; returns how many GiB are to be leased so that next to nothing is left."""
    gib = torch.cuda.mem_get_info()[1] // GIB - 3
    start_broker(capacity=f"{gib}GiB")
    return gib


def test_a_process_outside_grows_into_what_is_idle(
    start_broker: "StartGpuBroker", start_outsider: "Callable[[str], Worker]"
) -> None:
    gib = fill(start_broker)
    with connect("test") as memory:
        with memory.region("cache", contents="drop"):
            cache = torch.empty((gib - 2) * GIB, dtype=torch.uint8, device="cuda")
        memory.pause("cache")
        grower = start_outsider(GROWER)
        assert grower.hear() == "there"
        assert grower.ask("20").split()[0] == "20"
        status = memory.status()
        assert status.device.withheld_bytes > 15 * GIB
        assert status.device.eager
        assert status.sessions[0].tags[0].device_bytes < (gib - 18) * GIB
        grower.say("")
        grower.end()
        assert memory.resume("cache", timeout=20) == {"cache": False}
        assert int(cache.fill_(1)[:: 1 << 20].sum()) == cache.numel() >> 20
        del cache


def test_room_that_was_made_is_there_at_once(
    start_broker: "StartGpuBroker", start_outsider: "Callable[[str], Worker]"
) -> None:
    gib = fill(start_broker)
    with connect("test") as memory:
        with memory.region("kept"):
            kept = torch.randint(0, 256, (8 * GIB,), dtype=torch.uint8, device="cuda")
        with memory.region("cache", contents="drop"):
            cache = torch.empty((gib - 10) * GIB, dtype=torch.uint8, device="cuda")
        checked = int(kept.view(torch.int64).sum())
        memory.pause("cache")
        with make_room(16 * GIB, lasts=60):
            grower = start_outsider(GROWER)
            assert grower.hear() == "there"
            assert grower.ask("14") == "14 0", "no attempt failed"
        assert int(kept.view(torch.int64).sum()) == checked
        grower.say("")
        grower.end()
        del cache, kept
