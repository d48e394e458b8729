"""A connection's queue: order kept, two packets with fds under way, a bound on everything, and no fd kept or leaked."""

import array
import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.contract.benches import open_fds, run
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.identity import Process, identify
from vrambroker.broker.adapters.lendings import Grant, OneRecord, UnsentFrames
from vrambroker.broker.adapters.link import QUEUE_MAX, UNTAKEN_MAX, Link
from vrambroker.broker.core.effects import GrantedSlot, SendGrant
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import ConnectionId, FrameId, LeaseId, SessionId, SlotId

FRAME_BYTES = 2 << 20


class Bench:
    """A link and the other end of its socket. Frames are all the same file; those in `gone` have no fd any more."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.setblocking(False)
        self.packets: list[bytes] = []
        self.closed = 0
        self.has_closed = asyncio.Event()
        self.gone: set[FrameId] = set()
        self.unsent = UnsentFrames()
        self.memory = os.memfd_create("vrambroker-test", os.MFD_CLOEXEC)
        self.link = Link(
            connection=ConnectionId(1),
            peer_socket=ours,
            process=identify(ours),
            on_packet=lambda link, packet: self.packets.append(packet),
            on_closed=self._count_closed,
        )

    def _count_closed(self, link: Link) -> None:
        self.closed += 1
        self.has_closed.set()

    def grant(self, *frames: int, lease: int = 1) -> Grant:
        slots = tuple(
            GrantedSlot(
                slot=SlotId(1_000 * lease + frame),
                frame=FrameId(frame),
                size_bytes=FRAME_BYTES,
                dirty=False,
                restore=None,
            )
            for frame in frames
        )
        order = SendGrant(
            session=SessionId(1), lease=LeaseId(lease), tag="weights", contents=Contents.KEEP, slots=slots
        )
        return Grant(order, lambda frame: None if frame in self.gone else self.memory, self.unsent)

    def received(self) -> list[tuple[records.Record, int]]:
        """Return what has arrived, with the number of fds, which are closed."""
        found: list[tuple[records.Record, int]] = []
        while True:
            try:
                data, control, flags, _ = self.peer.recvmsg(records.PACKET_BYTES_MAX, 4096, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return found
            if not data:
                return found
            assert not flags & socket.MSG_CTRUNC
            fds = array.array("i")
            for _, _, rights in control:
                fds.frombytes(rights)
            for fd in fds:
                os.close(fd)
            found.append((records.decode(data, len(fds), records.FROM_DAEMON), len(fds)))

    def granted(self) -> list[tuple[int, list[int]]]:
        """Return the batches that have arrived, with the frames' slots."""
        return [
            (record.batch, [slot.slot for slot in record.slots])
            for record, _ in self.received()
            if isinstance(record, records.Grant)
        ]

    def close(self) -> None:
        self.link.close()
        self.peer.close()
        os.close(self.memory)


def _with_bench(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        fds = open_fds()
        bench = Bench()
        await test(bench)
        bench.close()
        assert open_fds() == fds

    run(whole())


def _child() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE)


def _draining() -> bytes:
    return records.encode(records.Draining())


def test_a_large_grant_goes_out_in_batches_as_they_are_taken() -> None:
    async def test(bench: Bench) -> None:
        bench.link.send(bench.grant(*range(1, 41)))
        first = bench.granted()
        assert [(batch, len(slots)) for batch, slots in first] == [(1, 16), (2, 16)]
        assert len(first) == UNTAKEN_MAX
        bench.link.taken(2)
        (last,) = bench.granted()
        assert (last[0], len(last[1])) == (3, 8)
        slots = [slot for _, slots in [*first, last] for slot in slots]
        assert slots == [1_000 + frame for frame in range(1, 41)]

    _with_bench(test)


def test_nothing_overtakes_a_grant_that_waits() -> None:
    async def test(bench: Bench) -> None:
        for number in range(3):
            bench.link.send(bench.grant(number + 1, lease=number + 1))
        bench.link.send(_draining())
        assert [type(record) for record, _ in bench.received()] == [records.Grant, records.Grant]
        bench.link.taken(1)
        assert [type(record) for record, _ in bench.received()] == [records.Grant, records.Draining]

    _with_bench(test)


def test_what_carries_no_fd_needs_no_room_in_the_window() -> None:
    async def test(bench: Bench) -> None:
        told: list[str] = []
        bench.link.send(bench.grant(*range(1, 33)))
        gone = OneRecord(lambda batch: records.ArenaGone(batch=batch, file=9), None, lambda: told.append("let go"))
        bench.received()
        bench.link.send(gone)
        assert [record for record, _ in bench.received()] == [records.ArenaGone(batch=3, file=9)]
        bench.link.taken(3)
        assert told == ["let go"]

    _with_bench(test)


def test_a_frame_that_is_gone_is_left_out() -> None:
    async def test(bench: Bench) -> None:
        bench.link.send(bench.grant(*range(1, 33)))
        bench.link.send(bench.grant(50, 51, 52, lease=2))
        bench.received()
        bench.gone = {FrameId(50), FrameId(52)}
        bench.link.taken(1)
        assert [slots for _, slots in bench.granted()] == [[2_051]]

    _with_bench(test)


def test_a_frame_lent_anew_is_not_sent_by_the_older_grant() -> None:
    async def test(bench: Bench) -> None:
        bench.link.send(bench.grant(*range(1, 33)))
        bench.received()
        bench.link.send(bench.grant(60, 61, lease=2))
        bench.link.send(bench.grant(61, lease=3))
        bench.link.taken(1)
        bench.link.taken(2)
        assert [slots for _, slots in bench.granted()] == [[2_060], [3_061]]

    _with_bench(test)


def test_an_acknowledgement_of_nothing_means_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.link.send(bench.grant(*range(1, 49)))
        bench.received()
        for batch in (0, 3, 99, 1 << 63):
            bench.link.taken(batch)
        assert bench.granted() == []
        bench.link.taken(1)
        bench.link.taken(1)
        assert [batch for batch, _ in bench.granted()] == [3]

    _with_bench(test)


def test_a_peer_that_does_not_read_is_cut_off_in_the_end() -> None:
    async def test(bench: Bench) -> None:
        sent = 0
        while not bench.link.closed:
            bench.link.send(_draining())
            sent += 1
        assert QUEUE_MAX < sent < QUEUE_MAX + 2_000
        assert bench.closed == 1
        bench.link.send(_draining())

    _with_bench(test)


def test_a_full_socket_is_filled_again_when_there_is_room() -> None:
    async def test(bench: Bench) -> None:
        numbers = range(QUEUE_MAX // 2)
        for number in numbers:
            bench.link.send(records.encode(records.LeaseState(lease=number, paused=0)))
        heard: list[records.Record] = []
        while len(heard) < len(numbers):
            heard.extend(record for record, _ in bench.received())
            await asyncio.sleep(0)
        assert heard == [records.LeaseState(lease=number, paused=0) for number in numbers]

    _with_bench(test)


def test_closing_forgets_what_was_not_sent() -> None:
    async def test(bench: Bench) -> None:
        grant = bench.grant(*range(1, 41))
        bench.link.send(grant)
        bench.link.close()
        assert grant.unsent() == ()
        assert bench.closed == 1

    _with_bench(test)


@pytest.mark.parametrize("fds", [1, 16, 253])
def test_fds_from_the_peer_are_never_received(fds: int) -> None:
    async def test(bench: Bench) -> None:
        before = open_fds()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bench.memory] * fds))
        bench.peer.sendmsg([b"x" * 8], [rights])
        await bench.has_closed.wait()
        assert bench.packets == []
        # The link's own socket and pidfd are closed, and nothing came in their place.
        assert open_fds() == before - 2

    _with_bench(test)


def test_the_end_of_its_process_closes_the_link_even_if_a_child_holds_the_other_end() -> None:
    async def test(bench: Bench) -> None:
        with _child() as child:
            ours, kept_open = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peer = bench.link.process.peer
            link = Link(
                connection=ConnectionId(2),
                peer_socket=ours,
                process=Process(peer=peer, pidfd=os.pidfd_open(child.pid)),
                on_packet=lambda link, packet: None,
                on_closed=lambda link: bench.has_closed.set(),
            )
            child.communicate()
            await bench.has_closed.wait()
            assert link.closed
            assert not bench.link.closed
            kept_open.close()

    _with_bench(test)


def test_a_closed_peer_closes_the_link_once() -> None:
    async def test(bench: Bench) -> None:
        bench.peer.send(_draining())
        bench.peer.shutdown(socket.SHUT_RDWR)
        await bench.has_closed.wait()
        assert (bench.closed, bench.packets) == (1, [_draining()])

    _with_bench(test)
