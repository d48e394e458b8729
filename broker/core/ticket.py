"""A ticket: a demand for frames with a deadline, and the queue of those that wait. Its hold: what is set aside for it, in
hand or promised.

A ticket is queued and holds nothing, or admitted and its hold covers everything it still needs; there is nothing in
between. The hold is exact: each frame that the ticket needs is in hand, being made, promised as it is, or to be made
out of capacity that is reserved or that promised frames will leave behind. While it waits for promised frames, those
that have come are granted already.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from vrambroker.broker.core.ids import CallId, FrameId, Instant, LeaseId, SessionId, SlotId, TicketId


def compose(size_bytes: int, sizes_bytes: tuple[int, ...]) -> dict[int, int]:
    """Return how many frames of each size make up at least this much: as many of the largest as fit, then smaller
    ones.
    """
    smallest = sizes_bytes[0]
    rest = -(-size_bytes // smallest) * smallest
    parts: dict[int, int] = {}
    for size in reversed(sizes_bytes):
        if rest >= size:
            parts[size], rest = divmod(rest, size)
    return parts


def bytes_of(parts: Mapping[int, int]) -> int:
    """Return what so many frames of each size come to."""
    return sum(size * number for size, number in parts.items())


class Stage(Enum):
    """ADMITTED: its hold covers what has not been granted yet. CLAIMABLE: answered with a claim, frames in hand.
    GRANTED: everything is. KEPT: what it asked to have set aside is, until it is used up or cancelled. UNDOING: what had
    been granted is on its way back; then it is over, or, if its call is not answered, queued again.
    """

    QUEUED = "queued"
    ADMITTED = "admitted"
    CLAIMABLE = "claimable"
    GRANTED = "granted"
    KEPT = "kept"
    UNDOING = "undoing"


@dataclass(slots=True, kw_only=True, eq=False)
class Growth:
    """New slots for one lease. `parts`: how many of each size have not been granted yet."""

    lease: LeaseId
    asked: Mapping[int, int]
    parts: dict[int, int]
    claimed: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Comeback:
    """Every absent slot of these leases."""

    leases: dict[LeaseId, None]


@dataclass(slots=True, kw_only=True, eq=False)
class Room:
    """Capacity as such, for what the session leases or resumes later. `size_bytes`: what of it is not used up."""

    size_bytes: int


Demand = Growth | Comeback | Room


@dataclass(slots=True, kw_only=True, eq=False)
class Hold:
    """`exact`: promised, and of use as they are. `melting`: promised for their bytes; destroyed as soon as they are
    back. `keep_bytes`: how much of what is reserved stays as it is, and is not made into frames.
    """

    in_hand: dict[int, list[FrameId]] = field(default_factory=dict[int, list[FrameId]])
    creating: dict[FrameId, None] = field(default_factory=dict[FrameId, None])
    exact: dict[FrameId, None] = field(default_factory=dict[FrameId, None])
    melting: dict[FrameId, None] = field(default_factory=dict[FrameId, None])
    to_create: dict[int, int] = field(default_factory=dict[int, int])
    reserved_bytes: int = 0
    keep_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Everything is in hand."""
        return not (self.creating or self.exact or self.melting or self.to_create)

    @property
    def spare_bytes(self) -> int:
        """How much is reserved that nobody will need, once there is nothing to create."""
        return max(0, self.reserved_bytes - self.keep_bytes)

    @property
    def in_hand_bytes(self) -> int:
        return sum(size * len(frames) for size, frames in self.in_hand.items())

    def take_in_hand(self, frame: FrameId, size_bytes: int) -> None:
        self.in_hand.setdefault(size_bytes, []).append(frame)

    def frames_in_hand(self) -> Iterator[FrameId]:
        for frames in self.in_hand.values():
            yield from frames


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """`certain`: it is refused rather than made to wait for anybody's goodwill. `own`: the session's process asked for it
    itself, and can do nothing else until it is answered, as far as anybody knows.

    `slots`: what was granted under it and is not settled yet; `outstanding`: those of them that have not arrived.
    `fetching`: what has its frame in hand, and whose contents are on their way from the spill store.
    `together`: it is part of a change of phase, and met only together with the other parts.
    `moved_at`: when its frames were granted, or the latest of them arrived.

    Of room for what is outside of leases, `session` is `OUTSIDE`: `uid` has asked for it, and it is kept for `lasts_ns`;
    or it is a `refill` of the broker's own, which is withheld as soon as it is there.
    """

    ticket: TicketId
    session: SessionId
    demand: Demand
    since: Instant
    deadline: Instant
    certain: bool
    own: bool
    call: CallId | None
    priority: int = 0
    claim: int | None = None
    together: bool = False
    stage: Stage = Stage.QUEUED
    hold: Hold = field(default_factory=Hold)
    slots: dict[SlotId, LeaseId] = field(default_factory=dict[SlotId, LeaseId])
    outstanding: dict[SlotId, LeaseId] = field(default_factory=dict[SlotId, LeaseId])
    fetching: dict[SlotId, LeaseId] = field(default_factory=dict[SlotId, LeaseId])
    moved_at: Instant = Instant(0)
    uid: int = 0
    lasts_ns: int = 0
    refill: bool = False

    @property
    def arrived(self) -> bool:
        """All that it asked for is there."""
        return self.stage is Stage.GRANTED and not self.outstanding

    @property
    def waits(self) -> bool:
        """It has not got all that it needs, and may still get it."""
        return self.stage in (Stage.QUEUED, Stage.ADMITTED) or (self.stage is Stage.UNDOING and self.call is not None)

    @property
    def leases(self) -> tuple[LeaseId, ...]:
        match self.demand:
            case Growth(lease=lease):
                return (lease,)
            case Comeback(leases=leases):
                return tuple(leases)
            case Room():
                return ()


class Queue:
    """The tickets that wait for room, in the order of their turn.

    A step of priority is worth `ageing_ns` of waiting: who comes later overtakes only whom it is that much more urgent
    than, so nobody is overtaken for ever.
    """

    def __init__(self, ageing_ns: int) -> None:
        self._ageing_ns = ageing_ns
        self._order: list[tuple[int, TicketId]] = []
        self._turns: dict[TicketId, tuple[int, TicketId]] = {}

    def add(self, ticket: Ticket) -> None:
        """Queue a ticket at its place, or at its new one, if it is there already."""
        self.discard(ticket.ticket)
        turn = self._turns[ticket.ticket] = self.turn_of(ticket)
        insort(self._order, turn)

    def turn_of(self, ticket: Ticket) -> tuple[int, TicketId]:
        """Return what tickets are ordered by."""
        return ticket.since - ticket.priority * self._ageing_ns, ticket.ticket

    def discard(self, ticket: TicketId) -> None:
        turn = self._turns.pop(ticket, None)
        if turn is not None:
            del self._order[bisect_left(self._order, turn)]

    def __iter__(self) -> Iterator[TicketId]:
        return (ticket for _, ticket in self._order)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._turns

    def __len__(self) -> int:
        return len(self._order)
