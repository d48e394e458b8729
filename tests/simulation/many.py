"""Run many seeds on all cores, for a time: `python tests/simulation/many.py --seed 1 --seconds 300`.

Prints what came of them in all, and of each seed that failed how it can be replayed; exits 1 if one did.
"""

import argparse
import os
import sys
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.simulation.machine import Wronged
from tests.simulation.run import simulate
from tests.simulation.world import Shape

SEEDS_APART = 1_000_000
FAILURES_SHOWN = 8


def _run_until(first: int, until: float) -> tuple[Counter[str], list[str]]:
    """Run one seed after the other until a time on the monotonic clock; return what happened, and what failed."""
    happened, failures, seed = Counter[str](), list[str](), first
    while time.monotonic() < until:
        happened["seeds"] += 1
        try:
            world = simulate(Shape(seed=seed, steps=1500, clients=4))
        except Wronged as error:
            failures.append("\n".join(str(error).splitlines()[-3:]))
        else:
            happened["events"] += world.events
            happened["phases entered"] += world.entered
            happened["pauses from outside"] += world.gates.paused
            happened["extents spilled"] += world.spilled
            happened["copies made ahead"] += world.copied
        seed += 1
    return happened, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    with Pool(asked.jobs) as pool:
        runs = pool.starmap(_run_until, [(asked.seed + job * SEEDS_APART, until) for job in range(asked.jobs)])
    failures = [failure for _, some in runs for failure in some]
    print(", ".join(f"{number} {what}" for what, number in sum((one for one, _ in runs), Counter[str]()).items()))
    print(f"{len(failures)} failed", *failures[:FAILURES_SHOWN], sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
