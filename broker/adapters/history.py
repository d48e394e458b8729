"""The latest lines of the event stream, numbered, for everybody who watches.

There is one ring and no queue per watcher: a watcher is a position in it. So a thousand slow watchers cost nothing,
and one that falls behind by more than the ring holds sees a gap in the numbers.

The ring is bounded by the memory that it takes. Of what is dropped, the lines that still hold are kept apart: what each
lease has, the device's totals. Else a lease that last changed long ago would seem not to be there.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from vrambroker.broker.core.effects import Kind, Publish

# What a line takes besides its words: measured (CPython 3.11) 460 bytes, and rounded up.
LINE_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: `sequence` counts up by one from 1, `time_ns` is the wall clock's.

    `standing`: it is older than the history, and what it tells held when the history begins.
    """

    sequence: int
    time_ns: int
    told: Publish
    standing: bool = False


class Standing:
    """Of lines that are over, what still holds: the latest of each subject."""

    def __init__(self) -> None:
        self._latest: dict[object, Line] = {}

    def take(self, line: Line) -> None:
        """Count a line, which comes after all others that were."""
        told = line.told
        if told.kind is Kind.SESSION_ENDED:
            for about in [about for about, kept in self._latest.items() if kept.told.session == told.session]:
                del self._latest[about]
        about = _subject(told)
        if about is None:
            return
        # The latest are last, so that they are told in their order.
        self._latest.pop(about, None)
        if told.kind is not Kind.LEASE_CHANGED or told.state is not None:
            self._latest[about] = replace(line, standing=True)

    def copy(self) -> "Standing":
        """Return another one with the same lines."""
        copied = Standing()
        copied._latest.update(self._latest)
        return copied

    @property
    def lines(self) -> tuple[Line, ...]:
        """What holds, in the order in which it was told."""
        return tuple(self._latest.values())


Keep = Callable[[Line], None]


class History:
    """An `Observer` that remembers; all methods on the runtime's loop."""

    def __init__(self, budget_bytes: int, keep: Keep | None = None) -> None:
        """Remember as many lines as take about so many bytes, and besides one for each lease.

        `keep` is called with each line, and must not wait.
        """
        self._keep = keep
        self._budget_bytes = budget_bytes
        self._lines: deque[Line] = deque()
        self._lines_bytes = 0
        self._standing = Standing()
        self._last = 0
        self._closed = False
        self._news: set[asyncio.Future[None]] = set()

    @property
    def last_sequence(self) -> int:
        """The number of the latest line; 0 before the first."""
        return self._last

    def published(self, line: Publish) -> None:
        """Remember a line and wake who waits for one."""
        self._last += 1
        self._lines.append(Line(sequence=self._last, time_ns=time.time_ns(), told=line))
        self._lines_bytes += _size_bytes(line)
        while self._lines_bytes > self._budget_bytes and len(self._lines) > 1:
            dropped = self._lines.popleft()
            self._lines_bytes -= _size_bytes(dropped.told)
            self._standing.take(dropped)
        if self._keep is not None:
            self._keep(self._lines[-1])
        self._wake()

    @property
    def standing(self) -> tuple[Line, ...]:
        """What held before the oldest line that is remembered, in its order."""
        return self._standing.lines

    def close(self) -> None:
        """End every `watch`, once it has told what there is."""
        self._closed = True
        self._wake()

    def since(self, sequence: int) -> Line | None:
        """Return the first line after this number, or the oldest that is still remembered."""
        if sequence >= self._last:
            return None
        oldest = self._last - len(self._lines) + 1
        return self._lines[max(0, sequence + 1 - oldest)]

    async def watch(self, *, after: int, until_now: bool) -> AsyncIterator[Line]:
        """Yield the lines after this number, then those to come until closed; with `until_now`, what there is now.

        After 0, which is everything, what held before comes first.
        """
        at, end = after, self._last
        for held in self.standing if after == 0 else ():
            at = max(at, held.sequence)
            yield held
        while True:
            line = self.since(at)
            if line is None or (until_now and line.sequence > end):
                if until_now or self._closed:
                    return
                await self._next_line()
                continue
            at = line.sequence
            yield line

    async def _next_line(self) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.add(news)
        try:
            await news
        finally:
            self._news.discard(news)

    def _wake(self) -> None:
        for news in self._news:
            if not news.done():
                news.set_result(None)
        self._news.clear()


def _size_bytes(told: Publish) -> int:
    # The names of sessions and tags are those of the core's own books.
    return LINE_BYTES + sys.getsizeof(told.why)


def _subject(told: Publish) -> object:
    """Return what a line tells the whole present truth of; None if it tells of something that happens and is over."""
    match told.kind:
        case Kind.LEASE_CHANGED:
            return told.lease
        case Kind.DEVICE_CHANGED:
            return told.kind
        case Kind.OUTSIDE_CHANGED if told.outside_bytes is not None:
            return told.kind
        case Kind.MARKED | Kind.PHASE_ENTERED:
            return Kind.MARKED
        case _:
            return None
