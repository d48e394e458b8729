"""The call sequences of engines and trainers that use torch_memory_saver, on a device that does not hold both sides.

Each side is a program of its own (`engines/`), started by `broker run` and knowing nothing of it. The orders of tags are
those of SGLang 0.5.23, slime, miles, AReaL and NeMo-RL; see docs/engines.md.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker

DEADLINE_S = 60.0
MIB = 1 << 20
ENGINES = Path(__file__).parent / "engines"
ALL_ASLEEP = {"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "1"}


class Program:
    """One side, started by `broker run`; it is asked in lines."""

    def __init__(self, broker: "RunningBroker", name: str, script: str, environment: dict[str, str]) -> None:
        words = ["run", "--run-dir", str(broker.run_dir), "--name", name, "--torch-memory-saver"]
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vrambroker.broker.cli", *words, "--", sys.executable, str(ENGINES / script)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def hear(self) -> str:
        line = self._lines.get(timeout=DEADLINE_S)
        assert line, f"{self.name} ended with {self.process.wait(DEADLINE_S)}"
        return line.strip()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.poll() is None, f"{self.name} has ended"
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")


class Sides:
    """The programs of this file. Between scenarios both sides that share the device are away."""

    def __init__(self, broker: "RunningBroker", stack: ExitStack) -> None:
        self._broker = broker
        self.control = broker.control(stack)
        # They come up one beside the other, and the device holds what each has at first.
        self.trainer = self._start(stack, "trainer", "trainer.py", ALL_ASLEEP)
        self.policy = self._start(stack, "policy", "policy.py", {})
        self.rollout = self._start(stack, "rollout", "rollout.py", {})
        assert self.policy.hear() == "ready"
        assert self.policy.ask("finish_generation") == "paused"
        assert self.trainer.hear() == "ready"
        assert self.trainer.ask("sleep") == "asleep"
        assert self.rollout.ask("load") == "ready"
        assert self.rollout.ask("release") == "released"

    def _start(self, stack: ExitStack, name: str, script: str, environment: dict[str, str]) -> Program:
        program = Program(self._broker, name, script, environment)
        stack.callback(program.kill)
        return program

    def resident_bytes(self, name: str) -> int:
        """What a side has in use, but for what it allocated while it slept (a tag of its own, `default+2`)."""
        session = self.control.status().session(name)
        assert session is not None
        return sum(tag.device_bytes for tag in session.tags if tag.state == "resident" and "+" not in tag.tag)

    def end(self) -> None:
        self.rollout.say("end")
        for program in (self.trainer, self.policy, self.rollout):
            program.hang_up()
        for program in (self.trainer, self.policy, self.rollout):
            assert program.process.wait(DEADLINE_S) == 0


@pytest.fixture(scope="module")
def sides(shared_broker: "RunningBroker") -> Iterator[Sides]:
    with ExitStack() as stack:
        both = Sides(shared_broker, stack)
        yield both
        both.end()


def test_sglang_alone(sides: Sides) -> None:
    rollout = sides.rollout
    assert rollout.ask("resume") == "resumed"
    assert rollout.ask("update 7") == "updated"
    assert rollout.ask("generate") == "weights 7"
    # The KV cache alone, as for a weight update beside it.
    assert rollout.ask("release kv_cache") == "released"
    assert rollout.ask("resume kv_cache") == "resumed"
    assert rollout.ask("generate") == "weights 7"
    # verl's two stages: weights have no backup, so they come back without their values.
    assert rollout.ask("release kv_cache weights") == "released"
    assert rollout.ask("resume weights") == "resumed"
    assert rollout.ask("update 8") == "updated"
    assert rollout.ask("resume kv_cache") == "resumed"
    assert rollout.ask("generate") == "weights 8"
    assert rollout.ask("release") == "released"
    assert sides.resident_bytes("rollout") == 0


def test_slime(sides: Sides) -> None:
    trainer, rollout = sides.trainer, sides.rollout
    for step in range(2):
        # Generate, with the trainer asleep; then all three tags go.
        assert rollout.ask("resume weights") == "resumed"
        assert rollout.ask(f"update {step}") == "updated"
        assert rollout.ask("resume kv_cache cuda_graph") == "resumed"
        assert rollout.ask("generate") == f"weights {step}"
        assert sides.resident_bytes("trainer") == 0
        assert rollout.ask("release") == "released"
        assert trainer.ask("wake") == "awake"
        assert sides.resident_bytes("trainer") >= 32 * MIB
        assert trainer.ask("train") == "trained"
        saved = trainer.ask("save").removeprefix("saved ")
        assert trainer.ask("sleep") == "asleep"
        # A checkpoint wakes it a second time.
        assert trainer.ask("wake") == "awake"
        assert trainer.ask("sleep") == "asleep"
        assert rollout.ask("resume weights") == "resumed"
        assert trainer.ask("read") == f"read {saved} {saved}"
        assert trainer.ask("update") == f"sent {saved}"
        assert rollout.ask(f"update {saved}") == "updated"
        assert rollout.ask("resume kv_cache cuda_graph") == "resumed"
        assert rollout.ask("generate") == f"weights {saved}"
        assert rollout.ask("release") == "released"


def test_miles(sides: Sides) -> None:
    trainer, rollout = sides.trainer, sides.rollout
    for _ in range(2):
        assert trainer.ask("wake_miles") == "awake"
        assert trainer.ask("train") == "trained"
        saved = trainer.ask("save").removeprefix("saved ")
        assert trainer.ask("sleep_miles") == "asleep"
        assert rollout.ask("resume weights") == "resumed"
        assert trainer.ask("update_miles") == f"sent {saved}"
        assert rollout.ask(f"update {saved}") == "updated"
        assert rollout.ask("resume kv_cache cuda_graph") == "resumed"
        assert rollout.ask("generate") == f"weights {saved}"
        # Level by level: the graphs go in any case.
        assert rollout.ask("release kv_cache cuda_graph") == "released"
        assert rollout.ask("release weights") == "released"


def test_areal(sides: Sides) -> None:
    trainer, rollout = sides.trainer, sides.rollout
    assert rollout.ask("resume") == "resumed"
    assert rollout.ask("update 5") == "updated"
    assert rollout.ask("generate") == "weights 5"
    assert rollout.ask("release") == "released"
    assert trainer.ask("wake") == "awake"
    assert trainer.ask("train") == "trained"
    saved = trainer.ask("save")
    assert trainer.ask("sleep") == "asleep"
    assert trainer.ask("sleep") == "asleep"
    assert trainer.ask("offloaded_save") == saved
    assert rollout.ask("resume weights") == "resumed"
    assert rollout.ask("resume kv_cache cuda_graph") == "resumed"
    assert rollout.ask("update 6") == "updated"
    assert rollout.ask("generate") == "weights 6"
    assert rollout.ask("release") == "released"


def test_nemo_rl(sides: Sides) -> None:
    policy, rollout = sides.policy, sides.rollout
    # With SGLang: kv_cache stands for the graphs as well.
    assert rollout.ask("resume weights") == "resumed"
    assert rollout.ask("update 3") == "updated"
    assert rollout.ask("resume kv_cache cuda_graph") == "resumed"
    assert rollout.ask("generate") == "weights 3"
    assert rollout.ask("release weights kv_cache cuda_graph") == "released"
    # With Megatron's inference, in the trainer's process.
    for _ in range(2):
        assert policy.ask("train") == "trained"
        assert policy.ask("prepare_for_generation") == "resumed"
        assert policy.ask("refit") == "refitted"
        assert policy.ask("finish_generation") == "paused"
        assert sides.resident_bytes("policy") == 0
    assert policy.ask("prepare_for_generation") == "resumed"
    assert policy.ask("finish_generation") == "paused"
