"""`broker run`: a program, unchanged, whose memory is leased; and one that runs where there is no daemon."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vrambroker.client.discovery import DEVICE_VARIABLE, RUN_DIR_VARIABLE

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker

DEADLINE_S = 60.0

SHOWN = """
import os
print(*(os.environ.get(f"VRAMBROKER_{name}") for name in ("NAME", "DEVICE", "TAG", "CONTENTS")))
"""

# A parent that leases nothing itself has a child that does, under the same names.
LEASED = """
import subprocess, sys
if sys.argv[1:] == ["parent"]:
    sys.exit(subprocess.run([sys.executable, sys.argv[0], "child"]).returncode)
import torch
weights = torch.ones(1 << 20)
from torch_memory_saver import torch_memory_saver
from vrambroker.client import connect
with connect("trainer") as memory:
    tags = memory.status().session("trainer").tags
    print(*((tag.tag, tag.contents, tag.device_bytes >= 4 << 20) for tag in tags))
    torch_memory_saver.pause()
    print(memory.is_paused("all"), torch_memory_saver.get_cpu_backup(weights).sum().item())
    torch_memory_saver.resume()
print(weights.sum().item())
sys.exit(7)
"""


def run(run_dir: Path, *words: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vrambroker.broker.entry", "run", "--run-dir", str(run_dir), *words],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_the_program_is_told_where_its_memory_is(shared_broker: "RunningBroker") -> None:
    words = ("--name", "trainer", "--tag", "all", "--contents", "drop", "--", sys.executable, "-c", SHOWN)
    done = run(shared_broker.run_dir, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"trainer {shared_broker.device} all drop\n"


def test_what_torch_allocates_is_leased_and_the_exit_code_is_the_programs(
    shared_broker: "RunningBroker", tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(LEASED)
    words = ("--name", "trainer", "--tag", "all", "--torch-memory-saver", sys.executable, str(program), "parent")
    done = run(shared_broker.run_dir, *words)
    assert done.stdout.splitlines() == ["('all', 'keep', True)", "True 1048576.0", "1048576.0"]
    assert (done.returncode, done.stderr) == (7, "")


def test_signals_are_the_programs(shared_broker: "RunningBroker") -> None:
    command = [sys.executable, "-m", "vrambroker.broker.entry", "run", "--run-dir", str(shared_broker.run_dir), "--"]
    source = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*command, sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(DEADLINE_S) == -signal.SIGUSR1


@pytest.mark.parametrize("there", ["nothing", "a dead socket", "no such device"])
def test_without_a_daemon_the_program_runs_as_ever(there: str, shared_broker: "RunningBroker", tmp_path: Path) -> None:
    run_dir = tmp_path
    device: tuple[str, ...] = ()
    if there == "a dead socket":
        folder = tmp_path / "host:0"
        folder.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(folder / "handles.sock"))
    elif there == "no such device":
        run_dir, device = shared_broker.run_dir, ("--device", "host:99999")
    words = ("--torch-memory-saver", "--tag", "all", *device, "--", sys.executable, "-c", SHOWN)
    done = run(run_dir, *words, environment={DEVICE_VARIABLE: ""})
    assert (done.returncode, done.stdout) == (0, "None  None None\n")
    first, second = done.stderr.splitlines()
    assert first.startswith("BrokerUnavailable: ")
    assert "broker serve" in first
    assert second.endswith("runs as without it")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--", "/nowhere/program"), 127, "FileNotFoundError: /nowhere/program: "),
        (("--", "no-such-program"), 127, "FileNotFoundError: no-such-program: "),
        (("--", "/etc/passwd"), 126, "PermissionError: "),
        (("--tag", "a b", "--", "true"), 1, "InvalidArgument: "),
        (("--contents", "zero", "--", "true"), 2, "usage: "),
        ((), 2, "usage: "),
    ],
)
def test_a_program_that_can_t_be_started(
    shared_broker: "RunningBroker", words: tuple[str, ...], code: int, error: str
) -> None:
    done = run(shared_broker.run_dir, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(error)


def test_a_daemon_that_is_gone_when_torch_is_imported_is_no_end(tmp_path: Path) -> None:
    from vrambroker.client.saver import STARTUP_FOLDER

    environment = {
        **os.environ,
        "PYTHONPATH": str(STARTUP_FOLDER),
        RUN_DIR_VARIABLE: str(tmp_path),
        "VRAMBROKER_TAG": "all",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.ones(3).sum().item())"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3.0\n")
    assert done.stderr.startswith("vrambroker: BrokerUnavailable: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "words"), [("typer", ("status",)), ("uvloop", ("serve", "--device", "host:99998"))]
)
def test_what_is_not_installed_is_said_in_a_line(missing: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """A worker's package has none of the daemon's; `broker run` needs none."""
    source = f"import sys; sys.modules[{missing!r}] = None; from vrambroker.broker.entry import main; main()"
    command = [sys.executable, "-c", source]
    environment = {**os.environ, RUN_DIR_VARIABLE: str(tmp_path)}
    done = subprocess.run(
        [*command, *words], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ModuleNotFoundError: {missing} is not installed: pip install 'vrambroker[broker]'\n"
    ran = subprocess.run(
        [*command, "run", "--", "true"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ran.returncode == 0
