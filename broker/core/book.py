"""The book: all that the broker knows while it works, and the few ways to write in it that every handler shares.

Handlers change the book and note what they have stirred: leases touched, tickets to look at again, supply that has
grown. The settlement at the end of each event (`settlement.py`) follows those notes, so that no handler calls another
one back.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from vrambroker.broker.core.arena import Arena
from vrambroker.broker.core.effects import (
    Effect,
    Extent,
    Kind,
    LeaseState,
    Outcome,
    Publish,
    Refuse,
    Reply,
    SendPauseCancelled,
)
from vrambroker.broker.core.errors import (
    BrokerError,
    DriverFailed,
    Holder,
    NotQuiescent,
    OutOfDeviceMemory,
    OutOfHostMemory,
    QuotaExceeded,
    UnknownTag,
    WaitExpired,
)
from vrambroker.broker.core.events import Contents, Pause, Seal
from vrambroker.broker.core.handover import Handover
from vrambroker.broker.core.idle import Holdings, IdleLeases
from vrambroker.broker.core.ids import (
    OUTSIDE,
    ArenaFileId,
    CallId,
    ExportKey,
    FrameId,
    Instant,
    LeaseId,
    OrderId,
    ReaderId,
    SessionId,
    SlotId,
    TicketId,
)
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame, Ledger
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.listing import Listing
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.core.reader import Export, Reader
from vrambroker.broker.core.requests import Requests
from vrambroker.broker.core.scheduler import Supply
from vrambroker.broker.core.session import Session, Sessions
from vrambroker.broker.core.slot import Slot, Step
from vrambroker.broker.core.spill import Spill
from vrambroker.broker.core.ticket import Queue, Stage, Ticket

_Thing = TypeVar("_Thing")

HOLDERS_MAX = 32
"""How many holders an error names; the largest are enough to know whom to ask."""

NAMED_MAX = 4
"""How many of them its message names."""

OUTSIDE_NAME = "(outside of leases)"
"""Who holds what is kept out of use, as an error or a status names it."""

WORTH_A_LINE = (OutOfDeviceMemory, OutOfHostMemory, WaitExpired, NotQuiescent, QuotaExceeded, DriverFailed)
"""Refusals that whoever watches wants to hear of; the others are the caller's own mistakes."""


@dataclass(slots=True, kw_only=True, eq=False)
class PauseOrder:
    """A pause that waits for the session's gates to close. `asked`: the tags in the order; `tags`: all that the call
    names. `read`: the leases of which it waits for the readers to let go, once the gates are closed; `vouched`: which pause
    those behind the gates were past when that was said.
    """

    order: OrderId
    call: CallId
    session: SessionId
    tags: tuple[str, ...]
    asked: tuple[str, ...]
    release: bool
    deadline: Instant
    busy_tag: str = ""
    busy_scope: str = ""
    busy_callback: str = ""
    read: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    vouched: dict[LeaseId, int] = field(default_factory=dict[LeaseId, int])


@dataclass(slots=True, kw_only=True, eq=False)
class Clearing:
    """A call of a session's own process that waits until readers of these leases have let go; then it is made again."""

    call: CallId
    session: SessionId
    what: Pause | Seal
    deadline: Instant
    read: dict[LeaseId, None]


@dataclass(slots=True, kw_only=True, eq=False)
class Release:
    """A pause that has taken effect and waits until the frames of these leases have left. `moved_at`: when it began, or
    when some of them last did.
    """

    call: CallId
    session: SessionId
    paused: tuple[LeaseId, ...]
    outstanding: dict[LeaseId, None]
    deadline: Instant
    moved_at: Instant


@dataclass(slots=True, kw_only=True, eq=False)
class CopyOrder:
    """An order to copy slots out that was not answered yet: until it is, its agent may write to these places, whatever
    has become of the lease. `pause`: which of the lease's it was given in. `since`: when that was.
    """

    order: OrderId
    session: SessionId
    lease: LeaseId
    pause: int
    slots: dict[SlotId, Extent]
    since: Instant

    def is_about(self, lease: Lease) -> bool:
        """Tell whether the pause that it was given in is still under way."""
        return lease.lease == self.lease and lease.paused and lease.pauses == self.pause


@dataclass(slots=True, kw_only=True, eq=False)
class Outside:
    """What is known of memory that is no lease. `used_bytes`: as last measured; `grew_at`: when it was last found to have
    grown by much, from `low_bytes`. `withheld_bytes`: capacity that is kept out of use for it; `refills`: the tickets
    that bring more of that. `refused_bytes`: what the driver did not have since it was measured, or since `refused_until`
    was set, when it is asked again.
    """

    used_bytes: int = 0
    low_bytes: int = 0
    grew_at: Instant | None = None
    withheld_bytes: int = 0
    refused_bytes: int = 0
    refused_until: Instant | None = None
    refills: dict[TicketId, None] = field(default_factory=dict[TicketId, None])


Bounded = Ticket | PauseOrder | Release | Clearing
"""What does not wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was last published of a lease; no state means that it is gone."""

    session: str
    tag: str
    state: LeaseState | None
    device_bytes: int
    host_bytes: int
    spill_bytes: int
    copied_bytes: int = 0


class Book:
    """State and bookkeeping. Nothing here decides anything."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = Instant(0)
        self.next_id = 1
        self.draining = False
        self.ledger = Ledger(limits.capacity_bytes)
        self.outside = Outside()
        self.arena = Arena(
            budget_bytes=limits.host_budget_bytes - limits.staging_bytes,
            file_bytes=limits.arena_file_bytes,
            sizes_bytes=limits.frame_sizes_bytes,
        )
        self.spill = Spill(limits)
        self.sessions = Sessions(limits)
        self.leases: dict[LeaseId, Lease] = {}
        self.idle = IdleLeases()
        self.homeless: dict[LeaseId, None] = {}
        self.sealed: dict[LeaseId, None] = {}
        self.device_holdings = Holdings()
        self.host_holdings = Holdings()
        self.tickets: dict[TicketId, Ticket] = {}
        self.queue = Queue(limits.ageing_ns)
        self.claims: dict[int, TicketId] = {}
        self.orders: dict[OrderId, PauseOrder] = {}
        self.waits: dict[CallId, Bounded] = {}
        self.requests = Requests(
            remembered_max=limits.requests_remembered_max,
            strangers_max=limits.sessions_max,
            replays_max=limits.replays_max,
        )
        self.plan: PhasePlan | None = None
        self.listing = Listing()
        self.plan_uid = 0
        self.phase = ""
        self.handover: Handover | None = None
        self.parts: dict[CallId, Outcome | BrokerError | None] = {}
        self.effects: list[Effect] = []
        self.touched: dict[LeaseId, str] = {}
        self.told: dict[LeaseId, Told] = {}
        self.stirred: dict[TicketId, None] = {}
        # Before the first event nothing is withheld yet.
        self.supply_grew = True
        self.pool_until: Instant | None = None
        self.pooled_bytes = 0
        self.copies: dict[SessionId, CopyOrder] = {}
        self.exports: dict[ExportKey, Export] = {}
        self.readers: dict[ReaderId, Reader] = {}
        # Returned frames, and who maps them still; and the calls that may go on, as readers have let go.
        self.lingering: dict[FrameId, dict[ReaderId, None]] = {}
        self.cleared: dict[CallId, None] = {}
        self.copy_past = 0
        self.copy_at: Instant | None = None
        self._deadlines: list[tuple[Instant, int, Bounded]] = []
        self._bounded = 0

    def draw_id(self) -> int:
        drawn, self.next_id = self.next_id, self.next_id + 1
        return drawn

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def end_order(self, session: SessionId, order: OrderId) -> None:
        """Have an agent open the gates that an order has closed, as far as no lease behind them is paused."""
        live = self.sessions.live.get(session)
        if live is not None:
            live.end_order(order)
            self.emit(SendPauseCancelled(session=session, order=order))

    def publish(
        self,
        kind: Kind,
        why: str,
        *,
        session: str = "",
        tag: str = "",
        lease: int = 0,
        ticket: int = 0,
        phase: str = "",
    ) -> None:
        line = Publish(
            kind=kind,
            at=self.now,
            why=why,
            session=session,
            tag=tag,
            lease=LeaseId(lease),
            ticket=TicketId(ticket),
            phase=phase,
        )
        self.emit(line)

    def supply(self) -> Supply:
        return Supply(ledger=self.ledger, idle=self.idle, frames_of=self._frames_to_take)

    def _frames_to_take(self, lease: LeaseId) -> Iterator[Frame]:
        return (self.frame_of(slot) for slot in self.leases[lease].cheapest())

    def frame_of(self, slot: Slot) -> Frame:
        assert slot.frame is not None, "asked only of slots that have one"
        return self.ledger.frames[slot.frame]

    def arena_of(self, file: ArenaFileId) -> Arena:
        """Return where a file belongs: to the staging room, or else to what contents are kept in."""
        return self.spill.staging if file in self.spill.staging.files else self.arena

    def frame(self, frame: FrameId) -> Frame:
        return self.ledger.frames[frame]

    def slot_of(self, session: SessionId, lease: LeaseId, slot: SlotId) -> tuple[Lease, Slot] | None:
        """Return what a client's report is about, if there is such a thing and it is the client's own."""
        found = self.leases.get(lease)
        if found is None or found.session != session or slot not in found.slots:
            return None
        return found, found.slots[slot]

    def leases_of(self, session: Session, tags: Iterable[str]) -> list[Lease]:
        """Return every lease of these tags; raise `UnknownTag` for one that has none."""
        leases: list[Lease] = []
        for tag in dict.fromkeys(tags):
            if tag not in session.by_tag:
                raise UnknownTag(
                    message=f"{session.name!r} holds nothing under the tag {tag!r}", session=session.name, tag=tag
                )
            leases.extend(self.leases[lease] for lease in session.by_tag[tag].values())
        return leases

    def name_of(self, session: SessionId) -> str:
        if session == OUTSIDE:
            return OUTSIDE_NAME
        live = self.sessions.live.get(session)
        if live is not None:
            return live.name
        ended = self.sessions.ended.get(session)
        return ended.session.name if ended is not None else ""

    def label_of(self, lease: Lease) -> str:
        return f"{self.name_of(lease.session)}/{lease.tag}"

    def step(self, lease: Lease, slot: Slot, step: Step, why: str) -> None:
        lease.step(slot, step)
        self.touch(lease, why)

    def count_kept(self, lease: Lease, by_bytes: int) -> None:
        """Note that a lease has slots more or fewer, which its session may have to park."""
        session = self.sessions.live.get(lease.session)
        if session is not None and lease.contents is Contents.KEEP:
            session.kept_bytes += by_bytes

    def touch(self, lease: Lease, why: str) -> None:
        """Note that something about the lease has changed; its line is published when the event is settled."""
        self.touched[lease.lease] = why
        if self.idle.update(lease):
            self.supply_grew = True
        session = self.sessions.live.get(lease.session)
        if session is None:
            return
        self._count_device(session, lease)
        if session.budgets:
            self._rank_beside(session, lease)

    def _count_device(self, session: Session, lease: Lease) -> None:
        more_bytes, lease.counted_bytes = lease.device_bytes - lease.counted_bytes, lease.device_bytes
        session.device_bytes += more_bytes
        session.tag_bytes[lease.tag] = session.tag_bytes.get(lease.tag, 0) + more_bytes

    def _rank_beside(self, session: Session, lease: Lease) -> None:
        """Bring the order of idle leases in line after one has changed: of its session, if that is over its limit now and
        was not, or the other way round, else of its tag.
        """
        if session.over != self.is_over(session, ""):
            self.rank_idle(session)
        else:
            self._rank_tag(session, lease.tag)

    def _rank_tag(self, session: Session, tag: str) -> None:
        over = self.is_over(session, tag)
        for lease in map(self.leases.__getitem__, session.by_tag.get(tag, {}).values()):
            if lease.over != over:
                lease.over = over
                self.idle.update(lease)

    def rank_idle(self, session: Session) -> None:
        """Bring the order of a session's idle leases in line with its soft limits."""
        session.over = self.is_over(session, "")
        for tag in session.by_tag:
            self._rank_tag(session, tag)

    def is_over(self, session: Session, tag: str) -> bool:
        """Tell whether a session, or this tag of it, has more of the device than its soft limit says, idle or not."""
        used = {tag: session.tag_bytes.get(tag, 0), "": session.device_bytes}
        budgets = ((session.budgets.get(budgeted), size_bytes) for budgeted, size_bytes in used.items())
        return any(one is not None and one.soft_bytes is not None and size > one.soft_bytes for one, size in budgets)

    def stir(self, ticket: TicketId | None) -> None:
        """Have the settlement look at a ticket again."""
        if ticket is not None:
            self.stirred[ticket] = None

    def open_lease(self, session: Session, tag: str, contents: Contents) -> Lease:
        """Return the session's lease under this tag and policy, opened if there is none."""
        known = session.by_tag.get(tag, {}).get(contents)
        if known is not None:
            return self.leases[known]
        lease = Lease(
            lease=LeaseId(self.draw_id()),
            session=session.session,
            domain=session.peer.domain,
            tag=tag,
            contents=contents,
            since=self.now,
        )
        self.leases[lease.lease] = lease
        session.leases[lease.lease] = None
        session.by_tag.setdefault(tag, {})[contents] = lease.lease
        self.listing.add(lease.lease, session.name, tag)
        lease.priority = self.listing.priority_in(self.phase, lease.lease)
        return lease

    def drop_lease(self, lease: Lease) -> None:
        """Forget a lease that has nothing left."""
        session = self.sessions.live[lease.session]
        del self.leases[lease.lease]
        del session.leases[lease.lease]
        del session.by_tag[lease.tag][lease.contents]
        if not session.by_tag[lease.tag]:
            del session.by_tag[lease.tag], session.tag_bytes[lease.tag]
        self.listing.discard(lease.lease)
        self.idle.forget(lease.lease)
        self.homeless.pop(lease.lease, None)
        self.sealed.pop(lease.lease, None)
        self.touched[lease.lease] = "returned"
        if session.budgets:
            self._rank_beside(session, lease)

    def wait(self, call: CallId, what: Bounded) -> None:
        """Leave a call unanswered for now, until its deadline at the latest."""
        self.waits[call] = what
        if what.session != OUTSIDE:
            self.sessions.live[what.session].waits[call] = None
        self.bound(what)

    def bound(self, what: Bounded) -> None:
        """Have something expire at its deadline, whatever else becomes of it by then."""
        if len(self._deadlines) > 4 * (len(self.waits) + len(self.claims)) + 64:
            self._deadlines = [entry for entry in self._deadlines if self._due(entry[2]) is not None]
            heapq.heapify(self._deadlines)
        self._bounded += 1
        heapq.heappush(self._deadlines, (what.deadline, self._bounded, what))

    def next_deadline(self) -> Instant | None:
        while self._deadlines:
            at, number, what = self._deadlines[0]
            due = self._due(what)
            if due is None:
                heapq.heappop(self._deadlines)
            elif due > at:
                heapq.heapreplace(self._deadlines, (due, number, what))
            else:
                return at
        return None

    def pop_expired(self) -> Bounded | None:
        """Return something whose deadline has passed, and forget the deadline."""
        deadline = self.next_deadline()
        if deadline is None or deadline > self.now:
            return None
        return heapq.heappop(self._deadlines)[2]

    def _due(self, what: Bounded) -> Instant | None:
        """Return when a wait is over; nothing, if it is over already. What is moving is not cut short."""
        match what:
            case Ticket():
                kept_for_good = what.stage is Stage.KEPT and not what.lasts_ns
                waits = self.tickets.get(what.ticket) is what and what.stage is not Stage.UNDOING and not kept_for_good
            case PauseOrder() | Release() | Clearing():
                waits = self.waits.get(what.call) is what
        if not waits:
            return None
        match what:
            case Ticket() if what.together and what.arrived:
                # It waits for the other parts of its change of phase, which have their own deadlines.
                return None
            case Ticket() if not what.slots:
                return what.deadline
            case Ticket() | Release():
                return Instant(max(what.deadline, what.moved_at + self.limits.patience_ns))
            case PauseOrder() | Clearing():
                return what.deadline

    def draw_part(self) -> CallId:
        """Return a number for a part of a change of phase: its answer is kept in `parts`."""
        call = CallId(-self.draw_id())
        self.parts[call] = None
        return call

    def reply(self, call: CallId, outcome: Outcome) -> None:
        """Answer a call and all its replays, for now and later."""
        self.stop_waiting(call)
        if call in self.parts:
            self.parts[call] = outcome
            return
        for waiting in self.requests.finish(call, outcome):
            self.emit(Reply(call=waiting, outcome=outcome))

    def refuse(self, call: CallId, error: BrokerError, *, session: str = "", tag: str = "", ticket: int = 0) -> None:
        """Refuse a call and all its replays; the same request may be tried again. Of a ticket, whoever watches has
        heard before and hears of its end, too.
        """
        self.stop_waiting(call)
        if ticket or isinstance(error, WORTH_A_LINE):
            self.publish(Kind.TICKET_REFUSED, error.message, session=session, tag=tag, ticket=ticket)
        if call in self.parts:
            self.parts[call] = error
            return
        for waiting in self.requests.refuse(call):
            self.emit(Refuse(call=waiting, error=error))

    def stop_waiting(self, call: CallId) -> None:
        """Take a call out of what waits, as it is answered or made again."""
        what = self.waits.pop(call, None)
        if isinstance(what, PauseOrder | Clearing):
            self.stop_clearing(what)
        if what is not None and what.session in self.sessions.live:
            self.sessions.live[what.session].waits.pop(call, None)

    def stop_clearing(self, what: PauseOrder | Clearing) -> None:
        """Take a call out of the leases whose readers it has waited for."""
        for lease in (self.leases[number] for number in what.read if number in self.leases):
            lease.clearings.pop(what.call, None)
        what.read.clear()

    def holders(self) -> tuple[Holder, ...]:
        """Return who has the device's memory, largest first; those that matter, not all ten thousand."""
        found = [self._device_holder(lease) for lease in _first(self.device_holdings.largest())]
        found.extend(_first(self._ticket_holders()))
        for ended in _first(self.sessions.ended.values()):
            found.append(Holder(session=ended.session.name, tag="", state="fenced", size_bytes=ended.fenced_bytes))
        return _ranked(found)

    def host_holders(self) -> tuple[Holder, ...]:
        """Return who has the arena and the spill store, largest first."""
        leases = [self.leases[lease] for lease in _first(self.host_holdings.largest()) if lease in self.leases]
        return _ranked(
            Holder(
                session=self.name_of(lease.session),
                tag=lease.tag,
                state=lease.state.value,
                size_bytes=lease.host_bytes + lease.spill_bytes,
            )
            for lease in leases
        )

    def _ticket_holders(self) -> Iterator[Holder]:
        if self.outside.withheld_bytes:
            yield Holder(session=OUTSIDE_NAME, tag="", state="withheld", size_bytes=self.outside.withheld_bytes)
        for number, readers in self.lingering.items():
            name = self.name_of(self.readers[next(iter(readers))].session)
            yield Holder(session=name, tag="", state="reading", size_bytes=self.ledger.frames[number].size_bytes)
        for ticket in self.tickets.values():
            size_bytes = ticket.hold.in_hand_bytes + min(ticket.hold.reserved_bytes, ticket.hold.keep_bytes)
            if size_bytes:
                tag = self.leases[ticket.leases[0]].tag if ticket.leases else ""
                yield Holder(session=self.name_of(ticket.session), tag=tag, state="held", size_bytes=size_bytes)

    def _device_holder(self, lease: LeaseId) -> Holder:
        found = self.leases.get(lease)
        if found is None:
            return Holder(session="", tag="", state="", size_bytes=0)
        return self.holder(found, found.device_bytes)

    def holder(self, lease: Lease, size_bytes: int) -> Holder:
        return Holder(
            session=self.name_of(lease.session), tag=lease.tag, state=lease.state.value, size_bytes=size_bytes
        )


def names_of(holders: tuple[Holder, ...]) -> str:
    """Return who they are, as an error's message says it; not all of them, if they are many."""
    more = f" and {len(holders) - NAMED_MAX} more" if len(holders) > NAMED_MAX else ""
    return ", ".join(f"{one.session}/{one.tag}" for one in holders[:NAMED_MAX]) + more


def _first(things: Iterable[_Thing]) -> list[_Thing]:
    return list(islice(things, HOLDERS_MAX))


def _ranked(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    return tuple(sorted((one for one in holders if one.size_bytes), key=lambda one: -one.size_bytes))[:HOLDERS_MAX]
