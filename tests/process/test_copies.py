"""Copying ahead by the real daemon and real clients: what is idle is in the arena before a neighbour takes its memory."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console

from vrambroker.broker.status_view import status_renderable
from vrambroker.client import Memory, connect
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.status import TagStatus

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker, WaitFor

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def broker(start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch) -> "RunningBroker":
    """A daemon that copies what is idle at once."""
    running = start_broker(options=["--copy-ahead", "0ms"])
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(running.run_dir))
    return running


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("trainer", broker.device) as attached:
        yield attached


def tag_of(memory: Memory, tag: str) -> TagStatus:
    session = memory.status().session(memory.name)
    assert session is not None
    return next(entry for entry in session.tags if entry.tag == tag)


def wait_until_copied(memory: Memory, broker: "RunningBroker", wait_for: "WaitFor") -> None:
    with ExitStack() as stack:
        wait_for(broker.control(stack), lambda: tag_of(memory, "optimizer").copied_bytes == SIZE)


# Takes all that the device has, gives it back, and says how that went.
NEIGHBOUR = """
import torch
from vrambroker.client import connect
memory = connect("neighbour")
taken = memory.empty(60 << 20, dtype=torch.uint8, tag="kv_cache", contents="drop")
taken.fill_(9)
tell("taken")
told()
del taken
memory.close()
tell("gone")
"""


def test_what_was_copied_ahead_is_taken_without_a_copy_and_comes_back_right(
    memory: Memory, broker: "RunningBroker", start_worker: "StartWorker", wait_for: "WaitFor"
) -> None:
    kept = torch.arange(SIZE).to(torch.uint8)
    tensor = memory.empty(SIZE, dtype=torch.uint8, tag="optimizer")
    tensor.copy_(kept)
    memory.pause("optimizer")
    wait_until_copied(memory, broker, wait_for)
    assert (tag_of(memory, "optimizer").state, memory.stats().copied_out_bytes) == ("idle", SIZE)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(status_renderable([memory.status()]))
    assert "idle, 24.0 MiB copied" in shown.get()
    neighbour = start_worker(NEIGHBOUR)
    assert neighbour.hear() == "taken"
    assert tag_of(memory, "optimizer").state in ("parked", "partial")
    assert memory.stats().copied_out_bytes == SIZE, "it only had to be unmapped"
    assert neighbour.ask() == "gone"
    neighbour.end()
    assert memory.resume("optimizer") == {"optimizer": False}
    assert torch.equal(tensor, kept)
    with ExitStack() as stack:
        events = list(broker.control(stack).watch(history=True, until_now=True))
    assert "copied out ahead, the link is idle" in [event.why for event in events]
    assert any("its contents parked already" in event.why for event in events if event.kind == "recalled")


def test_what_is_written_after_a_resume_is_what_counts(
    memory: Memory, broker: "RunningBroker", start_worker: "StartWorker", wait_for: "WaitFor"
) -> None:
    tensor = memory.empty(SIZE, dtype=torch.uint8, tag="optimizer")
    for fill in range(1, 6):
        # In mid-copy as well: nothing is waited for here.
        tensor.fill_(fill)
        memory.pause("optimizer")
        assert memory.resume("optimizer") == {"optimizer": True}
        assert tag_of(memory, "optimizer").host_bytes == 0
    tensor.fill_(77)
    memory.pause("optimizer", release=True)
    memory.resume("optimizer")
    assert tensor.eq(77).all()
    tensor.fill_(78)
    memory.pause("optimizer")
    wait_until_copied(memory, broker, wait_for)
    neighbour = start_worker(NEIGHBOUR)
    assert neighbour.hear() == "taken"
    neighbour.ask()
    memory.resume("optimizer")
    assert tensor.eq(78).all()


def test_what_is_sealed_keeps_the_copy_made_ahead(memory: Memory, broker: "RunningBroker", wait_for: "WaitFor") -> None:
    tensor = memory.empty(SIZE, dtype=torch.uint8, tag="optimizer")
    tensor.fill_(5)
    memory.seal("optimizer")
    memory.pause("optimizer")
    wait_until_copied(memory, broker, wait_for)
    memory.resume("optimizer")
    assert tag_of(memory, "optimizer").host_bytes == SIZE
    memory.pause("optimizer", release=True)
    assert memory.stats().copied_out_bytes == SIZE
    memory.resume("optimizer")
    assert tensor.eq(5).all()


def test_who_dies_in_mid_copy_leaves_nothing(
    broker: "RunningBroker", start_worker: "StartWorker", wait_for: "WaitFor"
) -> None:
    worker = start_worker("""
from vrambroker.client import connect
memory = connect("mortal")
import torch
kept = memory.empty(48 << 20, dtype=torch.uint8, tag="optimizer")
memory.pause("optimizer")
tell("paused")
told()
""")
    assert worker.hear() == "paused"
    worker.signal(signal.SIGKILL)
    with ExitStack() as stack:
        control = broker.control(stack)
        wait_for(control, lambda: not control.status().sessions and not control.status().host.file_bytes)
