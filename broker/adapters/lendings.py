"""What the handle socket sends with fds, or wants acknowledged: grants, arena files, and files to let go of."""

from collections.abc import Callable

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.link import Packet
from vrambroker.broker.core.effects import GrantedSlot, SendGrant, SendReadGrant, SharedSlot
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import ArenaFileId, FrameId, ReaderId

CONTENTS_ON_WIRE = {Contents.KEEP: 1, Contents.DROP: 2, Contents.ZERO: 3}
CONTENTS_OF_WIRE = {number: contents for contents, number in CONTENTS_ON_WIRE.items()}


class UnsentFrames:
    """Which grant still has to send which frame.

    A slot can be returned before its grant was sent, and its frame be lent to somebody else: the older grant must not
    send it any more.
    """

    def __init__(self) -> None:
        self._grants: dict[FrameId, Grant] = {}

    def add(self, grant: "Grant") -> None:
        """Take note of a new grant; it takes its frames over from any other."""
        for slot in grant.unsent():
            older = self._grants.get(slot.frame)
            if older is not None:
                older.drop(slot.frame)
            self._grants[slot.frame] = grant

    def remove(self, grant: "Grant", frame: FrameId) -> None:
        """Take note that a grant has sent a frame, or never will."""
        if self._grants.get(frame) is grant:
            del self._grants[frame]


class Grant:
    """Frames for the slots of one lease, at most sixteen a packet. Frames that are gone meanwhile are left out."""

    def __init__(self, order: SendGrant, fd_of: Callable[[FrameId], int | None], unsent: UnsentFrames) -> None:
        self._order = order
        self._fd_of = fd_of
        self._books = unsent
        self._slots: dict[FrameId, GrantedSlot] = {slot.frame: slot for slot in order.slots}
        self._under_way: tuple[FrameId, ...] = ()
        unsent.add(self)

    def unsent(self) -> tuple[GrantedSlot, ...]:
        """Return the slots whose frames were not sent yet."""
        return tuple(self._slots.values())

    def drop(self, frame: FrameId) -> None:
        """Send this frame no more."""
        self._slots.pop(frame, None)

    def next_packet(self, batch: int) -> Packet | None:
        """Return the next slots with their fds."""
        slots: list[GrantedSlot] = []
        fds: list[int] = []
        gone: list[FrameId] = []
        for slot in self._slots.values():
            fd = self._fd_of(slot.frame)
            if fd is None:
                gone.append(slot.frame)
                continue
            slots.append(slot)
            fds.append(fd)
            if len(fds) == records.FDS_PER_PACKET_MAX:
                break
        for frame in gone:
            self._forget(frame)
        if not fds:
            return None
        self._under_way = tuple(slot.frame for slot in slots)
        record = records.Grant(
            batch=batch,
            lease=self._order.lease,
            contents=CONTENTS_ON_WIRE[self._order.contents],
            tag=self._order.tag,
            slots=tuple(_on_wire(slot) for slot in slots),
        )
        return Packet(data=records.encode(record, len(fds)), fds=tuple(fds))

    def sent(self, batch: int) -> None:
        """Go on to the next slots."""
        for frame in self._under_way:
            self._forget(frame)

    def taken(self, batch: int) -> None:
        """Nothing: `ARRIVED` says more."""

    def dropped(self) -> None:
        """Leave the rest to the core, which sends it anew when the session is back."""
        for frame in tuple(self._slots):
            self._forget(frame)

    def _forget(self, frame: FrameId) -> None:
        self._slots.pop(frame, None)
        self._books.remove(self, frame)


class ReadGrant:
    """Frames for a reader, at most sixteen a packet; none any more once the reader is no more."""

    def __init__(self, order: SendReadGrant, fd_of: Callable[[FrameId], int | None]) -> None:
        self._order = order
        self._fd_of = fd_of
        self._slots: list[SharedSlot] = list(order.slots)
        self._under_way = 0

    @property
    def reader(self) -> ReaderId:
        return self._order.reader

    def next_packet(self, batch: int) -> Packet | None:
        """Return the next slots with their fds; of a frame that is on its way out there is none."""
        there = [(slot, self._fd_of(slot.frame)) for slot in self._slots]
        self._slots = [slot for slot, fd in there if fd is not None]
        fds = [fd for _, fd in there if fd is not None][: records.FDS_PER_PACKET_MAX]
        if not fds:
            return None
        self._under_way = len(fds)
        record = records.ReadGrant(
            batch=batch,
            reader=self._order.reader,
            writable=int(self._order.writable),
            lease=self._order.lease,
            slots=tuple(
                records.SharedSlot(slot=slot.slot, offset_bytes=slot.offset_bytes, size_bytes=slot.size_bytes)
                for slot in self._slots[: len(fds)]
            ),
        )
        return Packet(data=records.encode(record, len(fds)), fds=tuple(fds))

    def sent(self, batch: int) -> None:
        """Go on to the next slots."""
        del self._slots[: self._under_way]

    def end(self) -> None:
        """Send nothing more."""
        self._slots.clear()

    def taken(self, batch: int) -> None:
        """Nothing: what is mapped is known when the read is over."""

    def dropped(self) -> None:
        """Leave the rest to the core, which sends it anew when the session is back."""
        self.end()


class OneRecord:
    """One record that names a file of the arena, with the file's fd or without, acknowledged once."""

    def __init__(
        self,
        make: Callable[[int], records.Record],
        fd: Callable[[], int | None] | None,
        on_taken: Callable[[], None],
    ) -> None:
        self._make = make
        self._fd = fd
        self._on_taken = on_taken
        self._sent = False

    def next_packet(self, batch: int) -> Packet | None:
        """Return the packet, once; none if the file is gone."""
        fd = self._fd() if self._fd is not None else None
        if self._sent or (self._fd is not None and fd is None):
            return None
        fds = () if fd is None else (fd,)
        return Packet(data=records.encode(self._make(batch), len(fds)), fds=fds)

    def sent(self, batch: int) -> None:
        """Note that it is out."""
        self._sent = True

    def taken(self, batch: int) -> None:
        """Tell that the peer has it."""
        self._on_taken()

    def dropped(self) -> None:
        """Nothing: the session's books say what it was sent and has not taken."""


def arena_file(
    file: ArenaFileId, size_bytes: int, fd_of: Callable[[ArenaFileId], int | None], on_taken: Callable[[], None]
) -> OneRecord:
    """Return the lending of an arena file."""

    def make(batch: int) -> records.Record:
        return records.ArenaFile(batch=batch, file=file, size_bytes=size_bytes)

    return OneRecord(make, lambda: fd_of(file), on_taken)


def arena_gone(file: ArenaFileId, on_taken: Callable[[], None]) -> OneRecord:
    """Return the order to let go of an arena file."""

    def make(batch: int) -> records.Record:
        return records.ArenaGone(batch=batch, file=file)

    return OneRecord(make, None, on_taken)


def _on_wire(slot: GrantedSlot) -> records.GrantSlot:
    flags = (records.SLOT_DIRTY if slot.dirty else 0) | (records.SLOT_RESTORE if slot.restore is not None else 0)
    return records.GrantSlot(
        slot=slot.slot,
        size_bytes=slot.size_bytes,
        flags=flags,
        file=slot.restore.file if slot.restore is not None else 0,
        offset_bytes=slot.restore.offset_bytes if slot.restore is not None else 0,
    )
