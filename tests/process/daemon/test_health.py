"""`broker health`, as probes of containers call it: the commands in deploy/ are run as they are written there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.process.daemon.harness import Daemon
from tests.tidy.manifests import of_compose, of_kubernetes
from vrambroker.broker import health
from vrambroker.broker.adapters import records
from vrambroker.broker.core.errors import BrokerUnavailable, Draining, InvalidArgument
from vrambroker.client.discovery import Endpoint
from vrambroker.v1 import broker_pb2

DEADLINE_S = 30.0
MIB = 1 << 20
PROBES = sorted({probe for container in (*of_kubernetes(), *of_compose()) for probe in container.probes})
ANOTHER_CONTAINER = ("unshare", "--mount", "--propagation", "private")
SERVICE = broker_pb2.DESCRIPTOR.services_by_name["Broker"].full_name


def broker(run_dir: Path, *words: str, inside: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*inside, sys.executable, "-m", "vrambroker.broker.cli", *words],
        env={**os.environ, "VRAMBROKER_RUN_DIR": str(run_dir)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _endpoint(folder: Path) -> Endpoint:
    return Endpoint(device=folder.name, directory=folder)


def _failed(done: "subprocess.CompletedProcess[str]", name: str) -> str:
    """Return the one line that a failed probe leaves in the pod's events."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"{name}: "), done.stderr
    return done.stderr


@pytest.mark.parametrize("probe", PROBES, ids=" ".join)
def test_the_probes_of_the_manifests_pass_for_a_daemon_that_serves(shared: Daemon, probe: tuple[str, ...]) -> None:
    done = broker(shared.run_dir, *probe[1:])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_service_is_asked_for_by_its_name(shared: Daemon) -> None:
    health.require_serving(_endpoint(shared.folder), service=SERVICE, timeout_s=DEADLINE_S)
    with pytest.raises(InvalidArgument, match=r"'no\.such\.Service'"):
        health.require_serving(_endpoint(shared.folder), service="no.such.Service", timeout_s=DEADLINE_S)


def test_without_a_daemon_it_fails_and_says_where_it_looked(tmp_path: Path) -> None:
    assert str(tmp_path) in _failed(broker(tmp_path, "health", "--own"), "BrokerUnavailable")


def test_the_sockets_of_a_dead_daemon_are_no_daemon_and_fail_the_probe(shared: Daemon) -> None:
    dead = shared.run_dir / "host:4242"
    dead.mkdir()
    try:
        for name, kind in (("handles.sock", socket.SOCK_SEQPACKET), ("rpc.sock", socket.SOCK_STREAM)):
            with socket.socket(socket.AF_UNIX, kind) as stale:
                stale.bind(str(dead / name))
        assert "host:4242" in _failed(broker(shared.run_dir, "health"), "BrokerUnavailable")
        with pytest.raises(BrokerUnavailable, match="host:4242"):
            health.own((_endpoint(dead),))
        assert health.own((_endpoint(dead), _endpoint(shared.folder))) == (_endpoint(shared.folder),)
    finally:
        shutil.rmtree(dead)


def test_a_daemon_that_stands_still_is_found_out_in_time(shared: Daemon) -> None:
    shared.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match=r"no answer in 0\.2 s"):
            health.require_serving(*health.own((_endpoint(shared.folder),)), service="", timeout_s=0.2)
    finally:
        shared.process.send_signal(signal.SIGCONT)


def test_a_neighbour_that_lets_nobody_in_does_not_keep_a_probe(shared: Daemon) -> None:
    """A blocking connect to a full backlog has no end."""
    hung = shared.run_dir / "a:1"
    hung.mkdir()
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as listener, ExitStack() as waiting:
            listener.bind(str(hung / "handles.sock"))
            listener.listen(0)
            with pytest.raises(BlockingIOError):
                while True:
                    peer = waiting.enter_context(closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
                    peer.setblocking(False)
                    peer.connect(str(hung / "handles.sock"))
            done = broker(shared.run_dir, "health", "--own")
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        shutil.rmtree(hung)


def test_a_daemon_that_shuts_down_serves_no_more(daemon: Daemon) -> None:
    """A resume that waits keeps the daemon for its moment of grace."""
    client, other = daemon.client("client"), daemon.client("other")
    client.lease("a", 48 * MIB)
    client.pause("a", release=True)
    held = other.lease("b", 48 * MIB)
    waiting = client.begin(lambda number: records.Resume(request=number, timeout_ms=15_000, tags=("a",)))
    daemon.operator.wait_until(lambda status: len(status.queue) == 1)
    daemon.process.send_signal(signal.SIGTERM)
    other.wait_for(lambda: other.draining)
    with pytest.raises(Draining, match="NOT_SERVING"):
        health.require_serving(_endpoint(daemon.folder), service="", timeout_s=DEADLINE_S)
    other.give_back(held)
    assert client.answer(waiting)
    assert daemon.process.wait(DEADLINE_S) == 0


def test_a_daemon_of_another_container_is_not_ones_own(shared: Daemon) -> None:
    if subprocess.run([*ANOTHER_CONTAINER, "true"], capture_output=True, timeout=DEADLINE_S, check=False).returncode:
        pytest.skip("this needs the right to make a mount namespace")
    done = broker(shared.run_dir, "health", "--own", inside=ANOTHER_CONTAINER)
    assert shared.device in _failed(done, "BrokerUnavailable")
