"""What the broker costs on a GPU, beside torch_memory_saver and the bare driver, all in this run.

Predictions, written before the first run (H200, on which nothing of this had been measured; FACTS has an H100):
the daemon's memory 3.4 MB (measured before). A first pause of 16 GiB: the arena is populated while the weights load, so
registration (0.4 s) and the copy (0.3 s): 0.6 s; later ones the copy and 40 ms of mapping; idle: a message each way and
a device synchronisation, 1 ms; dropped: release and create by the driver's scrubber are spared, 512 frames of 32 MiB or
16 of 1 GiB unmapped, imported and mapped: 10 ms; 200 allocations of 20 MiB: 125 growths of 0.3 ms, 40 ms, more than
torch's 23; 2000 of 1 MiB: 100 segments, so 25 ms; attaching: 5 ms.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Result, daemon, write_results

from vrambroker.broker.adapters.nvml import Nvml

DEADLINE_S = 180.0
CAPACITY, HOST_BUDGET = "48GiB", "40GiB"
RESULTS_OF = ("broker", "tms", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What figures.md says of a figure, and its prediction; `floor` names another figure of the `plain` run, if it differs."""

    name: str
    what: str
    prediction: float
    floor: str | None = None


FIGURES = (
    Figure(
        name="kept16_first_pause",
        what="16 GiB kept, 64 tensors: first pause with release",
        prediction=0.6,
        floor="kept16_pause",
    ),
    Figure(name="kept16_first_resume", what="the same: first resume", prediction=0.35, floor="kept16_resume"),
    Figure(name="kept16_pause", what="the same: later pauses", prediction=0.35),
    Figure(name="kept16_resume", what="the same: later resumes", prediction=0.35),
    Figure(name="dropped16_cycle", what="16 GiB dropped: pause with release, and resume", prediction=0.01),
    Figure(name="idle16_cycle", what="16 GiB, nobody needs them: pause and resume", prediction=0.001),
    Figure(name="torch_alloc_20mib", what="200 × 20 MiB through torch", prediction=0.04),
    Figure(name="torch_alloc_20mib_first", what="the same, the first time", prediction=0.05),
    Figure(name="torch_alloc_1mib", what="2000 × 1 MiB through torch", prediction=0.025),
    Figure(name="torch_alloc_1mib_first", what="the same, the first time", prediction=0.03),
    Figure(
        name="agent_launch_p99",
        what="launch and wait, p99, while the agent moves 4 GiB",
        prediction=0.00013,
        floor="idle_launch_p99",
    ),
    Figure(
        name="agent_launch_worst",
        what="the same, the worst",
        prediction=0.008,
        floor="idle_launch_worst",
    ),
    Figure(name="client_attach", what="`connect` to the first tensor", prediction=0.3),
)
RUNS = (
    ("plain", "init"),
    ("broker", "first16"),
    ("tms", "first16"),
    ("broker", "kept16"),
    ("tms", "kept16"),
    ("plain", "bare16"),
    ("broker", "dropped16"),
    ("tms", "dropped16"),
    ("plain", "bare_dropped16"),
    ("broker", "idle16"),
    ("broker", "alloc"),
    ("tms", "alloc"),
    ("plain", "alloc"),
    ("broker", "launch"),
    ("broker", "attach"),
    ("plain", "attach"),
)


# What happens once in a process is measured in as many processes.
REPEATED = frozenset(("first16", "attach"))
ROUNDS = 5
SCRIPT = Path(__file__).with_name("gpu_figures.py")


def measure(who: str, what: str, run_dir: Path, *, script: Path = SCRIPT) -> dict[str, float]:
    """Run one figure in a process of its own; an incumbent that fails has no figures, and says so."""
    environment = {**os.environ, "VRAMBROKER_RUN_DIR": str(run_dir)}
    done = subprocess.run(
        [sys.executable, str(script), who, what], env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    if done.returncode != 0:
        print(f"{who} {what} failed ({done.returncode}): {done.stderr[-2000:]}", file=sys.stderr)
        if who == "broker":
            raise SystemExit(1)
        return {}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(who, what, found, flush=True)
    return found


def median_of(who: str, what: str, run_dir: Path) -> dict[str, float]:
    """Return the figures, each the median of five or more."""
    found = [measure(who, what, run_dir) for _ in range(ROUNDS if what in REPEATED else 1)]
    return {
        name: statistics.median(one[name] for one in found) for name in found[0] if all(name in one for one in found)
    }


def main() -> None:
    """Measure everything and write `results/gpu.json`, and the driver's and the packages' versions with it."""
    nvml = Nvml()
    uuid, before = next(iter(nvml.used_everywhere_bytes().items()))
    found: dict[str, dict[str, float]] = {who: {} for who in RESULTS_OF}
    with daemon(uuid, CAPACITY, HOST_BUDGET) as socket:
        daemon_bytes = nvml.used_everywhere_bytes()[uuid] - before
        for who, what in RUNS:
            if who == "broker":
                found[who] |= median_of(who, what, socket.parents[1])
    for who, what in RUNS:
        if who != "broker":
            with tempfile.TemporaryDirectory() as nowhere:
                found[who] |= median_of(who, what, Path(nowhere))
    found["plain"] |= {name: found["broker"][name] for name in ("idle_launch_p99", "idle_launch_worst")}
    results = [
        Result(
            name="daemon_device_bytes",
            what="device memory of the daemon",
            value=daemon_bytes,
            unit="bytes",
            prediction=3_407_872,
            floor=found["plain"].get("daemon_device_bytes"),
        )
    ]
    for figure in FIGURES:
        results.append(
            Result(
                name=figure.name,
                what=figure.what,
                value=found["broker"][figure.name],
                unit="s",
                prediction=figure.prediction,
                floor=found["plain"].get(figure.floor or figure.name),
                incumbent=found["tms"].get(figure.name),
            )
        )
    write_results("gpu.json", *machine(), results)
    nvml.close()


def machine() -> tuple[str, str]:
    """Return the GPU's name, and the versions that count."""
    import torch

    library: Any = __import__("pynvml")
    library.nvmlInit()
    name = library.nvmlDeviceGetName(library.nvmlDeviceGetHandleByIndex(0))
    driver = library.nvmlSystemGetDriverVersion()
    library.nvmlShutdown()
    return str(name), f"driver {driver}, CUDA {torch.version.cuda}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
