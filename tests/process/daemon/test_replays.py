"""One request a hundred times is one request, for every verb that changes something, on either plane."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.process.daemon.harness import DEADLINE_S, MIB, Daemon, Operator
from tests.process.daemon.raw_client import RawClient
from vrambroker.broker.adapters import records
from vrambroker.v1 import broker_pb2 as v1

TIMES = 100
LONG_MS = 60_000
Ask = Callable[[], object]


def _ledger(daemon: Daemon) -> tuple[v1.Status, list[v1.Event]]:
    """Return what the daemon knows and all it has told; only the time of asking is left out."""
    status = daemon.operator.status()
    status.ClearField("now_ns")
    past = daemon.operator.stub.Watch(v1.WatchRequest(history=True, until_now=True), timeout=DEADLINE_S)
    return status, list(past)


def _worker(daemon: Daemon) -> tuple[RawClient, dict[str, int]]:
    """Return a session with a lease in use, one that is paused, and one that is parked."""
    client = daemon.client("trainer")
    client.scopes["used"] = "quiet"
    leases = {tag: client.lease(tag, 4 * MIB) for tag in ("used", "idle", "parked")}
    client.pause("idle")
    client.pause("parked", release=True)
    # Its frames are held until it is proven that nobody reaches them; that is no later call's doing.
    daemon.wait_for_status(lambda status: status.device.held_bytes == 0)
    return client, leases


def _repeat(daemon: Daemon, ask: Ask) -> None:
    first = ask()
    after = _ledger(daemon)
    for _ in range(TIMES):
        assert ask() == first
    assert _ledger(daemon) == after


@pytest.mark.parametrize("verb", ["Lease", "Claim", "Return", "Pause", "Release", "Resume", "ResumeParked"])
def test_on_the_handle_socket(shared: Daemon, verb: str) -> None:
    client, leases = _worker(shared)
    lease = v1.LeaseRequest(
        request_id=uuid.uuid4().hex, tag="new", contents=v1.CONTENTS_DROP, size_bytes=2 * MIB, timeout_ms=LONG_MS
    )
    claim = shared.operator.stub.Lease(
        lease, timeout=DEADLINE_S, metadata=(("vrambroker-token-bin", client.token),)
    ).claim
    returned = leases["idle"]
    requests: dict[str, Callable[[int], records.Record]] = {
        "Lease": lambda number: records.Lease(request=number, contents=1, size_bytes=2 * MIB, timeout_ms=0, tag="x"),
        "Claim": lambda number: records.Claim(request=number, claim=claim),
        "Return": lambda number: records.Return(request=number, lease=returned, slots=()),
        "Pause": lambda number: records.Pause(request=number, release=0, discard=0, timeout_ms=0, tags=("used",)),
        "Release": lambda number: records.Pause(
            request=number, release=1, discard=0, timeout_ms=0, tags=("used", "idle")
        ),
        "Resume": lambda number: records.Resume(request=number, timeout_ms=0, tags=("idle",)),
        "ResumeParked": lambda number: records.Resume(request=number, timeout_ms=LONG_MS, tags=("parked",)),
    }
    if verb == "Return":
        for slot in client.leases.pop(returned).slots.values():
            assert slot.memory is not None
            slot.memory.close()
    number = 1_000_000
    client.ask(requests[verb], number)
    # What the answer set in motion comes to rest, and is not a replay's doing.
    shared.wait_for_status(lambda status: status.device.held_bytes == (0 if verb == "Claim" else 2 * MIB))
    _repeat(shared, lambda: client.ask(requests[verb], number))
    client.reconnect()
    assert client.ask(requests[verb], number).request == number


@pytest.mark.parametrize("verb", ["Lease", "Return", "Pause", "Resume", "SetPlan", "Enter", "Mark", "Attach", "Detach"])
def test_over_grpc(shared: Daemon, verb: str) -> None:
    client, leases = _worker(shared)
    by_operator = Operator(shared.folder)
    once = uuid.uuid4().hex
    off, on = v1.Phase(name="off", tags=["nobody/*"]), v1.Phase(name="on", tags=["trainer/used"])
    plan = v1.Plan(order=v1.ORDER_DEVICE, phases=[off, on])
    requests: dict[str, Any] = {
        "Lease": v1.LeaseRequest(
            request_id=once, tag="x", contents=v1.CONTENTS_KEEP, size_bytes=2 * MIB, timeout_ms=LONG_MS
        ),
        "Return": v1.ReturnRequest(request_id=once, lease=leases["parked"]),
        "Pause": v1.PauseRequest(request_id=once, session="trainer", tags=["used"]),
        "Resume": v1.ResumeRequest(request_id=once, session="trainer", tags=["idle"]),
        "SetPlan": v1.SetPlanRequest(request_id=once, plan=plan),
        "Enter": v1.EnterRequest(request_id=once, phase="off"),
        "Mark": v1.MarkRequest(request_id=once, label="once"),
        "Attach": v1.AttachRequest(request_id=once, name="second"),
        "Detach": v1.DetachRequest(request_id=once),
    }
    token = by_operator.token if verb in ("Attach", "Pause", "Resume", "SetPlan", "Enter") else client.token
    if verb == "Detach":
        for lease in client.leases.values():
            for slot in lease.slots.values():
                if slot.memory is not None:
                    slot.memory.close()

    def ask() -> object:
        method = getattr(by_operator.stub, verb)
        return method(requests[verb], timeout=DEADLINE_S, metadata=(("vrambroker-token-bin", token),))

    if verb == "Enter":
        setting = v1.SetPlanRequest(request_id=uuid.uuid4().hex, plan=plan)
        by_operator.stub.SetPlan(setting, timeout=DEADLINE_S, metadata=(("vrambroker-token-bin", token),))
    ask()
    shared.wait_for_status(lambda status: status.device.held_bytes == (2 * MIB if verb == "Lease" else 0))
    _repeat(shared, ask)
    if verb == "Lease":
        client.claim(by_operator.stub.Lease(requests[verb], metadata=(("vrambroker-token-bin", token),)).claim)
    if verb == "Attach":
        by_operator.stub.Detach(
            v1.DetachRequest(request_id="out"), metadata=(("vrambroker-token-bin", token),), timeout=DEADLINE_S
        )
    if verb == "Detach":
        client.close()
    by_operator.close()


def test_a_late_replay_undoes_nothing(shared: Daemon) -> None:
    """A pause that comes again after the resume pauses nothing, and the other way round."""
    client, _ = _worker(shared)

    def pause(number: int) -> records.Record:
        return records.Pause(request=number, release=0, discard=0, timeout_ms=0, tags=("used",))

    def resume(number: int) -> records.Record:
        return records.Resume(request=number, timeout_ms=0, tags=("used",))

    first, second, third = (client.ask(pause, 101), client.ask(resume, 102), client.ask(pause, 103))
    paused = _ledger(shared)
    assert client.ask(resume, 102) == second
    assert _ledger(shared) == paused
    client.ask(resume, 104)
    resumed = _ledger(shared)
    assert client.ask(pause, 101) == first
    assert client.ask(pause, 103) == third
    assert _ledger(shared) == resumed
