"""The daemon as a service: one for each device, ready when it says so, gone without a trace, and standard to ask."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import (
    DEADLINE_S,
    MIB,
    ROOT,
    Daemon,
    Operator,
    serve_command,
    typed,
    typed_errors,
    unused_device,
)
from tests.process.daemon.raw_client import Refused
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.device_lock import BACKLOG, DeviceBusy, DeviceLock
from vrambroker.broker.core.errors import (
    BrokerError,
    InvalidArgument,
    PeerUnidentified,
    RequestConflict,
    UnknownSession,
    UnknownTag,
    WrongState,
)
from vrambroker.v1 import broker_pb2 as v1

SERVING = health_pb2.HealthCheckResponse.SERVING


def _health(daemon: Daemon, service: str = "") -> int:
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = daemon.operator.channel.unary_unary(
        "/grpc.health.v1.Health/Check"
    )
    answer = check(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=DEADLINE_S)
    return int(health_pb2.HealthCheckResponse.FromString(answer).status)


def _serve(run_dir: Path, *options: str, device: str) -> "subprocess.CompletedProcess[str]":
    command = serve_command(device, run_dir, *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_health_and_reflection_answer(shared: Daemon) -> None:
    assert _health(shared) == _health(shared, "vrambroker.v1.Broker") == SERVING
    names = ProtoReflectionDescriptorDatabase(shared.operator.channel).get_services()
    assert {"vrambroker.v1.Broker", "grpc.health.v1.Health"} <= set(names)


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon: Daemon, tmp_path: Path) -> None:
    for run_dir in (daemon.run_dir, tmp_path):
        ran = _serve(run_dir, device=daemon.device)
        assert ran.returncode == 1
        assert ran.stderr.splitlines()[-1].startswith("DeviceBusy: ")
        assert str(daemon.process.pid) in ran.stderr
    assert daemon.client().lease("x", 2 * MIB)


def test_the_pid_is_told_however_often_somebody_asks(daemon: Daemon) -> None:
    for _ in range(5):
        for _ in range(BACKLOG):
            with pytest.raises(DeviceBusy) as caught:
                DeviceLock(daemon.device)
            assert caught.value.pid == daemon.process.pid
        # A round trip through its loop.
        daemon.operator.status()


SQUATTER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
taken = socket.socket(socket.AF_UNIX)
taken.bind("\\0vrambroker/" + sys.argv[1])
if sys.argv[2] == "listening":
    taken.listen()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("how", ["listening", "silent"])
def test_a_squatter_is_not_taken_for_a_daemon(tmp_path: Path, how: str) -> None:
    device = unused_device()
    command = [sys.executable, "-c", SQUATTER, device, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "taken\n"
        ran = _serve(tmp_path, device=device)
        assert ran.returncode == 1
        last = ran.stderr.splitlines()[-1]
        assert last.startswith("DeviceBusy: ")
        assert "served" not in last
        assert (f"process {squatter.pid} of uid 65534" in last) == (how == "listening")
        squatter.communicate("", timeout=DEADLINE_S)


def test_host_is_host_0(start_daemon: StartDaemon) -> None:
    """Two daemons with devices of their own live in one run directory."""
    one, two = start_daemon(), start_daemon()
    assert one.device != two.device
    assert one.client("a").welcome.device == one.device
    assert two.client("a").welcome.device == two.device


def test_sigterm_ends_it_cleanly(daemon: Daemon) -> None:
    client = daemon.client()
    client.lease("weights", 4 * MIB)
    watch = daemon.operator.stub.Watch(v1.WatchRequest(history=True), timeout=DEADLINE_S)
    assert next(watch).kind == "session_attached"
    daemon.process.send_signal(signal.SIGTERM)
    kinds = [event.kind for event in watch]
    assert kinds[-1] == "draining"
    client.wait_for(lambda: client.draining and client.closed)
    assert daemon.process.wait(DEADLINE_S) == 0
    assert not daemon.folder.exists()


def test_while_it_drains_new_work_is_refused_and_old_work_ends(daemon: Daemon) -> None:
    """A resume that waits keeps the daemon for its moment of grace."""
    client, other = daemon.client("client"), daemon.client("other")
    client.lease("a", 48 * MIB)
    client.pause("a", release=True)
    held = other.lease("b", 48 * MIB)
    waiting = client.begin(lambda number: records.Resume(request=number, timeout_ms=15_000, tags=("a",)))
    daemon.operator.wait_until(lambda status: len(status.queue) == 1)
    daemon.process.send_signal(signal.SIGTERM)
    other.wait_for(lambda: other.draining)
    assert _health(daemon) == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(Refused) as caught:
        other.lease("c", 2 * MIB)
    assert caught.value.name == "Draining"
    other.give_back(held)
    assert [one.tag for one in client.answer(waiting).leases] == ["a"]
    assert daemon.process.wait(DEADLINE_S) == 0


def test_a_stale_socket_is_replaced(start_daemon: StartDaemon, run_dir: Path) -> None:
    device = unused_device()
    folder = run_dir / device
    folder.mkdir()
    for name, kind in (("handles.sock", socket.SOCK_SEQPACKET), ("rpc.sock", socket.SOCK_STREAM)):
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(str(folder / name))
    daemon = start_daemon(device=device)
    assert daemon.client().lease("x", 2 * MIB)
    assert (folder / "handles.sock").stat().st_mode & 0o777 == 0o660
    assert (folder / "rpc.sock").stat().st_mode & 0o777 == 0o660


def test_a_killed_daemon_can_be_started_again(start_daemon: StartDaemon) -> None:
    first = start_daemon()
    client = first.client()
    first.process.kill()
    client.wait_for(lambda: client.closed)
    first.process.wait(DEADLINE_S)
    first.process.returncode = 0
    second = start_daemon(device=first.device)
    assert second.client().lease("x", 2 * MIB)


NO_DRIVER = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver here")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        pytest.param(("--device", "cuda:0"), "DriverFailed: ", marks=NO_DRIVER),
        (("--device", "tpu:0"), "InvalidArgument: device 'tpu:0'"),
        (("--capacity", "12parsec"), "InvalidArgument: capacity"),
        (("--run-dir", "/proc/nowhere"), "InvalidArgument: the run directory"),
        (("--run-dir", "/tmp/" + "x" * 120), "InvalidArgument: "),
    ],
)
def test_what_it_cannot_serve_is_one_line_on_stderr(tmp_path: Path, options: tuple[str, str], error: str) -> None:
    ran = _serve(tmp_path, *options, device=unused_device())
    assert ran.returncode == 1
    assert ran.stderr.startswith(error)
    assert len(ran.stderr.splitlines()) == 1


def test_the_stream_has_no_gap_and_tells_the_past(shared: Daemon) -> None:
    live = shared.operator.stub.Watch(v1.WatchRequest(history=True), timeout=DEADLINE_S)
    heard: list[v1.Event] = []

    def listen() -> None:
        for event in live:
            heard.append(event)
            if event.kind == "marked" and event.why == "end":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    client = shared.client()
    for _ in range(20):
        client.give_back(client.lease("x", 2 * MIB))
    shared.operator.mark("end")
    listener.join(DEADLINE_S)
    live.cancel()
    past = list(shared.operator.stub.Watch(v1.WatchRequest(history=True, until_now=True), timeout=DEADLINE_S))
    assert [event.sequence for event in heard] == list(range(1, len(heard) + 1))
    assert past[: len(heard)] == heard
    assert {"session_attached", "lease_changed", "marked"} <= {event.kind for event in heard}


def test_only_calls_that_change_something_need_a_token(shared: Daemon) -> None:
    stub = shared.operator.stub
    assert stub.GetStatus(v1.GetStatusRequest(), timeout=DEADLINE_S).device.id == shared.device
    for metadata in ((), (("vrambroker-token-bin", bytes(16)),), (("vrambroker-token-bin", b""),)):
        with pytest.raises(PeerUnidentified), typed_errors():
            stub.Mark(v1.MarkRequest(request_id="1", label="x"), timeout=DEADLINE_S, metadata=metadata)


def test_an_operators_token_lives_as_long_as_its_connection(shared: Daemon) -> None:
    operator = Operator(shared.folder)
    operator.mark("here")
    operator.connection.close()
    shared.operator.status()
    with pytest.raises(PeerUnidentified):
        operator.mark("gone")
    operator.close()


def test_a_session_can_be_made_over_grpc_and_connected_later(daemon: Daemon) -> None:
    operator = Operator(daemon.folder)
    stub, metadata = operator.stub, operator.metadata
    made = stub.Attach(v1.AttachRequest(request_id="a", name="trainer"), timeout=DEADLINE_S, metadata=metadata)
    again = stub.Attach(v1.AttachRequest(request_id="a", name="trainer"), timeout=DEADLINE_S, metadata=metadata)
    assert made == again
    with pytest.raises(WrongState), typed_errors():
        stub.Attach(v1.AttachRequest(request_id="b", name="trainer"), timeout=DEADLINE_S, metadata=metadata)
    operator.connection.close()
    lease = v1.LeaseRequest(request_id="c", tag="w", contents=v1.CONTENTS_DROP, size_bytes=2 * MIB)
    leased = stub.Lease(lease, timeout=DEADLINE_S, metadata=metadata)
    client = daemon.client("trainer")
    assert client.welcome.name == "trainer-2"
    with_token = daemon.client_with(operator.token)
    assert with_token.welcome.session == made.session
    assert with_token.claim(leased.claim) == leased.lease
    for _ in range(2):
        stub.Detach(v1.DetachRequest(request_id="d"), timeout=DEADLINE_S, metadata=metadata)
    assert [session.name for session in operator.status().sessions] == ["trainer-2"]
    operator.channel.close()


def test_a_repeated_attach_is_answered_alike_and_its_token_names_the_session(shared: Daemon) -> None:
    """The first one's connection is lost, so it is repeated over another, by the same process."""
    request = v1.AttachRequest(request_id="repeated", name="trainer")
    first = Operator(shared.folder)
    made = first.stub.Attach(request, timeout=DEADLINE_S, metadata=first.metadata)
    first.connection.close()
    second = first
    for _ in range(3):
        second = Operator(shared.folder)
        assert second.stub.Attach(request, timeout=DEADLINE_S, metadata=second.metadata) == made
        second.connection.close()
    for one, tag in ((second, "a"), (first, "b")):
        lease = v1.LeaseRequest(request_id=tag, tag=tag, contents=v1.CONTENTS_DROP, size_bytes=2 * MIB)
        assert one.stub.Lease(lease, timeout=DEADLINE_S, metadata=one.metadata).claim
    assert [session.name for session in shared.operator.status().sessions] == ["trainer"]
    for one in (second, first):
        # The same goodbye, over again, and by whichever name.
        one.stub.Detach(v1.DetachRequest(request_id="bye"), timeout=DEADLINE_S, metadata=one.metadata)
        with pytest.raises(PeerUnidentified), typed_errors():
            one.stub.Mark(v1.MarkRequest(request_id="x", label="x"), timeout=DEADLINE_S, metadata=one.metadata)
        one.channel.close()
    assert not shared.operator.status().sessions


def test_an_attach_repeated_after_its_session_ended_takes_nobodys_name(shared: Daemon) -> None:
    request = v1.AttachRequest(request_id="over", name="engine")
    first, second = Operator(shared.folder), Operator(shared.folder)
    first.stub.Attach(request, timeout=DEADLINE_S, metadata=first.metadata)
    first.stub.Detach(v1.DetachRequest(request_id="out"), timeout=DEADLINE_S, metadata=first.metadata)
    victim = shared.client("engine")
    victim.lease("weights", 2 * MIB)
    victim.scopes["weights"] = "quiet"
    assert victim.welcome.name == "engine"
    for late in (first, second):
        with pytest.raises(UnknownSession), typed_errors():
            late.stub.Attach(request, timeout=DEADLINE_S, metadata=late.metadata)
        assert shared.operator.pause("engine", "weights").leases
        shared.operator.resume("engine", "weights")
        late.close()
    assert [session.name for session in shared.operator.status().sessions] == ["engine"]


def test_the_token_of_an_ended_process_is_worth_nothing(shared: Daemon) -> None:
    script = f"""
from pathlib import Path
from tests.process.daemon.raw_client import RawClient
print(RawClient(Path({str(shared.handles)!r}), "gone").token.hex())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    shared.wait_for_status(lambda status: not status.sessions)
    victim = shared.client("victim")
    victim.lease("weights", 2 * MIB)
    victim.scopes["weights"] = "quiet"
    ghost = Operator(shared.folder, token=bytes.fromhex(ran.stdout))
    with pytest.raises(PeerUnidentified):
        ghost.pause("victim", "weights")
    with pytest.raises(PeerUnidentified):
        ghost.mark("from beyond")
    ghost.close()
    assert not any(lease.paused for lease in victim.leases.values())


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownSession, grpc.StatusCode.NOT_FOUND),
        (UnknownTag, grpc.StatusCode.NOT_FOUND),
        (RequestConflict, grpc.StatusCode.ALREADY_EXISTS),
    ],
)
def test_errors_have_their_status_and_their_fields(
    shared: Daemon, refused: type[BrokerError], status: grpc.StatusCode
) -> None:
    shared.client("trainer")
    stub, metadata = shared.operator.stub, shared.operator.metadata
    stub.Mark(v1.MarkRequest(request_id="used", label="x"), timeout=DEADLINE_S, metadata=metadata)
    requests: dict[type[BrokerError], v1.PauseRequest] = {
        InvalidArgument: v1.PauseRequest(request_id="", session="trainer", tags=["x"]),
        UnknownSession: v1.PauseRequest(request_id="1", session="nobody", tags=["x"]),
        UnknownTag: v1.PauseRequest(request_id="2", session="trainer", tags=["x"]),
        RequestConflict: v1.PauseRequest(request_id="used", session="trainer", tags=["x"]),
    }
    with pytest.raises(grpc.RpcError) as caught:
        stub.Pause(requests[refused], timeout=DEADLINE_S, metadata=metadata)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is status
    error = typed(caught.value)
    assert type(error) is refused
    assert error.message in (caught.value.details() or "")


def test_an_unattached_caller_has_no_session_of_its_own(shared: Daemon) -> None:
    request = v1.LeaseRequest(request_id=uuid.uuid4().hex, tag="x", contents=v1.CONTENTS_KEEP, size_bytes=MIB)
    with pytest.raises(UnknownSession), typed_errors():
        shared.operator.stub.Lease(request, timeout=DEADLINE_S, metadata=shared.operator.metadata)


def test_garbage_for_a_message_is_never_unknown(shared: Daemon) -> None:
    for method in ("Pause", "Attach", "Watch", "NoSuchCall"):
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = shared.operator.channel.unary_unary(
            f"/vrambroker.v1.Broker/{method}"
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=DEADLINE_S, metadata=shared.operator.metadata)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() in (
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.UNIMPLEMENTED,
        )
    assert shared.operator.status().device.id == shared.device


def test_a_call_given_up_is_withdrawn(shared: Daemon) -> None:
    client, other = shared.client("client"), shared.client("other")
    client.lease("a", 48 * MIB)
    client.pause("a", release=True)
    other.lease("b", 48 * MIB)
    request = v1.ResumeRequest(request_id="r", session="client", tags=["a"], timeout_ms=60_000)
    call = shared.operator.stub.Resume.future(request, metadata=shared.operator.metadata, timeout=DEADLINE_S)
    shared.operator.wait_until(lambda status: len(status.queue) == 1)
    call.cancel()
    shared.wait_for_status(lambda status: not status.queue)


def test_a_daemon_with_many_frames_raises_its_own_fd_limit(shared: Daemon) -> None:
    limits = Path(f"/proc/{shared.process.pid}/limits").read_text().splitlines()
    (line,) = (line for line in limits if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard


BROKEN_DAEMON = """
import sys
from pathlib import Path
from vrambroker.broker.config import Config
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.events import Mark
from vrambroker.broker.daemon import serve

sound = Broker.handle

def handle(self, event, now):
    if isinstance(event, Mark):
        raise InvariantViolation("planted")
    return sound(self, event, now)

Broker.handle = handle
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
serve(Config.of(device=options["--device"], capacity="64MiB", host_budget="64MiB", run_dir=Path(options["--run-dir"])))
"""


def test_a_bug_in_a_status_ends_the_daemon_too(run_dir: Path) -> None:
    """It would be answered UNKNOWN otherwise, and the daemon go on with a ledger that it can't read."""
    broken = BROKEN_DAEMON.replace("Broker.handle = handle", "Broker.snapshot = lambda self: 1 // 0")
    daemon = Daemon(run_dir, program=("-c", broken))
    with pytest.raises(grpc.RpcError) as caught:
        daemon.operator.status()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN
    assert daemon.process.wait(DEADLINE_S) == 1
    (dump,) = daemon.folder.iterdir()
    told = json.loads(dump.read_text())
    assert "ZeroDivisionError" in told["error"]
    assert told["snapshot"] is None
    daemon.stop()
    shutil.rmtree(daemon.folder)


def test_a_bug_ends_the_daemon_after_it_has_written_down_what_it_knew(run_dir: Path) -> None:
    daemon = Daemon(run_dir, program=("-c", BROKEN_DAEMON))
    client = daemon.client("trainer")
    client.lease("weights", 4 * MIB)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.operator.stub.Mark(
            v1.MarkRequest(request_id="x", label="x"), timeout=DEADLINE_S, metadata=daemon.operator.metadata
        )
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    client.wait_for(lambda: client.closed)
    assert daemon.process.wait(DEADLINE_S) == 1
    (dump,) = daemon.folder.iterdir()
    assert dump.stat().st_mode & 0o777 == 0o600
    told = json.loads(dump.read_text())
    assert "InvariantViolation: planted" in told["error"]
    assert told["event"]["label"] == "x"
    (session,) = told["snapshot"]["sessions"]
    assert (session["name"], session["leases"][0]["tag"]) == ("trainer", "weights")
    assert "planted" in daemon.log()
    daemon.stop()
    shutil.rmtree(daemon.folder)
