"""The books about the arena: a file is sent before it is named, once, and destroyed when nobody may have it."""

import array
import fcntl
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from tests.contract.benches import DEVICE_BYTES, open_fds, run
from tests.contract.fake_frames import FakeFrames
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.host_memory import sealed_memfd
from vrambroker.broker.adapters.identity import identify
from vrambroker.broker.adapters.link import Link
from vrambroker.broker.adapters.workers import RECALLED_PER_PACKET, Workers
from vrambroker.broker.core.effects import CopiedSlot, Extent, RecalledSlot, SendCopy, SendRecall
from vrambroker.broker.core.ids import ArenaFileId, ConnectionId, Domain, LeaseId, OrderId, SessionId, SlotId

FILE = ArenaFileId(9)
SIZE_BYTES = 4 << 20


class FakeArena:
    """One file that is there from the start, and a note of what was destroyed."""

    def __init__(self) -> None:
        self.fds = {FILE: sealed_memfd("vrambroker-test", SIZE_BYTES, fcntl.F_SEAL_SHRINK)}
        self.destroyed: list[ArenaFileId] = []

    def fd_of(self, file: ArenaFileId) -> int | None:
        return self.fds.get(file)

    def destroy(self, file: ArenaFileId) -> None:
        os.close(self.fds.pop(file))
        self.destroyed.append(file)

    def create(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None: ...
    def punch(self, extent: Extent) -> None: ...
    def close(self) -> None: ...


class Bench:
    """Sessions on socket pairs; the other ends are read by the test."""

    def __init__(self) -> None:
        self.arena = FakeArena()
        frames = FakeFrames(deliver=lambda event: None, device_bytes=DEVICE_BYTES)
        self.workers = Workers(frames=frames, arena=self.arena)
        self._links: list[Link] = []
        self._peers: list[socket.socket] = []

    def connect(self, session: int) -> tuple[Link, socket.socket]:
        """Give a session a (new) connection."""
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.setblocking(False)
        link = Link(
            connection=ConnectionId(len(self._links) + 1),
            peer_socket=ours,
            process=identify(ours),
            on_packet=lambda link, packet: None,
            on_closed=lambda link: None,
        )
        self._links.append(link)
        self._peers.append(peer)
        self.workers.bind(SessionId(session), link)
        return link, peer

    def recall(self, session: int, slots: int = 1) -> None:
        """Order slots to be parked in the file."""
        recalled = tuple(
            RecalledSlot(slot=SlotId(number), park=Extent(file=FILE, offset_bytes=0, size_bytes=2 << 20))
            for number in range(1, slots + 1)
        )
        self.workers.recall(SendRecall(session=SessionId(session), lease=LeaseId(1), slots=recalled))

    def copy(self, session: int) -> None:
        """Order a slot to be copied to the file."""
        slots = (CopiedSlot(slot=SlotId(1), to=Extent(file=FILE, offset_bytes=0, size_bytes=2 << 20)),)
        self.workers.copy(SendCopy(session=SessionId(session), order=OrderId(5), lease=LeaseId(1), slots=slots))

    def close(self) -> None:
        for link in self._links:
            link.close()
        for peer in self._peers:
            peer.close()
        for fd in self.arena.fds.values():
            os.close(fd)


def _received(peer: socket.socket) -> list[records.Record]:
    found: list[records.Record] = []
    while True:
        try:
            data, control, _, _ = peer.recvmsg(records.PACKET_BYTES_MAX, 4096, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return found
        if not data:
            return found
        fds = array.array("i")
        for _, _, rights in control:
            fds.frombytes(rights)
        for fd in fds:
            os.close(fd)
        found.append(records.decode(data, len(fds), records.FROM_DAEMON))


def _kinds(peer: socket.socket) -> list[str]:
    return [type(record).__name__ for record in _received(peer)]


def _with_bench(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        fds = open_fds()
        bench = Bench()
        await test(bench)
        bench.close()
        assert open_fds() == fds

    run(whole())


def test_an_order_to_copy_comes_after_the_file_that_it_names() -> None:
    async def test(bench: Bench) -> None:
        bench.copy(1)
        _, peer = bench.connect(1)
        bench.copy(1)
        bench.copy(1)
        sent = _received(peer)
        assert [type(record).__name__ for record in sent] == ["ArenaFile", "Copy", "Copy"]
        assert sent[1] == records.Copy(order=5, lease=1, slots=(records.CopySlot(slot=1, file=FILE, offset_bytes=0),))

    _with_bench(test)


def test_a_file_is_sent_before_it_is_named_and_only_once() -> None:
    async def test(bench: Bench) -> None:
        _, peer = bench.connect(1)
        bench.recall(1)
        bench.recall(1)
        sent = _received(peer)
        assert sent[0] == records.ArenaFile(batch=1, file=FILE, size_bytes=SIZE_BYTES)
        assert [type(record) for record in sent[1:]] == [records.Recall, records.Recall]

    _with_bench(test)


def test_a_long_recall_is_cut_into_packets() -> None:
    async def test(bench: Bench) -> None:
        _, peer = bench.connect(1)
        bench.recall(1, slots=2 * RECALLED_PER_PACKET + 1)
        lengths = [len(record.slots) for record in _received(peer) if isinstance(record, records.Recall)]
        assert lengths == [RECALLED_PER_PACKET, RECALLED_PER_PACKET, 1]

    _with_bench(test)


def test_a_file_is_sent_again_over_a_new_connection_unless_it_was_taken() -> None:
    async def test(bench: Bench) -> None:
        bench.connect(1)
        bench.recall(1)
        second, peer = bench.connect(1)
        bench.recall(1)
        assert _kinds(peer) == ["ArenaFile", "Recall"]
        second.taken(1)
        _, peer = bench.connect(1)
        bench.recall(1)
        assert _kinds(peer) == ["Recall"]

    _with_bench(test)


def test_a_file_that_was_offered_is_not_sent_again_and_is_let_go_of() -> None:
    async def test(bench: Bench) -> None:
        link, peer = bench.connect(1)
        for _ in range(2):
            bench.workers.offer_arena(SessionId(1), FILE)
        bench.workers.offer_arena(SessionId(2), FILE)
        link.taken(1)
        bench.recall(1)
        bench.workers.forget_arena(FILE)
        bench.workers.offer_arena(SessionId(1), FILE)
        assert _kinds(peer) == ["ArenaFile", "Recall", "ArenaGone"]
        assert bench.arena.destroyed == []
        link.taken(2)
        assert bench.arena.destroyed == [FILE]

    _with_bench(test)


def test_a_file_that_nobody_has_is_destroyed_at_once() -> None:
    async def test(bench: Bench) -> None:
        bench.connect(1)
        bench.workers.forget_arena(FILE)
        assert bench.arena.destroyed == [FILE]

    _with_bench(test)


def test_a_file_is_destroyed_when_the_last_has_let_go() -> None:
    async def test(bench: Bench) -> None:
        one, first_peer = bench.connect(1)
        two, second_peer = bench.connect(2)
        for session in (1, 2):
            bench.recall(session)
        bench.workers.forget_arena(FILE)
        assert _kinds(first_peer) == _kinds(second_peer) == ["ArenaFile", "Recall", "ArenaGone"]
        one.taken(2)
        assert bench.arena.destroyed == []
        two.taken(2)
        assert bench.arena.destroyed == [FILE]

    _with_bench(test)


def test_who_was_away_is_told_to_let_go_when_it_is_back() -> None:
    async def test(bench: Bench) -> None:
        link, _ = bench.connect(1)
        bench.recall(1)
        link.close()
        bench.workers.unbind(link.connection)
        bench.workers.forget_arena(FILE)
        assert bench.arena.destroyed == []
        back, peer = bench.connect(1)
        assert _kinds(peer) == ["ArenaGone"]
        back.taken(1)
        assert bench.arena.destroyed == [FILE]

    _with_bench(test)


def test_a_session_that_is_over_has_let_go() -> None:
    async def test(bench: Bench) -> None:
        bench.connect(1)
        bench.recall(1)
        bench.workers.forget_arena(FILE)
        assert bench.arena.destroyed == []
        bench.workers.gone(SessionId(1))
        assert bench.arena.destroyed == [FILE]

    _with_bench(test)


def test_an_order_to_nobody_is_dropped() -> None:
    async def test(bench: Bench) -> None:
        link, peer = bench.connect(1)
        bench.workers.unbind(link.connection)
        bench.recall(1)
        bench.workers.draining(SessionId(1))
        bench.workers.draining(SessionId(2))
        assert _kinds(peer) == []

    _with_bench(test)
