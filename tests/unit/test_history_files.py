"""The event stream on a disk: what was told can be read again, within the budget, and whatever the disk does."""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vrambroker.broker.adapters import history_files
from vrambroker.broker.adapters.history import History, Line, Standing
from vrambroker.broker.adapters.history_files import HistoryFiles, SegmentName, segments_in
from vrambroker.broker.core.effects import Kind, LeaseState, Publish
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.ids import Instant, LeaseId
from vrambroker.client.status import StreamEvent
from vrambroker.client.timeline import history_of
from vrambroker.client.timeline.saved import read_saved
from vrambroker.v1 import broker_pb2 as v1

MIB = 1 << 20


@contextmanager
def filed(folder: Path, budget_bytes: int = MIB, device: str = "host:0") -> Iterator[tuple[History, HistoryFiles]]:
    """A history that is written to a folder, and what writes it; at the end all of it is on the disk."""
    about = v1.Status(device=v1.Device(id=device, capacity_bytes=64 * MIB), host=v1.Host(budget_bytes=MIB))
    bugs: list[BaseException] = []
    files = HistoryFiles(folder, budget_bytes, about, bugs.append)
    yield History(16 * MIB, files.add), files
    files.close()
    assert not bugs
    assert "history" not in {thread.name for thread in threading.enumerate()}


@contextmanager
def written(folder: Path, device: str = "host:0") -> Iterator[History]:
    """The same without its writer."""
    with filed(folder, device=device) as (history, _):
        yield history


def lease(number: int, state: LeaseState | None, size_bytes: int = MIB) -> Publish:
    return Publish(
        kind=Kind.LEASE_CHANGED,
        at=Instant(0),
        why="changed",
        session="trainer",
        tag=f"tag{number}",
        lease=LeaseId(number),
        state=state,
        device_bytes=size_bytes if state else 0,
    )


def mark(label: str) -> Publish:
    return Publish(kind=Kind.MARKED, at=Instant(0), why=label)


def labels(events: list[StreamEvent]) -> list[str]:
    return [event.why for event in events if event.kind == "marked" and not event.standing]


def test_what_was_told_can_be_read_again(tmp_path: Path) -> None:
    with written(tmp_path) as history:
        history.published(lease(1, LeaseState.RESIDENT))
        history.published(mark("train ü"))
    status, events = read_saved(tmp_path)
    assert (status.device.id, status.device.capacity_bytes) == ("host:0", 64 * MIB)
    assert [(event.sequence, event.kind, event.state) for event in events] == [
        (1, "lease_changed", "resident"),
        (2, "marked", ""),
    ]
    assert labels(events) == ["train ü"]
    assert history_of(status, events).complete
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_oldest_go_when_the_budget_is_used_up_and_what_holds_stays(tmp_path: Path) -> None:
    with written(tmp_path) as history:
        history.published(lease(1, LeaseState.RESIDENT))
        for number in range(3):
            for _ in range(2500):
                history.published(mark(f"{number} " * 60))
            _settled(tmp_path, history.last_sequence)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert MIB // 2 < sum(sizes) <= MIB
    status, events = read_saved(tmp_path)
    assert events[0].standing
    assert events[-1].sequence == history.last_sequence
    found = history_of(status, events)
    assert not found.complete
    assert [(track.tag, track.steps[0].device_bytes) for track in found.tracks] == [("tag1", MIB)]
    assert found.tracks[0].steps[0].at_ns == found.begin_ns


def _settled(folder: Path, sequence: int) -> None:
    """Wait until a line is on the disk, so that the next ones come in another batch."""

    def written_there() -> bool:
        try:
            return read_saved(folder)[1][-1].sequence == sequence
        except (FileNotFoundError, InvalidArgument, IndexError):
            return False

    _wait_for(written_there)


def _wait_for(claim: Callable[[], bool]) -> None:
    """Wait until a claim about what a thread does holds."""
    never = threading.Event()
    for _ in range(4000):
        if claim():
            return
        never.wait(0.005)
    raise AssertionError("it did not come true")


def test_a_folder_that_goes_away_costs_lines_and_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history_files, "RETRY_S", 0.0)
    folder = tmp_path / "here"
    folder.mkdir()
    caplog.set_level(logging.INFO)
    with filed(folder) as (history, files):
        for number in (1, 2):
            history.published(lease(number, LeaseState.RESIDENT))
        _settled(folder, 2)
        for path in folder.iterdir():
            path.rename(tmp_path / path.name)
        # What is open is written to wherever it is; the next segment has no place.
        folder.rmdir()
        for _ in range(1200):
            history.published(mark("x" * 200))
        _until_logged(caplog, "nothing is written")
        history.published(lease(1, None))
        history.published(mark("lost"))
        _taken(history, files)
        folder.mkdir()
        history.published(mark("again"))
        _until_logged(caplog, "written to again")
        history.published(mark("last"))
        _settled(folder, history.last_sequence)
        assert files.missing_lines == history.last_sequence - len(_numbers(tmp_path) | _numbers(folder))
    texts = [record.getMessage() for record in caplog.records]
    assert sum("nothing is written" in text for text in texts) == 1
    for path in tmp_path.glob("*.events"):
        path.rename(folder / path.name)
    status, events = read_saved(folder)
    assert "lost" not in labels(events)
    assert labels(events)[-1] == "last"
    assert not history_of(status, events).complete
    # Lease 1 went in the gap.
    tracks = {track.tag: track.steps[-1].device_bytes for track in history_of(status, events).tracks}
    assert tracks == {"tag1": 0, "tag2": MIB}


def _numbers(folder: Path) -> set[int]:
    """Return the numbers of the events in each of a folder's files."""
    events = (event for path in folder.glob("*.events") for event in read_saved(path)[1])
    return {event.sequence for event in events if event.sequence and not event.standing}


def _taken(history: History, files: HistoryFiles) -> None:
    """Return when the thread is through with what was told: it takes lines only when it is through with those before."""
    for _ in range(2):
        history.published(mark("in between"))
        _wait_for(lambda: not files._waiting)  # pyright: ignore[reportPrivateUsage]


def _until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    _wait_for(lambda: any(words in record.getMessage() for record in caplog.records))


def test_a_disk_that_does_not_answer_bounds_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_files, "WAITING_MAX", 10)
    about = v1.Status(device=v1.Device(id="host:0", capacity_bytes=1))
    files = HistoryFiles(tmp_path, MIB, about, lambda bug: None)
    history = History(MIB, files.add)
    history.published(lease(2, LeaseState.RESIDENT))
    _settled(tmp_path, 1)
    # The thread is kept from its work as by a disk that hangs.
    with files._news:  # pyright: ignore[reportPrivateUsage]
        history.published(lease(1, LeaseState.IDLE))
        history.published(lease(2, None))
        for number in range(35):
            history.published(mark(f"{number}"))
        assert len(files._waiting) <= 10  # pyright: ignore[reportPrivateUsage]
        assert files.missing_lines == 30
    files.close()
    status, events = read_saved(tmp_path)
    assert labels(events)[-1] == "34"
    tracks = {track.tag: track.steps[-1].device_bytes for track in history_of(status, events).tracks}
    assert tracks == {"tag1": MIB, "tag2": 0}


def test_the_latest_life_of_a_daemon_is_read_and_devices_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no history"):
        read_saved(tmp_path)
    for label in ("first", "second"):
        with written(tmp_path) as history:
            history.published(mark(label))
    assert labels(read_saved(tmp_path)[1]) == ["second"]
    assert labels(read_saved(min(tmp_path.iterdir()))[1]) == ["first"]
    with written(tmp_path, device="GPU-1-2") as history:
        history.published(mark("other"))
    with pytest.raises(InvalidArgument, match="--device"):
        read_saved(tmp_path)
    assert labels(read_saved(tmp_path, "GPU-1-2")[1]) == ["other"]


def test_a_segment_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    with written(tmp_path) as history:
        for label in "abc":
            history.published(mark(label))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert labels(read_saved(tmp_path)[1]) == ["a", "b"]
    path.write_bytes(b"\xff" * 100 + b"no history")
    with pytest.raises(InvalidArgument, match="is no history"):
        read_saved(path)


def test_zeros_that_a_crash_left_are_no_lines(tmp_path: Path) -> None:
    with written(tmp_path) as history:
        history.published(mark("a"))
    before = history_of(*read_saved(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert history_of(*read_saved(tmp_path)) == before


def _many(folder: Path, number: int = 0) -> History:
    """Write some segments, the first of this number and one."""
    with filed(folder) as (history, files):
        files._number = number  # pyright: ignore[reportPrivateUsage]
        for _ in range(6):
            for _ in range(550):
                history.published(mark("x" * 200))
            _settled(folder, history.last_sequence)
    return history


@pytest.mark.parametrize(("at", "says"), [(0, "left out"), (6, "left out"), (30_000, "read up to there")])
def test_what_is_damaged_costs_no_more_than_the_rest_of_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int, says: str
) -> None:
    last = _many(tmp_path).last_sequence
    assert [event.sequence for event in read_saved(tmp_path)[1]] == list(range(1, last + 1))
    assert not caplog.records
    segments = [path.read_bytes() for path in segments_in(tmp_path).values()]
    assert len(segments) > 4
    damaged = list(segments_in(tmp_path).values())[2]
    damaged.write_bytes(segments[2][:at] + b"\xff" * 500 + segments[2][at + 500 :])
    status, events = read_saved(tmp_path)
    assert len(events) > last // 2
    assert (events[0].sequence, events[-1].sequence) == (1, last)
    assert not history_of(status, events).complete
    assert [record.getMessage() for record in caplog.records] == [f"{damaged} is damaged, and {says}"]


def test_segments_are_in_their_order_however_many_there_were(tmp_path: Path) -> None:
    for number in range(999_990, 999_998):
        (tmp_path / str(SegmentName("host:0", 1, number))).write_bytes(b"x" * (MIB // 8))
    last = _many(tmp_path, 999_997).last_sequence
    _, events = read_saved(tmp_path)
    assert [event.sequence for event in events] == list(range(1, last + 1))
    assert {len(path.stem) for path in tmp_path.iterdir() if "-9" not in path.name} == {len("host:0--") + 27}


def test_a_clock_that_is_set_back_makes_no_newer_life_an_older_one(tmp_path: Path) -> None:
    with written(tmp_path) as history:
        history.published(mark("first"))
    ((name, path),) = segments_in(tmp_path).items()
    path.rename(tmp_path / str(SegmentName(name.device, name.start_ns + 3600 * 10**9, 1)))
    with written(tmp_path) as history:
        history.published(mark("second"))
    assert labels(read_saved(tmp_path)[1]) == ["second"]


def test_a_disk_that_fails_in_everything_keeps_no_fd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(history_files, "RETRY_S", 0.0)
    with filed(tmp_path) as (history, files):
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", fails)
            broken.setattr(Path, "unlink", fails)
            for _ in range(5):
                _taken(history, files)
            assert len(os.listdir("/proc/self/fd")) == before
        history.published(mark("again"))
        _settled(tmp_path, history.last_sequence)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_file_that_can_not_even_be_closed_costs_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_files, "RETRY_S", 0.0)
    with filed(tmp_path) as (history, files):
        history.published(mark("before"))
        _settled(tmp_path, 1)
        assert files._segment is not None  # pyright: ignore[reportPrivateUsage]
        os.close(files._segment._fd)  # pyright: ignore[reportPrivateUsage]
        _taken(history, files)
        history.published(mark("after"))
        _settled(tmp_path, history.last_sequence)
    assert labels(read_saved(tmp_path)[1])[-1] == "after"


def test_what_waits_for_a_disk_is_not_gone_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Line] = []
    take = Standing.take

    def counted(standing: Standing, line: Line) -> None:
        taken.append(line)
        take(standing, line)

    monkeypatch.setattr(history_files, "WAITING_MAX", 10)
    monkeypatch.setattr(Standing, "take", counted)
    with filed(tmp_path) as (history, files), files._news:  # pyright: ignore[reportPrivateUsage]
        # The thread is kept from its work as by a disk that hangs.
        for number in range(500):
            history.published(mark(f"{number}"))
        assert len(taken) <= 500
