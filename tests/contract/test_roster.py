"""The index of who is who: no session over fails to be forgotten, and no token outlives its process."""

import asyncio
import os
import subprocess

import pytest

from tests.contract.benches import open_fds, run
from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.roster import DEPARTED_MAX, SESSIONS_PER_PROCESS, Roster
from vrambroker.broker.core.effects import Attached
from vrambroker.broker.core.errors import PeerUnidentified, QuotaExceeded, UnknownSession
from vrambroker.broker.core.events import Event, Peer, ProcessEnded
from vrambroker.broker.core.ids import Domain, RequestId, SessionId


class Bench:
    """A roster, what it reported, and a process that lives until it is told."""

    def __init__(self) -> None:
        self.fds = open_fds()
        self.heard: list[Event] = []
        self.gone: list[SessionId] = []
        self.both_gone = asyncio.Event()
        self.roster = Roster(submit=self.heard.append, on_gone=self._gone)
        self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        peer = Peer(pid=self.child.pid, uid=os.geteuid(), gid=0, domain=Domain("d"))
        self.process = Process(peer=peer, pidfd=os.pidfd_open(self.child.pid))

    def _gone(self, session: SessionId) -> None:
        self.gone.append(session)
        if len(self.gone) == 2:
            self.both_gone.set()

    def attach(self, session: int, name: str = "name", token: bytes | None = None) -> bytes:
        """Take a session in; returns the token that it was made with."""
        made = Attached(session=SessionId(session), name=name, token=session.to_bytes(16))
        self.roster.attached(made, self.roster.enlist(self.process), RequestId("r"), token or made.token)
        return made.token

    def end_process(self) -> None:
        self.child.communicate()

    def close(self) -> None:
        self.end_process()
        self.roster.close()
        self.process.close()
        assert open_fds() == self.fds


def test_a_process_that_has_ended_is_nobody_even_before_the_loop_has_heard_of_it() -> None:
    async def test() -> None:
        bench = Bench()
        one, two = bench.attach(1, "one"), bench.attach(2, "two")
        operator = bytes(16)
        bench.roster.operator_came(operator, bench.process)
        assert bench.roster.member_of(one).name == "one"
        assert bench.roster.caller_of(operator).session is None
        bench.end_process()
        with pytest.raises(PeerUnidentified):
            bench.roster.member_of(one)
        for token in (two, operator):
            with pytest.raises(PeerUnidentified):
                bench.roster.caller_of(token)
            with pytest.raises(PeerUnidentified):
                bench.roster.leaver_of(token)
        assert bench.heard == [ProcessEnded(session=SessionId(1)), ProcessEnded(session=SessionId(2))]
        assert bench.gone == [1, 2]
        bench.close()

    run(test())


def test_the_end_of_a_process_is_reported_once_for_each_session() -> None:
    async def test() -> None:
        bench = Bench()
        bench.attach(1, "one")
        bench.attach(2, "two")
        bench.end_process()
        await bench.both_gone.wait()
        assert {event.session for event in bench.heard if isinstance(event, ProcessEnded)} == {1, 2}
        bench.close()

    run(test())


def test_only_a_goodbye_is_remembered_and_of_many_the_latest() -> None:
    async def test() -> None:
        bench = Bench()
        first = bench.attach(1)
        bench.roster.departed(SessionId(1))
        assert bench.roster.leaver_of(first).session == 1
        with pytest.raises(PeerUnidentified):
            bench.roster.caller_of(first)
        forgotten = bench.attach(2)
        bench.roster.forget(SessionId(2))
        with pytest.raises(PeerUnidentified):
            bench.roster.leaver_of(forgotten)
        for session in range(3, 3 + DEPARTED_MAX):
            bench.attach(session)
            bench.roster.departed(SessionId(session))
        with pytest.raises(PeerUnidentified):
            bench.roster.leaver_of(first)
        bench.close()

    run(test())


def test_a_repeated_attach_adds_one_token_and_none_to_a_session_that_is_over() -> None:
    async def test() -> None:
        bench = Bench()
        first = bench.attach(1)
        for repeat in range(2):
            token = bytes([repeat] * 16)
            bench.attach(1, token=token)
            assert bench.roster.caller_of(token).session == bench.roster.caller_of(first).session == 1
        with pytest.raises(PeerUnidentified):
            bench.roster.caller_of(bytes([0] * 16))
        bench.roster.forget(SessionId(1))
        with pytest.raises(PeerUnidentified):
            bench.roster.caller_of(bytes([1] * 16))
        bench.attach(2, "name")
        with pytest.raises(UnknownSession):
            bench.attach(1, "name")
        assert bench.roster.named("name") == 2
        bench.close()

    run(test())


def test_a_process_has_only_so_many_sessions_at_a_time() -> None:
    async def test() -> None:
        bench = Bench()
        for session in range(1, SESSIONS_PER_PROCESS + 1):
            bench.attach(session, f"{session}")
        with pytest.raises(QuotaExceeded):
            bench.roster.enlist(bench.process)
        bench.roster.forget(SessionId(7))
        bench.attach(SESSIONS_PER_PROCESS + 1)
        bench.close()

    run(test())
