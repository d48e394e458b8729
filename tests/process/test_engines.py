"""The call sequences of engines and trainers that use torch_memory_saver, on a device that does not hold both sides.

Each side is a program of its own (`engines/`), started by `broker run` and knowing nothing of it. The orders of tags are
those of SGLang 0.5.23, slime, miles, AReaL, NeMo-RL and verl; see docs/engines.md.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.process.engines.program import Program

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker

MIB = 1 << 20
ALL_ASLEEP = {"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "1"}


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
        options = ("--run-dir", str(self._broker.run_dir), "--name", name, "--torch-memory-saver")
        program = Program(name, script, environment=environment, options=options)
        stack.callback(program.kill)
        return program

    def start_offloader(self, stack: ExitStack) -> Program:
        options = ("--run-dir", str(self._broker.run_dir), "--name", "offloader", "--tag", "trainer")
        program = Program("offloader", "offloader.py", environment={}, options=options)
        stack.callback(program.kill)
        assert program.hear() == "ready"
        return program

    def resident_bytes(self, name: str) -> int:
        """What a side has in use, but for what it allocated while it slept (a tag of its own, `default+2`)."""
        session = self.control.status().session(name)
        assert session is not None
        return sum(tag.device_bytes for tag in session.tags if tag.state == "resident" and "+" not in tag.tag)

    def end(self) -> None:
        self.rollout.say("end")
        for program in (self.trainer, self.policy, self.rollout):
            program.end()


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


def test_verl(sides: Sides) -> None:
    """It moves its own states, so it is never paused; of the engine's tags it names two, and the graphs stay."""
    rollout = sides.rollout
    assert rollout.ask("resume") == "resumed"
    assert rollout.ask("release kv_cache weights") == "released"
    with ExitStack() as stack:
        trainer = sides.start_offloader(stack)
        for step in (1, 2):
            assert trainer.ask("train") == f"trained {step}"
            assert trainer.ask("offload moments") == "offloaded"
            # update_weights: the weights come back beside the parameters, which then go; the cache comes last.
            assert rollout.ask("resume weights") == "resumed"
            sent = trainer.ask("send").removeprefix("sent ")
            assert rollout.ask(f"update {sent}") == "updated"
            assert trainer.ask("offload params") == "offloaded"
            assert rollout.ask("resume kv_cache") == "resumed"
            assert rollout.ask("generate") == f"weights {step}"
            assert rollout.ask("release kv_cache weights") == "released"
            assert trainer.ask("reload") == "reloaded"
        trainer.end()
    assert rollout.ask("release cuda_graph") == "released"
    assert sides.resident_bytes("rollout") == 0
