"""The calls of a simulated run: who asked what, under which request, and that each one is answered exactly once.

And a memory of answers as the broker promises to have one: as long as a request is among the latest of its process, a
replay is told the same; after that it is a new call.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.machine import require
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import BrokerError, RequestConflict
from vrambroker.broker.core.ids import CallId, RequestId

Build = Callable[[ev.Call], ev.Event]


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """One request, however often it is sent. `build` makes the event anew, for a replay, with the number of the new
    call.
    """

    number: CallId
    request: RequestId
    actor: ev.Peer
    build: Build
    what: ev.Event
    answer: ef.Outcome | BrokerError | None = None
    outcome: ef.Outcome | None = None
    delivered: bool = False


class Calls:
    """The register of calls."""

    def __init__(self, remembered_max: int) -> None:
        self.by_call: dict[CallId, Asked] = {}
        self.answered: set[CallId] = set()
        self.sent: set[CallId] = set()
        self._next = 1
        self._remembered_max = remembered_max
        self._remembered: dict[ev.Peer, dict[RequestId, ef.Outcome]] = {}

    def ask(self, actor: ev.Peer, build: Build) -> tuple[Asked, ev.Event]:
        """Make a new request; returns the event that carries it."""
        request = RequestId(f"r{self._next}")
        call = self._draw(actor, request)
        event = build(call)
        asked = Asked(number=call.call, request=request, actor=actor, build=build, what=event)
        self.by_call[call.call] = asked
        return asked, event

    def replay(self, asked: Asked) -> ev.Event:
        """Send a request again, as a client does that has lost its answer."""
        call = self._draw(asked.actor, asked.request)
        self.by_call[call.call] = asked
        return asked.build(call)

    def _draw(self, actor: ev.Peer, request: RequestId) -> ev.Call:
        call = ev.Call(call=CallId(self._next), actor=actor, request=request)
        self._next += 1
        return call

    def answer(self, call: CallId, answer: ef.Outcome | BrokerError, *, heard: bool) -> Asked:
        """Take an answer; raise `Wronged` if it is a second one, or differs from what a replay was told. What is not
        `heard`, since the asker is gone, may differ: the requests of an ended process are forgotten.
        """
        require(call in self.sent, f"call {call} was answered before it was heard")
        require(call not in self.answered, f"call {call} was answered twice")
        self.answered.add(call)
        asked = self.by_call[call]
        if isinstance(answer, BrokerError):
            require(not isinstance(answer, RequestConflict), f"request {asked.request} conflicts with itself")
        else:
            self._remember(asked, answer, heard=heard)
            asked.outcome = answer
        asked.answer = answer
        return asked

    def _remember(self, asked: Asked, answer: ef.Outcome, *, heard: bool) -> None:
        known = self._remembered.setdefault(asked.actor, {})
        before = known.setdefault(asked.request, answer)
        require(not heard or before == answer, f"request {asked.request}: {before}, then {answer}")
        if len(known) > self._remembered_max:
            del known[next(iter(known))]

    def open_calls(self) -> list[CallId]:
        return [call for call in self.by_call if call in self.sent and call not in self.answered]
