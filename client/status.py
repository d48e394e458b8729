"""What a broker tells of itself, as plain frozen values: who holds what, who waits, and what happened."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrambroker.v1 import broker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """The device's bytes: lent + held + free = capacity; foreign ones are in use and none of the daemon's.

    `withheld_bytes` of the held ones are kept out of use, so that foreign memory has room to grow. `eager`: why idle memory
    is taken though nobody asks for it; empty, if it is not.
    """

    id: str
    capacity_bytes: int
    lent_bytes: int
    free_bytes: int
    held_bytes: int
    foreign_bytes: int
    peak_lent_bytes: int
    withheld_bytes: int = 0
    eager: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """The arena: what its files may grow to, what is set aside in them for contents, and what they take now.

    Empty files are kept for the next pause, until somebody needs their room more. `spill_budget_bytes`: what may be kept
    in the spill directory, `spill_used_bytes`: what is set aside there, for contents that the arena has no room for.
    """

    budget_bytes: int
    used_bytes: int
    file_bytes: int
    spill_budget_bytes: int = 0
    spill_used_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderStatus:
    """A session that has memory of a lease mapped beside its owner, since it has received tensors in it."""

    session: str
    writable: bool
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TagStatus:
    """One lease. `state`: resident, idle, leaving, arriving, partial or parked; `since_ns` is on the daemon's clock.

    `sealed`: nobody can write to it, and what it has on the host while it is resident is the copy that it keeps.
    `spill_bytes`: what is set aside for it in the spill directory.
    `copied_bytes`: what of it is on the host as well while it is idle, so that taking it is an unmap.
    """

    tag: str
    lease: int
    contents: str
    state: str
    device_bytes: int
    host_bytes: int
    since_ns: int
    priority: int
    sealed: bool
    spill_bytes: int = 0
    copied_bytes: int = 0
    readers: tuple[ReaderStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """What a session (`tag` is empty then) or one of its tags may have in use; None is no limit."""

    tag: str
    soft_bytes: int | None
    hard_bytes: int | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """One attached process; `ended` means that what it held is not yet proven to be out of reach."""

    session: int
    name: str
    pid: int
    uid: int
    connected: bool
    ended: bool
    tags: tuple[TagStatus, ...]
    budgets: tuple[BudgetStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderStatus:
    """Who could give what a ticket waits for."""

    session: str
    tag: str
    state: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketStatus:
    """A queued demand; instants are on the daemon's clock."""

    ticket: int
    session: str
    tags: tuple[str, ...]
    size_bytes: int
    in_hand_bytes: int
    promised_bytes: int
    admitted: bool
    since_ns: int
    deadline_ns: int
    waits_for: tuple[HolderStatus, ...]
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStatus:
    """The plan that was set last. `phases`: of each the tags that it lists, as SESSION/TAG patterns."""

    order: str
    phases: dict[str, tuple[str, ...]]
    priorities: dict[str, int]

    def is_for_others(self, phase: str, session: str, tag: str) -> bool:
        """Whether other phases list a tag, and this one does not."""
        listed = {name for name, tags in self.phases.items() if any(_matches(one, session, tag) for one in tags)}
        return bool(listed) and phase not in listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything at one instant; `now_ns` is the daemon's monotonic clock then. `queue` is in the order of turns; `holds` is
    what is set aside for later. `phase`: the one entered last; `entering`: the one being entered; empty, if there is none.
    """

    device: DeviceStatus
    sessions: tuple[SessionStatus, ...]
    queue: tuple[TicketStatus, ...]
    holds: tuple[TicketStatus, ...]
    host: HostStatus
    draining: bool
    version: str
    pid: int
    now_ns: int
    plan: PlanStatus | None = None
    phase: str = ""
    entering: str = ""

    def leaving(self, session: str, phase: str) -> tuple[str, ...]:
        """Return the session's resident tags that a phase of the plan does not list, and others do."""
        found = self.session(session)
        if found is None or self.plan is None or phase not in self.plan.phases:
            return ()
        resident = dict.fromkeys(tag.tag for tag in found.tags if tag.state == "resident")
        return tuple(tag for tag in resident if self.plan.is_for_others(phase, session, tag))

    def session(self, name: str) -> SessionStatus | None:
        """Return the session of this name, if it is there."""
        return next((session for session in self.sessions if session.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What a change of phase has moved, as SESSION/TAG; `resumed` tells of each whether its pages are the same."""

    paused: tuple[str, ...]
    resumed: dict[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One line of the event stream; fields that don't apply to its `kind` are 0 or empty.

    `sequence` counts up by one; a gap means that this watcher was too slow. `time_ns` is since the epoch.
    `outside_bytes`: what of the device is in use outside of leases; None in a line that does not tell.
    `standing`: it is older than what the daemon remembers in full, and still held when that begins.
    """

    sequence: int
    time_ns: int
    kind: str
    why: str
    session: str
    tag: str
    lease: int
    ticket: int
    state: str
    device_bytes: int
    host_bytes: int
    lent_bytes: int
    free_bytes: int
    held_bytes: int
    host_file_bytes: int
    phase: str = ""
    spill_bytes: int = 0
    copied_bytes: int = 0
    outside_bytes: int | None = None
    standing: bool = False


def status_of(message: "broker_pb2.Status") -> Status:
    """Return the broker's answer to `GetStatus` as values."""
    device = message.device
    return Status(
        device=DeviceStatus(
            id=device.id,
            capacity_bytes=device.capacity_bytes,
            lent_bytes=device.lent_bytes,
            free_bytes=device.free_bytes,
            held_bytes=device.held_bytes,
            foreign_bytes=device.foreign_bytes,
            peak_lent_bytes=device.peak_lent_bytes,
            withheld_bytes=device.withheld_bytes,
            eager=device.eager,
        ),
        sessions=tuple(_session_of(session) for session in message.sessions),
        queue=tuple(_ticket_of(ticket) for ticket in message.queue),
        holds=tuple(_ticket_of(ticket) for ticket in message.holds),
        host=HostStatus(
            budget_bytes=message.host.budget_bytes,
            used_bytes=message.host.used_bytes,
            file_bytes=message.host.file_bytes,
            spill_budget_bytes=message.host.spill_budget_bytes,
            spill_used_bytes=message.host.spill_used_bytes,
        ),
        draining=message.draining,
        version=message.version,
        pid=message.pid,
        now_ns=message.now_ns,
        plan=_plan_of(message.plan) if message.HasField("plan") else None,
        phase=message.phase,
        entering=message.entering,
    )


def entered_of(message: "broker_pb2.EnterResponse") -> Entered:
    """Return the broker's answer to `Enter` as values; a tag may have several leases."""
    resumed: dict[str, bool] = {}
    for one in message.resumed:
        name = f"{one.session}/{one.tag}"
        resumed[name] = resumed.get(name, True) and one.same_pages
    paused = tuple(dict.fromkeys(f"{one.session}/{one.tag}" for one in message.paused))
    return Entered(paused=paused, resumed=resumed)


def event_of(message: "broker_pb2.Event") -> StreamEvent:
    """Return one line of `Watch` as a value."""
    return StreamEvent(
        sequence=message.sequence,
        time_ns=message.time_ns,
        kind=message.kind,
        why=message.why,
        session=message.session,
        tag=message.tag,
        lease=message.lease,
        ticket=message.ticket,
        state=_state_name(message.state),
        device_bytes=message.device_bytes,
        host_bytes=message.host_bytes,
        lent_bytes=message.lent_bytes,
        free_bytes=message.free_bytes,
        held_bytes=message.held_bytes,
        host_file_bytes=message.host_file_bytes,
        copied_bytes=message.copied_bytes,
        phase=message.phase,
        spill_bytes=message.spill_bytes,
        outside_bytes=message.outside_bytes if message.HasField("outside_bytes") else None,
        standing=message.standing,
    )


def _plan_of(message: "broker_pb2.Plan") -> PlanStatus:
    from vrambroker.v1 import broker_pb2

    return PlanStatus(
        order=broker_pb2.Order.Name(message.order).removeprefix("ORDER_").lower(),
        phases={phase.name: tuple(phase.tags) for phase in message.phases},
        priorities={one.tag: one.priority for one in message.priorities},
    )


def _matches(pattern: str, session: str, tag: str) -> bool:
    of_session, _, of_tag = pattern.partition("/")
    return fnmatchcase(session, of_session) and fnmatchcase(tag, of_tag)


def _session_of(message: "broker_pb2.Session") -> SessionStatus:
    return SessionStatus(
        session=message.session,
        name=message.name,
        pid=message.pid,
        uid=message.uid,
        connected=message.connected,
        ended=message.ended,
        tags=tuple(_tag_of(tag) for tag in message.tags),
        budgets=tuple(_budget_of(budget.tag, budget) for budget in message.budgets),
    )


def budget_answer_of(tag: str, message: "broker_pb2.SetBudgetResponse") -> tuple[str, BudgetStatus]:
    """Return how a budget was taken, and the one in force."""
    from vrambroker.v1 import broker_pb2

    state = broker_pb2.BudgetState.Name(message.state).removeprefix("BUDGET_STATE_").lower()
    return state, _budget_of(tag, message)


def _budget_of(tag: str, message: "broker_pb2.Budget | broker_pb2.SetBudgetResponse") -> BudgetStatus:
    return BudgetStatus(
        tag=tag,
        soft_bytes=message.soft_bytes if message.HasField("soft_bytes") else None,
        hard_bytes=message.hard_bytes if message.HasField("hard_bytes") else None,
        revision=message.revision,
    )


def _tag_of(message: "broker_pb2.Tag") -> TagStatus:
    from vrambroker.v1 import broker_pb2

    contents = broker_pb2.Contents.Name(message.contents)
    return TagStatus(
        tag=message.tag,
        lease=message.lease,
        contents=contents.removeprefix("CONTENTS_").lower(),
        state=_state_name(message.state),
        device_bytes=message.device_bytes,
        spill_bytes=message.spill_bytes,
        host_bytes=message.host_bytes,
        since_ns=message.since_ns,
        priority=message.priority,
        sealed=message.sealed,
        copied_bytes=message.copied_bytes,
        readers=tuple(
            ReaderStatus(session=one.session, writable=one.writable, size_bytes=one.size_bytes)
            for one in message.readers
        ),
    )


def _ticket_of(message: "broker_pb2.Ticket") -> TicketStatus:
    return TicketStatus(
        ticket=message.ticket,
        session=message.session,
        tags=tuple(message.tags),
        size_bytes=message.size_bytes,
        in_hand_bytes=message.in_hand_bytes,
        promised_bytes=message.promised_bytes,
        admitted=message.admitted,
        since_ns=message.since_ns,
        deadline_ns=message.deadline_ns,
        waits_for=tuple(
            HolderStatus(session=holder.session, tag=holder.tag, state=holder.state, size_bytes=holder.size_bytes)
            for holder in message.waits_for
        ),
        priority=message.priority,
    )


def _state_name(number: "broker_pb2.LeaseState.ValueType") -> str:
    from vrambroker.v1 import broker_pb2

    if number == broker_pb2.LEASE_STATE_UNSPECIFIED:
        return ""
    return str(broker_pb2.LeaseState.Name(number)).removeprefix("LEASE_STATE_").lower()
