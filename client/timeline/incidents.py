"""What happened beside bytes: who waited for memory and how that ended, and single incidents, each with its reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vrambroker.client.status import StreamEvent

# Lines that are an incident by themselves; whether memory moved is told by the tracks.
_TOLD = frozenset(
    {
        "session_attached",
        "session_disconnected",
        "session_ended",
        "fence_passed",
        "lease_sealed",
        "lease_unsealed",
        "lease_read",
        "ticket_refused",
        "recalled",
        "spilled",
        "spill_failed",
        "copy_failed",
        "budget_changed",
        "marked",
        "plan_set",
        "phase_entered",
        "phase_refused",
        "draining",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that happened at an instant. `kind`: a line's kind, or `paused` and `resumed` of a lease."""

    at_ns: int
    kind: str
    session: str
    tag: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """From a ticket's question to its answer, or a change of phase.

    `outcome`: done, refused, or waiting where the history ends first. `asked` and `answered` are the daemon's words.
    """

    ticket: int
    session: str
    tag: str
    phase: str
    begin_ns: int
    end_ns: int
    outcome: str
    asked: str
    answered: str


def incidents_of(events: Sequence[StreamEvent]) -> tuple[Incident, ...]:
    """Return what happened, in its order."""
    told = (event for event in events if not event.standing)
    return tuple(sorted((*_lines(told), *_pauses(events)), key=lambda incident: incident.at_ns))


def _lines(events: Iterator[StreamEvent]) -> Iterator[Incident]:
    for event in events:
        if event.kind in _TOLD:
            yield _incident(event, event.kind)


def _pauses(events: Sequence[StreamEvent]) -> Iterator[Incident]:
    """Yield when leases went out of use and came back into it."""
    in_use: dict[int, bool] = {}
    for event in events:
        if event.kind != "lease_changed":
            continue
        if not event.state:
            in_use.pop(event.lease, None)
            continue
        # What grows is arriving as well, and in use all the same.
        before = in_use.get(event.lease)
        now = True if event.state == "resident" else before if event.state == "arriving" else False
        if now is None:
            continue
        if before is not None and before != now and not event.standing:
            yield _incident(event, "resumed" if now else "paused")
        in_use[event.lease] = now


def _incident(event: StreamEvent, kind: str) -> Incident:
    why = f"{event.phase}: {event.why}" if event.phase and not event.why.startswith(event.phase) else event.why
    return Incident(at_ns=event.time_ns, kind=kind, session=event.session, tag=event.tag, why=why)


def waits_of(events: Sequence[StreamEvent], end_ns: int) -> tuple[Wait, ...]:
    """Return the waits in the order of their beginnings; what the history does not see the end of lasts until `end_ns`."""
    waits: dict[int, Wait] = {}
    open_waits: dict[int | str, int] = {}
    for number, event in enumerate(events):
        match event.kind:
            case "ticket_queued":
                open_waits[event.ticket] = number
                waits[number] = _begun(event, end_ns)
            case "phase_entering":
                open_waits[event.phase] = number
                waits[number] = _begun(event, end_ns)
            case "ticket_done" | "ticket_refused" | "phase_entered" | "phase_refused":
                begun = open_waits.pop(event.ticket or event.phase, None)
                if begun is not None:
                    waits[begun] = _ended(waits[begun], event)
            case "session_ended":
                for key, begun in list(open_waits.items()):
                    if waits[begun].session == event.session:
                        waits[begun] = _ended(waits[begun], event)
                        del open_waits[key]
            case _:
                pass
    return tuple(waits.values())


def _begun(event: StreamEvent, end_ns: int) -> Wait:
    return Wait(
        ticket=event.ticket,
        session=event.session,
        tag=event.tag,
        phase=event.phase,
        begin_ns=event.time_ns,
        end_ns=end_ns,
        outcome="waiting",
        asked=event.why,
        answered="",
    )


def _ended(wait: Wait, event: StreamEvent) -> Wait:
    outcome = "done" if event.kind in ("ticket_done", "phase_entered") else "refused"
    return replace(wait, end_ns=event.time_ns, outcome=outcome, answered=event.why)
