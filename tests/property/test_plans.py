"""Plans against a naive simulation that moves single frames, and the elastic maximum against the next larger size."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.core.phase import Order, Pattern, Phase, PhasePlan
from vrambroker.broker.plan.model import Plan, PlannedTag
from vrambroker.broker.plan.peaks import Peak, peaks
from vrambroker.broker.plan.verdict import largest_bytes, verdict

Frame = tuple[str, int]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw up to six tags of a few frames of 1 MiB, and up to four phases of some of them."""
    tags = tuple(
        PlannedTag(
            session="s",
            tag=f"t{number}",
            size_bytes=draw(st.integers(min_value=1, max_value=6)) * MIB,
            contents=(contents := draw(st.sampled_from(Contents))),
            sealed=contents is Contents.KEEP and draw(st.booleans()),
        )
        for number in range(draw(st.integers(min_value=1, max_value=6)))
    )
    patterns = st.sampled_from([Pattern(session=tag.session, tag=tag.tag) for tag in tags])
    listed = draw(st.lists(st.lists(patterns, min_size=1, unique=True), min_size=1, max_size=4))
    phases = tuple(Phase(name=f"p{number}", tags=tuple(these)) for number, these in enumerate(listed))
    return Plan(
        phases=PhasePlan(order=draw(st.sampled_from(Order)), phases=phases),
        tags=tags,
        frames_bytes=(MIB,),
        spare_frames=draw(st.integers(min_value=0, max_value=3)),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Machine:
    """Where every single frame's contents are: a frame that is copied is in both places, until somebody lets go."""

    device: set[Frame] = field(default_factory=set[Frame])
    host: set[Frame] = field(default_factory=set[Frame])
    most_device: int = 0
    most_host: int = 0

    def look(self) -> None:
        self.most_device = max(self.most_device, len(self.device))
        self.most_host = max(self.most_host, len(self.host))


def frames_of(tags: list[PlannedTag], *, kept: bool) -> list[Frame]:
    return [
        (tag.tag, number)
        for tag in tags
        if (tag.contents is Contents.KEEP) == kept
        for number in range(tag.size_bytes // MIB)
    ]


def is_in(plan: Plan, phase: Phase, tag: PlannedTag) -> bool:
    in_none = not any(one.lists(tag.session, tag.tag) for one in plan.phases.phases)
    return phase.lists(tag.session, tag.tag) or in_none


def copies(plan: Plan) -> list[Frame]:
    """Return what stays on the host once it has been there."""
    moving = [tag for tag in plan.tags if not all(is_in(plan, phase, tag) for phase in plan.phases.phases)]
    sealed = [tag for tag in moving if tag.sealed and plan.phases.order is Order.DEVICE]
    return frames_of(sealed, kept=True)


def machine_in(plan: Plan, phase: Phase) -> Machine:
    there = [tag for tag in plan.tags if is_in(plan, phase, tag)]
    away = [tag for tag in plan.tags if not is_in(plan, phase, tag)]
    machine = Machine(
        device={*frames_of(there, kept=True), *frames_of(there, kept=False)},
        host={*frames_of(away, kept=True), *copies(plan)},
    )
    machine.look()
    return machine


def change(plan: Plan, before: Phase, after: Phase) -> Machine:
    """Move single frames, as the order has it, and look at the machine after every move."""
    machine = machine_in(plan, before)
    leave = [tag for tag in plan.tags if is_in(plan, before, tag) and not is_in(plan, after, tag)]
    come = [tag for tag in plan.tags if is_in(plan, after, tag) and not is_in(plan, before, tag)]
    kept_leave, kept_come = frames_of(leave, kept=True), frames_of(come, kept=True)
    machine.device.difference_update(frames_of(leave, kept=False))
    if plan.phases.order is Order.HOST:
        for frame in kept_come:
            machine.device.add(frame)
            machine.look()
        machine.host.difference_update(kept_come)
        machine.host.update(kept_leave)
        move(machine, kept_leave, frames_of(come, kept=False), ahead=0)
    else:
        machine.host.update(kept_leave)
        machine.look()
        move(machine, kept_leave, kept_come + frames_of(come, kept=False), ahead=plan.spare_frames)
        machine.host.difference_update(set(kept_come) - set(copies(plan)))
    machine.look()
    return machine


def move(machine: Machine, leave: list[Frame], come: list[Frame], *, ahead: int) -> None:
    """Copy out frame by frame; what comes runs so many frames ahead of that, and all of it comes in the end."""
    coming = iter(come)
    take(machine, coming, ahead if leave else 0)
    for frame in leave:
        machine.device.discard(frame)
        take(machine, coming, 1)
    take(machine, coming, len(come))


def take(machine: Machine, coming: Iterator[Frame], number: int) -> None:
    for frame in islice(coming, number):
        machine.device.add(frame)
        machine.look()


@given(plans())
@settings(max_examples=300, deadline=None)
def test_peaks_are_those_of_moving_single_frames(plan: Plan) -> None:
    phases = plan.phases.phases
    machines = [machine_in(plan, phase) for phase in phases]
    names = [phase.name for phase in phases]
    if len(phases) > 1:
        following = (*phases[1:], phases[0])
        machines.extend(change(plan, *pair) for pair in zip(phases, following, strict=True))
        names.extend(f"{before.name} → {after.name}" for before, after in zip(phases, following, strict=True))
    expected = [(name, one.most_device * MIB, one.most_host * MIB) for name, one in zip(names, machines, strict=True)]
    assert [(str(peak), peak.device_bytes, peak.host_bytes) for peak in peaks(plan)] == expected


def bounded(plan: Plan, capacity: int, budget: int | None) -> Plan:
    budget_text = None if budget is None else str(budget * MIB)
    return plan.bounded(str(capacity * MIB), budget_text)


@given(plans(), st.integers(min_value=1, max_value=40), st.none() | st.integers(min_value=1, max_value=40), st.data())
@settings(max_examples=300, deadline=None)
def test_the_largest_size_fits_and_one_frame_more_does_not(
    plan: Plan, capacity: int, budget: int | None, data: st.DataObject
) -> None:
    plan = bounded(plan, capacity, budget)
    tag = data.draw(st.sampled_from(plan.tags))
    largest = largest_bytes(plan, tag)
    assert largest is not None
    assert largest == 0 or verdict(plan.resized(tag, largest)).fits
    assert not verdict(plan.resized(tag, largest + MIB)).fits


@given(plans(), st.integers(min_value=1, max_value=40), st.integers(min_value=1, max_value=40))
@settings(max_examples=200, deadline=None)
def test_what_is_too_much_is_told(plan: Plan, capacity: int, budget: int) -> None:
    plan = bounded(plan, capacity, budget)

    def over(peak: Peak) -> tuple[int, int]:
        return max(0, peak.device_bytes - capacity * MIB), max(0, peak.host_bytes - budget * MIB)

    worked_out = verdict(plan)
    assert [(row.device_over_bytes, row.host_over_bytes) for row in worked_out.rows] == list(map(over, peaks(plan)))
    assert worked_out.fits == (not any(any(over(peak)) for peak in peaks(plan)))
