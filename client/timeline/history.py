"""The event stream folded into tracks: what each tag of each session had on the device and on the host, and when.

Events tell changes; a picture needs values over time. A track is a step function: each step holds until the next.
What held before the first event that is remembered in full holds from the beginning.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from vrambroker.client.status import Status, StreamEvent
from vrambroker.client.timeline.incidents import Incident, Wait, incidents_of, waits_of

LEASE_CHANGED = "lease_changed"
DEVICE_CHANGED = "device_changed"
SESSION_ENDED = "session_ended"
RECALLED = "recalled"
MARKED = "marked"
PHASE_ENTERED = "phase_entered"
# What is on the device of a partial lease is paused, too.
PAUSED = frozenset({"idle", "partial"})
MOVING = frozenset({"leaving", "arriving"})

_NUMBERED = re.compile(r"(?P<stage>.*?\D)[\s#:/-]+(?P<number>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From `at_ns` on, and until the next step. `why` it came to that, in the daemon's words; `cause`: who wanted the memory
    that is leaving, and what for. Of the bytes on the device `idle_bytes` are paused and in place, `moving_bytes` are of
    leases that are leaving or arriving.
    """

    at_ns: int
    device_bytes: int
    host_bytes: int
    state: str
    why: str = ""
    cause: str = ""
    idle_bytes: int = 0
    moving_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One tag of one session, all its leases together."""

    session: str
    tag: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The device and the arena as a whole, from `at_ns` on."""

    at_ns: int
    lent_bytes: int
    held_bytes: int
    free_bytes: int
    host_bytes: int
    host_file_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What of the device is in use outside of leases, from `at_ns` on."""

    at_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What somebody marked, or a phase, from its mark to the next. A label such as `train 12` is stage `train`, number 12."""

    label: str
    begin_ns: int
    end_ns: int

    @property
    def name(self) -> str:
        numbered = _NUMBERED.fullmatch(self.label)
        return numbered["stage"] if numbered else self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known of the time from `begin_ns` to `end_ns`; `complete` if no event is forgotten or missed."""

    device: str
    capacity_bytes: int
    host_budget_bytes: int
    peak_lent_bytes: int
    begin_ns: int
    end_ns: int
    complete: bool
    tracks: tuple[Track, ...]
    totals: tuple[Total, ...]
    stages: tuple[Stage, ...]
    outside: tuple[Outside, ...] = ()
    waits: tuple[Wait, ...] = ()
    incidents: tuple[Incident, ...] = ()


@dataclass(slots=True)
class _Growing:
    """A track in the making: what each of its leases has now, and the steps so far. `causes`: of each lease that gives
    frames up, why.
    """

    leases: dict[int, StreamEvent] = field(default_factory=dict[int, StreamEvent])
    steps: list[Step] = field(default_factory=list[Step])
    causes: dict[int, str] = field(default_factory=dict[int, str])

    def change(self, event: StreamEvent) -> None:
        self.leases[event.lease] = event
        if not event.state:
            del self.leases[event.lease]
        cause = self.causes.get(event.lease, "")
        self.now(event.time_ns, event.why, cause)
        if event.state not in ("leaving", "arriving"):
            self.causes.pop(event.lease, None)

    def now(self, at_ns: int, why: str, cause: str = "") -> None:
        states = {lease.state for lease in self.leases.values()}
        step = Step(
            at_ns=at_ns,
            device_bytes=sum(lease.device_bytes for lease in self.leases.values()),
            host_bytes=sum(lease.host_bytes for lease in self.leases.values()),
            state=states.pop() if len(states) == 1 else ("partial" if states else ""),
            why=why,
            cause=cause,
            idle_bytes=self._bytes_in(PAUSED),
            moving_bytes=self._bytes_in(MOVING),
        )
        if self.steps and self.steps[-1].at_ns == at_ns:
            self.steps.pop()
        self.steps.append(step)

    def _bytes_in(self, states: frozenset[str]) -> int:
        return sum(lease.device_bytes for lease in self.leases.values() if lease.state in states)


def history_of(status: Status, events: Sequence[StreamEvent]) -> History:
    """Fold events, in their order, into tracks. `status` is asked what events don't tell: device and capacity."""
    remembered = sum(bool(event.sequence) and not event.standing for event in events)
    events = from_the_beginning(events)
    begin_ns, end_ns = events[0].time_ns, events[-1].time_ns
    growing = _grow(events)
    for key, device_bytes, host_bytes, state in _untold(status, set(growing)):
        growing[key] = _Growing(
            steps=[
                Step(
                    at_ns=begin_ns,
                    device_bytes=device_bytes,
                    host_bytes=host_bytes,
                    state=state,
                    idle_bytes=device_bytes if state in PAUSED else 0,
                )
            ]
        )
    totals = tuple(_total(event) for event in events if event.kind == DEVICE_CHANGED)
    end_ns = max(end_ns, begin_ns + 1)
    return History(
        device=status.device.id,
        capacity_bytes=status.device.capacity_bytes,
        host_budget_bytes=status.host.budget_bytes,
        peak_lent_bytes=max((total.lent_bytes for total in totals), default=status.device.lent_bytes),
        begin_ns=begin_ns,
        end_ns=end_ns,
        complete=events[-1].sequence == remembered,
        tracks=_in_order(growing),
        totals=totals,
        stages=_stages(events, end_ns),
        outside=tuple(
            Outside(at_ns=event.time_ns, size_bytes=event.outside_bytes)
            for event in events
            if event.outside_bytes is not None
        ),
        waits=waits_of(events, end_ns),
        incidents=incidents_of(events),
    )


def from_the_beginning(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """Return the events with what already held when the first other one happened put at that time."""
    begin_ns = next((event.time_ns for event in events if not event.standing), events[-1].time_ns)
    return [replace(event, time_ns=begin_ns) if event.standing else event for event in events]


def _grow(events: Sequence[StreamEvent]) -> dict[tuple[str, str], _Growing]:
    growing: dict[tuple[str, str], _Growing] = {}
    for event in events:
        if event.kind == LEASE_CHANGED:
            growing.setdefault((event.session, event.tag), _Growing()).change(event)
        elif event.kind == RECALLED and (event.session, event.tag) in growing:
            growing[event.session, event.tag].causes[event.lease] = event.why
        elif event.kind == SESSION_ENDED:
            _end(growing, event)
    return growing


def _end(growing: dict[tuple[str, str], _Growing], event: StreamEvent) -> None:
    """Let go of what an ended session had; until its fence is passed the device counts it as held."""
    for (session, _), track in growing.items():
        if session == event.session and track.leases:
            track.leases.clear()
            track.now(event.time_ns, event.why)


def _untold(status: Status, told: set[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], int, int, str]]:
    """Yield what is held by tags whose every event is forgotten, so that they did not change in the time we know."""
    for session in status.sessions:
        for tag in session.tags:
            if (session.name, tag.tag) not in told:
                yield (session.name, tag.tag), tag.device_bytes, tag.host_bytes, tag.state


def _in_order(growing: dict[tuple[str, str], _Growing]) -> tuple[Track, ...]:
    """Put a session's tags beside each other; sessions and tags in order of appearance."""
    sessions = list(dict.fromkeys(session for session, _ in growing))
    ordered = sorted(growing, key=lambda key: sessions.index(key[0]))
    return tuple(Track(session=key[0], tag=key[1], steps=tuple(growing[key].steps)) for key in ordered)


def _total(event: StreamEvent) -> Total:
    return Total(
        at_ns=event.time_ns,
        lent_bytes=event.lent_bytes,
        held_bytes=event.held_bytes,
        free_bytes=event.free_bytes,
        host_bytes=event.host_bytes,
        host_file_bytes=event.host_file_bytes,
    )


def _label(event: StreamEvent) -> str:
    """Return the stage that begins with an event: what was marked, or a phase that was entered."""
    if event.kind == MARKED:
        return event.why
    return event.phase if event.kind == PHASE_ENTERED else ""


def _stages(events: Sequence[StreamEvent], end_ns: int) -> tuple[Stage, ...]:
    labels = ((event.time_ns, _label(event)) for event in events)
    marks = [(time_ns, label) for time_ns, label in labels if label]
    return tuple(
        Stage(label=label, begin_ns=begin_ns, end_ns=stage_end_ns)
        for (begin_ns, label), (stage_end_ns, _) in pairwise([*marks, (end_ns, "")])
    )
