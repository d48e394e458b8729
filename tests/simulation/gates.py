"""Who has said that it is quiet: nothing may be paused from outside that nobody has vouched for.

An agent keeps gates closed for an order from the moment it says `Quiet` until the order is cancelled, the state of a
lease behind the gate is told, or its connection is lost.
"""

from collections.abc import Callable

from tests.simulation.machine import require
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import CallId, ConnectionId, LeaseId, OrderId, SessionId


class Gates:
    """Hears every event and its effects, in order. `entered`: how many leases a change of phase has paused."""

    def __init__(self) -> None:
        self.paused = 0
        self._connections: dict[SessionId, ConnectionId | None] = {}
        self._orders: dict[OrderId, ef.SendPauseOrder] = {}
        self._closed: dict[tuple[SessionId, str], set[OrderId]] = {}
        # Pauses of owners that wait for readers of their memory.
        self._own: dict[CallId, ev.Pause] = {}

    def hear(self, event: ev.Event, effects: list[ef.Effect], tag_of: Callable[[LeaseId], str]) -> None:
        match event:
            case ev.Quiet(session=session, order=order) if order in self._orders:
                asked = self._orders[order]
                for tag in asked.tags if asked.session == session else ():
                    self._closed.setdefault((session, tag), set()).add(order)
            case ev.ConnectionLost(session=session, connection=connection):
                # One that another has taken the place of is no loss.
                if self._connections.get(session) == connection:
                    self._distrust(session)
            case ev.Attach(connection=connection) | ev.Reattach(connection=connection):
                attached = (one.outcome for one in effects if isinstance(one, ef.Reply))
                sessions = (one.session for one in attached if isinstance(one, ef.Attached))
                self._connections.update(dict.fromkeys(sessions, connection))
            case _:
                pass
        told = [one for one in effects if isinstance(one, ef.SendLeaseState)]
        if isinstance(event, ev.Reattach | ev.Attach):
            self._distrust(told[0].session if told else SessionId(0))
        elif isinstance(event, ev.Pause) and event.quiet:
            self._own[event.call.call] = event
        else:
            self._look(event, [one for one in told if one.paused], tag_of)
        for answer in (one for one in effects if isinstance(one, ef.Reply | ef.Refuse)):
            self._own.pop(answer.call, None)
        for one in told:
            self._closed.pop((one.session, tag_of(one.lease)), None)
        self._note_orders(effects)

    def _look(self, event: ev.Event, told: list[ef.SendLeaseState], tag_of: Callable[[LeaseId], str]) -> None:
        for one in told:
            self.paused += 1
            tag = tag_of(one.lease)
            own = any(pause.session == one.session and tag in pause.tags for pause in self._own.values())
            closed = own or self._closed.get((one.session, tag))
            require(bool(closed), f"lease {one.lease} is paused, and nobody has said that it is quiet: {event}")

    def _distrust(self, session: SessionId) -> None:
        self._closed = {key: orders for key, orders in self._closed.items() if key[0] != session}

    def _note_orders(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.SendPauseOrder):
                self._orders[effect.order] = effect
            elif isinstance(effect, ef.SendPauseCancelled):
                for orders in self._closed.values():
                    orders.discard(effect.order)
