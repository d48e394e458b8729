"""Histories on a disk: what a daemon wrote to its `--history-dir`, whether it still runs or not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.status import Status, StreamEvent, event_of, status_of

if TYPE_CHECKING:
    from vrambroker.v1 import broker_pb2

LEASE_CHANGED = "lease_changed"


def read_saved(place: Path, device: str | None = None) -> tuple[Status, list[StreamEvent]]:
    """Return what a daemon wrote: in a folder the one that was started last, or the one that a file there is of.

    Raises `InvalidArgument` if there is none, or several devices' and none is named, and OSError.
    """
    segments = _segments(place, device)
    told: list[StreamEvent] = []
    about: Status | None = None
    # One without anything in it was begun on a full disk, or just now.
    for segment in (segment for segment in segments if segment.stat().st_size):
        status, events = _read(segment)
        about = about or status
        told += _following(told, events)
    if about is None:
        raise InvalidArgument(message=f"there is no history in {place}", argument="from")
    return about, told


def _segments(place: Path, device: str | None) -> Sequence[Path]:
    """Return the files of one daemon's life, in their order."""
    from vrambroker.broker.adapters.history_files import SUFFIX

    found = sorted((place if place.is_dir() else place.parent).glob(f"*{SUFFIX}"))
    if not place.is_dir():
        return [path for path in found if _life(path) == _life(place)]
    found = [path for path in found if device is None or _life(path)[0] == device]
    devices = {_life(path)[0] for path in found}
    if len(devices) > 1:
        names = ", ".join(sorted(devices))
        raise InvalidArgument(message=f"name one device with --device (there are: {names})", argument="device")
    lives = {_life(path) for path in found}
    return [path for path in found if _life(path) == max(lives)]


def _life(path: Path) -> tuple[str, str]:
    """Return which device a segment is of, and when its daemon was started."""
    device, _, start = path.stem.rpartition("-")[0].rpartition("-")
    return device, start


def _read(segment: Path) -> tuple[Status, list[StreamEvent]]:
    from google.protobuf.message import DecodeError

    from vrambroker.broker.adapters.history_files import records_of
    from vrambroker.v1 import broker_pb2

    records = records_of(segment.read_bytes())
    try:
        status = broker_pb2.Status.FromString(next(records, b""))
        events = [event_of(message) for message in _events(records)]
    except (DecodeError, ValueError) as error:
        raise InvalidArgument(message=f"{segment} is no history", argument="from") from error
    if not status.device.id:
        raise InvalidArgument(message=f"{segment} is no history", argument="from")
    return status_of(status), events


def _events(records: Iterator[bytes]) -> "Iterator[broker_pb2.Event]":
    from vrambroker.v1 import broker_pb2

    return (broker_pb2.Event.FromString(record) for record in records)


def _following(told: Sequence[StreamEvent], events: Sequence[StreamEvent]) -> Iterator[StreamEvent]:
    """Yield a segment's events as they follow on those before: what held at its begin is news only after a gap."""
    first = next((event for event in events if not event.standing), None)
    if not told:
        yield from events
    elif first is not None:
        if first.sequence != told[-1].sequence + 1:
            yield from _caught_up(told, events, first.time_ns)
        yield from (event for event in events if not event.standing)


def _caught_up(told: Sequence[StreamEvent], events: Sequence[StreamEvent], at_ns: int) -> Iterator[StreamEvent]:
    """Yield what became in a gap of what was known before it, as at its end; no lines of the daemon's, so without numbers."""
    standing = [event for event in events if event.standing]
    last = {event.lease: event for event in told if event.kind == LEASE_CHANGED}
    there = {event.lease for event in standing if event.kind == LEASE_CHANGED}
    for lease, event in last.items():
        if event.state and lease not in there:
            yield replace(
                event, sequence=0, time_ns=at_ns, state="", device_bytes=0, host_bytes=0, why="gone meanwhile"
            )
    yield from (replace(event, sequence=0, time_ns=at_ns, standing=False) for event in standing)
