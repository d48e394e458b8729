"""The demo from end to end, with its own daemon and workers: a short run, and runs that somebody ends early."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from vrambroker.client.demo import trainer
from vrambroker.client.demo.loop import REWARD_PROVEN

DEADLINE_S = 90.0
REPORT_KEYS = {
    "device",
    "steps",
    "reward_first",
    "reward_last",
    "capacity_bytes",
    "peak_bytes",
    "need_together_bytes",
    "addresses_changed",
    "seconds",
    "timeline",
}


class RunningDemo:
    """`broker demo` in a session of its own, with a folder of its own for its temporary things as well."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.report = folder / "out" / "demo.json"
        command = ["-m", "vrambroker.broker.cli", "demo", "--report", str(self.report), *options]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_training(self) -> None:
        """Return once it tells of its first step. Reads the pipe itself, as `select` sees only what is left in it."""
        assert self.process.stdout is not None
        told = b""
        while b"step" not in told:
            assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], f"it told nothing more than {told!r}"
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"it ended, after {told!r}"
            told += piece

    def children(self) -> dict[str, int]:
        """Return a pidfd for each process that it has started, by what it is."""
        found: dict[str, int] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if parent == self.process.pid:
                role = next(role for role in ("serve", "trainer", "rollout") if role in words)
                found[role] = os.pidfd_open(int(entry.name))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def end(self) -> tuple[int, str]:
        """Wait for its end; returns its exit code and what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in it; only what the demo promises to leave may be left there."""
    with tempfile.TemporaryDirectory(prefix="vrb-") as name:
        yield Path(name)
        assert {entry.name for entry in Path(name).iterdir()} <= {"out"}


def _assert_all_ended(children: dict[str, int]) -> None:
    assert set(children) == {"serve", "trainer", "rollout"}
    for role, pidfd in children.items():
        ended = bool(select.select([pidfd], [], [], DEADLINE_S)[0])
        os.close(pidfd)
        assert ended, f"{role} is still there"


@pytest.mark.slow
def test_three_steps_take_turns_and_nothing_moves(folder: Path) -> None:
    with RunningDemo(folder, "--steps", "3") as demo:
        code, errors = demo.end()
    assert (code, errors) == (0, "")
    report = json.loads(demo.report.read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["device"].startswith("host:")
    assert report["steps"] == len(report["rewards"]) == 3
    assert 0 < report["reward_first"] < REWARD_PROVEN
    assert report["addresses"] > 100
    assert (report["addresses_changed"], report["contents_changed"]) == (0, 0)
    assert report["peak_bytes"] <= report["capacity_bytes"] < report["need_together_bytes"]
    # At least the KV cache in and the optimizer out, every step; and every copy of the policy like the other.
    assert report["arrived_bytes"] > 3 * report["capacity_bytes"]
    assert report["copied_out_bytes"] >= report["copied_in_bytes"] > 0
    assert report["logprob_gap_max"] < 1e-3
    drawn = ElementTree.parse(report["timeline"]).getroot()
    words = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"trainer", trainer.PARAMS, trainer.OPTIMIZER, "rollout", "kv_cache", "stage: train"} <= words
    stages = [
        event["name"] for event in json.loads(Path(report["trace"]).read_text())["traceEvents"] if event["ph"] == "X"
    ]
    assert {f"{stage} {step}" for stage in ("update", "generate", "train") for step in range(3)} <= set(stages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "error"), [("rollout", "WorkerFailed: rollout was killed"), ("serve", "DaemonFailed")]
)
def test_a_death_is_told_in_one_line_and_nobody_is_left(folder: Path, role: str, error: str) -> None:
    with RunningDemo(folder) as demo:
        demo.wait_for_training()
        children = demo.children()
        signal.pidfd_send_signal(children[role], signal.SIGKILL)
        code, errors = demo.end()
    assert code == 1
    assert errors.startswith(error)
    assert errors.count("\n") == 1
    _assert_all_ended(children)
    assert not demo.report.exists()


@pytest.mark.slow
def test_an_interrupt_ends_everybody_and_a_second_one_does_not_hurry_it(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.wait_for_training()
        children = demo.children()
        demo.process.send_signal(signal.SIGINT)
        demo.process.send_signal(signal.SIGTERM)
        code, errors = demo.end()
    assert code == 130
    assert errors.startswith("Interrupted")
    _assert_all_ended(children)


@pytest.mark.parametrize(
    "options",
    [
        ("--size", "gigantic"),
        ("--steps", "0"),
        ("--seconds", "-1"),
        ("--device", "host:x"),
        ("--report", "/dev/null/demo.json"),
        ("--report", "/"),
    ],
    ids=" ".join,
)
def test_what_can_not_be_run_is_refused_in_one_line(folder: Path, options: tuple[str, ...]) -> None:
    with RunningDemo(folder, *options) as demo:
        code, errors = demo.end()
    assert code == 1
    assert "InvalidArgument" in errors
    assert errors.count("\n") == 1
