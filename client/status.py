"""What a broker tells of itself, as plain frozen values: who holds what, who waits, and what happened."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrambroker.v1 import broker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """The device's bytes: lent + held + free = capacity; foreign ones are in use and none of the daemon's."""

    id: str
    capacity_bytes: int
    lent_bytes: int
    free_bytes: int
    held_bytes: int
    foreign_bytes: int
    peak_lent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """The arena: what its files may grow to, what is set aside in them for contents, and what they take now.

    Empty files are kept for the next pause, until somebody needs their room more.
    """

    budget_bytes: int
    used_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TagStatus:
    """One lease. `state`: resident, idle, leaving, arriving, partial or parked; `since_ns` is on the daemon's clock.

    `sealed`: nobody can write to it, and what it has on the host while it is resident is the copy that it keeps.
    """

    tag: str
    lease: int
    contents: str
    state: str
    device_bytes: int
    host_bytes: int
    since_ns: int
    sealed: bool


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything at one instant; `now_ns` is the daemon's monotonic clock then."""

    device: DeviceStatus
    sessions: tuple[SessionStatus, ...]
    queue: tuple[TicketStatus, ...]
    host: HostStatus
    draining: bool
    version: str
    pid: int
    now_ns: int

    def session(self, name: str) -> SessionStatus | None:
        """Return the session of this name, if it is there."""
        return next((session for session in self.sessions if session.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One line of the event stream; fields that don't apply to its `kind` are 0 or empty.

    `sequence` counts up by one; a gap means that this watcher was too slow. `time_ns` is since the epoch.
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
        ),
        sessions=tuple(_session_of(session) for session in message.sessions),
        queue=tuple(_ticket_of(ticket) for ticket in message.queue),
        host=HostStatus(
            budget_bytes=message.host.budget_bytes,
            used_bytes=message.host.used_bytes,
            file_bytes=message.host.file_bytes,
        ),
        draining=message.draining,
        version=message.version,
        pid=message.pid,
        now_ns=message.now_ns,
    )


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
    )


def _session_of(message: "broker_pb2.Session") -> SessionStatus:
    return SessionStatus(
        session=message.session,
        name=message.name,
        pid=message.pid,
        uid=message.uid,
        connected=message.connected,
        ended=message.ended,
        tags=tuple(_tag_of(tag) for tag in message.tags),
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
        host_bytes=message.host_bytes,
        since_ns=message.since_ns,
        sealed=message.sealed,
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
    )


def _state_name(number: "broker_pb2.LeaseState.ValueType") -> str:
    from vrambroker.v1 import broker_pb2

    if number == broker_pb2.LEASE_STATE_UNSPECIFIED:
        return ""
    return str(broker_pb2.LeaseState.Name(number)).removeprefix("LEASE_STATE_").lower()
