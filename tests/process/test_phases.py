"""Phases with real processes: two workers that don't fit together, one by its scopes, one by its own pauses."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process.test_cli import command, status
from vrambroker.client import NotQuiescent, UnknownPhase, WrongState
from vrambroker.client.rpc import Control

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker, WaitFor

PLAN = {"train": ("trainer/*",), "generate": ("rollout/*",)}

WORKER = """
import torch
from vrambroker.client import BrokerError, connect
name, size = told().split()
memory = connect(name)
tensor = memory.empty((int(size) << 20,), dtype=torch.uint8, tag="state", contents="keep")
tensor.fill_(7)
tell("ready")
while (word := told()) != "end":
    verb, _, rest = word.partition(" ")
    try:
        if verb == "scope":
            with memory.use("state", name="step"):
                tell("inside")
                told()
            tell("outside")
        elif verb == "pause":
            memory.pause("state")
            tell("paused")
        elif verb == "resume":
            memory.resume("state")
            tell("resumed")
        elif verb == "look":
            tell("intact" if int(tensor.sum()) == 7 * tensor.numel() else "lost")
        elif verb == "enter":
            phase, _, timeout = rest.partition(" ")
            tell("entered", *sorted(memory.enter(phase, timeout=float(timeout or 10))))
    except BrokerError as error:
        tell(type(error).__name__)
"""


@pytest.fixture
def pair(control: Control, start_worker: "StartWorker") -> tuple["Worker", "Worker"]:
    """A trainer and a rollout of 40 MiB each on a device of 64; the rollout is there, and paused, the trainer resident."""
    rollout, trainer = start_worker(WORKER), start_worker(WORKER)
    assert rollout.ask("rollout 40") == "ready"
    assert rollout.ask("pause") == "paused"
    assert trainer.ask("trainer 40") == "ready"
    control.set_plan(PLAN)
    return trainer, rollout


if TYPE_CHECKING:
    from tests.process.conftest import Worker


def scoped(*workers: "Worker") -> None:
    for worker in workers:
        assert worker.ask("scope") == "inside"
        assert worker.ask() == "outside"


def states(control: Control) -> dict[str, str]:
    return {session.name: session.tags[0].state for session in control.status().sessions}


def test_an_operator_changes_phases_of_processes_with_scopes(control: Control, pair: tuple["Worker", "Worker"]) -> None:
    trainer, rollout = pair
    scoped(trainer)
    entered = control.enter("generate")
    assert (entered.paused, entered.resumed) == (("trainer/state",), {"rollout/state": False})
    assert states(control)["rollout"] == "resident"
    assert control.status().phase == "generate"
    assert rollout.ask("look") == "intact"
    scoped(rollout)
    for _ in range(3):
        assert control.enter("train").paused == ("rollout/state",)
        assert trainer.ask("look") == "intact"
        assert control.enter("generate").paused == ("trainer/state",)
        assert rollout.ask("look") == "intact"
    kinds = [event.kind for event in control.watch(history=True, until_now=True) if event.phase]
    assert kinds == ["phase_entering", "phase_entered"] * 7


def test_an_open_scope_is_waited_for_and_named(control: Control, pair: tuple["Worker", "Worker"]) -> None:
    trainer, rollout = pair
    scoped(trainer)
    assert trainer.ask("scope") == "inside"
    with pytest.raises(NotQuiescent) as caught:
        control.enter("generate", timeout_s=0.2)
    assert (caught.value.session, caught.value.tag, caught.value.scope) == ("trainer", "state", "step")
    assert states(control) == {"rollout": "partial", "trainer": "resident"}
    assert trainer.ask() == "outside"
    scoped(trainer)
    assert control.enter("generate").paused == ("trainer/state",)
    assert rollout.ask("look") == "intact"


def test_a_process_without_scopes_is_waited_for_until_it_pauses_itself(
    broker: "RunningBroker", control: Control, pair: tuple["Worker", "Worker"], wait_for: "WaitFor"
) -> None:
    trainer, rollout = pair
    with pytest.raises(NotQuiescent) as caught:
        control.enter("generate", timeout_s=0.2)
    assert "trainer/state has no scopes, and its owner did not pause it" in str(caught.value)
    rollout.say("enter generate")
    with ExitStack() as stack:
        watcher = broker.control(stack)
        wait_for(watcher, lambda: watcher.status().entering == "generate")
    with pytest.raises(WrongState):
        control.enter("train")
    assert trainer.ask("pause") == "paused"
    assert rollout.hear() == "entered state"
    assert rollout.ask("look") == "intact"


def test_a_worker_without_scopes_hands_over_itself(control: Control, pair: tuple["Worker", "Worker"]) -> None:
    trainer, rollout = pair
    assert trainer.ask("enter generate") == "entered"
    assert states(control)["rollout"] == "resident"
    assert rollout.ask("look") == "intact"
    assert rollout.ask("enter train") == "entered"
    assert trainer.ask("look") == "intact"
    assert trainer.ask("enter update") == "UnknownPhase"
    assert trainer.ask("look") == "intact"


def test_a_worker_that_stands_aside_in_vain_is_back(
    control: Control, pair: tuple["Worker", "Worker"], start_worker: "StartWorker"
) -> None:
    trainer, _ = pair
    judge = start_worker(WORKER)
    assert judge.ask("judge 2") == "ready"
    control.set_plan({"train": ("trainer/*", "judge/*"), "generate": ("rollout/*",)})
    assert trainer.ask("enter generate 0.2") == "NotQuiescent"
    assert states(control) == {"rollout": "partial", "trainer": "resident", "judge": "resident"}
    assert trainer.ask("look") == "intact"
    assert judge.ask("look") == "intact"


def test_a_process_that_dies_while_it_is_waited_for_is_no_obstacle(
    broker: "RunningBroker", control: Control, pair: tuple["Worker", "Worker"], wait_for: "WaitFor"
) -> None:
    trainer, rollout = pair
    rollout.say("enter generate")
    with ExitStack() as stack:
        watcher = broker.control(stack)
        wait_for(watcher, lambda: watcher.status().entering == "generate")
    trainer.signal(9)
    assert rollout.hear() == "entered state"
    assert rollout.ask("look") == "intact"


def test_phases_on_the_command_line(
    broker: "RunningBroker", pair: tuple["Worker", "Worker"], control: Control, tmp_path: Path
) -> None:
    trainer, _ = pair
    scoped(trainer)
    path = tmp_path / "plan.toml"
    path.write_text(
        '[[phase]]\nname = "one"\ntags = ["rollout/*"]\n[[phase]]\nname = "two"\ntags = ["trainer/*"]\n'
        '[tags."rollout/state"]\nsize = "40MiB"\npriority = 3\n[tags."trainer/state"]\nsize = "40MiB"\n'
        '[device]\nframes = ["2MiB"]\nspare_frames = 0\n'
    )
    done = command(broker, "plan", "--apply", str(path), "--capacity", "32MiB")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "OutOfDeviceMemory")
    assert list(status(broker)[0]["plan"]["phases"]) == ["train", "generate"], "what does not fit is not applied"
    done = command(broker, "plan", "--apply", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert status(broker)[0]["plan"] == {
        "order": "device",
        "phases": {"one": ["rollout/*"], "two": ["trainer/*"]},
        "priorities": {"rollout/state": 3},
    }
    done = command(broker, "enter", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert status(broker)[0]["phase"] == "one"
    done = command(broker, "enter", "three")
    assert done.returncode == 1
    assert done.stderr.startswith("UnknownPhase: there is no phase 'three' in the plan (there are: one, two)")
    done = command(broker, "enter", "two", "--timeout", "0.1")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "NotQuiescent")
    out = tmp_path / "out.json"
    assert command(broker, "timeline", str(out)).returncode == 0
    assert "one" in [event.get("name") for event in json.loads(out.read_text())["traceEvents"]]
    assert control.status().entering == ""


def test_a_daemon_can_be_started_with_a_plan(broker: "RunningBroker", tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('order = "host"\n[[phase]]\nname = "train"\ntags = ["trainer/*"]\n')
    broker.stop()
    broker.add_options("--plan", str(path))
    broker.start_again()
    with ExitStack() as stack:
        control = broker.control(stack)
        plan = control.status().plan
        assert plan is not None
        assert (plan.order, plan.phases) == ("host", {"train": ("trainer/*",)})
        with pytest.raises(UnknownPhase):
            control.enter("generate")
        control.enter("train")
        assert control.status().phase == "train"
