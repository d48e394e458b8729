"""Pauses that discard: kept memory that takes no place on the host, comes back as zero, and is kept again the next time."""

from collections.abc import Iterator

import pytest
import torch

from tests.process.conftest import RunningBroker, StartBroker
from vrambroker.client import Memory, OutOfHostMemory, WrongState, connect
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.rpc import Control

MIB = 1 << 20


@pytest.fixture
def memory(broker: RunningBroker) -> Iterator[Memory]:
    with connect("rollout", broker.device) as attached:
        yield attached


def host_bytes(control: Control, tag: str) -> int:
    session = control.status().session("rollout")
    assert session is not None
    return sum(one.host_bytes for one in session.tags if one.tag == tag)


def test_discarded_memory_takes_nothing_of_the_host_and_is_zero(memory: Memory, control: Control) -> None:
    weights = memory.empty(8 * MIB, dtype=torch.uint8, tag="weights").fill_(7)
    address = weights.data_ptr()
    memory.pause("weights", release=True, discard=True)
    assert host_bytes(control, "weights") == 0
    with pytest.raises(WrongState):
        memory.read_paused(weights)
    assert memory.resume("weights") == {"weights": False}
    assert weights.data_ptr() == address
    assert not weights.any()


def test_the_next_pause_keeps(memory: Memory, control: Control) -> None:
    weights = memory.empty(2 * MIB, dtype=torch.uint8, tag="weights").fill_(7)
    memory.pause("weights", release=True, discard=True)
    memory.resume("weights")
    weights.fill_(8)
    memory.pause("weights", release=True)
    assert host_bytes(control, "weights") >= 2 * MIB
    memory.pause("weights", discard=True)
    memory.resume("weights")
    assert weights.eq(8).all()


def test_where_nobody_took_it_it_is_as_it_was(memory: Memory) -> None:
    weights = memory.empty(MIB, dtype=torch.uint8, tag="weights").fill_(7)
    memory.pause("weights", discard=True)
    assert memory.resume("weights") == {"weights": True}
    assert weights.eq(7).all()


def test_it_works_where_there_is_no_room_on_the_host(
    start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker(host_budget="4MiB")
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(broker.run_dir))
    with connect("rollout", broker.device) as memory:
        weights = memory.empty(16 * MIB, dtype=torch.uint8, tag="weights")
        with pytest.raises(OutOfHostMemory):
            memory.pause("weights")
        memory.pause("weights", release=True, discard=True)
        memory.resume("weights")
        del weights


def test_sealed_contents_are_not_discarded(memory: Memory) -> None:
    weights = memory.empty(MIB, dtype=torch.uint8, tag="weights").fill_(7)
    memory.seal("weights")
    with pytest.raises(WrongState):
        memory.pause("weights", discard=True)
    assert not memory.is_paused("weights")
    memory.unseal("weights")
    memory.pause("weights", discard=True)
    with pytest.raises(WrongState):
        memory.seal("weights")
    memory.resume("weights")
    assert weights.fill_(8).eq(8).all()
