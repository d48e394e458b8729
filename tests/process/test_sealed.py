"""Sealed tags against the real daemon: read-only, copied out once, and a copy that gives way to others' contents."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from vrambroker.client import (
    InvalidArgument,
    Memory,
    NotQuiescent,
    OutOfHostMemory,
    UnknownTag,
    WrongState,
    connect,
)
from vrambroker.client.rpc import Control
from vrambroker.client.status import TagStatus

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker

MIB = 1 << 20


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("worker", broker.device) as attached:
        yield attached


def tag_of(memory: Memory, tag: str) -> TagStatus:
    session = memory.status().session(memory.name)
    assert session is not None
    return next(entry for entry in session.tags if entry.tag == tag)


def test_what_is_sealed_is_copied_out_once(memory: Memory) -> None:
    tensor = memory.empty(4 * MIB, dtype=torch.uint8, tag="weights")
    kept = torch.arange(4 * MIB).to(torch.uint8)
    tensor.copy_(kept)
    memory.seal("weights")
    memory.pause("weights", release=True)
    copied = memory.stats().copied_out_bytes
    assert copied >= 4 * MIB
    for _ in range(3):
        assert memory.resume("weights") == {"weights": False}
        assert torch.equal(tensor, kept)
        there = tag_of(memory, "weights")
        assert (there.state, there.sealed, there.host_bytes) == ("resident", True, copied)
        memory.pause("weights", release=True)
    assert memory.stats().copied_out_bytes == copied
    memory.resume("weights")
    memory.unseal("weights")
    assert (tag_of(memory, "weights").host_bytes, tag_of(memory, "weights").sealed) == (0, False)
    tensor.fill_(1)
    memory.pause("weights", release=True)
    assert memory.stats().copied_out_bytes == 2 * copied
    memory.resume("weights")
    assert tensor.eq(1).all()


@pytest.mark.parametrize("paused", [False, True])
def test_sealing_and_unsealing_twice_and_while_paused(memory: Memory, paused: bool) -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(3)
    if paused:
        memory.pause("weights", release=True)
    for _ in range(2):
        memory.seal("weights")
    memory.resume("weights")
    memory.pause("weights", release=True)
    for _ in range(2):
        memory.unseal("weights")
    memory.resume("weights")
    assert tensor.eq(3).all()
    tensor.fill_(4)
    memory.pause("weights", release=True)
    memory.resume("weights")
    assert tensor.eq(4).all()


def test_nothing_is_allocated_under_a_sealed_tag(memory: Memory) -> None:
    kept = memory.empty(100, tag="weights")
    memory.seal("weights")
    for call in (
        lambda: memory.empty(100, tag="weights"),
        lambda: memory.empty(100, tag="weights", contents="drop"),
        lambda: memory.place(torch.ones(4), "weights"),
        lambda: memory.region("weights").__enter__(),
    ):
        with pytest.raises(WrongState, match="unseal it"):
            call()
    with memory.use("weights"):
        assert kept.numel() == 100
    memory.unseal("weights")
    assert memory.empty(100, tag="weights").numel() == 100


def test_what_can_not_be_sealed(memory: Memory) -> None:
    with pytest.raises(UnknownTag):
        memory.seal("nothing")
    with pytest.raises(UnknownTag):
        memory.unseal("nothing")
    with pytest.raises(InvalidArgument):
        memory.seal()
    kept, dropped = memory.empty(100, tag="weights"), memory.empty(100, tag="cache", contents="drop")
    with pytest.raises(InvalidArgument, match="kept"):
        memory.seal("weights", "cache")
    with memory.use("weights"), pytest.raises(NotQuiescent):
        memory.seal("weights")
    with memory.region("weights"), pytest.raises(WrongState):
        memory.seal("weights")
        torch.ones(MIB)
    memory.unseal("weights")
    kept.fill_(1)
    dropped.fill_(1)


def test_what_is_freed_while_sealed_goes_back(memory: Memory) -> None:
    tensor = memory.empty(8 * MIB, tag="weights")
    tensor.fill_(1)
    memory.seal("weights")
    memory.pause("weights", release=True)
    memory.resume("weights")
    del tensor
    memory.pause("weights", release=True)
    assert tag_of(memory, "weights").host_bytes == 0
    memory.unseal("weights")


def test_sealed_memory_is_a_fault_to_write_to(start_worker: "StartWorker") -> None:
    worker = start_worker("""
import torch
from vrambroker.client import connect
memory = connect("writer")
tensor = memory.empty(1 << 20, tag="weights")
tensor.fill_(5)
memory.seal("weights")
tell(tensor.eq(5).all().item())
tensor[7] = 1
tell("written")
""")
    assert worker.hear() == "True"
    with pytest.raises(AssertionError, match=f"ended with {-signal.SIGSEGV}"):
        worker.hear()


# The neighbour needs host memory for what it keeps, and takes the sealed one's place on the device.
NEIGHBOUR = """
import torch
from vrambroker.client import BrokerError, connect
memory = connect("neighbour")
kept = memory.empty(int(told()) << 20, dtype=torch.uint8, tag="kept")
kept.fill_(9)
tell("taken")
try:
    told()
    memory.pause("kept", release=True)
    tell("parked")
except BrokerError as error:
    tell(type(error).__name__)
told()
memory.resume("kept")
tell(kept.eq(9).all().item())
"""


def test_a_copy_that_nobody_needs_gives_way_to_a_neighbours_contents(
    start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.process.conftest import Worker
    from vrambroker.client.discovery import RUN_DIR_VARIABLE

    broker = start_broker(capacity="64MiB", host_budget="32MiB")
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(broker.run_dir))
    neighbour = Worker(NEIGHBOUR, environment=broker.environment)
    try:
        with connect("worker", broker.device) as memory:
            tensor = memory.empty(24 * MIB, dtype=torch.uint8, tag="weights")
            tensor.fill_(7)
            memory.seal("weights")
            memory.pause("weights", release=True)
            memory.resume("weights")
            assert memory.status().host.used_bytes == 24 * MIB
            assert neighbour.ask("24") == "taken"
            assert neighbour.ask() == "parked"
            assert tag_of(memory, "weights").host_bytes == 8 * MIB
            with pytest.raises(OutOfHostMemory) as caught:
                memory.pause("weights")
            assert "neighbour" in {holder.session for holder in caught.value.holders}
            assert neighbour.ask() == "True"
            memory.pause("weights", release=True)
            memory.resume("weights")
            assert tensor.eq(7).all()
        neighbour.end()
    finally:
        neighbour.close()


def test_status_and_stream_tell_of_seals(memory: Memory, control: Control) -> None:
    kept = memory.empty(100, tag="weights")
    memory.seal("weights")
    memory.seal("weights")
    memory.unseal("weights")
    told = [event.kind for event in control.watch(history=True, until_now=True) if "sealed" in event.kind]
    assert told == ["lease_sealed", "lease_unsealed"]
    del kept
