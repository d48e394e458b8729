"""The latest of a long history: what is drawn is what would be drawn of all of it, in that time."""

from collections import deque
from pathlib import Path

import pytest

from tests.unit.test_history_files import MIB, lease, mark, written
from tests.unit.test_timeline import Book, two_sides
from vrambroker.broker.adapters.history import History, Line
from vrambroker.broker.adapters.messages import event_of as message_of
from vrambroker.broker.core.effects import Kind, LeaseState, Publish
from vrambroker.broker.core.ids import Instant
from vrambroker.client.status import StreamEvent, event_of
from vrambroker.client.timeline import history_of, saved
from vrambroker.client.timeline import latest as bounds
from vrambroker.client.timeline.history import Step, Track
from vrambroker.client.timeline.latest import latest
from vrambroker.client.timeline.saved import read_saved

SECOND = 1_000_000_000


def _at(track: Track, at_ns: int) -> Step | None:
    found = deque((step for step in track.steps if step.at_ns <= at_ns), maxlen=1)
    return found[0] if found else None


def test_the_end_of_a_history_is_drawn_as_in_the_whole_one() -> None:
    book = two_sides(10)
    whole, end = book.history(), history_of(book.status(), latest(book.events, 5 * SECOND))
    assert (whole.complete, end.complete) == (True, False)
    assert 4 * SECOND < end.end_ns - end.begin_ns <= 5 * SECOND
    assert end.end_ns == whole.end_ns
    tracks = {(track.session, track.tag): track for track in end.tracks}
    for track in whole.tracks:
        for at_ns in range(end.begin_ns, end.end_ns + 1, SECOND // 10):
            one, other = _at(track, at_ns), _at(tracks[track.session, track.tag], at_ns)
            assert one is not None and other is not None
            assert (one.device_bytes, one.host_bytes, one.state) == (other.device_bytes, other.host_bytes, other.state)
    assert [stage.label for stage in end.stages] == [stage.label for stage in whole.stages][-len(end.stages) :]


def test_what_a_long_time_holds_is_all_of_it() -> None:
    events = two_sides(3).events
    assert latest(events, 3600 * SECOND) == events
    assert latest(events) == events


def test_only_so_many_are_kept_and_what_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "EVENTS_MAX", 10)
    book = Book(64)
    book.lease(0, "trainer/params", 1, 8, 0, "resident")
    for number in range(20):
        book.mark(number, f"m{number}")
    events = latest(book.events)
    assert [event.why for event in events if not event.standing] == [f"m{number}" for number in range(10, 20)]
    assert [event.kind for event in events if event.standing] == ["lease_changed", "device_changed", "marked"]


def test_what_is_left_out_holds_as_in_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Line] = []
    history = History(1, lines.append)
    for told in (
        lease(1, LeaseState.RESIDENT),
        lease(2, LeaseState.IDLE),
        mark("train"),
        Publish(kind=Kind.OUTSIDE_CHANGED, at=Instant(0), why="", outside_bytes=5),
        Publish(kind=Kind.DEVICE_CHANGED, at=Instant(0), why="", lent_bytes=5),
        lease(2, None),
        lease(1, LeaseState.PARKED),
        Publish(kind=Kind.PHASE_ENTERED, at=Instant(0), why="", phase="generate"),
        Publish(kind=Kind.RECALLED, at=Instant(0), why="", session="trainer"),
        Publish(kind=Kind.SESSION_ENDED, at=Instant(0), why="", session="trainer"),
        lease(3, LeaseState.IDLE),
        mark("end"),
    ):
        history.published(told)
        monkeypatch.setattr(bounds, "EVENTS_MAX", 1)
        kept = latest(_event(line) for line in lines)
        assert kept[:-1] == [_event(line) for line in history.standing]


def _event(line: Line) -> StreamEvent:
    return event_of(message_of(line))


@pytest.mark.parametrize("by_time", [False, True])
def test_of_a_disk_no_more_is_read_than_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_time: bool
) -> None:
    with written(tmp_path) as history:
        history.published(lease(1, LeaseState.RESIDENT))
        for number in range(4000):
            history.published(mark(f"{number} " + "x" * 200))
    everything = read_saved(tmp_path)
    segments = sorted(tmp_path.iterdir())
    assert len(segments) > 4
    last_ns = everything[1][-1].time_ns - everything[1][-1000].time_ns if by_time else None
    if not by_time:
        for module in (bounds, saved):
            monkeypatch.setattr(module, "EVENTS_MAX", 1000)
    segments[0].write_bytes(b"not looked at, but for its begin"[:0])
    status, events = read_saved(tmp_path, last_ns=last_ns)
    shown = [event for event in events if not event.standing]
    assert shown == everything[1][-len(shown) :]
    assert len(shown) == 1000 or (by_time and len(shown) > 1000)
    (track,) = history_of(status, events).tracks
    assert [step.device_bytes for step in track.steps] == [MIB]
    assert len(saved._needed(segments[1:], last_ns)) < len(segments) - 1  # pyright: ignore[reportPrivateUsage]
