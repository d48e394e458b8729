"""deploy/monitoring against a real Prometheus that scrapes a real daemon: rules, and every query of the dashboard."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import DEADLINE_S, MIB
from tests.process.daemon.scrape import port_of
from tests.tidy.test_house import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
RULE_TESTS = ROOT / "tests" / "process" / "monitoring" / "rules_test.yml"
METRIC = re.compile(r"\b(?:vrambroker|process)_\w+\b")
READY = b"Server is ready to receive web requests"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: nothing judged rules and queries"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: nothing was scraped"
)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return found


def queries() -> list[str]:
    """Return the expressions of all panels, with the dashboard's variables filled in."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [expr.replace("$device", ".*").replace("$__rate_interval", "10s") for expr in asked]


def promtool(*words: str | Path, cwd: Path = MONITORING) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["promtool", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_every_query_is_of_the_devices_that_are_chosen() -> None:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert all('{device=~"$device"}' in expr for expr in asked)
    assert not any("job=" in expr for expr in asked)


def test_a_panel_says_what_it_shows_in_which_unit_and_none_hides_another() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@needs_promtool
def test_rules_and_configuration_are_sound() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "9 rules found" in done.stdout


@needs_promtool
def test_each_alert_is_raised_where_it_must_be_and_only_there(tmp_path: Path) -> None:
    for path in (RULE_TESTS, MONITORING / "vrambroker.rules.yml"):
        shutil.copy(path, tmp_path)
    done = promtool("test", "rules", RULE_TESTS.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    alerts = set(re.findall(r"alert: (\w+)", (MONITORING / "vrambroker.rules.yml").read_text()))
    raised = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n", RULE_TESTS.read_text()))
    assert raised == alerts, "an alert that no test has seen"


class Prometheus:
    """A running server that scrapes one daemon five times a second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **arguments: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def result(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("/api/v1/query", query=expression)["result"]
        return found

    def wait_for(self, expression: str) -> None:
        """Wait until an expression has a result; each look is a round trip through the server."""
        end = time.monotonic() + DEADLINE_S
        while not self.result(expression):
            assert time.monotonic() < end, f"{expression} has no result"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@contextmanager
def prometheus(target: int) -> Iterator[Prometheus]:
    """Run a server with our rules on a daemon's port, until the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="vrb-prometheus-"))
    port = _free_port()
    text = (MONITORING / "prometheus.yml").read_text().replace("127.0.0.1:9464", f"127.0.0.1:{target}")
    (folder / "prometheus.yml").write_text("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n" + text)
    shutil.copy(MONITORING / "vrambroker.rules.yml", folder)
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _await(process, READY)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)
        shutil.rmtree(folder)


def _await(process: "subprocess.Popen[bytes]", words: bytes) -> None:
    """Wait until a process has said these words on stderr."""
    assert process.stderr is not None
    said, end = b"", time.monotonic() + DEADLINE_S
    while words not in said:
        readable, _, _ = select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))
        part = os.read(process.stderr.fileno(), 65536) if readable else b""
        assert part, f"it has not said {words!r}: {said.decode()}"
        said += part


@needs_prometheus
def test_prometheus_scrapes_a_daemon_and_answers_every_query_of_the_dashboard(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--metrics", "127.0.0.1:0"))
    client = daemon.client("trainer")
    client.lease("weights", 4 * MIB)
    with prometheus(port_of(daemon)) as server:
        labels = f'device="{daemon.device}", session="trainer", tag="weights"'
        server.wait_for(f"sum(vrambroker_lease_device_bytes{{{labels}}}) == {4 * MIB}")
        server.wait_for('count_over_time(up{job="vrambroker"}[10s]) > 3')
        known = set(server.ask("/api/v1/label/__name__/values"))
        for query in queries():
            unknown = set(METRIC.findall(query)) - known
            assert not unknown, f"{query} asks for {unknown}"
            server.result(query)
        rules = server.ask("/api/v1/rules")["groups"][0]["rules"]
        for rule in rules:
            assert not set(METRIC.findall(rule["query"])) - known, rule["query"]
        assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
        daemon.dismiss_clients()
        server.wait_for("vrambroker_sessions_ended_total == 1 and on (device) vrambroker_leases == 0")
