"""Room for memory that is no lease, as whoever is about to start a process asks for it."""

from typing import TYPE_CHECKING

import pytest
import torch

from tests.process.test_cli import command
from tests.process.test_turns import DEADLINE_S, MIB
from vrambroker.client import InvalidArgument, OutOfDeviceMemory, UnknownTicket, connect, make_room

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker
    from vrambroker.client.rpc import Control

# Holds all of the device; pauses when told to, and looks at what it has after a resume.
HOLDER = """
import torch
from vrambroker.client import connect
memory = connect("holder")
kept = memory.empty(40 << 20, dtype=torch.uint8, tag="kept").fill_(7)
dropped = memory.empty(20 << 20, dtype=torch.uint8, tag="dropped", contents="drop")
tell("ready")
told()
memory.pause("kept", "dropped")
tell("paused")
told()
memory.resume("kept", timeout=20)
tell(int(kept.sum(dtype=torch.int64)) == 7 * kept.numel())
told()
memory.close()
"""


def test_room_waits_for_a_pause_and_is_nobodys_lease(
    broker: "RunningBroker", control: "Control", start_worker: "StartWorker"
) -> None:
    holder = start_worker(HOLDER)
    assert holder.hear() == "ready"
    capacity = control.status().device.capacity_bytes
    with pytest.raises(OutOfDeviceMemory) as caught:
        make_room(capacity // 2, broker.device, timeout=0)
    assert {"kept", "dropped"} == {one.tag for one in caught.value.holders}
    assert holder.ask() == "paused"
    with make_room(capacity // 2, broker.device, timeout=DEADLINE_S) as room:
        (kept,) = control.status().holds
        assert (kept.ticket, kept.size_bytes) == (room.ticket, capacity // 2)
        with connect("test", broker.device) as memory, pytest.raises(OutOfDeviceMemory):
            memory.empty(capacity // 2 + 2 * MIB, dtype=torch.uint8, tag="mine", contents="drop")
    assert control.status().holds == ()
    assert holder.ask() == "True", "what is kept is there after the room is given back"


def test_a_room_whose_time_is_over_is_free_again(broker: "RunningBroker", control: "Control") -> None:
    room = make_room(8 * MIB, broker.device, lasts=0.05)
    for event in control.watch(history=True):
        if "its time is over" in event.why:
            break
    status = control.status()
    assert (status.holds, status.device.free_bytes) == ((), status.device.capacity_bytes)
    room.release()


def test_make_room_on_the_command_line(broker: "RunningBroker", control: "Control") -> None:
    done = command(broker, "make-room", "8MiB", "--for", "600")
    assert done.returncode == 0, done.stderr
    (kept,) = control.status().holds
    assert (kept.ticket, kept.size_bytes) == (int(done.stdout), 8 * MIB)
    assert command(broker, "cancel", str(kept.ticket)).returncode == 0
    assert control.status().holds == ()


@pytest.mark.parametrize(
    ("words", "error"),
    [(("1TiB",), "InvalidArgument"), (("8MiB", "--for", "601"), "InvalidArgument"), (("8MB",), "InvalidArgument")],
)
def test_make_room_says_what_is_wrong(broker: "RunningBroker", words: tuple[str, ...], error: str) -> None:
    done = command(broker, "make-room", *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(error)


@pytest.mark.parametrize("lasts", [0, 601, -1, float("nan")])
def test_a_time_that_is_none_is_refused(broker: "RunningBroker", control: "Control", lasts: float) -> None:
    with pytest.raises(InvalidArgument):
        make_room(MIB, broker.device, lasts=lasts)
    assert control.status().holds == ()


def test_releasing_twice_and_releasing_what_others_have_ended_is_no_error(
    broker: "RunningBroker", control: "Control"
) -> None:
    room = make_room(8 * MIB, broker.device)
    control.cancel(room.ticket)
    with pytest.raises(UnknownTicket):
        control.cancel(room.ticket)
    room.release()
    room.release()
