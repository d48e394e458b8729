"""Frames for readers on the wire: cut into batches, and never sent to a reader that is no more."""

import asyncio
import os
import socket

from tests.contract.benches import Heard, open_fds, run
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.host_frames import HostFrames
from vrambroker.broker.adapters.identity import identify
from vrambroker.broker.adapters.link import Link
from vrambroker.broker.adapters.workers import Workers
from vrambroker.broker.core.effects import Extent, SendReadGrant, SharedSlot
from vrambroker.broker.core.ids import (
    ArenaFileId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    LeaseId,
    ReaderId,
    SessionId,
    SlotId,
)

READER, SESSION, MIB = ReaderId(41), SessionId(1), 1 << 20


class NoArena:
    def create(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None: ...
    def destroy(self, file: ArenaFileId) -> None: ...
    def punch(self, extent: Extent) -> None: ...
    def fd_of(self, file: ArenaFileId) -> int | None: ...
    def close(self) -> None: ...


class Bench:
    """Frames of `host`, and one session whose end of the socket is read by the test."""

    def __init__(self, frames: int) -> None:
        self.frames = HostFrames(deliver=Heard().deliver, device_bytes=1 << 30)
        for number in range(1, frames + 1):
            self.frames.create(FrameId(number), 2 * MIB)
        self.workers = Workers(frames=self.frames, arena=NoArena())
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.setblocking(False)
        self.link = Link(
            connection=ConnectionId(1),
            peer_socket=ours,
            process=identify(ours),
            on_packet=lambda link, packet: None,
            on_closed=lambda link: None,
        )
        self.workers.bind(SESSION, self.link)

    def grant(self, frames: range) -> None:
        slots = tuple(
            SharedSlot(
                slot=SlotId(100 + number), frame=FrameId(number), offset_bytes=number * 2 * MIB, size_bytes=2 * MIB
            )
            for number in frames
        )
        self.workers.read_grant(
            SendReadGrant(session=SESSION, reader=READER, lease=LeaseId(7), writable=False, slots=slots)
        )

    def received(self) -> list[tuple[records.Record, list[int]]]:
        """Return what has come, and the inodes of what came with it."""
        found: list[tuple[records.Record, list[int]]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.peer, records.PACKET_BYTES_MAX, records.FDS_PER_PACKET_MAX)
            except BlockingIOError:
                return found
            found.append((records.decode(data, len(fds), records.FROM_DAEMON), [os.fstat(fd).st_ino for fd in fds]))
            for fd in fds:
                os.close(fd)

    def inode(self, frame: int) -> int:
        fd = self.frames.fd_of(FrameId(frame))
        assert fd is not None
        return os.fstat(fd).st_ino

    def close(self) -> None:
        self.link.close()
        self.peer.close()
        self.frames.close()


def slots_of(record: records.Record) -> list[int]:
    assert isinstance(record, records.ReadGrant)
    assert (record.reader, record.lease, record.writable) == (READER, 7, 0)
    return [slot.slot - 100 for slot in record.slots]


def test_frames_come_in_batches_and_each_with_its_slot() -> None:
    async def test() -> None:
        before = open_fds()
        bench = Bench(40)
        bench.grant(range(1, 41))
        sent = bench.received()
        assert [slots_of(record) for record, _ in sent] == [list(range(1, 17)), list(range(17, 33))]
        bench.link.taken(1)
        sent += bench.received()
        assert [number for record, _ in sent for number in slots_of(record)] == list(range(1, 41))
        assert [inode for _, inodes in sent for inode in inodes] == [bench.inode(number) for number in range(1, 41)]
        bench.close()
        await asyncio.sleep(0)
        assert open_fds() == before

    run(test())


def test_nothing_more_is_sent_to_a_reader_that_is_no_more() -> None:
    async def test() -> None:
        bench = Bench(40)
        bench.grant(range(1, 41))
        bench.received()
        bench.workers.end_reader(READER)
        bench.link.taken(1)
        bench.link.taken(2)
        assert bench.received() == []
        bench.workers.close_reader(SESSION, READER)
        bench.workers.export_settled(SESSION, ExportKey(bytes(16)))
        assert [type(record).__name__ for record, _ in bench.received()] == ["CloseReader", "ExportSettled"]
        bench.close()

    run(test())


def test_a_frame_on_its_way_out_is_left_out() -> None:
    async def test() -> None:
        bench = Bench(3)
        bench.frames.destroy(FrameId(2))
        bench.grant(range(1, 4))
        ((record, _),) = bench.received()
        assert slots_of(record) == [1, 3]
        bench.close()

    run(test())


def test_a_session_without_a_connection_is_sent_nothing() -> None:
    async def test() -> None:
        bench = Bench(1)
        bench.workers.unbind(ConnectionId(1))
        bench.grant(range(1, 2))
        assert bench.received() == []
        bench.close()

    run(test())
