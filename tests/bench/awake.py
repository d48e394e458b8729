"""Draw docs/timeline.md's two pictures: a trainer and a rollout that are all awake at once, and the same two in stages.

The tags, their sizes and the smaller capacity are those of `broker demo`. Each run is a daemon of the `host` device and
two processes that write to all of the memory that they have in use. `--check` only looks whether the page says what the
last runs found.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path

from harness import daemon

from vrambroker.broker.core.errors import OutOfDeviceMemory
from vrambroker.client.demo.plan import MIB, Plan, plan_for
from vrambroker.client.demo.sizes import DEFAULT_SIZE, SIZES
from vrambroker.client.discovery import Endpoint
from vrambroker.client.rpc import Control, OperatorHandshake
from vrambroker.client.status import StreamEvent
from vrambroker.client.timeline import History, history_of, write_timeline
from vrambroker.client.timeline.scale import bytes_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "timeline.md"
FOUND = Path(__file__).parent / "results" / "awake" / "awake.json"
OPEN, CLOSE = "<!-- peaks -->\n", "<!-- /peaks -->"
DEVICE = "host:906"
STEPS = 3
STAGE_S = 0.2
DROPPED = {"grads", "kv_cache"}
TRAINER, ROLLOUT = ("params", "optimizer", "grads"), ("weights", "kv_cache")
Found = dict[str, int]


def most_in_use_bytes(history: History) -> int:
    """Return the most that was on the device at once without being paused."""
    changes = sorted(
        (at_ns, after - before)
        for track in history.tracks
        for (at_ns, after), before in _with_before(
            [(step.at_ns, step.device_bytes - step.idle_bytes) for step in track.steps]
        )
    )
    return max(accumulate(sum(change for _, change in same) for _, same in groupby(changes, key=itemgetter(0))))


def _with_before(values: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int]]:
    yield from zip(values, (0, *(value for _, value in values)), strict=False)


class Party:
    """One of the two, as the other process knows it."""

    def __init__(self, name: str, sizes: dict[str, int]) -> None:
        # With torch, which takes seconds to load, and is not needed to compare.
        from parties import Peer

        self._peer = Peer(Path(__file__), name, json.dumps(sizes))

    def ask(self, verb: str, *words: str) -> bool:
        """Have it do something; tells whether the broker let it."""
        return "refused" not in self._peer.ask(" ".join((verb, *words)))

    def end(self) -> None:
        self._peer.end()


Run = Callable[[Party, Party], bool]


def at_once(trainer: Party, rollout: Party) -> bool:
    """Wake the whole rollout for the update; tells whether there was room for that."""
    for step in range(STEPS):
        trainer.ask("mark", f"generate {step}")
        rollout.ask("resume", *ROLLOUT)
        rollout.ask("work", *ROLLOUT)
        rollout.ask("pause", *ROLLOUT)
        trainer.ask("mark", f"train {step}")
        trainer.ask("resume", *TRAINER)
        trainer.ask("work", *TRAINER)
        trainer.ask("mark", f"update {step}")
        if not rollout.ask("resume", *ROLLOUT):
            return False
        rollout.ask("work", "weights")
        trainer.ask("pause", *TRAINER)
    trainer.ask("mark", "end")
    return True


def in_stages(trainer: Party, rollout: Party) -> bool:
    """Wake the rollout's weights for the update, and its cache when the trainer has let go."""
    for step in range(STEPS):
        trainer.ask("mark", f"generate {step}")
        rollout.ask("resume", *ROLLOUT)
        rollout.ask("work", *ROLLOUT)
        rollout.ask("pause", *ROLLOUT)
        trainer.ask("mark", f"train {step}")
        trainer.ask("resume", *TRAINER)
        trainer.ask("work", *TRAINER)
        trainer.ask("mark", f"update {step}")
        trainer.ask("pause", "optimizer", "grads")
        if not rollout.ask("resume", "weights"):
            return False
        rollout.ask("work", "weights")
        trainer.ask("pause", "params")
    trainer.ask("mark", "end")
    return True


def be_a_party(name: str, sizes: dict[str, int]) -> None:
    """Lease the tags, let go of them, and do as told."""
    import torch
    from parties import serve

    from vrambroker.client import connect
    from vrambroker.client.memory import Contents

    memory = connect(name, device=DEVICE, timeout=30)
    tensors: dict[str, torch.Tensor] = {}
    for tag, size_bytes in sizes.items():
        policy: Contents = "drop" if tag in DROPPED else "keep"
        tensors[tag] = memory.empty((size_bytes // 4,), dtype=torch.float32, tag=tag, contents=policy)
        tensors[tag].fill_(1.0)
        memory.pause(tag)

    def work(tags: list[str]) -> None:
        until = time.monotonic() + STAGE_S
        while time.monotonic() < until:
            for tag in tags:
                tensors[tag].mul_(1.0)

    def resume(tags: list[str]) -> dict[str, float] | None:
        try:
            memory.resume(*tags, timeout=0)
        except OutOfDeviceMemory:
            return {"refused": 1.0}
        return None

    serve(
        {
            "work": work,
            "resume": resume,
            "pause": lambda tags: memory.pause(*tags),
            "mark": lambda words: memory.mark(" ".join(words)),
        }
    )
    memory.close()


@contextmanager
def parties(plan: Plan, capacity_bytes: int) -> Iterator[tuple[Party, Party, Control]]:
    """Run a daemon of this capacity with both sides; everything is paused."""
    with ExitStack() as stack:
        socket = stack.enter_context(
            daemon(DEVICE, f"{capacity_bytes // MIB}MiB", f"{2 * plan.together_bytes // MIB}MiB")
        )
        os.environ["VRAMBROKER_RUN_DIR"] = str(socket.parents[1])
        endpoint = Endpoint(device=DEVICE, directory=socket.parent)
        handshake = OperatorHandshake(endpoint, version="awake")
        stack.callback(handshake.close)
        control = Control(endpoint, token=lambda: handshake.token)
        stack.callback(control.close)
        made: list[Party] = []
        for name in ("trainer", "rollout"):
            sizes = {key.partition("/")[2]: size for key, size in plan.tag_bytes.items() if key.startswith(f"{name}/")}
            made.append(Party(name, sizes))
            stack.callback(made[-1].end)
        yield made[0], made[1], control


def found(plan: Plan, capacity_bytes: int, run: Run, picture: Path | None) -> Found:
    """Return what a run took, from its first stage on: the most that was lent at once, and whether it came to its end."""
    with parties(plan, capacity_bytes) as (trainer, rollout, control):
        done = run(trainer, rollout)
        status, events = control.status(), from_the_first_stage(control.watch(history=True, until_now=True))
    if picture is not None:
        write_timeline(picture, status, events)
    history = history_of(status, events)
    return {
        "capacity_bytes": capacity_bytes,
        "lent_bytes": history.peak_lent_bytes,
        "in_use_bytes": most_in_use_bytes(history),
        "done": done,
    }


def from_the_first_stage(told: Iterable[StreamEvent]) -> list[StreamEvent]:
    """Return the events of the run itself, and before them what held when it began."""
    events = list(told)
    first = next(number for number, event in enumerate(events) if event.kind == "marked")
    device = [event for event in events[:first] if event.kind == "device_changed"]
    leases = [event for event in events[:first] if event.kind == "lease_changed"]
    standing = [replace(event, standing=True) for event in (*leases, *device[-1:])]
    return [*standing, *(replace(event, sequence=number) for number, event in enumerate(events[first:], start=1))]


def words(runs: dict[str, Found]) -> str:
    """Return what the runs found, for the page."""
    once, stages, tried = runs["at_once"], runs["in_stages"], runs["tried"]
    share = 1 - stages["in_use_bytes"] / once["in_use_bytes"]
    refused = "is refused" if not tried["done"] else "succeeds as well"
    return (
        f"All awake at once, {bytes_text(once['in_use_bytes'])} were in use or on their way at the same time; in stages "
        f"{bytes_text(stages['in_use_bytes'])}, {share:.0%} less, on a device of {bytes_text(stages['capacity_bytes'])}, of "
        f"which up to {bytes_text(stages['lent_bytes'])} were lent: what is paused stays in place until its room is needed. "
        f"On that device, to wake the whole rollout for the update {refused}.\n"
    )


def renewed(page: str, runs: dict[str, Found]) -> str:
    """Return the page with what the runs found."""
    before, _, rest = page.partition(OPEN)
    return before + OPEN + words(runs) + CLOSE + rest.partition(CLOSE)[2]


def main() -> int:
    """Run, draw, and write down; or compare."""
    if "--check" in sys.argv:
        return int(renewed(PAGE.read_text(), json.loads(FOUND.read_text())) != PAGE.read_text())
    plan = plan_for(SIZES[DEFAULT_SIZE])
    runs = {
        "at_once": found(plan, plan.together_bytes, at_once, ROOT / "docs" / "awake_at_once.svg"),
        "in_stages": found(plan, plan.capacity_bytes, in_stages, ROOT / "docs" / "awake_in_stages.svg"),
        "tried": found(plan, plan.capacity_bytes, at_once, None),
    }
    FOUND.parent.mkdir(exist_ok=True)
    FOUND.write_text(json.dumps(runs, indent=2) + "\n")
    PAGE.write_text(renewed(PAGE.read_text(), runs))
    return 0 if runs["at_once"]["done"] and runs["in_stages"]["done"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] in (["trainer"], ["rollout"]):
        be_a_party(sys.argv[1], json.loads(sys.argv[2]))
    else:
        raise SystemExit(main())
