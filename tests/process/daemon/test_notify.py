"""What the service manager hears of a real daemon over a real socket: ready, alive, reloading, stopping; and silence."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import DEADLINE_S, MIB, Daemon

PERIOD_US = 400_000
PLAN = '[[phase]]\nname = "{}"\ntags = ["a/b"]\n'

STUCK_DAEMON = """
import sys, threading
from pathlib import Path
from vrambroker.broker.config import Config
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.events import DeadlineReached
from vrambroker.broker.daemon import serve

handled = Broker.handle

def handle(self, event, now):
    if isinstance(event, DeadlineReached) and Path(sys.argv[5], "stuck").exists():
        threading.Event().wait()
    return handled(self, event, now)

Broker.handle = handle
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
serve(Config.of(device=options["--device"], capacity="64MiB", host_budget="64MiB", run_dir=Path(options["--run-dir"])))
"""

DEAF_DAEMON = STUCK_DAEMON.replace("threading.Event().wait()", "return []  # told below").replace(
    "Broker.handle = handle",
    """
from vrambroker.broker.runtime import Runtime
submit = Runtime.submit
Runtime.submit = lambda self, event: None if Path(sys.argv[5], "stuck").exists() else submit(self, event)
""",
)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(PERIOD_US))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)


def hear(daemon: Daemon, claim: Callable[[bytes], bool]) -> list[bytes]:
    """Return what was told up to the first message that is as claimed."""
    heard: list[bytes] = []
    end = time.monotonic() + DEADLINE_S
    while not heard or not claim(heard[-1]):
        assert time.monotonic() < end, f"never told: {heard}"
        heard.append(daemon.notification())
    return heard


def fields(message: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in message.decode().splitlines())


def is_watchdog(message: bytes) -> bool:
    return message == b"WATCHDOG=1"


def test_the_manager_hears_twice_in_a_period_that_the_core_works(watched: None, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    assert daemon.notified == [b"READY=1"]
    hear(daemon, is_watchdog)
    began = time.monotonic()
    for _ in range(4):
        hear(daemon, is_watchdog)
    assert time.monotonic() - began < 4 * PERIOD_US / 1e6, "once in a period would be too late"


def test_nobody_who_did_not_ask_is_told_that_the_daemon_lives(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.process.send_signal(signal.SIGTERM)
    heard = hear(daemon, lambda message: message == b"STOPPING=1")
    assert not any(is_watchdog(message) for message in heard)


@pytest.mark.parametrize("program", [STUCK_DAEMON, DEAF_DAEMON], ids=["stuck", "deaf"])
def test_a_core_that_handles_nothing_is_silent(watched: None, run_dir: Path, program: str) -> None:
    """A timer of its own would go on; `deaf` has a loop that still runs and answers, and only the core is cut off."""
    daemon = Daemon(run_dir, program=("-c", program))
    marker = run_dir / "stuck"
    try:
        hear(daemon, is_watchdog)
        marker.touch()
        daemon.await_notifications(3 * PERIOD_US / 1e6)
        with pytest.raises(TimeoutError):
            for _ in range(10):
                hear(daemon, is_watchdog)
    finally:
        daemon.process.kill()
        daemon.process.wait(DEADLINE_S)
        daemon.stop()
        marker.unlink()
        shutil.rmtree(daemon.folder)


def test_the_status_says_what_is_lent_and_to_how_many(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    client = daemon.client("trainer")
    client.lease("weights", 4 * MIB)
    told = hear(daemon, lambda message: b": 4.0 MiB" in message)[-1]
    assert told.decode() == f"STATUS={daemon.device}: 4.0 MiB of 64.0 MiB lent, 1 session"
    client.bye()
    hear(daemon, lambda message: message.endswith(b"0 B of 64.0 MiB lent, 0 sessions"))
    daemon.dismiss_clients()


def test_a_reload_is_begun_and_ended_and_its_plan_is_the_daemons(start_daemon: StartDaemon, run_dir: Path) -> None:
    plan, file = run_dir / "plan.log", run_dir / "broker.log"
    plan.write_text(PLAN.format("train"))
    file.write_text(f'plan = "{plan}"\neager = "never"\n')
    daemon = start_daemon(options=("--config", str(file)))
    plan.write_text(PLAN.format("generate"))
    file.write_text(f'plan = "{plan}"\neager = "always"\ndevice = "host:1"\n')
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    daemon.process.send_signal(signal.SIGHUP)
    begun = fields(hear(daemon, lambda message: message.startswith(b"RELOADING=1"))[-1])
    assert before_us <= int(begun["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    hear(daemon, lambda message: message == b"READY=1")
    status = daemon.operator.status()
    assert [phase.name for phase in status.plan.phases] == ["generate"]
    assert status.device.eager == "as configured"
    assert "reload: device" not in daemon.log(), "the command line goes first, still"


def test_what_can_not_be_changed_is_told_and_what_makes_no_sense_changes_nothing(
    start_daemon: StartDaemon, run_dir: Path
) -> None:
    file = run_dir / "broker.log"
    file.write_text('outside_per_session = "1GiB"\n')
    daemon = start_daemon(options=("--config", str(file)))
    file.write_text('spill_budget = "1GiB"\neager = "always"\n')
    reload(daemon)
    assert "reload: spill_budget is another one now" in daemon.log()
    assert daemon.operator.status().device.eager == "as configured"
    file.write_text('eagre = "never"\n')
    reload(daemon)
    assert f"{file}: eagre is unknown: did you mean eager?" in daemon.log()
    file.unlink()
    reload(daemon)
    assert daemon.operator.status().device.eager == "as configured"
    file.touch()


def reload(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    hear(daemon, lambda message: message.startswith(b"RELOADING=1"))
    hear(daemon, lambda message: message == b"READY=1")


def test_the_manager_hears_of_the_end_before_the_calls_are_cut_off(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.process.send_signal(signal.SIGTERM)
    hear(daemon, lambda message: message == b"STOPPING=1")
    assert daemon.process.wait(DEADLINE_S) == 0
