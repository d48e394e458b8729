"""Numbered lines for whoever watches: none twice, none left out unless the watcher is too slow."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from vrambroker.broker.adapters.history import History
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import Instant


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def _tell(history: History, *words: str) -> None:
    for word in words:
        history.published(Publish(kind=Kind.MARKED, at=Instant(0), why=word))


async def _told(history: History, *, after: int = 0, until_now: bool = True) -> list[tuple[int, str]]:
    return [(line.sequence, line.told.why) async for line in history.watch(after=after, until_now=until_now)]


def test_the_past_is_told_once_and_in_order() -> None:
    async def test() -> None:
        history = History()
        _tell(history, "a", "b", "c")
        assert await _told(history) == [(1, "a"), (2, "b"), (3, "c")]
        assert await _told(history, after=2) == [(3, "c")]
        assert await _told(history, after=history.last_sequence) == []

    _run(test())


def test_a_watcher_that_waits_gets_every_line() -> None:
    async def test() -> None:
        history = History()
        _tell(history, "a")
        watcher = asyncio.create_task(_told(history, until_now=False))
        await asyncio.sleep(0)
        for word in "bcdef":
            _tell(history, word)
            if word in "ce":
                await asyncio.sleep(0)
        history.close()
        assert await watcher == list(enumerate("abcdef", start=1))

    _run(test())


def test_a_slow_watcher_sees_a_gap_and_goes_on() -> None:
    async def test() -> None:
        history = History(lines_max=3)
        _tell(history, *"abc")
        watch = history.watch(after=0, until_now=False)
        first = await anext(watch)
        _tell(history, *"defgh")
        history.close()
        rest = [line.sequence async for line in watch]
        assert (first.sequence, rest) == (1, [6, 7, 8])

    _run(test())


def test_until_now_does_not_wait_for_what_is_told_meanwhile() -> None:
    async def test() -> None:
        history = History()
        _tell(history, "a", "b")
        seen: list[str] = []
        async for line in history.watch(after=0, until_now=True):
            seen.append(line.told.why)
            _tell(history, "late")
        assert seen == ["a", "b"]

    _run(test())
