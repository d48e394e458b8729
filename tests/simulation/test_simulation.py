"""A smoke run of the simulator: few seeds, short runs. `make sim` does the long ones."""

import pytest

from tests.simulation.run import simulate
from tests.simulation.world import Shape


@pytest.mark.parametrize("seed", range(1, 21))
def test_all_invariants_hold_and_all_is_free_at_the_end(seed: int) -> None:
    world = simulate(Shape(seed=seed, steps=600, clients=4))
    assert world.events > 50


def test_the_same_seed_is_the_same_run() -> None:
    one, other = (simulate(Shape(seed=3, steps=300, clients=3)) for _ in range(2))
    assert list(one.trail) == list(other.trail)
