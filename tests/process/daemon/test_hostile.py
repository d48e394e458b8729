"""Packets, peers and fds that have no business here: a closed connection or a typed error, and nothing is left."""

import array
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest

from tests.process.daemon.harness import DEADLINE_S, MIB, ROOT, Daemon
from tests.process.daemon.raw_client import Gone, RawClient, Refused, connect, receive, say_hello
from vrambroker.broker.adapters import records
from vrambroker.v1 import broker_pb2 as v1

STORM = "tests.process.daemon.storm"
SEEDS = range(5)
PACKETS_PER_SEED = 2_000


def _send(connection: socket.socket, packet: bytes, fds: list[int]) -> None:
    connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_ten_thousand_random_packets_with_fds_leave_nothing(daemon: Daemon) -> None:
    """As many are whole records, so memory is lent for a while; but once the strangers have ended, all is as it was."""
    witness = daemon.client("witness")
    lease = witness.lease("weights", 4 * MIB)
    witness.fill(lease, 1)
    # What the arena takes for the domain, the strangers' as well, it keeps.
    witness.pause("weights")
    assert witness.resume("weights") == {"weights": True}
    before = daemon.operator.wait_until(lambda status: not status.host.used_bytes)
    fds = daemon.fds()
    sent: Counter[str] = Counter()
    for seed in SEEDS:
        command = [sys.executable, "-m", STORM, str(daemon.handles), str(seed), str(PACKETS_PER_SEED)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), f"seed {seed}"
        sent.update(json.loads(ran.stdout))
        after = daemon.operator.wait_until(
            lambda status: len(status.sessions) == 1 and not status.device.held_bytes and not status.host.used_bytes
        )
        assert after.device.lent_bytes == before.device.lent_bytes
        assert after.sessions == before.sessions
        assert after.host == before.host
        daemon.wait_for_fds(fds)
        assert daemon.fds() == fds
    assert sent["with fds"] >= 10_000
    assert sent["whole"] >= 5_000
    assert sent["spoiled"] >= 1_000
    assert witness.intact(lease, 1)
    witness.pause("weights")
    assert witness.resume("weights") == {"weights": True}


@pytest.mark.parametrize("size", [records.PACKET_BYTES_MAX + 1, 100_000])
def test_an_oversized_packet_closes_the_connection(shared: Daemon, size: int) -> None:
    connection = connect(shared.handles)
    say_hello(connection, "large")
    connection.send(bytes(size))
    with pytest.raises(Gone):
        receive(connection)
    connection.close()


def test_fds_from_a_client_close_the_connection(shared: Daemon) -> None:
    connection = connect(shared.handles)
    say_hello(connection, "giver")
    fds = shared.fds()
    packet = bytearray(records.encode(records.Taken(batch=1)))
    packet[2] = 1
    _send(connection, bytes(packet), [0])
    with pytest.raises(Gone):
        receive(connection)
    connection.close()
    shared.wait_for_fds(fds)


def test_what_comes_before_hello_or_twice_closes_the_connection(shared: Daemon) -> None:
    early = connect(shared.handles)
    early.send(records.encode(records.Taken(batch=1)))
    with pytest.raises(Gone):
        receive(early)
    early.close()
    twice = connect(shared.handles)
    say_hello(twice, "twice")
    with pytest.raises(Gone):
        say_hello(twice, "twice")
    twice.close()


def test_an_operator_may_not_lease(shared: Daemon) -> None:
    connection = connect(shared.handles)
    say_hello(connection, "operator", role=records.ROLE_OPERATOR)
    connection.send(records.encode(records.Lease(request=1, contents=1, size_bytes=4096, timeout_ms=0, tag="x")))
    with pytest.raises(Gone):
        receive(connection)
    connection.close()


def test_another_protocol_is_told_so(shared: Daemon) -> None:
    connection = connect(shared.handles)
    hello = records.Hello(protocol=99, role=1, token=bytes(16), name="future", version="9.9")
    connection.send(records.encode(hello))
    answer = receive(connection).record
    assert isinstance(answer, records.Error)
    assert answer.error == "VersionMismatch"
    with pytest.raises(Gone):
        receive(connection)
    connection.close()


@pytest.mark.parametrize(
    ("name", "error"), [("", "InvalidArgument"), ("a/b", "InvalidArgument"), ("x" * 10_000, "InvalidArgument")]
)
def test_a_name_that_is_no_name_is_refused(shared: Daemon, name: str, error: str) -> None:
    with pytest.raises(Refused) as caught:
        RawClient(shared.handles, name)
    assert caught.value.name == error


def test_a_silent_connection_is_closed_in_time(shared: Daemon) -> None:
    connection = connect(shared.handles)
    with pytest.raises(Gone):
        receive(connection)
    connection.close()


@pytest.mark.parametrize("tag", ["", "a b", "a/b", "\N{PILE OF POO}" * 7_000, "x" * 30_000])
def test_a_tag_that_is_no_tag_is_refused(shared: Daemon, tag: str) -> None:
    client = shared.client()
    with pytest.raises(Refused) as caught:
        client.lease(tag, 4096)
    assert caught.value.name == "InvalidArgument"
    with pytest.raises(Refused):
        client.resume(tag)


@pytest.mark.parametrize("size_bytes", [0, 64 * MIB + 1, (1 << 64) - 1])
def test_a_size_that_cannot_be_is_refused(shared: Daemon, size_bytes: int) -> None:
    with pytest.raises(Refused) as caught:
        shared.client().lease("x", size_bytes)
    assert caught.value.name == "InvalidArgument"


def test_ten_thousand_tags_in_a_call_are_too_many(shared: Daemon) -> None:
    with pytest.raises(Refused) as caught:
        shared.client().resume(*[f"{number}" for number in range(5_000)])
    assert caught.value.name in ("InvalidArgument", "QuotaExceeded")


def test_an_unknown_policy_is_refused(shared: Daemon) -> None:
    client = shared.client()
    with pytest.raises(Refused) as caught:
        client.lease("x", 4096, contents=9)
    assert caught.value.name == "InvalidArgument"


def test_a_client_that_does_not_read_is_cut_off_and_stalls_nobody(shared: Daemon) -> None:
    """It asks without ever reading an answer: its queue is bounded, and the others are served meanwhile."""
    deaf = connect(shared.handles)
    say_hello(deaf, "deaf")
    deaf.setblocking(False)
    other = shared.client("other")
    number = 0
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            number += 1
            try:
                deaf.send(records.encode(records.Return(request=number, lease=10**6, slots=())))
            except BlockingIOError:
                # The daemon has not come round to reading it yet; meanwhile somebody else is served.
                other.give_back(other.lease("x", 2 * MIB))
    assert number > 4_096
    deaf.close()


OTHER_UID = """
import os, sys
from pathlib import Path
handles, gid, session = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
from tests.process.daemon.harness import MIB, Operator
from tests.process.daemon.raw_client import RawClient, Refused, connect, say_hello
from vrambroker.broker.adapters import records
from vrambroker.broker.core.errors import BrokerError

def outcome(verb, attempt):
    try:
        attempt()
    except BrokerError as error:
        return f"{verb}:{type(error).__name__}"
    except Refused as error:
        return f"{verb}:{error.name}"
    return f"{verb}:done"

def tried(operator, token, lease):
    own = RawClient(handles, "own")
    other = RawClient(handles, "other")
    theirs = own.lease("small", 2 * MIB)
    yield outcome("pause", lambda: operator.pause(session, "weights"))
    yield outcome("release", lambda: operator.pause(session, "weights", release=True))
    yield outcome("resume", lambda: operator.resume(session, "weights"))
    yield outcome("hello", lambda: say_hello(connect(handles), "thief", token=token))
    yield outcome("return", lambda: own.ask(lambda n: records.Return(request=n, lease=lease, slots=())))
    yield outcome("slot", lambda: own.ask(lambda n: records.Return(request=n, lease=lease, slots=(lease + 1,))))
    yield outcome("sibling", lambda: other.ask(lambda n: records.Return(request=n, lease=theirs, slots=())))
    yield outcome("claim", lambda: own.claim(int(sys.argv[6])))
    yield outcome("unheld", lambda: own.pause("weights"))
    for report in (records.Left, records.Arrived):
        own.send(report(lease=lease, slots=tuple(range(lease, lease + 9)), failure=""))
        own.send(report(lease=lease, slots=tuple(range(lease, lease + 9)), failure="no"))
    own.bye()
    other.bye()
os.setgroups([])
os.setgid(gid)
os.setuid(65534)
try:
    operator = Operator(handles.parent)
except PermissionError:
    print("PermissionError")
except Refused as refused:
    print(refused.name)
else:
    print(*tried(operator, bytes.fromhex(sys.argv[4]), int(sys.argv[5])))
"""


def _as_nobody(daemon: Daemon, gid: int, client: RawClient, lease: int, claim: int) -> list[str]:
    arguments = [str(daemon.handles), str(gid), "trainer", client.token.hex(), str(lease), str(claim)]
    ran = subprocess.run(
        [sys.executable, "-c", OTHER_UID, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_by_the_socket_then_by_the_daemon_then_by_the_owner(daemon: Daemon) -> None:
    client = daemon.client("trainer")
    lease = client.lease("weights", 2 * MIB)
    client.scopes["weights"] = "quiet"
    client.fill(lease, 1)
    unclaimed = v1.LeaseRequest(
        request_id="c", tag="later", contents=v1.CONTENTS_DROP, size_bytes=2 * MIB, timeout_ms=60_000
    )
    metadata = (("vrambroker-token-bin", client.token),)
    claim = daemon.operator.stub.Lease(unclaimed, timeout=DEADLINE_S, metadata=metadata).claim
    before = daemon.operator.status()
    attempt = partial(_as_nobody, daemon, client=client, lease=lease, claim=claim)
    assert attempt(65534) == ["PermissionError"]
    for path in (daemon.handles, daemon.folder / "rpc.sock"):
        path.chmod(0o666)
    assert attempt(65534) == ["PeerUnidentified"]
    for path in (daemon.handles, daemon.folder / "rpc.sock"):
        os.chown(path, -1, 65534)
    assert dict(one.split(":") for one in attempt(65534)) == {
        "pause": "NotOwner",
        "release": "NotOwner",
        "resume": "NotOwner",
        "hello": "NotOwner",
        "return": "UnknownLease",
        "slot": "UnknownLease",
        "sibling": "UnknownLease",
        "claim": "UnknownLease",
        "unheld": "UnknownTag",
    }
    daemon.wait_for_status(lambda status: status.device.held_bytes == before.device.held_bytes)
    assert daemon.operator.status().sessions == before.sessions
    assert client.intact(lease, 1)
    assert client.claim(claim)
