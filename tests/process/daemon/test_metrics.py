"""A real daemon's metrics over its socket: what they say of real sessions, who may read them, and who can't do harm."""

import shutil
import socket
import stat
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import DEADLINE_S, MIB, Daemon, serve_command, unused_device
from tests.process.daemon.raw_client import Refused
from tests.process.daemon.scrape import GET, ask, connect, port_of, value_of
from vrambroker.broker.adapters.metrics.server import CONNECTIONS_MAX
from vrambroker.v1 import broker_pb2 as v1

TCP = ("--metrics", "127.0.0.1:0")


def test_what_a_session_has_and_what_was_refused_to_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=TCP)
    client = daemon.client("trainer")
    client.lease("weights", 4 * MIB)
    with pytest.raises(Refused, match="OutOfDeviceMemory"):
        client.lease("much", 62 * MIB)
    status, fields, body = ask(port_of(daemon))
    assert (status, fields["content-length"]) == ("HTTP/1.1 200 OK", str(len(body)))
    assert fields["content-type"].startswith("text/plain; version=0.0.4")
    of_device = {"device": daemon.device}
    labels = {**of_device, "session": "trainer", "tag": "weights", "state": "resident"}
    assert value_of(body, "vrambroker_lease_device_bytes", **labels) == 4 * MIB
    assert value_of(body, "vrambroker_device_lent_bytes", **of_device) == 4 * MIB
    assert value_of(body, "vrambroker_device_capacity_bytes", **of_device) == 64 * MIB
    assert value_of(body, "vrambroker_sessions", **of_device) == 1
    assert value_of(body, "vrambroker_refusals_total", error="OutOfDeviceMemory") == 1
    assert value_of(body, "vrambroker_decision_seconds_count") >= 3
    client.bye()
    daemon.dismiss_clients()
    _, _, body = ask(port_of(daemon))
    assert "trainer" not in body
    assert value_of(body, "vrambroker_sessions_ended_total") == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: nothing judged the page")
def test_promtool_has_nothing_against_the_page(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=TCP)
    daemon.client("trainer").lease("weights", 4 * MIB)
    _, _, body = ask(port_of(daemon))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=body, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    daemon.dismiss_clients()


def test_who_prefers_openmetrics_gets_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=TCP)
    request = b"GET /metrics?x=1 HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    _, fields, body = ask(port_of(daemon), request)
    assert fields["content-type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_a_unix_socket_is_the_groups_and_gone_with_the_daemon(start_daemon: StartDaemon, run_dir: Path) -> None:
    path = run_dir / "metrics"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    daemon = start_daemon(options=("--metrics", f"unix:{path}"))
    assert path.stat().st_mode & 0o777 == 0o660
    assert ask(path)[0] == "HTTP/1.1 200 OK"
    assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("what", ["file", "listener", "nowhere"])
def test_a_place_that_is_taken_is_refused_and_left_alone(what: str, run_dir: Path) -> None:
    path = run_dir / "none" / "metrics" if what == "nowhere" else run_dir / "metrics"
    with socket.socket(socket.AF_UNIX) as other:
        if what == "listener":
            other.bind(str(path))
            other.listen()
        elif what == "file":
            path.touch()
        done = refused(run_dir, "--metrics", f"unix:{path}")
        assert done.stderr.startswith(f"InvalidArgument: metrics at unix:{path}: ")
        if what != "nowhere":
            assert stat.S_ISSOCK(path.stat().st_mode) == (what == "listener")
            path.unlink()


def test_what_other_machines_could_read_must_be_wanted(run_dir: Path) -> None:
    assert "--metrics-anywhere" in refused(run_dir, "--metrics", "0.0.0.0:0").stderr


def test_the_command_line_can_take_that_back(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMBROKER_METRICS_ANYWHERE", "true")
    told = refused(run_dir, "--metrics", "0.0.0.0:0", "--no-metrics-anywhere").stderr
    assert told.startswith("InvalidArgument: metrics at 0.0.0.0:0 ")


def refused(run_dir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    device = unused_device()
    sizes = ("--capacity", "64MiB", "--host-budget", "64MiB")
    words = serve_command(device, run_dir, *sizes, *options)
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    return done


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"\xff\x00 \r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n", ""),
    ],
    ids=["post", "elsewhere", "bytes", "long"],
)
def test_odd_readers_are_told_off(request_: bytes, status: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=TCP)
    before = daemon.fds()
    with suppress(ConnectionError):
        assert ask(port_of(daemon), request_)[0] == status
    assert ask(port_of(daemon), GET)[0] == "HTTP/1.1 200 OK"
    daemon.wait_for_fds(before)


def test_readers_who_say_nothing_keep_nobody_else_waiting_for_long(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=TCP)
    port = port_of(daemon)
    daemon.operator.status()
    before = daemon.fds()
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(port)) for _ in range(CONNECTIONS_MAX)]
        assert daemon.operator.status().device.id == daemon.device
        with suppress(ConnectionError):
            assert ask(port)[0] == "", "one too many is let go of at once"
        assert [one.recv(1) for one in silent] == [b""] * len(silent), "and who says nothing, after a while"
    assert ask(port)[0] == "HTTP/1.1 200 OK"
    daemon.wait_for_fds(before)


def test_without_the_option_there_are_none(start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon()
    assert "metrics" not in daemon.log()
    status: v1.Status = daemon.operator.status()
    assert status.device.id == daemon.device
