"""The latest lines of the event stream, numbered, for everybody who watches.

There is one ring and no queue per watcher: a watcher is a position in it. So a thousand slow watchers cost nothing,
and one that falls behind by more than the ring holds sees a gap in the numbers.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vrambroker.broker.core.effects import Publish

LINES_MAX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: `sequence` counts up by one from 1, `time_ns` is the wall clock's."""

    sequence: int
    time_ns: int
    told: Publish


class History:
    """An `Observer` that remembers; all methods on the runtime's loop."""

    def __init__(self, lines_max: int = LINES_MAX) -> None:
        self._lines: deque[Line] = deque(maxlen=lines_max)
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
        self._wake()

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
        """Yield the lines after this number, then those to come until closed; with `until_now`, what there is now."""
        at, end = after, self._last
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
