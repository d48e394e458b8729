"""Readers and exports: who maps memory of somebody else's lease, and by what they could come to.

An export names slots and holds nothing, so it outlives any number of pauses. A reader has frames, and is recorded before
their fds leave.
"""

from dataclasses import dataclass, field

from vrambroker.broker.core.events import ExportedSlot
from vrambroker.broker.core.ids import ExportKey, FrameId, LeaseId, ReaderId, SessionId, SlotId


@dataclass(slots=True, kw_only=True, eq=False)
class Export:
    """What a session may have others map: slots of its own lease, or of one that it reads.

    `sends` counts how often it was sent, `arrivals` how often it was received; `reads` are those who use what they have
    received, by session and by its own number for it.
    """

    key: ExportKey
    session: SessionId
    lease: LeaseId
    read_only: bool
    slots: tuple[ExportedSlot, ...]
    sends: int = 1
    arrivals: int = 0
    reads: dict[tuple[SessionId, int], None] = field(default_factory=dict[tuple[SessionId, int], None])

    @property
    def settled(self) -> bool:
        """It was received as often as it was sent, and nobody uses it any more."""
        return self.arrivals >= self.sends and not self.reads


@dataclass(slots=True, kw_only=True, eq=False)
class SharedFrame:
    """A frame that a reader may have mapped, and where."""

    frame: FrameId
    offset_bytes: int
    size_bytes: int


@dataclass(slots=True, kw_only=True, eq=False)
class Reader:
    """One session's mappings of one lease, writable or not. `closing`: it was asked to let go, and gets no more."""

    reader: ReaderId
    session: SessionId
    lease: LeaseId
    writable: bool
    closing: bool = False
    shared: dict[SlotId, SharedFrame] = field(default_factory=dict[SlotId, SharedFrame])

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.shared.values())
