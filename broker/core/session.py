"""A session: one attached process. And the register of them: names, domains, and who is gone but not yet out of
reach.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from vrambroker.broker.core.errors import InvalidArgument, NotOwner, QuotaExceeded, UnknownSession, invariant
from vrambroker.broker.core.events import Contents, Peer
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    LeaseId,
    OrderId,
    ReaderId,
    SessionId,
    TicketId,
)
from vrambroker.broker.core.limits import Limits

_Key = TypeVar("_Key")

TEXT_LENGTH_MAX = 200

_WORD = re.compile(r"[A-Za-z0-9_.:@+-]+")


def require_word(argument: str, value: str, length_max: int) -> None:
    """Raise `InvalidArgument` unless the value is a name as sessions and tags have them; never with a slash in it."""
    if len(value) > length_max or _WORD.fullmatch(value) is None:
        shown = value if len(value) <= length_max else value[:length_max] + "…"
        raise InvalidArgument(
            message=f"{argument} {shown!r} is not 1 to {length_max} of the characters A-Z a-z 0-9 _ . : @ + -",
            argument=argument,
        )


def printable(text: str) -> str:
    """Return what a client says, fit for an error, a line of the event stream and a terminal: cut, and one line."""
    shown = text if len(text) <= TEXT_LENGTH_MAX else text[: TEXT_LENGTH_MAX - 1] + "…"
    return "".join(one if one.isprintable() else "?" for one in shown)


SETTLED_MAX = 1_024
"""How many exports that are settled are told again after a reconnect."""

ENDED_ORDERS_MAX = 64
"""How many pause orders that are over are told again after a reconnect; more than are lost with a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be in use, with the number of times that this was set; None is no limit."""

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    revision: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """`waits`: calls about this session that are not answered yet, whoever made them. `kept_bytes`: all slots whose
    contents must be kept. `budgets`: by tag, "" for all of the session. `device_bytes`, `tag_bytes`: what its leases have of
    the device; `over`: that is more than the soft limit of all of the session. `ended_orders`: the latest pause orders that
    are over, and `settled` the latest exports that are, of which its agent may not have heard. `reads`: by its own numbers,
    what it has received and uses; `readers`: what it maps for that.
    """

    session: SessionId
    name: str
    peer: Peer
    token: bytes = field(repr=False)
    connection: ConnectionId | None
    kept_bytes: int = 0
    device_bytes: int = 0
    tag_bytes: dict[str, int] = field(default_factory=dict[str, int])
    over: bool = False
    budgets: dict[str, Budget] = field(default_factory=dict[str, Budget])
    offered: dict[ArenaFileId, None] = field(default_factory=dict[ArenaFileId, None])
    leases: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    by_tag: dict[str, dict[Contents, LeaseId]] = field(default_factory=dict[str, dict[Contents, LeaseId]])
    tickets: dict[TicketId, None] = field(default_factory=dict[TicketId, None])
    waits: dict[CallId, None] = field(default_factory=dict[CallId, None])
    ended_orders: dict[OrderId, None] = field(default_factory=dict[OrderId, None])
    exports: dict[ExportKey, None] = field(default_factory=dict[ExportKey, None])
    settled: dict[ExportKey, None] = field(default_factory=dict[ExportKey, None])
    reads: dict[int, ExportKey] = field(default_factory=dict[int, ExportKey])
    readers: dict[ReaderId, None] = field(default_factory=dict[ReaderId, None])

    def end_order(self, order: OrderId) -> None:
        """Remember that an order is over, beside the latest others."""
        self.ended_orders[order] = None
        if len(self.ended_orders) > ENDED_ORDERS_MAX:
            del self.ended_orders[next(iter(self.ended_orders))]

    def settle(self, key: ExportKey) -> None:
        """Remember that an export is settled, beside the latest others."""
        self.settled[key] = None
        if len(self.settled) > SETTLED_MAX:
            del self.settled[next(iter(self.settled))]

    def is_process(self, actor: Peer) -> bool:
        return (actor.pid, actor.uid) == (self.peer.pid, self.peer.uid)

    def require_process(self, actor: Peer) -> None:
        """Raise `NotOwner` unless the actor is the session's own process."""
        if not self.is_process(actor):
            raise NotOwner(
                message=f"only the process of {self.name!r} itself may do this", session=self.name, uid=actor.uid
            )

    def require_authority(self, actor: Peer) -> None:
        """Raise `NotOwner` unless the actor has the session's uid, or root's."""
        if actor.uid not in (self.peer.uid, 0):
            raise NotOwner(
                message=f"uid {actor.uid} may not act on {self.name!r}, which belongs to uid {self.peer.uid}",
                session=self.name,
                uid=actor.uid,
            )


@dataclass(slots=True, kw_only=True, eq=False)
class Ended:
    """A session that is over; its frames count as used until their fence is passed."""

    session: Session
    frames: dict[FrameId, int]

    @property
    def fenced_bytes(self) -> int:
        return sum(self.frames.values())


class Sessions:
    """Who is there, and who is gone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.live: dict[SessionId, Session] = {}
        self.ended: dict[SessionId, Ended] = {}
        self._names: dict[str, SessionId] = {}
        self._domains: dict[Domain, int] = {}
        self._processes: dict[tuple[int, int], int] = {}

    def get(self, session: SessionId) -> Session:
        """Return the live session; raise `UnknownSession` if there is none of this number."""
        found = self.live.get(session)
        if found is None:
            raise UnknownSession(message=f"there is no session {session}", session=str(session))
        return found

    def require_room(self) -> None:
        """Raise `QuotaExceeded` if no further session can attach."""
        most = self._limits.sessions_max
        if len(self.live) >= most:
            raise QuotaExceeded(message=f"{most} sessions are attached already", limit="sessions_max", limit_value=most)

    def name_like(self, name: str) -> str:
        """Return the name, or the first of name-2, name-3, … that no live session has."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            suffix = f"-{number}"
            candidate = name[: self._limits.name_length_max - len(suffix)] + suffix
        return candidate

    def add(self, session: Session) -> None:
        invariant(session.name not in self._names, "names are unique among live sessions")
        self.live[session.session] = session
        self._names[session.name] = session.session
        _count(self._domains, session.peer.domain, +1)
        _count(self._processes, (session.peer.pid, session.peer.uid), +1)

    def end(self, session: Session) -> None:
        """Forget a session's name and number at once."""
        del self.live[session.session]
        del self._names[session.name]
        _count(self._domains, session.peer.domain, -1)
        _count(self._processes, (session.peer.pid, session.peer.uid), -1)

    def fence(self, session: Session, frames: Iterable[tuple[FrameId, int]]) -> None:
        """Remember an ended session until its frames are out of everybody's reach."""
        self.ended[session.session] = Ended(session=session, frames=dict(frames))

    def lives_in(self, domain: Domain) -> bool:
        return domain in self._domains

    def has_process(self, peer: Peer) -> bool:
        return (peer.pid, peer.uid) in self._processes


def _count(counts: dict[_Key, int], key: _Key, by: int) -> None:
    counts[key] = counts.get(key, 0) + by
    if counts[key] == 0:
        del counts[key]
