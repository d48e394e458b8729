"""All that the broker knows, as plain frozen values: what `status` shows, what is written down when an invariant
breaks, and what a later daemon can rebuild itself from, together with the fds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from vrambroker.broker.core.effects import Extent, LeaseState, SpillPlace
from vrambroker.broker.core.errors import Holder
from vrambroker.broker.core.events import Contents, Peer
from vrambroker.broker.core.ids import (
    ArenaFileId,
    Domain,
    FrameId,
    Instant,
    LeaseId,
    ReaderId,
    SessionId,
    SlotId,
    TicketId,
)
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.core.session import Budget
from vrambroker.broker.core.ticket import Stage


class SlotState(Enum):
    """Where the frame of a slot is in its life; the table of what may follow what is in `core/slot.py`."""

    EMPTY = "empty"
    GRANTED = "granted"
    MAPPED = "mapped"
    LEAVING = "leaving"
    PARKED = "parked"
    DROPPED = "dropped"

    # The one that enums have is written in Python, and every counter of a lease is found by it.
    __hash__ = object.__hash__


class FramePlace(Enum):
    """Where a frame is, seen from the ledger. LINGERING: its owner has returned it, and readers map it still."""

    CREATING = "creating"
    POOLED = "pooled"
    HELD = "held"
    LENT = "lent"
    FENCED = "fenced"
    LINGERING = "lingering"
    DESTROYING = "destroying"


class FileState(Enum):
    """How far a file of the arena has come. PLANNED: room is set aside in it already, and it is made when files that
    were given up for it have gone. UNWANTED: given up while it was being made, so destroyed when that is done.
    """

    PLANNED = "planned"
    CREATING = "creating"
    READY = "ready"
    UNWANTED = "unwanted"
    DESTROYING = "destroying"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameView:
    frame: FrameId
    size_bytes: int
    domain: Domain | None
    place: FramePlace


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    slot: SlotId
    size_bytes: int
    state: SlotState
    frame: FrameId | None
    extent: Extent | None
    copied: bool
    spill: SpillPlace | None
    spilled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderView:
    """Who maps memory of a lease beside its owner. `closing`: it has been asked to let go."""

    reader: ReaderId
    session: str
    writable: bool
    closing: bool
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """`device_bytes`: frames it has, whatever they are doing; `host_bytes`: its arena extents, set aside or in use;
    `spill_bytes`: its places in the spill store. `copied_bytes`: what of an idle lease is in the arena already, so that
    taking it is an unmap.
    `takeable`: nothing has gone wrong with taking its frames since it was paused. `sealed`: nobody can write to it.
    `discarded`: its owner does not want its contents back from this pause.
    """

    lease: LeaseId
    tag: str
    contents: Contents
    state: LeaseState
    paused: bool
    sealed: bool
    discarded: bool
    takeable: bool
    priority: int
    since: Instant
    device_bytes: int
    host_bytes: int
    spill_bytes: int
    copied_bytes: int
    readers: tuple[ReaderView, ...]
    slots: tuple[SlotView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    session: SessionId
    name: str
    peer: Peer
    token: bytes = field(repr=False)
    ended: bool
    connected: bool
    leases: tuple[LeaseView, ...]
    budgets: Mapping[str, Budget]


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketView:
    """`in_hand_bytes`: what it has already, granted or set aside. `waits_for`: who could give what is missing, or has yet to
    map what was granted.
    """

    ticket: TicketId
    session: str
    tags: tuple[str, ...]
    size_bytes: int
    in_hand_bytes: int
    promised_bytes: int
    stage: Stage
    priority: int
    since: Instant
    deadline: Instant
    waits_for: tuple[Holder, ...]

    @property
    def admitted(self) -> bool:
        """All that it needs is certain."""
        return self.stage is not Stage.QUEUED


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFileView:
    """`staging`: contents only go through it, on their way to the spill store and back."""

    file: ArenaFileId
    domain: Domain
    size_bytes: int
    used_bytes: int
    state: FileState
    staging: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """lent + held + free = capacity. `held_bytes` counts holds, frames that are fenced or lingering, and frames being
    made or destroyed.

    `host_used_bytes`: set aside in the arena for contents, whether they are there yet, or being wiped after a death.
    `host_file_bytes`: the files that there are, empty room included; the budget bounds these. The totals change only
    with an event that publishes them. `spill_used_bytes`: set aside in the spill store.
    `outside_bytes`: memory on the device that is no lease, as last measured; `withheld_bytes`: what of `held_bytes` is kept
    out of use for it. `eager`: why idle memory is taken though nobody asks for it; empty if it is not.
    `queue`: the tickets that wait for frames, in the order of their turn. `granted`: those that have theirs: offered, on
    their way to the client, or on their way back after a refusal. `kept`: what is set aside for later.
    `phase`: the one entered last; `entering`: the one being entered. Both are empty if there is none.
    """

    capacity_bytes: int
    lent_bytes: int
    held_bytes: int
    free_bytes: int
    peak_lent_bytes: int
    host_budget_bytes: int
    host_used_bytes: int
    host_file_bytes: int
    spill_budget_bytes: int
    spill_used_bytes: int
    outside_bytes: int
    withheld_bytes: int
    eager: str
    draining: bool
    plan: PhasePlan | None
    plan_uid: int
    phase: str
    entering: str
    next_id: int
    frames: tuple[FrameView, ...]
    sessions: tuple[SessionView, ...]
    queue: tuple[TicketView, ...]
    granted: tuple[TicketView, ...]
    kept: tuple[TicketView, ...]
    arena: tuple[ArenaFileView, ...]
