"""A change of phase under way: what it is waiting for, what it has paused, and the tickets of what comes.

It is made of parts, each a ticket of its own, whose answers come back here rather than go to a caller: a part has a
call number of the core's own making, which is negative.
"""

from dataclasses import dataclass, field
from enum import Enum

from vrambroker.broker.core.effects import EnteredTag
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.events import Peer
from vrambroker.broker.core.ids import CallId, Instant, LeaseId, OrderId, SessionId, TicketId
from vrambroker.broker.core.phase import Phase


class Going(Enum):
    """GATHERING: until all that is to leave is out of use. MOVING: it is paused, and what comes is on its way. UNDOING:
    something failed, and what it had paused is on its way back.
    """

    GATHERING = "gathering"
    MOVING = "moving"
    UNDOING = "undoing"


@dataclass(slots=True, kw_only=True, eq=False)
class GateOrder:
    """An order to a session's agent to close the gates of tags, and keep them closed. `tags`: those that it still
    answers for; one that its owner paused meanwhile is none of them, since its gate may be opened again.
    """

    order: OrderId
    session: SessionId
    asked: tuple[str, ...]
    tags: dict[str, None]
    closed: bool = False
    busy_tag: str = ""
    busy_scope: str = ""
    busy_callback: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class Handover:
    """`step`: how many of the order's steps are done. `asked`: the last order about each tag. `unscoped`: tags that only
    their owner can pause. `paused`: what the handover has paused so far. `tickets`: of what comes, all that is not open
    for use yet; `come`: all leases that were asked for together. `stirred`: something has happened that it may have
    waited for.
    """

    call: CallId
    actor: Peer
    phase: Phase
    since: Instant
    deadline: Instant
    going: Going = Going.GATHERING
    step: int = 0
    orders: dict[OrderId, GateOrder] = field(default_factory=dict[OrderId, GateOrder])
    asked: dict[tuple[SessionId, str], GateOrder] = field(default_factory=dict[tuple[SessionId, str], GateOrder])
    unscoped: dict[tuple[SessionId, str], None] = field(default_factory=dict[tuple[SessionId, str], None])
    paused: dict[LeaseId, EnteredTag] = field(default_factory=dict[LeaseId, EnteredTag])
    tickets: dict[CallId, TicketId] = field(default_factory=dict[CallId, TicketId])
    error: BrokerError | None = None
    come: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    stirred: bool = True

    def order_for(self, session: SessionId, tag: str) -> GateOrder | None:
        """Return the order that answers for a tag."""
        order = self.asked.get((session, tag))
        return order if order is not None and order.order in self.orders and tag in order.tags else None

    def is_closed(self, session: SessionId, tag: str) -> bool:
        """Tell whether nobody can come to use a tag before it is told to be resident."""
        order = self.order_for(session, tag)
        return order is not None and order.closed
