"""What a simulated agent does of a `SendCopy`: it takes its time, writes when nobody expects it any more, and answers once.

Contents are read at the beginning or at the end, so that what is written to meanwhile is copied as it was, as it is, or
torn. The writes come when the copy ends: after a resume, after the slots were returned, or after the death of the process,
until its fence is passed.
"""

from dataclasses import dataclass, field

from tests.simulation.machine import Machine
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import LeaseId, OrderId, SlotId

TORN = -1
"""The contents of what was written to while it was copied."""


@dataclass(slots=True, kw_only=True, eq=False)
class SimCopy:
    """`read`: what each slot held when the copy began. `done`: what is in its place already. `resumed`: the agent has heard
    that the pause is over.
    """

    order: OrderId
    lease: LeaseId
    places: dict[SlotId, ef.Extent]
    read: dict[SlotId, int]
    done: dict[SlotId, None] = field(default_factory=dict[SlotId, None])
    resumed: bool = False

    def write(self, slot: SlotId, content: int, machine: Machine, pid: int) -> None:
        """Have a slot's contents in its place, as they were at first if they are still the same."""
        if slot not in self.done:
            machine.write(self.places[slot], content if content == self.read[slot] else TORN, pid)
            self.done[slot] = None

    def rest(self) -> list[SlotId]:
        return [slot for slot in self.places if slot not in self.done]


@dataclass(slots=True, kw_only=True, eq=False)
class Copying:
    """`report`: the last answer, which is given again to the same order."""

    under_way: SimCopy | None = None
    report: ev.Copied | None = None

    def knows(self, order: OrderId) -> bool:
        return self.under_way is not None and self.under_way.order == order

    def hear_resumed(self, lease: LeaseId) -> None:
        if self.under_way is not None and self.under_way.lease == lease:
            self.under_way.resumed = True

    def late_writes(self) -> list[tuple[ef.Extent, int]]:
        """Return what may still be written after the process's death."""
        copy, self.under_way = self.under_way, None
        return [(copy.places[slot], copy.read[slot]) for slot in copy.rest()] if copy is not None else []
