"""Everything that can happen to the broker, as the core hears of it: calls, reports and outcomes.

Calls come from a person or a program and are answered (`Reply` or `Refuse`, exactly one for each `CallId`).
Reports come from a client's agent and are not. Outcomes close what an effect began.
"""

from dataclasses import dataclass, field
from enum import Enum

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
    RequestId,
    SessionId,
    SlotId,
    TicketId,
    TransferId,
)
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.core.phase import PhasePlan


class Contents(Enum):
    """What contents are worth across a pause."""

    KEEP = "keep"
    DROP = "drop"
    ZERO = "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process, as the kernel vouches for it (`SO_PEERCRED`); pid as the daemon sees it."""

    pid: int
    uid: int
    gid: int
    domain: Domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, under which request id, and where the answer goes.

    `actor` is the process that asks, which may be an operator without a session of its own.
    """

    call: CallId
    actor: Peer
    request: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Make a session of the caller's process, over this connection.

    `token` was drawn by the adapter. Answered `Attached`; the name given may differ from the one asked for.
    """

    call: Call
    name: str
    token: bytes = field(repr=False)
    connection: ConnectionId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reattach:
    """The session's process is there again, over a new connection; what it has not acknowledged is sent anew."""

    call: Call
    session: SessionId
    connection: ConnectionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost:
    """The connection closed. The session stays; it is over when its process is."""

    session: SessionId
    connection: ConnectionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """The process says goodbye: its leases are returned, its session ends unfenced. Answered `Done`."""

    call: Call
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnded:
    """The session's pidfd fired."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class FencePassed:
    """Nobody can reach these frames of an ended process any more, and the adapter has closed them."""

    session: SessionId
    frames: tuple[FrameId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Lend `size_bytes` more under this tag and policy; opens the lease if there is none yet.

    With `claimed`, the grant is sent to the session's connection at once, and the answer, `Leased`, comes when the
    frames have arrived there. Without, the answer comes first and carries a claim, to be presented by `Claim`.
    Waits only for what idle leases and leases on their way out can cover, and no longer than `deadline`.
    `spare_bytes` more are lent with it if they are free and nobody waits: a lease that grows in few large steps is
    made of few large frames. They are for the client to give back if it does not need them.
    """

    call: Call
    session: SessionId
    tag: str
    contents: Contents
    size_bytes: int
    claimed: bool
    deadline: Instant
    spare_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Send the grant that an unclaimed `Lease` left waiting; answered `Leased` when it has arrived."""

    call: Call
    session: SessionId
    claim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Give these slots back (all of the lease and the lease itself, if none are named). Legal in every state.

    The client maps none of them any more. Answered `Done`.
    """

    call: Call
    session: SessionId
    lease: LeaseId
    slots: tuple[SlotId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Pause every lease of these tags; with `release`, answer when their frames have left.

    `quiet` means that the owner itself asks and has seen to it that nobody uses the memory. Otherwise the session's
    agent is asked to close the tags' gates first, and `deadline` bounds the wait for that. Answered `Paused`.

    With `discard`, which is the owner's alone, contents that would be kept are worth nothing in this pause; those of what is
    paused already stay.
    """

    call: Call
    session: SessionId
    tags: tuple[str, ...]
    release: bool
    discard: bool
    quiet: bool
    deadline: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Bring every lease of these tags back, all or none. Answered `Resumed`.

    With `wait` false it waits only for what is certain; `deadline` still bounds that.
    """

    call: Call
    session: SessionId
    tags: tuple[str, ...]
    wait: bool
    deadline: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Prioritize:
    """Set the priority of every lease of these tags, and of what waits for them. Answered `Done`."""

    call: Call
    session: SessionId
    tags: tuple[str, ...]
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget:
    """Set what a session (or one of its tags; "" is all of it) may have in use; None is no limit. Answered `BudgetSet`.

    `revision` is that of the budget to be replaced, 0 if there is none: with another one nothing is changed.
    """

    call: Call
    session: SessionId
    tag: str
    soft_bytes: int | None
    hard_bytes: int | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Set so much capacity aside for the session's later leases and resumes, which use it up. Answered `Held`.

    With `wait` false it waits only for what is certain; `deadline` still bounds that.
    """

    call: Call
    session: SessionId
    size_bytes: int
    wait: bool
    deadline: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRoom:
    """Have so much of the device free for memory that is no lease, for as long as `lasts_ns` or until somebody outside
    uses it. Answered `Held` when it is free.

    With `wait` false it waits only for what is certain; `deadline` still bounds that.
    """

    call: Call
    size_bytes: int
    lasts_ns: int
    wait: bool
    deadline: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFree:
    """Say how much a lease of this session would be lent at once. Answered `Free`."""

    call: Call
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Refuse a waiting ticket (`Cancelled`); what is on the way to it goes back, what is set aside is free again.
    Answered `Done`, also if the ticket is on its way back already.
    """

    call: Call
    ticket: TicketId


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """The owner has mapped every frame of these tags read-only, and will map those that come so as well, once their
    contents are in. All of the tags, or none of them, are sealed. Answered `Done`.
    """

    call: Call
    session: SessionId
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseal:
    """The owner will write to these tags again, after the answer, `Done`."""

    call: Call
    session: SessionId
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedSlot:
    """A slot of an export, and where its owner has it: so far from the beginning of the lease's range."""

    slot: SlotId
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Let others of the domain that know the key map these slots: of a lease of the session's own, or of one that it reads.

    `again`: it is an export of this session, which is sent once more. Answered `Done`.
    """

    call: Call
    session: SessionId
    key: ExportKey = field(repr=False)
    lease: LeaseId
    read_only: bool
    again: bool
    slots: tuple[ExportedSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexport:
    """Take back what the session has exported and nobody has received yet. Answered `Done`."""

    call: Call
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Map what is exported under this key. Answered `ReadGranted`, after the frames; at once, or refused.

    `number` is the session's own name for it, by which `EndRead` says that nothing made of it is left.
    """

    call: Call
    session: SessionId
    key: ExportKey = field(repr=False)
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRead:
    """What `Read` was asked for under this number is in use no longer. Answered `Done`, also if there is no such thing."""

    call: Call
    session: SessionId
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Write a stage's name into the event stream, for the timeline. Answered `Done`."""

    call: Call
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPlan:
    """Put a plan of phases in the place of the one there is. Moves nothing. Answered `Done`."""

    call: Call
    plan: PhasePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Have what a phase lists resident and what only other phases list paused, in all sessions, or change nothing.

    `deadline` bounds the wait for what is in use and for room. Answered `Entered`.
    """

    call: Call
    phase: str
    deadline: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAbandoned:
    """Nobody waits for this answer any more. A call still queued is withdrawn; one under way goes on."""

    call: CallId


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Refuse new work from now on and tell the sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached:
    """The instant that `next_deadline` named has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """These slots are mapped and hold what they should; or, with `failure`, none of them is mapped."""

    session: SessionId
    lease: LeaseId
    slots: tuple[SlotId, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """These slots are parked if ordered so, unmapped, out of the client's reach; or, with `failure`, still mapped."""

    session: SessionId
    lease: LeaseId
    slots: tuple[SlotId, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The order is over, and nothing is written under it any more. `slots`: those whose contents are where they were to
    be copied; with a `failure` they may be fewer than were named.
    """

    session: SessionId
    order: OrderId
    slots: tuple[SlotId, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderClosed:
    """Nothing of this reader is mapped any more, nor will be."""

    session: SessionId
    reader: ReaderId


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """The gates named in the order are closed and nobody is inside."""

    session: SessionId
    order: OrderId


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The gates named in the order can't be closed: the tag has no scopes. They are open."""

    session: SessionId
    order: OrderId
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StillBusy:
    """A report, no answer: this scope keeps the order waiting. Named in the error if the deadline comes first."""

    session: SessionId
    order: OrderId
    tag: str
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """A report, no answer: the application's own callback is bringing the tag to rest, and keeps the order waiting."""

    session: SessionId
    order: OrderId
    tag: str
    callback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The application's callback will not have the tag paused. The gates named in the order are open."""

    session: SessionId
    order: OrderId
    tag: str
    callback: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCreated:
    frame: FrameId


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCreateFailed:
    """The driver refused; nothing was created."""

    frame: FrameId
    driver_call: str
    driver_result: str
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideMeasured:
    """A reading of what is in use on the device and is no frame: contexts, NCCL, memory of whoever is no session."""

    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfigure:
    """The operator has changed what may be changed while there are leases; as in `Limits`."""

    keep_free_bytes: int
    outside_per_session_bytes: int
    eager: Eager
    copy_ahead_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDestroyed:
    frame: FrameId


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFileReady:
    """The file exists and every page of it is in memory and reads as zero."""

    file: ArenaFileId


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFileFailed:
    """There is no such file; whatever was populated has gone back."""

    file: ArenaFileId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFileDestroyed:
    """Every client has let go of the file and its memory has gone back."""

    file: ArenaFileId


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentPunched:
    """The extent reads as zero and is populated anew."""

    file: ArenaFileId
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """The contents are where they were to be brought: in the spill store, or in the arena."""

    transfer: TransferId


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed:
    """The contents are where they were, and nowhere else. `driver_call` names the file."""

    transfer: TransferId
    driver_call: str
    reason: str


Event = (
    Attach
    | Reattach
    | ConnectionLost
    | Detach
    | ProcessEnded
    | FencePassed
    | Lease
    | Claim
    | Return
    | Pause
    | Resume
    | Prioritize
    | SetBudget
    | SetAside
    | MakeRoom
    | AskFree
    | Cancel
    | Seal
    | Unseal
    | Export
    | Unexport
    | Read
    | EndRead
    | Mark
    | SetPlan
    | Enter
    | CallAbandoned
    | Drain
    | DeadlineReached
    | Reconfigure
    | Arrived
    | Left
    | Copied
    | ReaderClosed
    | Quiet
    | Busy
    | StillBusy
    | Calling
    | Declined
    | FrameCreated
    | FrameCreateFailed
    | FrameDestroyed
    | OutsideMeasured
    | ArenaFileReady
    | ArenaFileFailed
    | ArenaFileDestroyed
    | ExtentPunched
    | Transferred
    | TransferFailed
)
