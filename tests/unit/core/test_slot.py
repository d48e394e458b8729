"""The table of a slot's states: every pair is listed or refused, and every state can be reached, left and returned
from.
"""

from itertools import product

import pytest

from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.slot import STEPS, WITH_FRAME, Step, follow
from vrambroker.broker.core.snapshot import SlotState


@pytest.mark.parametrize(("state", "step"), list(product(SlotState, Step)))
def test_each_step_is_in_the_table_or_refused(state: SlotState, step: Step) -> None:
    if (state, step) in STEPS:
        assert follow(state, step) is STEPS[state, step]
    else:
        with pytest.raises(InvariantViolation, match=state.value):
            follow(state, step)


def test_the_table_is_the_life_that_the_design_describes() -> None:
    assert len(STEPS) == 15
    life = (Step.GRANT, Step.ARRIVE, Step.RECALL, Step.PARK, Step.GRANT, Step.MISS_PARKED, Step.RETURN)
    state = SlotState.EMPTY
    seen = [state := follow(state, step) for step in life]
    assert [one.value for one in seen] == ["granted", "mapped", "leaving", "parked", "granted", "parked", "empty"]


def test_every_state_but_the_empty_one_can_be_returned_from() -> None:
    returnable = {state for state, step in STEPS if step is Step.RETURN}
    assert returnable == set(SlotState) - {SlotState.EMPTY}


def test_a_frame_is_taken_by_a_grant_and_lost_by_leaving_missing_or_returning() -> None:
    for (state, step), following in STEPS.items():
        gains = following in WITH_FRAME and state not in WITH_FRAME
        assert gains == (step is Step.GRANT), (state, step)
