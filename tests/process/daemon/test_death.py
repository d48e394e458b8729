"""Clients that disappear, stop, or leave a child behind: their memory comes back, and nobody else notices."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import DEADLINE_S, MIB, ROOT, Daemon
from tests.process.daemon.raw_client import DROP, RawClient, Refused
from vrambroker.broker.adapters import records
from vrambroker.v1 import broker_pb2 as v1

WORKER = "tests.process.daemon.worker"


def _free(status: v1.Status) -> bool:
    device = status.device
    return device.free_bytes == device.capacity_bytes and not status.sessions and not status.queue


@contextmanager
def _mortal(daemon: Daemon, die_at: int) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", WORKER, str(daemon.handles), str(die_at)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _hear(process: "subprocess.Popen[str]") -> str:
    """Return the worker's next line; empty if it is dead."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable, "the worker says nothing"
    return process.stdout.readline().strip()


def _live(daemon: Daemon, die_at: int, bystander: RawClient) -> str:
    """Run a mortal worker beside a bystander who takes its memory while it is paused; returns its last words."""
    with _mortal(daemon, die_at) as process:
        if _hear(process) != "paused":
            return ""
        try:
            taken = bystander.lease("need", 32 * MIB, DROP, timeout_ms=15_000)
        except Refused as refused:
            # It has died just now, and nobody can say when its memory is out of everybody's reach.
            assert "held by mortal/" in str(refused) and "fenced" in str(refused)
        else:
            bystander.give_back(taken)
        assert process.stdin is not None
        if process.poll() is None:
            try:
                process.stdin.write("go\n")
                process.stdin.flush()
            except BrokenPipeError:
                return ""
        last = _hear(process)
        process.wait(DEADLINE_S)
        return last


def test_a_client_may_die_between_any_two_messages(start_daemon: StartDaemon) -> None:
    """The device has room for the bystander's 32 MiB only once the mortal's 6 MiB are taken from it, or it is dead."""
    daemon = start_daemon(capacity="32MiB", host_budget="16MiB")
    last = _live(daemon, -1, bystander=(bystander := daemon.client("bystander")))
    assert last.startswith("messages "), "alone it lives to the end"
    messages = int(last.split()[1])
    assert messages > 20
    fds = None
    for die_at in range(messages):
        assert _live(daemon, die_at, bystander) == ""
        status = daemon.operator.wait_until(
            lambda status: status.device.free_bytes == status.device.capacity_bytes and len(status.sessions) == 1
        )
        assert status.sessions[0].name == "bystander"
        fds = fds or daemon.fds()
        daemon.wait_for_fds(fds)
    assert daemon.process.poll() is None


def test_a_forked_child_holds_the_fence(shared: Daemon) -> None:
    """Memory of a dead client that a child of it still maps is not lent to anybody else before the child ends too."""
    script = f"""
import os, sys
from pathlib import Path
from tests.process.daemon.raw_client import RawClient
client = RawClient(Path({str(shared.handles)!r}), "parent")
lease = client.lease("weights", {48 * MIB})
client.fill(lease, 1)
child = os.fork()
if child == 0:
    sys.stdin.readline()
    assert client.intact(lease, 1)
    os.write(1, b"intact\\n")
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    other = shared.client("other")
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(_hear(parent))
        assert parent.wait(DEADLINE_S) == -signal.SIGKILL
        fenced = shared.operator.wait_until(lambda status: any(session.ended for session in status.sessions))
        assert fenced.device.held_bytes == 48 * MIB
        with pytest.raises(Refused) as caught:
            other.lease("need", 32 * MIB)
        holders = v1.ErrorDetail.FromString(caught.value.detail).holders
        assert [(holder.session, holder.state) for holder in holders] == [("parent", "fenced")]
        ended = os.pidfd_open(child)
        assert parent.stdin is not None
        parent.stdin.write("go\n")
        parent.stdin.flush()
        assert _hear(parent) == "intact"
        assert select.select([ended], [], [], DEADLINE_S)[0]
        os.close(ended)
    shared.operator.wait_until(lambda status: status.device.held_bytes == 0)
    lease = other.lease("need", 64 * MIB)
    assert other.leases[lease].mapped_bytes == 64 * MIB


def test_a_stopped_client_stalls_nobody_and_the_deadline_names_it(shared: Daemon) -> None:
    with _mortal(shared, -1) as process:
        assert _hear(process) == "paused"
        process.send_signal(signal.SIGSTOP)
        other = shared.client("other")
        small = other.lease("small", 16 * MIB)
        assert other.leases[small].mapped_bytes == 16 * MIB
        with pytest.raises(Refused) as caught:
            other.lease("large", 46 * MIB, DROP, timeout_ms=300)
        assert caught.value.name == "WaitExpired"
        holders = v1.ErrorDetail.FromString(caught.value.detail).holders
        assert {holder.session for holder in holders} == {"mortal"}
        assert other.resume("small") == {"small": True}
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert _hear(process).startswith("messages")
        process.wait(DEADLINE_S)


def test_a_replaced_connection_takes_up_where_the_old_one_ended(shared: Daemon) -> None:
    client = shared.client("trainer")
    lease = client.lease("weights", 4 * MIB)
    client.fill(lease, 1)
    session = client.welcome.session
    client.reconnect()
    assert shared.operator.status().sessions[0].connected
    client.drop_connection()
    shared.operator.wait_until(lambda status: not status.sessions[0].connected)
    client.reconnect()
    past = list(shared.operator.stub.Watch(v1.WatchRequest(history=True, until_now=True), timeout=DEADLINE_S))
    # A connection that takes another's place changes nothing that anybody sees.
    flips = [event.kind for event in past if event.session == "trainer" and "connected" in event.kind]
    assert flips[-2:] == ["session_disconnected", "session_connected"]
    assert shared.operator.status().sessions[0].connected
    assert client.welcome.session == session
    assert client.intact(lease, 1)
    client.pause("weights")
    assert client.resume("weights") == {"weights": True}


def test_a_grant_that_was_lost_with_its_connection_is_sent_again(shared: Daemon) -> None:
    client = shared.client("trainer")
    client.held.add(records.Grant)

    def request(number: int) -> records.Record:
        return records.Lease(request=number, contents=1, size_bytes=4 * MIB, timeout_ms=5_000, tag="weights")

    number = client.begin(request)
    client.wait_for(lambda: len(client.kept_back) == 1)
    lost = client.kept_back.popleft()
    for fd in lost.fds:
        os.close(fd)
    client.drop_connection()
    client.held.clear()
    client.reconnect()
    done = client.ask(request, number)
    assert client.leases[done.lease].mapped_bytes == 4 * MIB
    assert shared.operator.status().device.lent_bytes == 4 * MIB


@pytest.mark.parametrize("lost", [(records.Recall,), (records.ArenaFile, records.Recall)])
def test_an_order_that_was_lost_is_given_again_and_contents_are_kept(
    shared: Daemon, lost: tuple[type[records.Record], ...]
) -> None:
    """The second time, the file of the arena that the recall names was lost as well."""
    client, other = shared.client("trainer"), shared.client("other")
    lease = client.lease("weights", 40 * MIB)
    client.fill(lease, 1)
    client.pause("weights")
    client.held.update(lost)
    waiting = other.begin(
        lambda number: records.Lease(request=number, contents=2, size_bytes=48 * MIB, timeout_ms=15_000, tag="need")
    )
    client.wait_for(lambda: len(client.kept_back) > 0)
    client.drop_connection()
    for received in client.kept_back:
        for fd in received.fds:
            os.close(fd)
    client.held.clear()
    client.reconnect()
    needed = other.answer(waiting).lease
    other.give_back(needed)
    assert client.resume("weights", timeout_ms=10_000) == {"weights": False}
    assert client.intact(lease, 1)


def test_one_request_a_hundred_times_is_one_request(shared: Daemon) -> None:
    client = shared.client("trainer")

    def request(number: int) -> records.Record:
        return records.Lease(request=number, contents=1, size_bytes=4 * MIB, timeout_ms=5_000, tag="weights")

    first = client.ask(request)
    for turn in range(100):
        if turn % 25 == 24:
            client.reconnect()
        assert client.ask(request, 1) == first
    assert shared.operator.status().device.lent_bytes == 4 * MIB
    with pytest.raises(Refused) as caught:
        client.ask(
            lambda number: records.Pause(request=number, release=0, discard=0, timeout_ms=0, tags=("weights",)), 1
        )
    assert caught.value.name == "RequestConflict"


def test_a_rpc_a_hundred_times_is_one_call(shared: Daemon) -> None:
    client = shared.client("trainer")
    request = v1.LeaseRequest(request_id="once", tag="weights", contents=v1.CONTENTS_KEEP, size_bytes=4 * MIB)
    metadata = (("vrambroker-token-bin", client.token),)
    answers = [shared.operator.stub.Lease(request, metadata=metadata, timeout=20) for _ in range(100)]
    assert all(answer == answers[0] for answer in answers)
    client.claim(answers[0].claim)
    assert shared.operator.status().device.lent_bytes == 4 * MIB


def test_a_token_is_worth_nothing_in_another_process(shared: Daemon) -> None:
    client = shared.client("trainer")
    script = f"""
import sys
from pathlib import Path
from tests.process.daemon.raw_client import Refused, connect, say_hello
try:
    say_hello(connect(Path({str(shared.handles)!r})), "thief", token=bytes.fromhex({client.token.hex()!r}))
except Refused as refused:
    print(refused.name)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert ran.stdout.strip() == "NotOwner"
    assert client.lease("still", 2 * MIB)


@pytest.mark.parametrize("goodbye", ["Return", "Bye"])
def test_memory_given_back_and_kept_all_the_same_is_lent_to_nobody(shared: Daemon, goodbye: str) -> None:
    """What a client says of its memory is believed when the kernel says so, too."""
    liar, other = shared.client("liar"), shared.client("other")
    number = liar.lease("weights", 48 * MIB)
    liar.fill(number, 1)
    lies: dict[str, Callable[[int], records.Record]] = {
        "Return": lambda request: records.Return(request=request, lease=number, slots=()),
        "Bye": lambda request: records.Bye(request=request),
    }
    liar.ask(lies[goodbye])
    assert shared.operator.status().device.held_bytes == 48 * MIB
    with pytest.raises(Refused) as caught:
        other.lease("need", 32 * MIB, timeout_ms=200)
    assert caught.value.name == "WaitExpired"
    assert liar.intact(number, 1)
    for slot in liar.leases.pop(number).slots.values():
        assert slot.memory is not None
        slot.memory.close()
    shared.operator.wait_until(lambda status: status.device.free_bytes == status.device.capacity_bytes)
    assert other.lease("need", 64 * MIB)
    if goodbye == "Bye":
        liar.close()


def test_a_goodbye_leaves_nothing(shared: Daemon) -> None:
    client = shared.client("trainer")
    client.lease("weights", 4 * MIB)
    client.pause("weights", release=True)
    client.bye()
    shared.operator.wait_until(_free)
