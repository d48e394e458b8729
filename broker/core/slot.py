"""A slot: the place for one frame in a lease, and the one table of what may become of it.

The code executes the table: `follow` is the only way from a state to the next. What a client reports may be stale or
wrong, so handlers ask first whether the slot is in the state that the report is about; a step that is not listed here
is a bug.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from vrambroker.broker.core.effects import Extent, SpillPlace
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.ids import FrameId, SlotId, TicketId
from vrambroker.broker.core.snapshot import SlotState


class Step(Enum):
    """What can happen to a slot."""

    GRANT = "grant"
    ARRIVE = "arrive"
    MISS_PARKED = "miss, contents still parked"
    MISS_DROPPED = "miss, contents undefined"
    RECALL = "recall"
    PARK = "park"
    DROP = "drop"
    STAY = "stay"
    RETURN = "return"


STEPS: Mapping[tuple[SlotState, Step], SlotState] = {
    (SlotState.EMPTY, Step.GRANT): SlotState.GRANTED,
    (SlotState.PARKED, Step.GRANT): SlotState.GRANTED,
    (SlotState.DROPPED, Step.GRANT): SlotState.GRANTED,
    (SlotState.GRANTED, Step.ARRIVE): SlotState.MAPPED,
    (SlotState.GRANTED, Step.MISS_PARKED): SlotState.PARKED,
    (SlotState.GRANTED, Step.MISS_DROPPED): SlotState.DROPPED,
    (SlotState.MAPPED, Step.RECALL): SlotState.LEAVING,
    (SlotState.LEAVING, Step.PARK): SlotState.PARKED,
    (SlotState.LEAVING, Step.DROP): SlotState.DROPPED,
    (SlotState.LEAVING, Step.STAY): SlotState.MAPPED,
    (SlotState.GRANTED, Step.RETURN): SlotState.EMPTY,
    (SlotState.MAPPED, Step.RETURN): SlotState.EMPTY,
    (SlotState.LEAVING, Step.RETURN): SlotState.EMPTY,
    (SlotState.PARKED, Step.RETURN): SlotState.EMPTY,
    (SlotState.DROPPED, Step.RETURN): SlotState.EMPTY,
}

WITH_FRAME = frozenset({SlotState.GRANTED, SlotState.MAPPED, SlotState.LEAVING})
"""The states in which a slot has a frame, lent to its session."""


def follow(state: SlotState, step: Step) -> SlotState:
    """Return the state that the step leads to; raise `InvariantViolation` if the table doesn't list it."""
    following = STEPS.get((state, step))
    if following is None:
        raise InvariantViolation(f"a slot that is {state.value} can't {step.value}")
    return following


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """`extent` is set aside for the contents; once `copied`, they are in it, and stay there until the lease is
    resident again, or, if it is sealed, until it is unsealed or others need the room. They may be copied while it is
    mapped still.

    `spill` is set aside in its stead when the arena has no room; once `spilled`, the contents are there. On their way
    to it and back they are in an extent of the staging room, for so long only.

    `ticket` is the demand under which the slot's frame was granted, until that demand is met or undone.
    """

    slot: SlotId
    size_bytes: int
    state: SlotState = SlotState.EMPTY
    frame: FrameId | None = None
    extent: Extent | None = None
    copied: bool = False
    spill: SpillPlace | None = None
    spilled: bool = False
    dirty: bool = False
    ticket: TicketId | None = None

    @property
    def placed(self) -> bool:
        """There is a place for the contents."""
        return self.extent is not None or self.spill is not None

    @property
    def saved(self) -> bool:
        """The contents are in their place."""
        return self.copied or self.spilled

    @property
    def doubled(self) -> bool:
        """The contents are on the device and in their place as well."""
        return self.saved and self.state is SlotState.MAPPED

    @property
    def needs_staging(self) -> bool:
        """The contents can't leave yet: there is no extent that they could go through."""
        return self.spill is not None and self.extent is None and not self.saved

    @property
    def needs_reading(self) -> bool:
        """The contents can't come back yet: they are in the spill store alone."""
        return self.spilled and not self.copied

    @property
    def park(self) -> Extent | None:
        """Where the contents go before the frame leaves; nothing, if they are worth nothing or are there already."""
        return None if self.saved else self.extent
