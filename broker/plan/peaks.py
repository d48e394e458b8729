"""The peaks of a plan: what each phase, and each change from one to the next, takes of the device and of the host.

In a phase, what it lists is on the device, and the kept contents of all other tags are on the host. A change of phase
has four parts: what stays, what leaves, what comes, and what is away before and after.

Order `device`: all that leaves is paused, and has its place on the host, before anything comes; a parked copy of what
comes is there until it has arrived. So the host has the kept contents of both sides. The device never has more than
the larger phase, but for a few spare frames: while one frame is copied out, others are copied in.

Order `host`: dropped contents leave, kept contents come, kept contents leave, dropped contents come. So the host never
has more than in the two phases, and the device has the kept contents of both sides.

What is sealed and has to leave in some phase is copied out once: from then on its copy is on the host in every phase.
Only the order `host` gives it up when the contents are back, since that is what it is for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vrambroker.broker.core.phase import Order, Phase
from vrambroker.broker.plan.model import Plan, PlannedTag


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most that one phase (`after` is empty) or one change of phase takes."""

    phase: str
    after: str = ""
    device_bytes: int
    host_bytes: int

    def __str__(self) -> str:
        return f"{self.after} → {self.phase}" if self.after else self.phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """The tags at a change of phase; `away` neither leave nor come."""

    stay: tuple[PlannedTag, ...]
    leave: tuple[PlannedTag, ...]
    come: tuple[PlannedTag, ...]
    away: tuple[PlannedTag, ...]


def peaks(plan: Plan) -> tuple[Peak, ...]:
    """Return the peaks of all phases, then those of all changes, the last phase to the first included."""
    phases = plan.phases.phases
    changes = list(zip(phases, (*phases[1:], phases[0]), strict=True)) if len(phases) > 1 else []
    return (*(_phase_peak(plan, phase) for phase in phases), *(_change_peak(plan, *change) for change in changes))


def _phase_peak(plan: Plan, phase: Phase) -> Peak:
    there = [tag for tag in plan.tags if _is_there(plan, phase, tag)]
    away = [tag for tag in plan.tags if tag not in there]
    host = kept_bytes(away) + kept_bytes(_copied(plan, there))
    return Peak(phase=phase.name, device_bytes=device_bytes(there), host_bytes=host)


def _copied(plan: Plan, there: Iterable[PlannedTag]) -> list[PlannedTag]:
    """Return those of which there is a copy on the host although they are on the device."""
    if plan.phases.order is Order.HOST:
        return []
    phases = plan.phases.phases
    return [tag for tag in there if tag.sealed and not all(_is_there(plan, phase, tag) for phase in phases)]


def _is_there(plan: Plan, phase: Phase, tag: PlannedTag) -> bool:
    return phase.lists(tag.session, tag.tag) or not plan.phases.is_planned(tag.session, tag.tag)


def handover(plan: Plan, before: Phase, after: Phase) -> Handover:
    """Return who stays, leaves and comes."""
    parts: dict[tuple[bool, bool], list[PlannedTag]] = {}
    for tag in plan.tags:
        parts.setdefault((_is_there(plan, before, tag), _is_there(plan, after, tag)), []).append(tag)

    def part(was: bool, is_: bool) -> tuple[PlannedTag, ...]:
        return tuple(parts.get((was, is_), ()))

    return Handover(stay=part(True, True), leave=part(True, False), come=part(False, True), away=part(False, False))


def _change_peak(plan: Plan, before: Phase, after: Phase) -> Peak:
    change = handover(plan, before, after)
    first, last = _phase_peak(plan, before), _phase_peak(plan, after)
    device = max(first.device_bytes, last.device_bytes, _both_bytes(plan, change))
    host = max(first.host_bytes, last.host_bytes)
    if plan.phases.order is Order.DEVICE:
        host = kept_bytes((*change.away, *change.come, *change.leave, *_copied(plan, change.stay)))
    return Peak(phase=after.name, after=before.name, device_bytes=device, host_bytes=host)


def _both_bytes(plan: Plan, change: Handover) -> int:
    """Return what is on the device when as much of both sides is there as ever."""
    going_bytes = device_bytes(change.stay) + kept_bytes(change.leave)
    match plan.phases.order:
        case Order.DEVICE:
            return going_bytes + (spare_bytes(plan, change.come) if kept_bytes(change.leave) else 0)
        case Order.HOST:
            return going_bytes + kept_bytes(change.come)


def spare_bytes(plan: Plan, come: Iterable[PlannedTag]) -> int:
    """Return what comes ahead of what leaves: a few of the largest frames that it has."""
    sizes = [tag.size_bytes for tag in come]
    largest = max((frame for frame in plan.frames_bytes if frame <= max(sizes, default=0)), default=0)
    return min(sum(sizes), plan.spare_frames * largest)


def device_bytes(tags: Iterable[PlannedTag]) -> int:
    """Return what these tags take when they are resident."""
    return sum(tag.size_bytes for tag in tags)


def kept_bytes(tags: Iterable[PlannedTag]) -> int:
    """Return what these tags take of the host when they are paused."""
    return sum(tag.kept_bytes for tag in tags)
