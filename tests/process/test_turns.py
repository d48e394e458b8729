"""Priorities, capacity set aside, and tickets cancelled, as workers and operators do it."""

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from tests.process.test_cli import command
from vrambroker.client import InvalidArgument, OutOfDeviceMemory, UnknownTicket, connect
from vrambroker.client.rpc import Control

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker, Worker

MIB = 1 << 20
DEADLINE_S = 30.0

# Has 20 MiB parked and 40 in use; then wants the former back, and says how that went.
WORKER = """
import torch
from vrambroker.client import BrokerError, connect
memory = connect("worker")
parked = memory.empty(20 << 20, dtype=torch.uint8, tag="parked").fill_(7)
memory.pause("parked", release=True)
memory.prioritize("parked", priority=5)
busy = memory.empty(40 << 20, dtype=torch.uint8, tag="busy", contents="drop")
tell("ready")
told()
try:
    memory.resume("parked", timeout=20)
    tell("resumed", int(parked.sum(dtype=torch.int64)) == 7 * parked.numel())
except BrokerError as error:
    tell(type(error).__name__, error)
told()
memory.pause("busy")
tell("paused")
told()
memory.close()
"""


def wait_for_ticket(control: Control, broker: "RunningBroker") -> int:
    """Return the number of the first ticket that waits, as soon as one does."""
    for event in control.watch(history=True):
        if event.kind == "ticket_queued" and event.ticket in {one.ticket for one in control.status().queue}:
            return event.ticket
    raise AssertionError(broker.log())


@pytest.fixture
def worker(broker: "RunningBroker", start_worker: "StartWorker") -> "Worker":
    started = start_worker(WORKER)
    assert started.hear() == "ready"
    return started


def test_a_ticket_is_seen_with_its_priority_and_cancelled(
    broker: "RunningBroker", control: Control, worker: "Worker"
) -> None:
    with connect("test", broker.device) as memory:
        taken = memory.empty(10 * MIB, dtype=torch.uint8, tag="mine", contents="drop")
        worker.say()
        ticket = wait_for_ticket(control, broker)
        (waiting,) = control.status().queue
        assert (waiting.session, waiting.tags, waiting.priority) == ("worker", ("parked",), 5)
        control.cancel(ticket)
        assert worker.hear().startswith("Cancelled ticket ")
        with pytest.raises(UnknownTicket) as caught:
            control.cancel(ticket)
        assert caught.value.ticket == ticket
        del taken


def test_two_that_wait_for_each_other_are_told(broker: "RunningBroker", control: Control, worker: "Worker") -> None:
    with connect("test", broker.device) as memory:
        parked = memory.empty(12 * MIB, dtype=torch.uint8, tag="parked")
        memory.pause("parked", release=True)
        taken = memory.empty(14 * MIB, dtype=torch.uint8, tag="taken", contents="drop")
        worker.say()
        wait_for_ticket(control, broker)
        with pytest.raises(OutOfDeviceMemory, match="a ring, of which test/parked is the last"):
            memory.resume("parked", timeout=DEADLINE_S)
        memory.pause("taken")
        assert worker.hear() == "resumed True"
        del taken, parked


def test_what_is_set_aside_is_there_when_it_is_needed(broker: "RunningBroker") -> None:
    with connect("test", broker.device) as memory:
        with memory.hold(48 * MIB) as held:
            (seen,) = memory.status().holds
            assert (seen.ticket, seen.session, seen.size_bytes) == (held.ticket, "test", 48 * MIB)
            with pytest.raises(OutOfDeviceMemory) as caught:
                memory.hold(32 * MIB, timeout=0)
            assert [(one.session, one.state) for one in caught.value.holders] == [("test", "held")]
            tensor = memory.empty(40 * MIB, dtype=torch.uint8, tag="mine", contents="drop").fill_(1)
            assert memory.status().holds[0].size_bytes == 8 * MIB
        assert not memory.status().holds
        held.release()
        del tensor


@pytest.mark.parametrize("size", [0, -1, 1.5, "1GiB", 1 << 70, 1 << 40, True])
def test_what_can_not_be_set_aside(broker: "RunningBroker", size: object) -> None:
    with connect("test", broker.device) as memory, pytest.raises(InvalidArgument):
        memory.hold(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("priority", [101, "1", 1.0, None])
def test_what_is_no_priority(broker: "RunningBroker", priority: object) -> None:
    with connect("test", broker.device) as memory:
        kept = memory.empty(MIB, dtype=torch.uint8, tag="mine")
        with pytest.raises(InvalidArgument):
            memory.prioritize("mine", priority=priority)  # type: ignore[arg-type]
        del kept


def test_a_budget_is_set_from_outside_and_holds(broker: "RunningBroker", worker: "Worker") -> None:
    run_cli = partial(command, broker)
    answered = run_cli("budget", "worker", "--hard", "48MiB")
    assert (answered.returncode, answered.stdout) == (0, "applied: revision 1, soft None, hard 50331648 bytes\n")
    assert worker.ask().startswith("QuotaExceeded worker uses ")
    conflict = run_cli("budget", "worker", "--hard", "60MiB", "--revision", "0")
    assert (conflict.returncode, conflict.stdout[:9]) == (1, "conflict:")
    assert run_cli("budget", "worker/busy", "--soft", "1MiB", "--hard", "2MiB").stdout.startswith("deferred: ")
    lifted = run_cli("budget", "worker")
    assert lifted.stdout == "applied: revision 2, soft None, hard None bytes\n"
    wrong = run_cli("budget", "worker", "--hard", "much")
    assert (wrong.returncode, wrong.stderr.startswith("InvalidArgument: ")) == (1, True)
    assert run_cli("budget", "nobody", "--hard", "1MiB").stderr.startswith("UnknownSession: ")
