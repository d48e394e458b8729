"""The latest events of a stream, and what held before them: as much of a long history as can be drawn."""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from vrambroker.client.status import StreamEvent
from vrambroker.client.timeline.history import DEVICE_CHANGED, LEASE_CHANGED, MARKED, PHASE_ENTERED, SESSION_ENDED

# A page of as many is some 3.5 MB.
EVENTS_MAX = 100_000


def latest(events: Iterable[StreamEvent], last_ns: int | None = None) -> list[StreamEvent]:
    """Return the events of the last `last_ns` before the end, or else the latest 100,000; before them, as `standing`, what
    still held of the ones that are left out.
    """
    kept: deque[StreamEvent] = deque()
    held: dict[object, StreamEvent] = {}
    for event in events:
        if event.standing:
            _hold(held, event)
            continue
        kept.append(event)
        while kept[0].time_ns < event.time_ns - last_ns if last_ns is not None else len(kept) > EVENTS_MAX:
            _hold(held, kept.popleft())
    return [*(replace(event, standing=True) for event in held.values()), *kept]


def _hold(held: dict[object, StreamEvent], event: StreamEvent) -> None:
    """Count an event that is left out, as the daemon does (`Standing`)."""
    if event.kind == SESSION_ENDED:
        for about in [about for about, kept in held.items() if kept.session == event.session]:
            del held[about]
    about = _subject(event)
    if about is None:
        return
    held.pop(about, None)
    if event.kind != LEASE_CHANGED or event.state:
        held[about] = event


def _subject(event: StreamEvent) -> object:
    """Return what an event tells the whole present truth of; None if it tells of something that happens and is over."""
    if event.kind == LEASE_CHANGED:
        return event.lease
    if event.kind == DEVICE_CHANGED or event.outside_bytes is not None:
        return event.kind
    return MARKED if event.kind in (MARKED, PHASE_ENTERED) else None
