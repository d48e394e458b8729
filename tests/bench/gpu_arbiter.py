"""What the arbiter costs where several processes share a GPU, beside torch_memory_saver and the bare driver or copies.

Writes `results/gpu_arbiter.json` after each figure, and prints what it has found as JSON lines as it goes; a part that
fails is told of, the others are still measured, and the exit code is 1.

Predictions, written before the first run of any of these, from what was measured of their parts (H100):
`sealed16_pause` 5 ms: 16 GiB of frames of 256 MiB and 1 GiB unmap in 1 to 2 ms, and a call, a recall and a report are
some hundred µs each, in Python. `sealed16_neighbour` 9 ms: the frames are imported and mapped on top, as for 32 GiB in
10 ms. `phase_change_7b` 0.28 s: 12.25 GiB must leave at 55 GB/s, 0.24 s; before training the rollout's weights were let
go of and nobody took them, so the first change moves nothing; each change is some messages, and frames of 256 MiB are
made into ones of 1 GiB for the cache. `phase_change_7b_full` 0.53 s: the two directions of the link are not used at once,
since what leaves is taken only when somebody needs the room, so 0.24 s in, then 0.24 s out, beside 0.32 s if they were.
`neighbour_p99` 1.1: unmapping does not stall another process's kernels, and copies take 3% of the memory's bandwidth.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gpu_neighbour
import gpu_phases
import gpu_sealed
from harness import Result, cpu_name, daemon, write_results
from parties import ON_GPU, device_id, scaled

HOST_BUDGET = scaled(80 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What figures.md says of a figure, and its prediction. `floor`: its name among the floors, if it has another there."""

    name: str
    what: str
    prediction: float
    unit: str = "s"
    floor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A script, the daemon that it needs, and the figures that it finds."""

    script: str
    capacity: str
    plan: str = ""
    subjects: tuple[str, ...] = ("broker", "tms", "plain")
    figures: tuple[Figure, ...]


PARTS = (
    Part(
        script="gpu_sealed.py",
        capacity=gpu_sealed.CAPACITY,
        figures=(
            Figure(
                name="sealed16_pause",
                what="16 GiB sealed and parked before: pause while a neighbour waits, until all has left",
                prediction=0.005,
            ),
            Figure(
                name="sealed16_neighbour",
                what="the same, until the neighbour has its 16 GiB, dropped",
                prediction=0.009,
            ),
        ),
    ),
    Part(
        script="gpu_phases.py",
        capacity=gpu_phases.CAPACITY,
        plan=gpu_phases.PLAN,
        figures=(
            Figure(
                name="phase_change_7b",
                what="train → update → generate, a rank of a 7B trainer sharded by 8: both changes",
                prediction=0.28,
            ),
            Figure(
                name="phase_change_7b_full",
                what="the same, activations filling the device while it trains",
                prediction=0.53,
            ),
        ),
    ),
    Part(
        script="gpu_neighbour.py",
        capacity=gpu_neighbour.CAPACITY,
        subjects=("broker", "tms"),
        figures=(
            Figure(
                name="neighbour_p99",
                what="a neighbour's step, p99, while 16 GiB and 16 GiB change places, against at rest",
                prediction=1.1,
                unit="ratio",
            ),
            Figure(
                name="neighbour_step_p99",
                what="the step itself, p99 (bare: at rest)",
                prediction=0.00035,
                floor="neighbour_step_p99_at_rest",
            ),
        ),
    ),
)
DEADLINE_S = 180.0


def run(script: str, who: str, run_dir: Path) -> dict[str, float] | None:
    """Run a script for one subject; returns its figures, or nothing if it fails."""
    path = Path(__file__).with_name(script)
    environment = {**os.environ, "VRAMBROKER_RUN_DIR": str(run_dir)}
    try:
        done = subprocess.run(
            [sys.executable, str(path), who],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        print(json.dumps({"script": script, "who": who, "failed": str(error)}), flush=True)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"script": script, "who": who, **found}), flush=True)
    return found


def measure(part: Part) -> dict[str, dict[str, float] | None]:
    """Return what each subject's figures are."""
    found: dict[str, dict[str, float] | None] = {}
    for who in part.subjects if ON_GPU else ("broker",):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if who == "broker":
                plan = folder / "plan.toml"
                plan.write_text(part.plan)
                served = daemon(device_id(), part.capacity, HOST_BUDGET, plan=plan if part.plan else None)
                folder = stack.enter_context(served).parents[1]
            found[who] = run(part.script, who, folder)
    return found


def results(part: Part, found: dict[str, dict[str, float] | None]) -> list[Result]:
    ours, incumbent = found.get("broker") or {}, found.get("tms") or {}
    floors = (found.get("plain") or {}) if "plain" in part.subjects else ours
    return [
        Result(
            name=figure.name,
            what=figure.what,
            value=ours[figure.name],
            unit=figure.unit,
            prediction=figure.prediction,
            floor=floors.get(figure.floor or figure.name) if "plain" in part.subjects or figure.floor else None,
            incumbent=incumbent.get(figure.name),
        )
        for figure in part.figures
        if figure.name in ours
    ]


def main() -> int:
    """Measure the parts that the command line names by their scripts, or all; returns the exit code."""
    names = sys.argv[1:]
    known, details = list[Result](), dict[str, dict[str, dict[str, float] | None]]()
    for part in PARTS:
        if names and part.script not in names:
            continue
        found = details[part.script] = measure(part)
        known.extend(results(part, found))
        if ON_GPU and not names:
            from gpu import machine

            write_results("gpu_arbiter.json", *machine(), known, beside={"details": details})
    for result in known:
        print(f"{result.name:24} {result.value:10.4g} {result.unit:6} (predicted {result.prediction:g})")
    if not ON_GPU:
        print(f"on {cpu_name()}, where this shows only that it works")
    return int(any(found is None for part in details.values() for found in part.values()))


if __name__ == "__main__":
    sys.exit(main())
