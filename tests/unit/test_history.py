"""Numbered lines for whoever watches: none twice, none left out unless the watcher is too slow."""

import asyncio
import sys
import tracemalloc
from collections.abc import Coroutine
from typing import Any

from vrambroker.broker.adapters.history import LINE_BYTES, History
from vrambroker.broker.core.effects import Kind, LeaseState, Publish
from vrambroker.broker.core.ids import Instant, LeaseId

MIB = 1 << 20


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def _tell(history: History, *words: str) -> None:
    for word in words:
        history.published(Publish(kind=Kind.MARKED, at=Instant(0), why=word))


async def _told(history: History, *, after: int = 0, until_now: bool = True) -> list[tuple[int, str]]:
    return [(line.sequence, line.told.why) async for line in history.watch(after=after, until_now=until_now)]


def test_the_past_is_told_once_and_in_order() -> None:
    async def test() -> None:
        history = History(MIB)
        _tell(history, "a", "b", "c")
        assert await _told(history) == [(1, "a"), (2, "b"), (3, "c")]
        assert await _told(history, after=2) == [(3, "c")]
        assert await _told(history, after=history.last_sequence) == []

    _run(test())


def test_a_watcher_that_waits_gets_every_line() -> None:
    async def test() -> None:
        history = History(MIB)
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
        history = History(3 * (LINE_BYTES + sys.getsizeof("a")))
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
        history = History(MIB)
        _tell(history, "a", "b")
        seen: list[str] = []
        async for line in history.watch(after=0, until_now=True):
            seen.append(line.told.why)
            _tell(history, "late")
        assert seen == ["a", "b"]

    _run(test())


def _lease(number: int, state: LeaseState | None, *, session: str = "trainer", size_bytes: int = 0) -> Publish:
    return Publish(
        kind=Kind.LEASE_CHANGED,
        at=Instant(0),
        why=f"{number} changed",
        session=session,
        tag="weights",
        lease=LeaseId(number),
        state=state,
        device_bytes=size_bytes,
    )


def test_the_lines_take_no_more_memory_than_is_said() -> None:
    history = History(MIB)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3_000):
            history.published(_lease(7, LeaseState.IDLE, size_bytes=(1 << 40) + number))
            _tell(history, f"{number} " * 8)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert MIB // 2 < after - before <= MIB


def test_what_still_holds_outlives_the_ring() -> None:
    async def test() -> None:
        history = History(4 * (LINE_BYTES + 64))
        for number, state in ((1, LeaseState.RESIDENT), (2, LeaseState.IDLE), (1, LeaseState.PARKED), (3, None)):
            history.published(_lease(number, state))
        history.published(_lease(4, LeaseState.IDLE, session="rollout"))
        history.published(Publish(kind=Kind.SESSION_ENDED, at=Instant(0), why="gone", session="rollout"))
        _tell(history, *"abcdefgh")
        told = [line async for line in history.watch(after=0, until_now=True)]
        standing = [(line.sequence, line.told.lease, line.told.state) for line in told if line.standing]
        assert standing[:2] == [(2, 2, LeaseState.IDLE), (3, 1, LeaseState.PARKED)]
        # Besides the leases, the stage that had begun.
        assert [line.told.kind for line in told if line.standing][2:] == [Kind.MARKED]
        assert [line.told.why for line in told if not line.standing] == list("efgh")
        assert await _told(history, after=history.last_sequence) == []

    _run(test())
