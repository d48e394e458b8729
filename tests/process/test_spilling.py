"""Real clients whose kept contents are larger than the host's budget: out to a disk and back, and the deaths on the way."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.rpc import Control

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker, WaitFor, Worker

MIB = 1 << 20
# Each worker fills 128 MiB, all there is on the device; every MiB of it can be told from all others.
SWAPPING = """
import torch
from vrambroker.client import BrokerError, connect
memory = connect("worker")
while line := told():
    word, _, how = line.partition(" ")
    try:
        if word == "make":
            model = memory.empty((128, 1 << 18), dtype=torch.int32, tag="model")
            expected = torch.arange(1 << 18, dtype=torch.int32) + int(how)
            for number, row in enumerate(model):
                torch.mul(expected, number + 1, out=row)
        elif word == "pause":
            memory.pause("model", release=how == "release")
        elif word == "resume":
            memory.resume("model", timeout=30)
        right = word == "pause" or all(row.equal(expected * (number + 1)) for number, row in enumerate(model))
        tell(word if right else "wrong")
    except BrokerError as error:
        tell(type(error).__name__, error)
memory.close()
"""


@pytest.fixture
def broker(start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "RunningBroker":
    """A daemon that lends 128 MiB, parks 32 and spills 256."""
    options = ("--spill-dir", str(tmp_path), "--spill-budget", "256MiB")
    running = start_broker(capacity="128MiB", host_budget="64MiB", options=options)
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(running.run_dir))
    return running


def _started(start_worker: "StartWorker", seed: int, pause: str) -> "Worker":
    worker = start_worker(SWAPPING)
    assert worker.ask(f"make {seed}") == "make"
    assert worker.ask(pause) == "pause"
    return worker


def test_two_processes_swap_more_than_the_host_can_hold(start_worker: "StartWorker", control: Control) -> None:
    one, other = _started(start_worker, 1, "pause"), _started(start_worker, 1_000_000, "pause")
    for _ in range(2):
        for comes in (one, other):
            assert comes.ask("resume") == "resume"
            status = control.status()
            assert status.host.spill_used_bytes >= 96 * MIB
            assert status.host.file_bytes <= status.host.budget_bytes == 64 * MIB
            spilled = [tag.spill_bytes for session in status.sessions for tag in session.tags]
            assert sum(spilled) == status.host.spill_used_bytes
            assert comes.ask("pause") == "pause"
    why = [event.why for event in control.watch(history=True, until_now=True) if event.kind == "spilled"]
    assert f"worker/model: {96 * MIB} bytes go to the spill directory: the arena has {32 * MIB} left" in why
    for worker in (one, other):
        worker.say("")
        worker.end()


def test_a_process_that_is_killed_on_the_way_leaves_nothing(
    start_worker: "StartWorker", control: Control, wait_for: "WaitFor"
) -> None:
    survivor = _started(start_worker, 1, "pause release")
    mortal = start_worker(SWAPPING)
    assert mortal.ask("make 2") == "make"
    mortal.say("pause release")
    wait_for(control, lambda: control.status().host.spill_used_bytes > 96 * MIB)
    mortal.signal(signal.SIGKILL)
    wait_for(control, lambda: control.status().host.spill_used_bytes == 96 * MIB)
    assert survivor.ask("resume") == "resume"
    wait_for(control, lambda: not control.status().host.used_bytes + control.status().host.spill_used_bytes)


def test_of_a_daemon_that_is_killed_nothing_stays_on_the_disk(broker: "RunningBroker", tmp_path: Path) -> None:
    fds = Path(f"/proc/{broker.process.pid}/fd")
    (file,) = (fd for fd in fds.iterdir() if str(tmp_path) in str(fd.readlink()))
    assert file.stat().st_nlink == 0, "it has no name"
    broker.kill()
    assert not list(tmp_path.iterdir())
    broker.start_again()
    assert "up to 268435456 bytes are spilled to" in broker.log()


def test_more_than_the_disk_has_is_refused_in_one_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vrambroker.broker.cli import app

    refused = CliRunner().invoke(app, ["serve", "--spill-dir", str(tmp_path), "--spill-budget", "4000TiB"])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("InvalidArgument: spill_budget of ")
