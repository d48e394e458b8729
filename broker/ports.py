"""What the runtime needs of the world, as Protocols. Adapters implement them; `daemon.py` chooses which.

Every method is called on the runtime's loop. What takes long is done on threads of the adapter's own, and its outcome
is delivered through `Deliver`, which may be called from any thread.
"""

from collections.abc import Callable
from typing import Protocol

from vrambroker.broker.core.effects import (
    Effect,
    Extent,
    Outcome,
    Publish,
    SendCopy,
    SendGrant,
    SendReadGrant,
    SendRecall,
    SpillPlace,
)
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.events import Event
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    Instant,
    OrderId,
    ReaderId,
    SessionId,
    TransferId,
)
from vrambroker.broker.core.snapshot import Snapshot

Deliver = Callable[[Event], None]


class Core(Protocol):
    """The pure broker, as `broker/core/broker.py` implements it."""

    def handle(self, event: Event, now: Instant) -> list[Effect]: ...
    def next_deadline(self) -> Instant | None: ...
    def snapshot(self) -> Snapshot: ...


class Clock(Protocol):
    def now(self) -> Instant:
        """Return the monotonic time in nanoseconds."""
        ...


class Frames(Protocol):
    """Physical memory of the device, as fds. The adapter owns every fd; `fd_of` lends one for the time of a send."""

    def sizes_bytes(self) -> tuple[int, ...]:
        """Return the frame sizes that this device is served in, ascending; each divides the next."""
        ...

    def device_bytes(self) -> int:
        """Return what the device has in all."""
        ...

    def foreign_bytes(self) -> int:
        """Return what is in use on the device and is not a frame of ours."""
        ...

    def create(self, frame: FrameId, size_bytes: int) -> None:
        """Begin to create a frame that reads as zero; delivers `FrameCreated` or `FrameCreateFailed`."""
        ...

    def destroy(self, frame: FrameId) -> None:
        """Close a frame that was given back; delivers `FrameDestroyed` when its memory has gone back, and not before,
        whatever whoever gave it back has said.
        """
        ...

    def fence(self, session: SessionId, frames: tuple[FrameId, ...]) -> None:
        """Close frames of an ended process; delivers `FencePassed` once no process can reach them any more."""
        ...

    def fd_of(self, frame: FrameId) -> int | None:
        """Return the frame's fd, or None once it is on its way out.

        Ownership: stays with the adapter; the caller must not close it.
        """
        ...

    def close(self) -> None:
        """Close every fd and end every thread."""
        ...


class Arena(Protocol):
    """Host memory for parked contents: sealed memfds whose pages only the daemon touches."""

    def create(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None:
        """Begin to make and populate a file; delivers `ArenaFileReady` or `ArenaFileFailed`."""
        ...

    def destroy(self, file: ArenaFileId) -> None:
        """Close a file that every client has let go of; delivers `ArenaFileDestroyed` when its memory has gone back."""
        ...

    def punch(self, extent: Extent) -> None:
        """Wipe and repopulate an extent; delivers `ExtentPunched`."""
        ...

    def fd_of(self, file: ArenaFileId) -> int | None:
        """Return the file's fd, or None once it is on its way out. Ownership: stays with the adapter."""
        ...

    def close(self) -> None: ...


class Spill(Protocol):
    """Room on a disk for contents that the arena has no room for."""

    def write(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Begin to write an extent to its place; delivers `Transferred` or `TransferFailed`."""
        ...

    def read(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None:
        """Begin to read a place into an extent; delivers `Transferred` or `TransferFailed`."""
        ...

    def close(self) -> None: ...


class Peers(Protocol):
    """The handle socket's side of the sessions: what is sent to agents. Nothing here blocks or fails upwards."""

    def grant(self, order: SendGrant) -> None: ...
    def recall(self, order: SendRecall) -> None: ...
    def copy(self, order: SendCopy) -> None: ...
    def read_grant(self, order: SendReadGrant) -> None: ...
    def close_reader(self, session: SessionId, reader: ReaderId) -> None: ...
    def end_reader(self, reader: ReaderId) -> None:
        """Send a reader that is no more nothing of what was not sent yet."""
        ...

    def export_settled(self, session: SessionId, key: ExportKey) -> None: ...
    def pause_order(self, session: SessionId, order: OrderId, tags: tuple[str, ...]) -> None: ...
    def pause_cancelled(self, session: SessionId, order: OrderId) -> None: ...
    def lease_state(self, session: SessionId, lease: int, paused: bool) -> None: ...
    def draining(self, session: SessionId) -> None: ...
    def offer_arena(self, session: SessionId, file: ArenaFileId) -> None:
        """Send a file to a session's process, if it has not got it, to be mapped in its own time."""
        ...

    def forget_arena(self, file: ArenaFileId) -> None:
        """Have every client let go of the file, then have the arena destroy it."""
        ...

    def close_connection(self, connection: ConnectionId) -> None: ...


class Answers(Protocol):
    """Where answers to calls go, by `CallId`; an unknown call (its connection closed) is no error."""

    def reply(self, call: CallId, outcome: Outcome) -> None: ...
    def refuse(self, call: CallId, error: BrokerError) -> None: ...


class Observer(Protocol):
    """Somebody who watches: the history, a `Watch` stream, a metric."""

    def published(self, line: Publish) -> None: ...
