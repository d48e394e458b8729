"""Histories on a disk: what a daemon wrote to its `--history-dir`, whether it still runs or not."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.status import Status, StreamEvent, event_of, status_of
from vrambroker.client.timeline.history import LEASE_CHANGED
from vrambroker.client.timeline.latest import EVENTS_MAX, latest

log = logging.getLogger(__name__)

# The first record is a few names and numbers.
ABOUT_MAX_BYTES = 1 << 16


def read_saved(place: Path, device: str | None = None, last_ns: int | None = None) -> tuple[Status, list[StreamEvent]]:
    """Return what a daemon wrote, the `latest` of it: in a folder the one that was started last, or the one that a file
    there is of.

    What is damaged is logged, and left out up to the next file. Raises `InvalidArgument` if there is none, or several
    devices' and none is named, and OSError.
    """
    abouts = {path: _about(path) for path in _segments(place, device)}
    about = next((about for about in abouts.values() if about is not None), None)
    if about is None:
        raise InvalidArgument(message=f"there is no history in {place}", argument="from")
    needed = _needed([path for path, about in abouts.items() if about is not None], last_ns)
    return about, latest(_joined(_as_far_as_it_goes(path) for path in needed), last_ns)


def _segments(place: Path, device: str | None) -> Sequence[Path]:
    """Return the files of one daemon's life, in their order."""
    from vrambroker.broker.adapters.history_files import SegmentName, segments_in

    if not place.is_dir():
        own = SegmentName.of(place)
        if own is None:
            return [place]
        found = segments_in(place.parent)
        return [path for name, path in found.items() if (name.device, name.start_ns) == (own.device, own.start_ns)]
    found = {name: path for name, path in segments_in(place).items() if device in (None, name.device)}
    devices = {name.device for name in found}
    if len(devices) > 1:
        names = ", ".join(sorted(devices))
        raise InvalidArgument(message=f"name one device with --device (there are: {names})", argument="device")
    started = max((name.start_ns for name in found), default=0)
    return [path for name, path in found.items() if name.start_ns == started]


def _about(segment: Path) -> Status | None:
    """Return what a segment begins with; None if that can't be read."""
    from google.protobuf.message import DecodeError

    from vrambroker.broker.adapters.history_files import records_of
    from vrambroker.v1 import broker_pb2

    with segment.open("rb") as file:
        head = file.read(ABOUT_MAX_BYTES)
    # One without anything in it was begun on a full disk, or just now.
    if not head:
        return None
    try:
        about = broker_pb2.Status.FromString(next(records_of(head), b""))
        if about.device.id:
            return status_of(about)
    except (DecodeError, ValueError):
        pass
    log.warning("%s is damaged, and left out", segment)
    return None


def _events(segment: Path) -> Iterator[StreamEvent]:
    """Yield a segment's events; raises `ValueError` where it is damaged."""
    from google.protobuf.message import DecodeError

    from vrambroker.broker.adapters.history_files import records_of
    from vrambroker.v1 import broker_pb2

    records = records_of(segment.read_bytes())
    next(records, b"")
    for record in records:
        try:
            message = broker_pb2.Event.FromString(record)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        yield event_of(message)


def _as_far_as_it_goes(segment: Path) -> Iterator[StreamEvent]:
    try:
        yield from _events(segment)
    except ValueError:
        log.warning("%s is damaged, and read up to there", segment)


def _needed(segments: Sequence[Path], last_ns: int | None) -> list[Path]:
    """Leave out the segments that end before what is drawn; each tells itself what held when it began."""
    needed: list[Path] = []
    end: StreamEvent | None = None
    for path in reversed(segments):
        needed.insert(0, path)
        first = _first(path)
        if first is None:
            continue
        end = end or first
        long_ago = first.time_ns < end.time_ns - (last_ns or 0)
        if long_ago if last_ns is not None else first.sequence <= end.sequence - EVENTS_MAX:
            break
    return needed


def _first(segment: Path) -> StreamEvent | None:
    """Return the first event of a segment that happened in it."""
    try:
        return next((event for event in _events(segment) if not event.standing), None)
    except ValueError:
        return None


def _joined(segments: Iterable[Iterator[StreamEvent]]) -> Iterator[StreamEvent]:
    """Yield segments' events as they follow on each other: what held at a segment's begin is news only after a gap."""
    leases: dict[int, StreamEvent] = {}
    last = 0
    for events in segments:
        standing, first = _begin(events)
        told = chain(() if first is None else (first,), events)
        if not last:
            told = chain(standing, told)
        elif first is not None and first.sequence != last + 1:
            told = chain(list(_caught_up(leases, standing, first.time_ns)), told)
        for event in told:
            last = event.sequence or last
            if event.kind == LEASE_CHANGED:
                leases[event.lease] = event
            if event.kind == LEASE_CHANGED and not event.state:
                del leases[event.lease]
            yield event


def _begin(events: Iterator[StreamEvent]) -> tuple[list[StreamEvent], StreamEvent | None]:
    """Return what held when a segment began, and the first event after that."""
    standing: list[StreamEvent] = []
    for event in events:
        if not event.standing:
            return standing, event
        standing.append(event)
    return standing, None


def _caught_up(leases: Mapping[int, StreamEvent], standing: Sequence[StreamEvent], at_ns: int) -> Iterator[StreamEvent]:
    """Yield what became in a gap of what was known before it, as at its end; no lines of the daemon's, so without numbers."""
    there = {event.lease for event in standing if event.kind == LEASE_CHANGED}
    for lease, event in leases.items():
        if lease not in there:
            yield replace(
                event,
                sequence=0,
                time_ns=at_ns,
                state="",
                device_bytes=0,
                host_bytes=0,
                why="gone meanwhile",
                standing=False,
            )
    yield from (replace(event, sequence=0, time_ns=at_ns, standing=False) for event in standing)
