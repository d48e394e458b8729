"""The event stream on a disk, so that a timeline can be drawn of a daemon that is gone.

A folder has segments, `<device>-<start>-<number>.events`: records, each a length of four bytes and a message of
broker.proto. The first is a `Status` with what does not change; then come what held when the segment begins (events
marked `standing`), and the events. The oldest segments are removed when there are more bytes than the budget; what
holds at the begin of a segment comes on top, a line for each lease.

A disk that is full or gone costs lines and nothing else: writing is tried again after a while, in a new segment, and a
reader sees by the numbers that lines are missing.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vrambroker.broker.adapters.history import Line, Standing
from vrambroker.broker.adapters.messages import event_of
from vrambroker.v1 import broker_pb2 as v1

log = logging.getLogger(__name__)

SUFFIX = ".events"
LENGTH_BYTES = 4
SEGMENTS = 8
RETRY_S = 1.0
# What a thread may be behind that waits for its disk; some 5 MiB.
WAITING_MAX = 10_000
# By as much a segment may become too large.
LINES_AT_ONCE = 128
CLOSE_S = 2.0


def framed(record: bytes) -> bytes:
    """Return a record as it lies in a segment."""
    return len(record).to_bytes(LENGTH_BYTES, "little") + record


def records_of(segment: bytes) -> Iterator[bytes]:
    """Yield a segment's records; one that is cut off at the end was not written to its end, and is left out.

    No record is empty: zeros are what a file system leaves of what it had not written when its machine crashed.
    """
    at = 0
    while size_bytes := int.from_bytes(segment[at : at + LENGTH_BYTES], "little"):
        at += LENGTH_BYTES + size_bytes
        if at > len(segment):
            return
        yield segment[at - size_bytes : at]


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What a segment's name says; in the order of the names is what is in the segments."""

    device: str
    start_ns: int
    number: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return what a file's name says; None if it is no segment's."""
        device, start, number = [*path.stem.rsplit("-", 2), "", ""][:3]
        if path.suffix != SUFFIX or not (start.isdecimal() and number.isdecimal()):
            return None
        return cls(device, int(start), int(number))

    def __str__(self) -> str:
        return f"{self.device}-{self.start_ns:020}-{self.number:06}{SUFFIX}"


def segments_in(folder: Path) -> dict[SegmentName, Path]:
    """Return the segments there, in their order; raises OSError."""
    named = ((SegmentName.of(path), path) for path in folder.iterdir())
    return dict(sorted((name, path) for name, path in named if name is not None))


class HistoryFiles:
    """Writes lines to a folder, on a thread of its own. Ownership: whoever makes it closes it."""

    def __init__(
        self, folder: Path, budget_bytes: int, about: v1.Status, broken: Callable[[BaseException], None]
    ) -> None:
        """`about` names the device and its sizes; `broken` is told of a bug, on the thread."""
        self._broken = broken
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._about = about
        self._start_ns = time.time_ns()
        self._number = 0
        self._segment: _Segment | None = None
        self._standing = Standing()
        self._present = Standing()
        self._retry_at = 0.0
        self._missing = 0
        self._unwritten = 0
        self._waiting: deque[Line] = deque()
        self._overrun = 0
        self._given_up = 0
        self._after_overrun: Standing | None = None
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run_thread, name="history", daemon=True)
        self._thread.start()

    @property
    def missing_lines(self) -> int:
        """How many lines were not written since the start."""
        return self._given_up + self._unwritten

    def add(self, line: Line) -> None:
        """Have a line written; does not wait for the disk."""
        with self._news:
            if len(self._waiting) >= WAITING_MAX:
                self._overrun += len(self._waiting)
                self._given_up += len(self._waiting)
                self._waiting.clear()
                self._after_overrun = self._present.copy()
            self._present.take(line)
            self._waiting.append(line)
            self._news.notify()

    def close(self) -> None:
        """Write what there is, unless the disk takes too long for that."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(CLOSE_S)

    def _run_thread(self) -> None:
        try:
            while lines := self._next_lines():
                for first in range(0, len(lines), LINES_AT_ONCE):
                    self._write(lines[first : first + LINES_AT_ONCE])
        except BaseException as bug:  # noqa: BLE001  the outermost frame of a thread
            self._broken(bug)
        finally:
            if self._segment is not None:
                self._segment.close()

    def _next_lines(self) -> list[Line]:
        """Wait for lines; none means the end."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            lines = list(self._waiting)
            self._waiting.clear()
            self._missing, self._overrun = self._missing + self._overrun, 0
            if self._after_overrun is not None:
                self._standing, self._after_overrun = self._after_overrun, None
        return lines

    def _write(self, lines: list[Line]) -> None:
        was_missing = self._missing
        if self._segment is None and time.monotonic() < self._retry_at:
            self._not_written(len(lines))
        else:
            try:
                self._append(b"".join(framed(event_of(line).SerializeToString()) for line in lines))
            except OSError as error:
                self._failed(error, len(lines))
            else:
                if was_missing:
                    log.info("history: %s is written to again; %d lines are missing", self._folder, was_missing)
                self._missing = 0
        for line in lines:
            self._standing.take(line)

    def _append(self, data: bytes) -> None:
        if self._segment is not None and (self._missing or self._segment.is_full(self._budget_bytes // SEGMENTS)):
            self._segment.close()
            self._segment = None
        if self._segment is None:
            self._segment = self._begun_segment()
        self._segment.append(data)

    def _begun_segment(self) -> "_Segment":
        segments = self._segments()
        if self._number == 0:
            # The clock may have been set back since the last start.
            self._start_ns = max([self._start_ns, *(name.start_ns + 1 for name in segments)])
        self._remove_oldest(segments.values())
        self._number += 1
        name = SegmentName(self._about.device.id, self._start_ns, self._number)
        standing = (event_of(line).SerializeToString() for line in self._standing.lines)
        head = (self._about.SerializeToString(), *standing)
        return _Segment(self._folder / str(name), b"".join(map(framed, head)))

    def _segments(self) -> dict[SegmentName, Path]:
        found = segments_in(self._folder)
        return {name: path for name, path in found.items() if name.device == self._about.device.id}

    def _remove_oldest(self, segments: Iterable[Path]) -> None:
        """Make room for another segment within the budget; the oldest are first."""
        sizes_bytes = {path: path.stat().st_size for path in segments}
        room_bytes = self._budget_bytes - self._budget_bytes // SEGMENTS
        while sizes_bytes and sum(sizes_bytes.values()) > room_bytes:
            oldest = next(iter(sizes_bytes))
            oldest.unlink(missing_ok=True)
            del sizes_bytes[oldest]

    def _failed(self, error: OSError, lines: int) -> None:
        if not self._missing:
            log.error("history: nothing is written to %s until that works again: %s", self._folder, error.strerror)
        self._not_written(lines)
        self._retry_at = time.monotonic() + RETRY_S
        if self._segment is not None:
            self._segment.give_up()
            self._segment = None

    def _not_written(self, lines: int) -> None:
        self._missing += lines
        self._unwritten += lines


class _Segment:
    """An open file; what was written to it in part is cut off again."""

    def __init__(self, path: Path, head: bytes) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size_bytes = 0
        self._head_bytes = len(head)
        try:
            self.append(head)
        except OSError:
            try:
                path.unlink(missing_ok=True)
            finally:
                self.close()
            raise

    def is_full(self, most_bytes: int) -> bool:
        return self._size_bytes - self._head_bytes >= most_bytes

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self._size_bytes += len(data)

    def give_up(self) -> None:
        """Close it with what is whole."""
        try:
            os.ftruncate(self._fd, self._size_bytes)
        except OSError as error:
            log.debug("history: %s keeps a part of a record: %s", self._path, error.strerror)
        self.close()

    def close(self) -> None:
        """Close it; what a disk says only then (NFS) is about lines that can't be written again."""
        try:
            os.close(self._fd)
        except OSError as error:
            log.warning("history: the end of %s may be missing: %s", self._path, error.strerror)
