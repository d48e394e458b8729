"""A whole torch process under `broker run`, beside plain torch and beside torch_memory_saver in preload mode.

`preload_step`: 1,000 training steps of a residual convolutional net and of a transformer whose sequences have another length
in each step, so that much is allocated; the time of a step, against plain torch. `trainer_cycle`: the pause and resume of a
trainer with the parameters, gradients and optimizer states of a 1.5B model, against the incumbent with its host copies
retained, and by default; the floor is the copies alone. `process_start`: from the start of a program to its end, with one
tensor on the GPU in between, more than plain torch takes.

Without arguments this measures all and writes `results/gpu_process.json`, but for the incumbent by default, which takes its
time: `python gpu_process.py default` does that. `python gpu_process.py SUBJECT FIGURE` prints one,
in a process that was started as its subject has it. The predictions were written before the first run.
"""

# torch leaves many of its signatures half typed, and the incumbent has no types at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call, import-not-found, import-untyped"

import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu import machine
from gpu_figures import seconds
from harness import Result, daemon, write_results
from parties import DEADLINE_S, GIB, ON_GPU, SETTLING_S, device_id, leave, scaled
from torch import nn

STEPS, CHUNK = (1_000, 50) if ON_GPU else (20, 5)
PARAMETERS = 1_500_000_000 if ON_GPU else 2_000_000
LAYERS = 28
CYCLES = 4
STARTS = 12
# A process's steps are all faster or slower than another's, by a tenth: the fastest of some say more than the median.
TURNS = 4
DEVICE = "cuda" if ON_GPU else "cpu"
SCRIPT = Path(__file__)
FIRST_TENSOR = f"import torch; torch.ones(1, device={DEVICE!r}).item()"


def convolutional() -> Callable[[], None]:
    """Return a training step of a residual net on images."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = nn.functional.relu(x + self.layers(x))
            return found

    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *(Block(64) for _ in range(8))).to(DEVICE)
    optimizer = torch.optim.AdamW(net.parameters())
    chance = random.Random(7)

    def step() -> None:
        images = torch.randn(chance.randint(8, 32), 3, 64, 64, device=DEVICE)
        loss = net(images).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def transformer() -> Callable[[], None]:
    """Return a training step of a transformer on sequences of any length."""
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, dropout=0.1)
    net = nn.TransformerEncoder(layer, 6).to(DEVICE)
    optimizer = torch.optim.AdamW(net.parameters())
    chance = random.Random(7)

    def step() -> None:
        tokens = torch.randn(8, chance.randint(64, 512), 512, device=DEVICE)
        loss = net(tokens).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def steady_step(step: Callable[[], None]) -> float:
    """Return the median time of a step, once there is a cache of every size."""
    times: list[float] = []
    for _ in range(STEPS // CHUNK):

        def chunk() -> None:
            for _ in range(CHUNK):
                step()

        times.append(seconds(chunk) / CHUNK)
    return statistics.median(times[len(times) // 5 :])


class Trainer:
    """What a trainer of a 1.5B model has on a GPU: parameters and gradients in bfloat16, and three float32 each."""

    def __init__(self) -> None:
        each = PARAMETERS // LAYERS
        kinds = (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float32)
        self.states = [
            torch.full((each,), float(number % 7), dtype=kind, device=DEVICE)
            for number, kind in enumerate(kind for _ in range(LAYERS) for kind in kinds)
        ]
        self.size_bytes = sum(one.nbytes for one in self.states)

    def check(self) -> None:
        """Raise if anything has changed."""
        if any(bool((one != float(number % 7)).any()) for number, one in enumerate(self.states)):
            raise AssertionError("the trainer's states have changed")


def cycles(who: str) -> float:
    """Return the median time of a pause, until the memory has left, and a resume."""
    trainer = Trainer()
    pause, resume = _pause_and_resume(who)
    time.sleep(SETTLING_S)
    times: list[float] = []
    for _ in range((1 if who == "tms-default" else CYCLES) + 1):

        def cycle() -> None:
            pause()
            resume()

        times.append(seconds(cycle))
    trainer.check()
    return statistics.median(times[1:])


def _pause_and_resume(who: str) -> tuple[Callable[[], None], Callable[[], None]]:
    if who == "broker":
        from vrambroker.client import connect

        memory = connect("trainer")

        def pause() -> None:
            memory.pause(release=True, timeout=DEADLINE_S)

        def resume() -> None:
            memory.resume(timeout=DEADLINE_S)

        return pause, resume
    saver = importlib.import_module("torch_memory_saver").torch_memory_saver
    saver.retain_cpu_backup = who == "tms"

    def saver_pause() -> None:
        torch.cuda.synchronize()
        saver.pause()

    return saver_pause, saver.resume


def copies() -> float:
    """Return the copies alone: all states out, and in again."""
    size_bytes = Trainer().size_bytes
    piece = torch.empty(GIB, dtype=torch.uint8, device=DEVICE)
    host = torch.empty(GIB, dtype=torch.uint8, pin_memory=ON_GPU)

    def both() -> None:
        for to, source in ((host, piece), (piece, host)):
            for _ in range(size_bytes // GIB):
                to.copy_(source, non_blocking=True)
            rest = size_bytes % GIB
            to[:rest].copy_(source[:rest], non_blocking=True)

    both()
    return statistics.median(seconds(both) for _ in range(CYCLES))


def start_seconds(words: list[str]) -> float:
    """Return how much more time a program with these words before it takes from its start to its end, with one tensor in
    between, than one without. In turns, and often, since importing torch takes ten times as long and is not as steady.
    """

    def once(words: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run([*words, sys.executable, "-c", FIRST_TENSOR], check=True, timeout=DEADLINE_S)
        return time.perf_counter() - began

    once(words)
    pairs = [(once([]), once(words)) for _ in range(STARTS)]
    return statistics.median(ours for _, ours in pairs) - statistics.median(plain for plain, _ in pairs)


FIGURES: dict[str, Callable[[str], float]] = {
    "convolutional": lambda _: steady_step(convolutional()),
    "transformer": lambda _: steady_step(transformer()),
    "cycle": lambda who: copies() if who == "plain" else cycles(who),
}


def measured(who: str, figure: str, run_dir: Path | None = None) -> float:
    """Return a figure that a process of its own has measured, started as its subject has it."""
    environment = dict(os.environ)
    words = [sys.executable, str(SCRIPT), who, figure]
    if who == "broker":
        words = [*run_words(run_dir), *words]
    if who.startswith("tms"):
        configure = importlib.import_module("torch_memory_saver").configure_subprocess
        with configure():
            environment = dict(os.environ)
        environment |= {"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "1"}
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, text=True, timeout=5 * DEADLINE_S, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise AssertionError(f"{who} {figure} ended with {done.returncode}")
    found: dict[str, float] = json.loads(lines[-1])
    print(who, found, flush=True)
    return found[figure]


def run_words(run_dir: Path | None) -> list[str]:
    """Return what is put in front of a program that the broker leases."""
    broker = [sys.executable, "-m", "vrambroker.broker.entry", "run", "--run-dir", str(run_dir)]
    return [*broker, "--name", "trainer", "--tag", "all", "--"]


def step_ratio(figure: str, run_dir: Path, prediction: float) -> Result:
    """Measure a step under the broker and plain, in turns."""
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(TURNS):
        plain.append(measured("plain", figure))
        ours.append(measured("broker", figure, run_dir))
    return Result(
        name="preload_step" if figure == "transformer" else f"preload_step_{figure}",
        what=f"a training step of a {figure} net, 1,000 of them, under `broker run` against plain torch",
        value=min(ours) / min(plain),
        unit="ratio",
        prediction=prediction,
    )


def measure_all() -> None:
    """Measure everything, with one daemon, and write the results."""
    results: list[Result] = []
    with daemon(device_id(), scaled(60 * 1024), scaled(40 * 1024)) as socket:
        run_dir = socket.parents[1]
        start = start_seconds(run_words(run_dir))
        results.append(
            Result(
                name="process_start",
                what="start of a program to its end, with one tensor, under `broker run`: more than plain",
                value=start,
                unit="s",
                prediction=0.2,
            )
        )
        results += [step_ratio(figure, run_dir, 1.005) for figure in ("transformer", "convolutional")]
        results.append(cycle_result("trainer_cycle", "tms", "its copies retained", run_dir))
        write_results("gpu_process.json", *machine(), results)


def measure_default() -> None:
    """Measure the trainer's cycle against the incumbent as it is by default."""
    with daemon(device_id(), scaled(60 * 1024), scaled(40 * 1024)) as socket:
        result = cycle_result("trainer_cycle_default", "tms-default", "as it is by default", socket.parents[1])
    write_results("gpu_process_default.json", *machine(), [result])


def cycle_result(name: str, who: str, how: str, run_dir: Path) -> Result:
    """Measure the trainer's cycle, ours beside the incumbent's and the copies alone."""
    return Result(
        name=name,
        what=f"pause with release and resume of a whole trainer of 1.5B parameters, 24 GB (torch_memory_saver: {how})",
        value=measured("broker", "cycle", run_dir),
        unit="s",
        prediction=1.0,
        floor=measured("plain", "cycle") if ON_GPU else None,
        incumbent=measured(who, "cycle") if ON_GPU else None,
    )


def main() -> None:
    """Measure one figure in this process, or all in processes of their own."""
    match sys.argv[1:]:
        case []:
            measure_all()
        case ["default"]:
            measure_default()
        case [who, figure] if figure in FIGURES:
            print(json.dumps({figure: FIGURES[figure](who)}), flush=True)
            leave("tms" if who.startswith("tms") else who)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
