"""Everything the core asks of the world. Effects are performed in order; what can fail comes back as an event."""

from dataclasses import dataclass, field
from enum import Enum

from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    Instant,
    LeaseId,
    OrderId,
    ReaderId,
    SessionId,
    SlotId,
    TicketId,
    TransferId,
)


class LeaseState(Enum):
    """What people see of a lease, derived from its slots (DESIGN: "a frame's life, a lease's state")."""

    RESIDENT = "resident"
    IDLE = "idle"
    LEAVING = "leaving"
    ARRIVING = "arriving"
    PARTIAL = "partial"
    PARKED = "parked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    session: SessionId
    name: str
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """`claim` is 0 when the frames have arrived already."""

    lease: LeaseId
    claim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    leases: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedLease:
    """`same_pages`: no frame of the lease has left since it was paused, so registrations still hold."""

    lease: LeaseId
    tag: str
    same_pages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    leases: tuple[ResumedLease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Capacity is set aside under this ticket, until it is used up, its time is over, or the ticket cancelled."""

    ticket: TicketId


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """How much a lease of the session would be lent at once, in whole frames."""

    free_bytes: int


class BudgetState(Enum):
    """DEFERRED: more than the hard limit is in use; nothing is taken away, and nothing more is lent until there is less.
    CONFLICT: the budget is another one than the caller knew, and was left as it is.
    """

    APPLIED = "applied"
    DEFERRED = "deferred"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSet:
    """The budget that is in force now."""

    state: BudgetState
    revision: int
    soft_bytes: int | None
    hard_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredTag:
    """A lease that a change of phase has moved. `same_pages`: as in `ResumedLease`."""

    session: str
    tag: str
    lease: LeaseId
    same_pages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """The phase is there: all that it lists is resident, and what other phases list is paused."""

    phase: str
    paused: tuple[EnteredTag, ...]
    resumed: tuple[EnteredTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadGranted:
    """The frames are on their way to this reader; or, without one, they are the session's own lease."""

    lease: LeaseId
    reader: ReaderId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The call has taken effect, and there is nothing more to say."""


Outcome = Attached | Leased | Paused | Resumed | Entered | Held | Free | BudgetSet | ReadGranted | Done


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    call: CallId
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    call: CallId
    error: BrokerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A place in the arena; as long as the slot it belongs to."""

    file: ArenaFileId
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillPlace:
    """A place in the spill store; as long as the slot it belongs to."""

    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedSlot:
    """A frame for a slot. `dirty`: it may hold another session's bytes. `restore`: where the contents are parked."""

    slot: SlotId
    frame: FrameId
    size_bytes: int
    dirty: bool
    restore: Extent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendGrant:
    """Lend these frames to the session's agent, which answers `Arrived`. The adapter cuts it into batches."""

    session: SessionId
    lease: LeaseId
    tag: str
    contents: Contents
    slots: tuple[GrantedSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalledSlot:
    """A slot to vacate; `park` is where its contents must be first, if they must be kept."""

    slot: SlotId
    park: Extent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRecall:
    """Order the session's agent to vacate these slots, which it answers `Left`, in parts if it likes."""

    session: SessionId
    lease: LeaseId
    slots: tuple[RecalledSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedSlot:
    """A slot whose contents are to be at this place as well."""

    slot: SlotId
    to: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class SendCopy:
    """Order the session's agent to copy these slots out while they stay mapped, which it answers `Copied`, once."""

    session: SessionId
    order: OrderId
    lease: LeaseId
    slots: tuple[CopiedSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSlot:
    """A slot of somebody else's lease, to be mapped at the same distance from the beginning of a range as there."""

    slot: SlotId
    frame: FrameId
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReadGrant:
    """Lend these frames to a reader. The adapter cuts it into batches; what is mapped there already may come again."""

    session: SessionId
    reader: ReaderId
    lease: LeaseId
    writable: bool
    slots: tuple[SharedSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendCloseReader:
    """Have a reader let go as soon as nothing there is in use, which its agent answers `ReaderClosed`."""

    session: SessionId
    reader: ReaderId


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReader:
    """The reader is no more: nothing is sent to it that was not sent yet."""

    reader: ReaderId


@dataclass(frozen=True, slots=True, kw_only=True)
class SendExportSettled:
    """Tell who has exported something that it was received as often as it was sent, and is in use nowhere any more."""

    session: SessionId
    key: ExportKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPauseOrder:
    """Ask the session's agent to close these tags' gates, which it answers `Quiet` or `Busy`."""

    session: SessionId
    order: OrderId
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPauseCancelled:
    """The pause order is void: open the gates that it closed."""

    session: SessionId
    order: OrderId


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLeaseState:
    """Tell the owner that its lease is now paused, or resident and open for use."""

    session: SessionId
    lease: LeaseId
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDraining:
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseConnection:
    """Another connection has taken its place, or its session is over."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchFence:
    """Close these frames of an ended process and report `FencePassed` once nobody can reach them."""

    session: SessionId
    frames: tuple[FrameId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateFrame:
    frame: FrameId
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyFrame:
    frame: FrameId


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateArenaFile:
    """Make a file of the arena and touch every page of it, ahead of need."""

    file: ArenaFileId
    domain: Domain
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyArenaFile:
    file: ArenaFileId


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferArenaFile:
    """Let a session's process have a file ahead of need."""

    session: SessionId
    file: ArenaFileId


@dataclass(frozen=True, slots=True, kw_only=True)
class PunchExtent:
    """Wipe what a dead client left, before anybody else gets the place."""

    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillOut:
    """Write what is in an extent to a place in the spill store; ends in `Transferred` or `TransferFailed`."""

    transfer: TransferId
    extent: Extent
    place: SpillPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillIn:
    """Read what is in a place in the spill store into an extent; ends in `Transferred` or `TransferFailed`."""

    transfer: TransferId
    extent: Extent
    place: SpillPlace


class Kind(Enum):
    """What a line of the event stream is about."""

    SESSION_ATTACHED = "session_attached"
    SESSION_CONNECTED = "session_connected"
    SESSION_DISCONNECTED = "session_disconnected"
    SESSION_ENDED = "session_ended"
    FENCE_PASSED = "fence_passed"
    LEASE_CHANGED = "lease_changed"
    LEASE_SEALED = "lease_sealed"
    LEASE_UNSEALED = "lease_unsealed"
    LEASE_READ = "lease_read"
    TICKET_QUEUED = "ticket_queued"
    TICKET_ADMITTED = "ticket_admitted"
    TICKET_REFUSED = "ticket_refused"
    TICKET_DONE = "ticket_done"
    RECALLED = "recalled"
    SPILLED = "spilled"
    SPILL_FAILED = "spill_failed"
    COPY_FAILED = "copy_failed"
    BUDGET_CHANGED = "budget_changed"
    DEVICE_CHANGED = "device_changed"
    OUTSIDE_CHANGED = "outside_changed"
    MARKED = "marked"
    PLAN_SET = "plan_set"
    PHASE_ENTERING = "phase_entering"
    PHASE_ENTERED = "phase_entered"
    PHASE_REFUSED = "phase_refused"
    DRAINING = "draining"

    # As in `SlotState`: whoever watches looks up every line by it.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """One line for whoever watches; the fields that don't apply are empty.

    LEASE_CHANGED tells the lease's whole residency after the change. DEVICE_CHANGED tells the totals of device and
    arena: `host_bytes` are set aside for contents, `host_file_bytes` is what the arena's files take for that.
    `spill_bytes` are set aside in the spill store, by the lease or in all. SPILLED tells of contents that will be kept
    there, since the arena has no room for them.
    `copied_bytes`: what of an idle lease is in the arena already, so that taking it is an unmap.
    `outside_bytes`: what of the device is in use outside of leases; None in a line that does not tell.
    """

    kind: Kind
    at: Instant
    why: str
    session: str = ""
    tag: str = ""
    lease: LeaseId = LeaseId(0)
    ticket: TicketId = TicketId(0)
    state: LeaseState | None = None
    device_bytes: int = 0
    host_bytes: int = 0
    copied_bytes: int = 0
    lent_bytes: int = 0
    free_bytes: int = 0
    held_bytes: int = 0
    host_file_bytes: int = 0
    spill_bytes: int = 0
    outside_bytes: int | None = None
    holders: tuple[str, ...] = field(default_factory=tuple[str, ...])
    phase: str = ""


Effect = (
    Reply
    | Refuse
    | SendGrant
    | SendRecall
    | SendCopy
    | SendReadGrant
    | SendCloseReader
    | EndReader
    | SendExportSettled
    | SendPauseOrder
    | SendPauseCancelled
    | SendLeaseState
    | SendDraining
    | CloseConnection
    | WatchFence
    | CreateFrame
    | DestroyFrame
    | CreateArenaFile
    | DestroyArenaFile
    | OfferArenaFile
    | PunchExtent
    | SpillOut
    | SpillIn
    | Publish
)
