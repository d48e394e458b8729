"""The ledger: every frame there is, in exactly one place, and where the device's capacity is.

At every moment

    capacity = lent + held + free
    lent = frames lent to live sessions, those on their way in and out included
    held = frames in somebody's hold + frames being made + capacity reserved for frames about to be made
           + fenced and lingering frames + frames being destroyed
    free = pooled frames that nobody has taken + capacity that is no frame at all

Frames that nobody has taken stand on *shelves*, by domain and size, so that taking one costs the same among ten as
among ten thousand: `pool` (here), `coming` (on their way back, or being made for somebody who no longer wants them)
and `melting` (being destroyed; what comes of them is capacity).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.ids import Domain, FrameId, LeaseId, SessionId, TicketId
from vrambroker.broker.core.snapshot import FramePlace

SPOILT = Domain("(may still be written to)")
"""Whose frames are that a dead reader could write to: no process's, so that they are closed before anybody gets them."""


@dataclass(slots=True, kw_only=True, eq=False)
class Frame:
    """`ticket`: whose hold it is in, or to whom it is promised. `domain`: who has written to it; nobody, if there is
    none.

    `leaving`: lent, and its lease has been decided to give it up.
    """

    frame: FrameId
    size_bytes: int
    place: FramePlace
    domain: Domain | None = None
    session: SessionId | None = None
    lease: LeaseId | None = None
    ticket: TicketId | None = None
    leaving: bool = False


class Shelf:
    """Frames that nobody has taken, oldest first, by domain and size."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._frames: dict[tuple[Domain | None, int], dict[FrameId, Frame]] = {}

    def put(self, frame: Frame) -> None:
        self._frames.setdefault((frame.domain, frame.size_bytes), {})[frame.frame] = frame
        self.size_bytes += frame.size_bytes

    def take(self, frame: Frame) -> None:
        key = (frame.domain, frame.size_bytes)
        del self._frames[key][frame.frame]
        if not self._frames[key]:
            del self._frames[key]
        self.size_bytes -= frame.size_bytes

    def fitting(self, domain: Domain, size_bytes: int) -> Iterator[Frame]:
        """Yield the frames of this size that the domain may have as they are: its own first, then clean ones."""
        yield from self._frames.get((domain, size_bytes), {}).values()
        yield from self._frames.get((None, size_bytes), {}).values()

    def __iter__(self) -> Iterator[Frame]:
        for frames in self._frames.values():
            yield from frames.values()


class Ledger:
    """Frames by place, conserved. Every change of a frame's place goes through here."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.peak_lent_bytes = 0
        self.frames: dict[FrameId, Frame] = {}
        self.pool = Shelf()
        self.coming = Shelf()
        self.melting = Shelf()
        self._place_bytes: dict[FramePlace, int] = dict.fromkeys(FramePlace, 0)
        self._framed_bytes = 0

    def bytes_in(self, place: FramePlace) -> int:
        return self._place_bytes[place]

    @property
    def unframed_bytes(self) -> int:
        """Capacity that is no frame and reserved for nobody."""
        return self.capacity_bytes - self._framed_bytes - self.reserved_bytes

    @property
    def framed_bytes(self) -> int:
        """What is on the device as frames, wherever they are."""
        return self._framed_bytes

    @property
    def lent_bytes(self) -> int:
        return self._place_bytes[FramePlace.LENT]

    @property
    def free_bytes(self) -> int:
        return self.unframed_bytes + self._place_bytes[FramePlace.POOLED]

    @property
    def held_bytes(self) -> int:
        """What is reserved, and all frames that are neither lent nor pooled."""
        return self.reserved_bytes + self._framed_bytes - self.lent_bytes - self._place_bytes[FramePlace.POOLED]

    def reserve(self, size_bytes: int) -> None:
        invariant(0 <= size_bytes <= self.unframed_bytes, "only what is free can be reserved")
        self.reserved_bytes += size_bytes

    def unreserve(self, size_bytes: int) -> None:
        invariant(0 <= size_bytes <= self.reserved_bytes, "only what was reserved goes back")
        self.reserved_bytes -= size_bytes

    def create(self, frame: FrameId, size_bytes: int, ticket: TicketId) -> None:
        """Begin a frame out of capacity that was reserved for the ticket."""
        self.unreserve(size_bytes)
        begun = Frame(frame=frame, size_bytes=size_bytes, place=FramePlace.CREATING, ticket=ticket)
        self.frames[frame] = begun
        self._framed_bytes += size_bytes
        self._stand(begun)

    def created(self, frame: Frame) -> None:
        """Put a new frame into the hold it was made for, or the pool if that is gone."""
        invariant(frame.place is FramePlace.CREATING, "only a frame being made can be finished")
        self._lift(frame)
        frame.place = FramePlace.POOLED if frame.ticket is None else FramePlace.HELD
        self._stand(frame)

    def promise(self, frame: Frame, ticket: TicketId) -> None:
        """Set a frame that nobody has taken aside for a ticket: now, or as soon as it is back."""
        invariant(self.shelf_of(frame) is not None, "only a frame that nobody has taken can be promised")
        self._lift(frame)
        frame.ticket = ticket
        if frame.place is FramePlace.POOLED:
            frame.place = FramePlace.HELD
        self._stand(frame)

    def release(self, frame: Frame) -> None:
        """Undo `promise`."""
        invariant(frame.ticket is not None, "only a promised frame can be released")
        self._lift(frame)
        frame.ticket = None
        if frame.place is FramePlace.HELD:
            frame.place = FramePlace.POOLED
        self._stand(frame)

    def lend(self, frame: Frame, session: SessionId, lease: LeaseId, domain: Domain) -> bool:
        """Lend a frame that is in hand; tells whether it is dirty. After this it is its domain's for good."""
        invariant(frame.place is FramePlace.HELD, "only a frame in hand can be lent")
        invariant(frame.domain in (None, domain), "a frame never crosses domains uncleaned")
        dirty = frame.domain is not None
        self._lift(frame)
        frame.place, frame.ticket = FramePlace.LENT, None
        frame.domain, frame.session, frame.lease = domain, session, lease
        self._stand(frame)
        self.peak_lent_bytes = max(self.peak_lent_bytes, self.lent_bytes)
        return dirty

    def leave(self, frame: Frame) -> None:
        """Count a lent frame among those that are coming back."""
        invariant(frame.place is FramePlace.LENT and not frame.leaving, "only a lent frame can begin to leave")
        self._lift(frame)
        frame.leaving = True
        self._stand(frame)

    def stay(self, frame: Frame) -> None:
        """Undo `leave`; nobody may count on the frame any more."""
        invariant(frame.leaving and frame.ticket is None, "a promise is withdrawn before its frame stays")
        self._lift(frame)
        frame.leaving = False
        self._stand(frame)

    def come_back(self, frame: Frame) -> None:
        """Take a frame back from its session: into the hold it is promised to, or into the pool."""
        invariant(frame.place is FramePlace.LENT, "only a lent frame can come back")
        self._lift(frame)
        frame.session, frame.lease, frame.leaving = None, None, False
        frame.place = FramePlace.POOLED if frame.ticket is None else FramePlace.HELD
        self._stand(frame)

    def fence(self, frame: Frame) -> None:
        """Keep a frame of an ended process out of everybody's hands."""
        invariant(frame.place is FramePlace.LENT and frame.ticket is None, "only a lent frame can be fenced")
        self._lift(frame)
        frame.lease, frame.leaving, frame.place = None, False, FramePlace.FENCED
        self._stand(frame)

    def linger(self, frame: Frame) -> None:
        """Keep a frame out of everybody's hands that its owner has returned, and that readers map still."""
        invariant(frame.place is FramePlace.LENT and frame.ticket is None, "only a lent frame can linger")
        self._lift(frame)
        frame.session, frame.lease, frame.leaving = None, None, False
        frame.place = FramePlace.LINGERING
        self._stand(frame)

    def linger_no_more(self, frame: Frame) -> None:
        """Put a frame into the pool that the last of its readers has let go of."""
        invariant(frame.place is FramePlace.LINGERING, "only what lingers ends to")
        self._lift(frame)
        frame.place = FramePlace.POOLED
        self._stand(frame)

    def spoil(self, frame: Frame) -> None:
        """Note that a process may write to this frame that nobody has a hold of: it is nobody's as it is any more."""
        invariant(self.shelf_of(frame) is None, "only a frame that is in use is spoilt")
        frame.domain = SPOILT

    def destroy(self, frame: Frame) -> None:
        """Begin to destroy a frame that nobody maps; if it was promised, its capacity will be reserved."""
        places = (FramePlace.POOLED, FramePlace.HELD, FramePlace.LINGERING)
        invariant(frame.place in places, "only a frame that nobody maps can be destroyed")
        self._lift(frame)
        frame.place = FramePlace.DESTROYING
        self._stand(frame)

    def vanish(self, frame: Frame) -> None:
        """Forget a frame that is destroyed, or came never to be: its capacity is free, or reserved if it was
        promised.
        """
        places = (FramePlace.DESTROYING, FramePlace.CREATING, FramePlace.FENCED)
        invariant(frame.place in places, "only a frame out of use can vanish")
        self._lift(frame)
        del self.frames[frame.frame]
        self._framed_bytes -= frame.size_bytes
        if frame.ticket is not None:
            self.reserved_bytes += frame.size_bytes

    def _stand(self, frame: Frame) -> None:
        """Count a frame where it now is."""
        self._place_bytes[frame.place] += frame.size_bytes
        shelf = self.shelf_of(frame)
        if shelf is not None:
            shelf.put(frame)

    def _lift(self, frame: Frame) -> None:
        """Undo `_stand`, before anything about the frame changes."""
        self._place_bytes[frame.place] -= frame.size_bytes
        shelf = self.shelf_of(frame)
        if shelf is not None:
            shelf.take(frame)

    def shelf_of(self, frame: Frame) -> Shelf | None:
        """Return where a frame stands that nobody has taken."""
        if frame.ticket is not None:
            return None
        match frame.place:
            case FramePlace.POOLED:
                return self.pool
            case FramePlace.CREATING:
                return self.coming
            case FramePlace.LENT:
                return self.coming if frame.leaving else None
            case FramePlace.DESTROYING:
                return self.melting
            case FramePlace.HELD | FramePlace.FENCED | FramePlace.LINGERING:
                return None
