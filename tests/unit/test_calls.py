"""Calls find their way back by number, once; and it can be waited for that none is open."""

import asyncio
from collections.abc import Callable

from vrambroker.broker.adapters.calls import Calls, Tell
from vrambroker.broker.core.effects import Done, Outcome
from vrambroker.broker.core.errors import BrokerError, Draining
from vrambroker.broker.core.ids import CallId


class Heard:
    """A waiter that writes down what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.errors: list[BrokerError] = []
        self.waiter = Tell(on_reply=self.outcomes.append, on_refusal=self.errors.append)


def test_answers_go_where_the_question_came_from() -> None:
    calls, one, two = Calls(), Heard(), Heard()
    first, second = calls.open(one.waiter), calls.open(two.waiter)
    assert first != second
    error = Draining(message="no")
    calls.refuse(second, error)
    calls.reply(first, Done())
    assert (one.outcomes, one.errors) == ([Done()], [])
    assert (two.outcomes, two.errors) == ([], [error])


def test_a_call_is_answered_once_and_one_that_nobody_waits_for_is_no_error() -> None:
    calls, heard = Calls(), Heard()
    call = calls.open(heard.waiter)
    calls.reply(call, Done())
    calls.reply(call, Done())
    calls.refuse(CallId(99), Draining(message="no"))
    forgotten = calls.open(heard.waiter)
    calls.forget(forgotten)
    calls.reply(forgotten, Done())
    assert (heard.outcomes, heard.errors, len(calls)) == ([Done()], [], 0)


def _idle_after(answer: Callable[[Calls, CallId], None]) -> None:
    async def test() -> None:
        calls = Calls()
        await calls.idle()
        first, last = calls.open(Heard().waiter), calls.open(Heard().waiter)
        idle = asyncio.create_task(calls.idle())
        await asyncio.sleep(0)
        calls.reply(first, Done())
        await asyncio.sleep(0)
        assert not idle.done()
        answer(calls, last)
        await idle

    asyncio.run(asyncio.wait_for(test(), 10))


def test_idle_waits_for_the_last_reply() -> None:
    _idle_after(lambda calls, call: calls.reply(call, Done()))


def test_idle_waits_for_the_last_refusal() -> None:
    _idle_after(lambda calls, call: calls.refuse(call, Draining(message="no")))


def test_idle_waits_for_nobody_who_has_left() -> None:
    _idle_after(lambda calls, call: calls.forget(call))
