"""Run the simulator: `python tests/simulation/run.py --seed 7 --steps 2000 --clients 5`, or many seeds with `--count`.

A run that fails prints what happened last and the command that replays it.
"""

import argparse
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.simulation import acts, faults
from tests.simulation.ending import end
from tests.simulation.machine import Wronged
from tests.simulation.world import Shape, World
from vrambroker.broker.core.errors import InvariantViolation


def simulate(shape: Shape) -> World:
    """Run one world to its end; raise with its trail and its seed if something went wrong in it."""
    world = World(shape)
    try:
        _live(world)
    except (Wronged, InvariantViolation, KeyError, AssertionError, AttributeError, TypeError, ValueError) as error:
        trail = "\n".join(world.trail)
        raise Wronged(f"{trail}\n{type(error).__name__}: {error}\nmake sim SEED={shape.seed}") from error
    return world


def _live(world: World) -> None:
    """Go through all steps and then the end; raises whatever the broker did wrong."""
    drain_at = world.chance.randrange(2 * world.shape.steps)
    for number in range(world.shape.steps):
        if number == drain_at:
            faults.drain(world)
        _step(world)
    end(world)


def _step(world: World) -> None:
    """Let something go wrong, time pass, what is under way go on, or somebody ask for something."""
    roll = world.chance.random()
    if roll < 0.02:
        faults.fault(world)
    elif roll < 0.05:
        world.pass_time(world.chance.randint(1, 400))
    elif roll < world.haste or not world.go_on(roll < 0.65):
        acts.act(world)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="how many seeds, from this one on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clients", type=int, default=4)
    asked = parser.parse_args()
    events = entered = paused = spilled = unspilled = failed = 0
    copied = reads = 0
    for seed in range(asked.seed, asked.seed + asked.count):
        try:
            world = simulate(Shape(seed=seed, steps=asked.steps, clients=asked.clients))
            events, entered, paused = events + world.events, entered + world.entered, paused + world.gates.paused
            spilled, unspilled = spilled + world.spilled, unspilled + world.unspilled
            failed += world.failed_writes + world.failed_reads
            copied, reads = copied + world.copied, reads + world.reads
        except Wronged as error:
            traceback.print_exception(error.__cause__)
            print(error)
            return 1
    counts = f"{asked.count} seeds, {events} events, {entered} phases entered, {paused} pauses from outside"
    counts += f", {spilled} extents spilled, {unspilled} read back, {failed} transfers failed"
    counts += f", {copied} reports of copies made ahead, {reads} reads of what others have sent"
    print(f"{counts}, all invariants held, all was free at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
