"""vLLM's workers on leased memory, and what verl, OpenRLHF and NeMo-RL ask of them, beside a trainer that doesn't fit as well.

Each side is a program of its own (`engines/`). The orders of calls are those of vLLM 0.33.0 and of the trainers' sources;
see docs/engines.md.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import util
from typing import TYPE_CHECKING

import pytest

from tests.process.engines.program import ENGINES, Program

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker
    from vrambroker.client.rpc import Control

MIB = 1 << 20

StartEngine = Callable[..., Program]


def vllm_path() -> dict[str, str]:
    """Return what finds a `vllm`: the one that is installed, or its like."""
    before = os.environ.get("PYTHONPATH")
    folders = [before] if before else []
    installed = util.find_spec("vllm")
    if installed is None or installed.origin is None:
        folders.append(str(ENGINES / "vllm_seams"))
    return {"PYTHONPATH": os.pathsep.join(folders)}


class Side:
    """The rollout, and what the broker knows of it."""

    def __init__(self, broker: "RunningBroker", stack: ExitStack, *, backend: str = "vrambroker", **more: str) -> None:
        self.control: Control = broker.control(stack)
        self.engine = Program(
            "rollout",
            "vllm_worker.py",
            backend,
            environment={**broker.environment, **vllm_path(), "VRAMBROKER_NAME": "rollout", **more},
        )
        stack.callback(self.engine.kill)
        assert self.engine.hear() == "ready"
        assert self.engine.ask("load") == "loaded"

    def states(self) -> dict[str, str]:
        session = self.control.status().session("rollout")
        assert session is not None
        return {tag.tag: tag.state for tag in session.tags}

    def host_bytes(self) -> dict[str, int]:
        session = self.control.status().session("rollout")
        assert session is not None
        return {tag.tag: tag.host_bytes for tag in session.tags if tag.host_bytes}


def start_trainer(broker: "RunningBroker", stack: ExitStack) -> Program:
    options = ("--run-dir", str(broker.run_dir), "--name", "trainer", "--tag", "trainer")
    trainer = Program("trainer", "offloader.py", environment={}, options=options)
    stack.callback(trainer.kill)
    assert trainer.hear() == "ready"
    return trainer


@pytest.fixture(params=["vrambroker", "cumem"])
def side(request: pytest.FixtureRequest, broker: "RunningBroker") -> Iterator[Side]:
    """An engine that names the backend; and one that names none, where the environment asks for leased memory."""
    with ExitStack() as stack:
        switched = {"VRAMBROKER_VLLM": "1"} if request.param == "cumem" else {}
        rollout = Side(broker, stack, backend=request.param, VRAMBROKER_PAUSE="release", **switched)
        yield rollout
        rollout.engine.end()


def test_level_1_keeps_the_weights(side: Side) -> None:
    engine = side.engine
    assert engine.ask("update 3") == "updated"
    assert engine.ask("sleep 1") == "asleep"
    assert set(side.states().values()) == {"parked"}
    assert side.host_bytes().keys() == {"weights", "runtime"}
    assert side.host_bytes()["weights"] >= 20 * MIB
    assert engine.ask("sleep 1") == "is asleep"
    assert engine.ask("wake_up weights") == "awake"
    # What can't be left asleep comes with the first tag.
    assert side.states() == {
        "weights": "resident",
        "runtime": "resident",
        "workspace": "resident",
        "kv_cache": "parked",
    }
    assert engine.ask("read") == "weights 3 3"
    assert engine.ask("wake_up kv_cache") == "awake"
    assert engine.ask("generate") == "weights 3"
    assert engine.ask("sleep 1") == "asleep"
    assert engine.ask("wake_up") == "awake"
    assert engine.ask("generate") == "weights 3"


def test_level_2_keeps_no_weights_and_takes_no_host_memory_for_them(side: Side) -> None:
    engine = side.engine
    assert engine.ask("update 3") == "updated"
    assert engine.ask("sleep 2") == "asleep"
    assert side.host_bytes().keys() == {"runtime"}
    assert engine.ask("wake_up weights") == "awake"
    assert engine.ask("read") == "weights 0 0"
    assert engine.ask("update 4") == "updated"
    assert engine.ask("wake_up kv_cache") == "awake"
    assert engine.ask("generate") == "weights 4"
    # The next time they are kept again.
    assert engine.ask("sleep 1") == "asleep"
    assert engine.ask("wake_up") == "awake"
    assert engine.ask("generate") == "weights 4"


def test_sleeping_moves_nothing_while_nobody_needs_the_memory(broker: "RunningBroker") -> None:
    with ExitStack() as stack:
        side = Side(broker, stack)
        assert side.engine.ask("generate") == "weights 0"
        assert side.engine.ask("state") == "RUNNING"
        assert side.engine.ask("sleep 1") == "asleep"
        assert set(side.states().values()) == {"idle"}
        assert side.engine.ask("state") == "SUSPENDED"
        assert side.engine.ask("wake_up weights") == "awake"
        assert side.engine.ask("state") == "SUSPENDED"
        assert side.engine.ask("wake_up kv_cache") == "awake"
        assert side.engine.ask("state") == "RUNNING"
        assert side.engine.ask("generate") == "weights 0"
        side.engine.end()


def test_the_cache_alone_is_given_up_beside_the_weights(broker: "RunningBroker") -> None:
    with ExitStack() as stack:
        side = Side(broker, stack, VRAMBROKER_PAUSE="release")
        assert side.engine.ask("release_kv_cache") == "released"
        assert side.states()["kv_cache"] == "parked"
        assert side.states()["weights"] == "resident"
        assert side.host_bytes() == {}
        assert side.engine.ask("wake_up kv_cache") == "awake"
        assert side.engine.ask("generate") == "weights 0"
        side.engine.end()


def test_a_sleep_without_room_on_the_host_is_refused_and_nothing_has_changed(start_broker: "StartBroker") -> None:
    with ExitStack() as stack:
        side = Side(start_broker(host_budget="8MiB"), stack)
        assert side.engine.ask("update 5") == "updated"
        assert side.engine.ask("sleep 1").startswith("OutOfHostMemory: rollout must keep")
        assert set(side.states().values()) == {"resident"}
        assert side.engine.ask("generate") == "weights 5"
        # Level 2 is for just that.
        assert side.engine.ask("sleep 2") == "asleep"
        assert side.engine.ask("wake_up") == "awake"
        side.engine.end()


def test_a_wake_up_without_room_is_refused_and_can_be_asked_for_again(broker: "RunningBroker") -> None:
    with ExitStack() as stack:
        side = Side(broker, stack, VRAMBROKER_TIMEOUT="0")
        engine = side.engine
        assert engine.ask("update 6") == "updated"
        trainer = start_trainer_after_sleep(side, broker, stack, level=1)
        asleep = side.states()
        refusal = engine.ask("wake_up")
        assert refusal.startswith("OutOfDeviceMemory:")
        assert "trainer/trainer" in refusal
        assert side.states() == asleep
        assert engine.ask("state") == "SUSPENDED"
        assert trainer.ask("offload") == "offloaded"
        assert engine.ask("wake_up") == "awake"
        assert engine.ask("generate") == "weights 6"
        trainer.end()
        engine.end()


def test_verl(broker: "RunningBroker") -> None:
    with ExitStack() as stack:
        side = Side(broker, stack)
        engine, trainer = side.engine, start_trainer_after_sleep(side, broker, stack, level=2)
        for step in (1, 2):
            assert trainer.ask("train") == f"trained {step}"
            assert trainer.ask("offload moments") == "offloaded"
            # update_weights: the weights come back beside the parameters, which then go; the cache comes last.
            assert engine.ask("wake_up weights") == "awake"
            sent = trainer.ask("send").removeprefix("sent ")
            assert engine.ask(f"update {sent}") == "updated"
            assert trainer.ask("offload params") == "offloaded"
            assert engine.ask("wake_up kv_cache") == "awake"
            assert engine.ask("generate") == f"weights {step}"
            assert engine.ask("sleep 2") == "asleep"
            assert side.host_bytes().keys() == {"runtime"}
            assert trainer.ask("reload") == "reloaded"
        # Where trainer and rollout are apart, the cache alone goes for an update.
        assert trainer.ask("offload") == "offloaded"
        assert engine.ask("wake_up kv_cache weights") == "awake"
        assert engine.ask("sleep 2") == "asleep"
        assert engine.ask("wake_up weights") == "awake"
        assert engine.ask("update 9") == "updated"
        assert engine.ask("wake_up kv_cache") == "awake"
        assert engine.ask("generate") == "weights 9"
        trainer.end()
        engine.end()


def test_verl_with_adapters(broker: "RunningBroker") -> None:
    """Level 1: the base weights are wanted back, and nobody sends them again."""
    with ExitStack() as stack:
        side = Side(broker, stack)
        engine = side.engine
        assert engine.ask("update 7") == "updated"
        trainer = start_trainer_after_sleep(side, broker, stack, level=1)
        for step in (1, 2):
            assert trainer.ask("train") == f"trained {step}"
            assert trainer.ask("offload") == "offloaded"
            assert engine.ask("wake_up weights") == "awake"
            assert engine.ask("read") == "weights 7 7"
            assert engine.ask("wake_up kv_cache") == "awake"
            assert engine.ask("generate") == "weights 7"
            assert engine.ask("sleep 1") == "asleep"
            assert trainer.ask("reload") == "reloaded"
        trainer.end()
        engine.end()


def test_openrlhf_and_nemo_rl(broker: "RunningBroker") -> None:
    """Level 1 throughout; the weights stay awake from the update to the next generation, the cache does not."""
    with ExitStack() as stack:
        side = Side(broker, stack)
        engine, trainer = side.engine, start_trainer_after_sleep(side, broker, stack, level=1)
        assert trainer.ask("offload") == "offloaded"
        for step in (1, 2):
            for tag in ("weights", "kv_cache"):
                expected = "awake" if step == 1 or tag == "kv_cache" else "not among what is asleep"
                assert engine.ask(f"wake_up {tag}") == expected
            assert engine.ask("generate") == f"weights {step - 1}"
            assert engine.ask("sleep 1") == "asleep"
            assert trainer.ask("reload") == "reloaded"
            assert trainer.ask("train") == f"trained {step}"
            assert trainer.ask("offload moments") == "offloaded"
            assert engine.ask("wake_up weights") == "awake"
            assert trainer.ask("send") == f"sent {step}"
            assert engine.ask(f"update {step}") == "updated"
            assert side.states()["kv_cache"] != "resident"
            assert trainer.ask("offload params") == "offloaded"
        trainer.end()
        engine.end()


def start_trainer_after_sleep(side: Side, broker: "RunningBroker", stack: ExitStack, *, level: int) -> Program:
    """Start the trainer where the rollout had been alone: it takes what sleeps."""
    assert side.engine.ask(f"sleep {level}") == "asleep"
    trainer = start_trainer(broker, stack)
    assert side.engine.ask("state") == "SUSPENDED"
    return trainer
