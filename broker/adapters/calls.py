"""The calls that wait for an answer, by number: where both planes ask for one and where the core's answers find back.

A plane opens a call with whatever waits for it and puts the number into its event. The core answers each number once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vrambroker.broker.core.effects import Outcome
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.ids import CallId


class Waiter(Protocol):
    """What waits for one answer; told on the runtime's loop, once."""

    def replied(self, outcome: Outcome) -> None: ...
    def refused(self, error: BrokerError) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """A waiter made of two functions."""

    on_reply: Callable[[Outcome], None]
    on_refusal: Callable[[BrokerError], None]

    def replied(self, outcome: Outcome) -> None:
        """Pass the outcome on."""
        self.on_reply(outcome)

    def refused(self, error: BrokerError) -> None:
        """Pass the error on."""
        self.on_refusal(error)


class Calls:
    """The `Answers` of the runtime. Numbers count up and are not used again."""

    def __init__(self) -> None:
        self._waiting: dict[CallId, Waiter] = {}
        self._last = 0
        self._idle: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, waiter: Waiter) -> CallId:
        """Return a number for a call whose answer this waiter wants."""
        self._last += 1
        call = CallId(self._last)
        self._waiting[call] = waiter
        return call

    def forget(self, call: CallId) -> None:
        """Drop a call whose answer nobody wants any more."""
        self._take(call)

    async def idle(self) -> None:
        """Wait until no call waits; for one caller at a time."""
        if self._waiting:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def reply(self, call: CallId, outcome: Outcome) -> None:
        """Answer a call; one that nobody waits for is no error."""
        waiter = self._take(call)
        if waiter is not None:
            waiter.replied(outcome)

    def refuse(self, call: CallId, error: BrokerError) -> None:
        """Answer a call with an error; one that nobody waits for is no error."""
        waiter = self._take(call)
        if waiter is not None:
            waiter.refused(error)

    def _take(self, call: CallId) -> Waiter | None:
        waiter = self._waiting.pop(call, None)
        if self._idle is not None and not self._waiting and not self._idle.done():
            self._idle.set_result(None)
        return waiter
