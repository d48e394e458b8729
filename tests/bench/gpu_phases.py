"""Whole changes of phase of an RL step, train → update → generate, for one rank of a 7B trainer sharded eight ways.

A rank has 0.875 B parameters: 10.5 GB of fp32 master weights and Adam's two moments, and 1.75 GB each of bf16 weights
and gradients, all of them kept. Beside it is a rollout engine's whole copy of the weights, 15 GB, kept, since engines
that update in place keep them; and its KV cache, dropped, fills the rest of the device. In `update` the trainer's bf16
weights and the rollout's are there together, from one to the other.

Two figures, each the sum of the two changes: `phase_change_7b`, where nothing else is needed while it trains, and
`phase_change_7b_full`, where activations fill the rest of the device then, so that all of the rollout's weights must
leave. Each change ends when the rollout's process has what it is to have, and says so.

The incumbent does the same in the order that an engine's code would make by hand: what leaves is paused, tag by tag,
then what comes is resumed. It has no idle memory: what its engine lets go of before training leaves at once.
`plain` is the copies alone. What must move is counted, not measured: in the first figure the trainer's contents, as
far as the KV cache needs the room; in the second those, and the rollout's weights, which can cross on the link, as far
as the trainer's bf16 weights do not have to wait for the update.
"""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call"

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_figures import ROUNDS, seconds
from parties import DEADLINE_S, GIB, MIB, ON_GPU, SETTLING_S, Named, Peer, Tensors, leave, scaled, serve

# Of each tag how many tensors, how large, and whether they are kept.
TRAINER = {
    "optimizer": (39, 256 * MIB, True),
    "grads": (7, 256 * MIB, True),
    "weights": (7, 256 * MIB, True),
    "activations": (52, GIB, False),
}
ROLLOUT = {"weights": (56, 256 * MIB, True), "kv_cache": (52, GIB, False)}
# 66 GiB when the engine generates, 65.25 when it trains with activations; a tag that grew in steps may end in a frame of
# 1 GiB that is not full. On `host` such a frame is larger, compared with the tags.
CAPACITY_MIB = 67 * 1024
CAPACITY = scaled(CAPACITY_MIB if ON_GPU else CAPACITY_MIB + 16 * 1024)
STATES = ("optimizer", "grads", "weights")
PLAN = """
[[phase]]
name = "train"
tags = ["trainer/optimizer", "trainer/grads", "trainer/weights"]
[[phase]]
name = "train_full"
tags = ["trainer/*"]
[[phase]]
name = "update"
tags = ["trainer/weights", "rollout/weights"]
[[phase]]
name = "generate"
tags = ["rollout/*"]
"""
# Where the step begins, by figure.
BEGINNINGS = {"phase_change_7b": "train", "phase_change_7b_full": "train_full"}


def add_all(tensors: Tensors, tags: dict[str, tuple[int, int, bool]]) -> None:
    for tag, (count, size_bytes, keep) in tags.items():
        tensors.add(tag, count, size_bytes, keep=keep)


def be_rollout(who: str) -> None:
    """Be the engine: its memory is made, then let go of, and then it does as told."""
    tensors = Tensors(who, "rollout")
    add_all(tensors, ROLLOUT)
    if isinstance(tensors.subject, Named):
        # From now on it can be paused from outside: by a change of phase.
        with tensors.subject.memory.use(*ROLLOUT):
            pass
    tensors.give(ROLLOUT, release=True)
    serve({"take": tensors.take, "give": tensors.give, "check": lambda _: tensors.check()})


class Step:
    """The trainer, which changes phases for both: `broker` by the plan, `tms` by hand."""

    def __init__(self, who: str) -> None:
        self._extra: tuple[str, ...] = ()
        self._trains = True
        self.rollout = Peer(Path(__file__), who, "rollout")
        self.trainer = Tensors(who, "trainer")
        # What only one of the two figures needs leaves before the rest comes.
        add_all(self.trainer, {"activations": TRAINER["activations"]})
        self.trainer.give(["activations"], release=True)
        add_all(self.trainer, {tag: TRAINER[tag] for tag in STATES})
        time.sleep(SETTLING_S)

    def enter(self, phase: str) -> None:
        """Enter a phase; at the end of it, the rollout has what it is to have."""
        if isinstance(self.trainer.subject, Named):
            self.trainer.subject.memory.enter(phase, timeout=DEADLINE_S)
            if phase == "update":
                self.rollout.ask("take weights")
            elif phase == "generate":
                self.rollout.ask("take weights kv_cache")
        elif phase == "update":
            self.trainer.give(["optimizer", "grads", *self._extra])
            self.rollout.ask("take weights")
        elif phase == "generate":
            self.trainer.give(["weights"])
            self.rollout.ask("take kv_cache")
        else:
            self._train_by_hand(phase)

    def _train_by_hand(self, phase: str) -> None:
        self._extra = ("activations",) if phase == "train_full" else ()
        if not self._trains:
            self.rollout.ask("give weights kv_cache")
            self.trainer.take(STATES)
        self._trains = False
        self.trainer.take(self._extra)

    def changes(self, beginning: str) -> tuple[float, float]:
        """Return how long the changes to `update` and to `generate` take, after a change back to training."""
        self.enter(beginning)
        began = time.perf_counter()
        self.enter("update")
        middle = time.perf_counter()
        self.enter("generate")
        return middle - began, time.perf_counter() - middle


def step(who: str) -> dict[str, float]:
    """Return the medians of both figures, the first two rounds of each aside."""
    both = Step(who)
    found: dict[str, float] = {}
    for figure, beginning in BEGINNINGS.items():
        rounds = [both.changes(beginning) for _ in range(ROUNDS + 2)][2:]
        found[figure] = statistics.median(sum(one) for one in rounds)
        found[f"{figure}_to_update"] = statistics.median(one[0] for one in rounds)
        found[f"{figure}_to_generate"] = statistics.median(one[1] for one in rounds)
        print(json.dumps({"who": who, **found}), file=sys.stderr, flush=True)
    both.rollout.ask("check")
    both.enter("train")
    both.trainer.check()
    both.rollout.end()
    return found


def must_move() -> dict[str, tuple[int, int, int]]:
    """Return of each figure how many pieces of 256 MiB must leave, how many must come, and how many of what must leave
    are in use until the update is done.
    """
    capacity = CAPACITY_MIB // 256

    def pieces(tags: dict[str, tuple[int, int, bool]], *names: str) -> int:
        return sum(tags[name][0] * (tags[name][1] // (256 * MIB)) for name in names)

    engine, states = pieces(ROLLOUT, *ROLLOUT), pieces(TRAINER, *STATES)
    out = states + engine - capacity
    full = pieces(TRAINER, *TRAINER) + pieces(ROLLOUT, "weights") - capacity
    late = max(0, out - pieces(TRAINER, "optimizer", "grads"))
    return {"phase_change_7b": (out, 0, late), "phase_change_7b_full": (out, full, late)}


def copies_alone() -> dict[str, float]:
    """Return how long the copies that must be made take between the device and pinned memory, out and in at once."""
    device = [torch.empty(256 * MIB, dtype=torch.uint8, device="cuda") for _ in range(2)]
    host = [torch.empty(256 * MIB, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    streams = torch.cuda.Stream(), torch.cuda.Stream()

    def crossing(out: int, into: int) -> Callable[[], None]:
        def copies() -> None:
            for number in range(max(out, into)):
                if number < out:
                    with torch.cuda.stream(streams[0]):
                        host[0].copy_(device[0], non_blocking=True)
                if number < into:
                    with torch.cuda.stream(streams[1]):
                        device[1].copy_(host[1], non_blocking=True)

        return copies

    def median(out: int, into: int) -> float:
        work = crossing(out, into)
        work()
        return statistics.median(seconds(work) for _ in range(ROUNDS))

    found: dict[str, float] = {}
    for figure, (out, into, late) in must_move().items():
        found[figure] = median(out - late, into) + (median(late, 0) if late else 0.0)
        found[f"{figure}_one_by_one"] = median(out, 0) + (median(0, into) if into else 0.0)
    return found


def main() -> None:
    """Measure for the subject that the command line names, or be the rollout engine beside it."""
    who, *role = sys.argv[1:]
    if role:
        be_rollout(who)
    else:
        assert ON_GPU or who == "broker", "on `host` there is the broker alone"
        print(json.dumps(copies_alone() if who == "plain" else step(who)), flush=True)
    leave(who)


if __name__ == "__main__":
    main()
