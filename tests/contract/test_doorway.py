"""The door of the handle socket: whoever gets no further hears why, and nobody is kept waiting for them."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.contract.benches import open_fds, run
from tests.process.daemon.raw_client import Gone, receive
from vrambroker.broker.adapters import doorway, records
from vrambroker.broker.adapters.doorway import CONNECTIONS_PER_PROCESS, REFUSED_MAX, Doorway
from vrambroker.broker.adapters.fd_reserve import FdReserve
from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.quota import Quota
from vrambroker.broker.core.errors import QuotaExceeded
from vrambroker.broker.core.events import Peer
from vrambroker.broker.core.ids import Domain


class Interrupted(socket.socket):
    """A listener on which a connection is given up again before it is accepted, each second time."""

    turns = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.turns += 1
        if self.turns % 2:
            raise ConnectionAbortedError
        return super().accept()


class Bench:
    def __init__(self, path: Path, listener: type[socket.socket] = socket.socket) -> None:
        self.path = path / "s"
        listening = listener(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(str(self.path))
        listening.listen(100)
        self.inside: list[tuple[socket.socket, Process]] = []
        self.outside: list[socket.socket] = []
        self.came = asyncio.Event()
        self.reserve = FdReserve()
        self.door = Doorway(listener=listening, reserve=self.reserve, admit=self._admit)

    def _admit(self, peer_socket: socket.socket, process: Process) -> None:
        self.inside.append((peer_socket, process))
        self.came.set()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        connection.connect(str(self.path))
        self.outside.append(connection)
        return connection

    async def until_inside(self, count: int) -> None:
        while len(self.inside) < count:
            self.came.clear()
            await self.came.wait()

    async def answer(self, connection: socket.socket) -> records.Record:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(connection.fileno(), readable.set)
        await readable.wait()
        loop.remove_reader(connection.fileno())
        return receive(connection).record

    def leave(self) -> None:
        peer_socket, process = self.inside.pop()
        peer_socket.close()
        process.close()
        self.door.left(process.peer)

    def close(self) -> None:
        while self.inside:
            self.leave()
        self.door.close()
        self.reserve.close()
        for connection in self.outside:
            connection.close()


Test = Callable[[Bench], Coroutine[Any, Any, None]]
RunWith = Callable[..., None]


@pytest.fixture
def with_bench(tmp_path: Path) -> RunWith:
    def run_it(test: Test, listener: type[socket.socket] = socket.socket) -> None:
        async def whole() -> None:
            fds = open_fds()
            bench = Bench(tmp_path, listener)
            await test(bench)
            bench.close()
            assert open_fds() == fds

        run(whole())

    return run_it


async def _refused(bench: Bench) -> records.Error:
    """Return what a newcomer is answered when it says something."""
    connection = bench.connect()
    connection.send(b"anything")
    answer = await bench.answer(connection)
    assert isinstance(answer, records.Error)
    with pytest.raises(Gone):
        await bench.answer(connection)
    return answer


def test_a_process_has_only_so_many_connections(with_bench: RunWith) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(CONNECTIONS_PER_PROCESS):
            bench.connect()
        await bench.until_inside(CONNECTIONS_PER_PROCESS)
        assert "connections_per_process" in str((await _refused(bench)).detail)
        bench.leave()
        bench.connect()
        await bench.until_inside(CONNECTIONS_PER_PROCESS)

    with_bench(test)


def test_there_are_only_so_many_connections_in_all(with_bench: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "CONNECTIONS_MAX", 3)

    async def test(bench: Bench) -> None:
        for _ in range(3):
            bench.connect()
        await bench.until_inside(3)
        assert (await _refused(bench)).error == "QuotaExceeded"
        bench.leave()
        bench.connect()
        await bench.until_inside(3)

    with_bench(test)


def test_of_very_many_who_are_refused_the_oldest_are_closed_unheard(
    with_bench: RunWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "CONNECTIONS_MAX", 0)

    async def test(bench: Bench) -> None:
        silent = [bench.connect() for _ in range(REFUSED_MAX + 1)]
        with pytest.raises(Gone):
            await bench.answer(silent[0])
        silent[1].send(b"anything")
        assert isinstance(await bench.answer(silent[1]), records.Error)

    with_bench(test)


def test_who_is_refused_and_says_nothing_is_closed_in_time(
    with_bench: RunWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "CONNECTIONS_MAX", 0)
    monkeypatch.setattr(doorway, "HELLO_WITHIN_S", 0.01)

    async def test(bench: Bench) -> None:
        with pytest.raises(Gone):
            await bench.answer(bench.connect())

    with_bench(test)


def test_a_connection_given_up_in_the_queue_delays_nobody(
    with_bench: RunWith, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(5):
            bench.connect()
        await bench.until_inside(5)
        assert not caplog.records

    with_bench(test, Interrupted)


def test_other_users_are_bounded_together_root_and_our_own_only_by_process() -> None:
    quota = Quota("calls", per_process=2, per_user=3)

    def peer(pid: int, uid: int) -> Peer:
        return Peer(pid=pid, uid=uid, gid=0, domain=Domain("d"))

    def take(pid: int, uid: int) -> None:
        quota.require(peer(pid, uid))
        quota.take(peer(pid, uid))

    stranger = os.geteuid() + 1_000
    for pid in (1, 1, 2):
        take(pid, stranger)
    for pid in (1, 2, 3):
        with pytest.raises(QuotaExceeded) as caught:
            take(pid, stranger)
        assert caught.value.limit == ("calls_per_process" if pid == 1 else "calls_per_user")
    quota.give(peer(1, stranger))
    take(3, stranger)
    for pid in range(10):
        take(pid, 0)
        take(pid, os.geteuid())
