"""Too much of anything: a typed error for whoever asks for more, and service as before for everybody else."""

import json
import resource
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.process.daemon.harness import DEADLINE_S, MIB, Daemon, typed, typed_errors
from tests.process.daemon.raw_client import NO_TOKEN, Gone, Refused, connect, receive, say_hello
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.doorway import CONNECTIONS_PER_PROCESS
from vrambroker.broker.adapters.roster import SESSIONS_PER_PROCESS
from vrambroker.broker.adapters.rpc import CALLS_PER_PROCESS
from vrambroker.broker.adapters.rpc_server import STREAMS_MAX
from vrambroker.broker.core.errors import InvalidArgument, QuotaExceeded
from vrambroker.v1 import broker_pb2 as v1


@contextmanager
def _fds_left(daemon: Daemon, count: int) -> Iterator[None]:
    """Let the daemon open no more than so many fds beyond those it has."""
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    free = (number for number in range(1 << 20) if number not in in_use)
    most = [next(free) for _ in range(count + 1)][-1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(most, max(in_use) + 1), before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _greeted(connection: socket.socket, name: str = "newcomer", role: int = records.ROLE_WORKER) -> records.Record:
    """Return the answer to a `HELLO`, also one that came before it was asked for."""
    hello = records.Hello(protocol=records.PROTOCOL, role=role, token=NO_TOKEN, name=name, version="test")
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(records.encode(hello))
    return receive(connection).record


def _fill(daemon: Daemon, stack: ExitStack) -> set[str]:
    """Open connections until three were refused; returns by what."""
    refused: list[str] = []
    while len(refused) < 3:
        connection = stack.enter_context(connect(daemon.handles))
        answer = _greeted(connection)
        if isinstance(answer, records.Error):
            refused.append(answer.error)
    return set(refused)


def _attach_over_grpc(daemon: Daemon) -> str:
    """Make a session of the operator and end it again; returns what it was refused with, if it was."""
    stub = daemon.operator.stub
    connection = connect(daemon.handles)
    try:
        welcome = _greeted(connection, role=records.ROLE_OPERATOR)
        if isinstance(welcome, records.Error):
            return ""
        assert isinstance(welcome, records.Welcome)
        metadata = (("vrambroker-token-bin", welcome.token),)
        name = uuid.uuid4().hex
        with typed_errors():
            stub.Attach(v1.AttachRequest(request_id=name, name="late"), timeout=DEADLINE_S, metadata=metadata)
            stub.Detach(v1.DetachRequest(request_id=name + "-"), timeout=DEADLINE_S, metadata=metadata)
    except QuotaExceeded as refused:
        return refused.limit
    finally:
        connection.close()
    return ""


def test_a_daemon_out_of_fds_refuses_newcomers_and_serves_on(daemon: Daemon) -> None:
    """With one fd more each time, so that each step of letting somebody in is the one that finds none."""
    witness = daemon.client("witness")
    lease = witness.lease("weights", 4 * MIB)
    witness.fill(lease, 1)
    assert daemon.operator.status().sessions
    fds = daemon.fds()
    refused_over_grpc: set[str] = set()
    for spare in range(7):
        with ExitStack() as stack, _fds_left(daemon, spare):
            refused_over_grpc.add(_attach_over_grpc(daemon))
            assert _fill(daemon, stack) == {"QuotaExceeded"}
            assert witness.resume("weights") == {"weights": True}
            with pytest.raises(Refused) as caught:
                witness.lease("more", 24 * MIB)
            assert caught.value.name == "DriverFailed"
        daemon.wait_for_fds(fds)
        daemon.wait_for_status(lambda status: [session.name for session in status.sessions] == ["witness"])
        assert daemon.fds() == fds
    assert refused_over_grpc == {"", "fds"}
    assert witness.intact(lease, 1)
    assert daemon.client("newcomer").lease("weights", 4 * MIB)


def test_an_attach_that_is_refused_leaves_no_fd(shared: Daemon) -> None:
    assert shared.operator.status().device.lent_bytes == 0
    fds = shared.fds()
    for number in range(10):
        with connect(shared.handles) as connection, pytest.raises(Refused):
            say_hello(connection, "no name")
        attach = v1.AttachRequest(request_id=f"{number}", name="no name")
        with pytest.raises(InvalidArgument), typed_errors():
            shared.operator.stub.Attach(attach, timeout=DEADLINE_S, metadata=shared.operator.metadata)
    shared.wait_for_fds(fds)


BROKEN_DAEMON = """
import sys
from pathlib import Path
from vrambroker.broker.config import Config
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.daemon import serve

sound = Broker.handle

def handle(self, event, now):
    if type(event).__name__ == BREAKS_AT:
        raise AssertionError("planted")
    return sound(self, event, now)

Broker.handle = handle
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
serve(Config.of(device=options["--device"], capacity="64MiB", host_budget="64MiB", run_dir=Path(options["--run-dir"])))
"""


def _break(daemon: Daemon, connection: socket.socket) -> dict[str, Any]:
    """Have the daemon meet its bug in a `HELLO`; returns what it wrote down."""
    with pytest.raises(Gone):
        _greeted(connection)
    assert daemon.process.wait(DEADLINE_S) == 1
    (dump,) = daemon.folder.iterdir()
    told: dict[str, Any] = json.loads(dump.read_text())
    daemon.stop()
    shutil.rmtree(daemon.folder)
    return told


def test_what_it_knew_is_written_down_even_without_an_fd_left(run_dir: Path) -> None:
    daemon = Daemon(run_dir, program=("-c", BROKEN_DAEMON.replace("BREAKS_AT", "'Attach'")))
    with connect(daemon.handles) as last, ExitStack() as stack:
        daemon.operator.status()
        with _fds_left(daemon, 1):
            # The one that is left is for the last one's pidfd: nobody else gets any further than this.
            while True:
                answer = _greeted(stack.enter_context(connect(daemon.handles)), role=records.ROLE_OPERATOR)
                if isinstance(answer, records.Error):
                    break
            told = _break(daemon, last)
    assert "planted" in told["error"]


def test_no_token_is_ever_in_the_log(run_dir: Path) -> None:
    daemon = Daemon(run_dir, program=("-c", BROKEN_DAEMON.replace("BREAKS_AT", "'Attach'")))
    with connect(daemon.handles) as connection:
        told = _break(daemon, connection)
    token = bytes.fromhex(told["event"]["token"])
    log = daemon.log_path.read_bytes()
    assert b"Attach(" in log
    assert repr(token).encode()[2:-1] not in log
    assert token.hex().encode() not in log


def test_who_leaves_before_the_welcome_leaves_no_session_behind(shared: Daemon) -> None:
    """More often than there can be sessions; and nobody is locked out by it."""
    hello = records.Hello(
        protocol=records.PROTOCOL, role=records.ROLE_WORKER, token=NO_TOKEN, name="ghost", version="t"
    )
    for number in range(300):
        if number % 50 == 0:
            # Let it catch up: more than its backlog at once would not be connected at all.
            shared.operator.status()
        connection = connect(shared.handles)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(records.encode(hello))
        connection.close()
    shared.wait_for_status(lambda status: not status.sessions)
    assert shared.client("victim").lease("x", 2 * MIB)


def test_who_leaves_after_the_welcome_without_a_word_leaves_no_session_behind(shared: Daemon) -> None:
    connection = connect(shared.handles)
    token = say_hello(connection, "brief").token
    connection.close()
    shared.wait_for_status(lambda status: not status.sessions)
    with pytest.raises(Refused) as caught:
        say_hello(connection := connect(shared.handles), "brief", token=token)
    assert caught.value.name == "PeerUnidentified"
    connection.close()


def test_a_session_that_was_heard_of_outlives_its_connection(shared: Daemon) -> None:
    """It is enough that its token was used on the other plane."""
    connection = connect(shared.handles)
    token = say_hello(connection, "quiet").token
    mark = v1.MarkRequest(request_id="m", label="here")
    shared.operator.stub.Mark(mark, timeout=DEADLINE_S, metadata=(("vrambroker-token-bin", token),))
    connection.close()
    shared.wait_for_status(lambda status: not status.sessions[0].connected)
    shared.client_with(token)


def _until_refused(daemon: Daemon, stack: ExitStack, role: int) -> tuple[int, records.Error]:
    """Return how many connections were let in, and what the first was told that was not."""
    for number in range(1_000):
        answer = _greeted(stack.enter_context(connect(daemon.handles)), role=role)
        if isinstance(answer, records.Error):
            return number, answer
    raise AssertionError("nobody is ever refused")


@pytest.mark.parametrize(
    ("role", "limit", "most"),
    [
        (records.ROLE_OPERATOR, "connections_per_process", CONNECTIONS_PER_PROCESS),
        (records.ROLE_WORKER, "sessions_per_process", SESSIONS_PER_PROCESS),
    ],
)
def test_one_process_can_have_only_so_many(shared: Daemon, role: int, limit: str, most: int) -> None:
    shared.operator.status()
    fds = shared.fds()
    with ExitStack() as stack:
        held, error = _until_refused(shared, stack, role)
        assert error.error == "QuotaExceeded"
        detail = v1.ErrorDetail.FromString(error.detail)
        assert (detail.limit, detail.limit_value) == (limit, most)
        # The operator of the test has one of the connections.
        assert held == (most - 1 if role == records.ROLE_OPERATOR else most)
    shared.wait_for_fds(fds)
    shared.wait_for_status(lambda status: not status.sessions)
    assert shared.client().lease("x", 2 * MIB)


def test_a_session_over_grpc_counts_as_well(shared: Daemon) -> None:
    with ExitStack() as stack:
        held, _ = _until_refused(shared, stack, records.ROLE_WORKER)
        assert held == SESSIONS_PER_PROCESS
        with pytest.raises(QuotaExceeded), typed_errors():
            attach = v1.AttachRequest(request_id="one more", name="x")
            shared.operator.stub.Attach(attach, timeout=DEADLINE_S, metadata=shared.operator.metadata)
    shared.wait_for_status(lambda status: not status.sessions)


def test_watchers_are_bounded_and_stand_in_nobodys_way(shared: Daemon) -> None:
    watches = [shared.operator.stub.Watch(v1.WatchRequest(history=True)) for _ in range(STREAMS_MAX)]
    shared.operator.mark("something to see")
    for watch in watches:
        assert next(watch).sequence == 1
    with pytest.raises(QuotaExceeded) as caught, typed_errors():
        next(shared.operator.stub.Watch(v1.WatchRequest(history=True), timeout=DEADLINE_S))
    assert (caught.value.limit, caught.value.limit_value) == ("streams", STREAMS_MAX)
    assert shared.operator.status().pid == shared.process.pid
    for watch in watches:
        watch.cancel()


def test_one_process_can_wait_in_only_so_many_calls(shared: Daemon) -> None:
    waiting = [shared.client(f"waiting-{number}") for number in range(2)]
    other = shared.client("other")
    for client in waiting:
        client.lease("a", 24 * MIB)
        client.pause("a", release=True)
    held = other.lease("b", 62 * MIB)
    calls = [
        shared.operator.stub.Resume.future(
            v1.ResumeRequest(request_id=f"{number}", session=f"waiting-{number % 2}", tags=["a"], timeout_ms=60_000),
            metadata=shared.operator.metadata,
            timeout=DEADLINE_S,
        )
        for number in range(CALLS_PER_PROCESS + 4)
    ]
    shared.wait_for_status(lambda status: len(status.queue) == CALLS_PER_PROCESS)
    refused = [call.exception() for call in calls if call.done()]
    while len(refused) < 4:
        shared.operator.status()
        refused = [call.exception() for call in calls if call.done()]
    for error in refused:
        assert isinstance(error, grpc.RpcError)
        with pytest.raises(QuotaExceeded) as caught:
            raise typed(error)
        assert caught.value.limit == "calls_per_process"
    for call in calls:
        call.cancel()
    shared.wait_for_status(lambda status: not status.queue)
    other.give_back(held)
    shared.operator.mark("served again")
