"""The handle socket's server: accepts processes, tells who they are, and passes on what they ask and report.

What the core orders goes out through `workers.py`; a connection's own queue is `link.py`. Nothing here decides.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.calls import Calls, Tell
from vrambroker.broker.adapters.doorway import HELLO_WITHIN_S, Doorway
from vrambroker.broker.adapters.fd_reserve import FdReserve
from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.journal import Journal
from vrambroker.broker.adapters.link import Link
from vrambroker.broker.adapters.requests import (
    Report,
    Request,
    check_request,
    event_of_report,
    event_of_request,
    packet_of_error,
    packet_of_outcome,
)
from vrambroker.broker.adapters.roster import Roster
from vrambroker.broker.adapters.workers import Workers
from vrambroker.broker.core.effects import Attached, Outcome
from vrambroker.broker.core.errors import (
    BrokerError,
    InvalidArgument,
    PeerUnidentified,
    UnknownSession,
    VersionMismatch,
)
from vrambroker.broker.core.events import Attach, Call, ConnectionLost, Detach, Peer, Reattach
from vrambroker.broker.core.ids import ConnectionId, Instant, RequestId, SessionId
from vrambroker.broker.ports import Deliver

NO_TOKEN = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What every `WELCOME` tells."""

    device: str
    version: str
    capacity_bytes: int
    frame_sizes_bytes: tuple[int, ...]


class HandleServer:
    """Serves a listening socket, which it owns. `may_connect` tells whether a peer has the right to."""

    def __init__(
        self,
        *,
        listener: socket.socket,
        reserve: FdReserve,
        journal: Journal,
        greeting: Greeting,
        may_connect: Callable[[Peer], bool],
        roster: Roster,
        workers: Workers,
        calls: Calls,
        submit: Deliver,
        now: Callable[[], Instant],
    ) -> None:
        self._journal = journal
        self._greeting = greeting
        self._may_connect = may_connect
        self._roster = roster
        self._workers = workers
        self._calls = calls
        self._submit = submit
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._links: dict[ConnectionId, Link] = {}
        self._silent: dict[ConnectionId, asyncio.TimerHandle] = {}
        self._operators: dict[ConnectionId, bytes] = {}
        self._last_connection = 0
        self._doorway = Doorway(listener=listener, reserve=reserve, admit=self._take_in)

    def close(self) -> None:
        """Close the listener and every connection."""
        self._doorway.close()
        for link in tuple(self._links.values()):
            link.close()

    def _take_in(self, peer_socket: socket.socket, process: Process) -> None:
        self._last_connection += 1
        connection = ConnectionId(self._last_connection)
        link = Link(
            connection=connection,
            peer_socket=peer_socket,
            process=process,
            on_packet=self._received,
            on_closed=self._closed,
        )
        self._links[connection] = link
        self._silent[connection] = self._loop.call_later(HELLO_WITHIN_S, link.close)

    def _closed(self, link: Link) -> None:
        del self._links[link.connection]
        silent = self._silent.pop(link.connection, None)
        if silent is not None:
            silent.cancel()
        token = self._operators.pop(link.connection, None)
        if token is not None:
            self._roster.operator_left(token)
        session = self._workers.unbind(link.connection)
        if session is not None:
            self._lost(link, session)
        self._doorway.left(link.process.peer)

    def _lost(self, link: Link, session: SessionId) -> None:
        """Report a session's lost connection; one whose token nobody has got can never be used again, so it ends."""
        self._submit(ConnectionLost(session=session, connection=link.connection))
        if self._roster.is_unheard(session):
            waiter = Tell(on_reply=lambda _: self._roster.forget(session), on_refusal=lambda _: None)
            request = RequestId(f"lost:{link.connection}")
            call = Call(call=self._calls.open(waiter), actor=link.process.peer, request=request)
            self._submit(Detach(call=call, session=session))

    def _received(self, link: Link, packet: bytes) -> None:
        try:
            record = records.decode(packet, 0, records.FROM_CLIENT)
        except records.BadRecord as error:
            self._cut_off(link, str(error))
            return
        session = self._workers.session_on(link.connection)
        if session is not None:
            self._roster.heard(session)
        match record:
            case records.Hello() if link.connection in self._silent:
                self._silent.pop(link.connection).cancel()
                self._greet(link, record)
            case records.Taken() if session is not None:
                link.taken(record.batch)
            case (
                records.Arrived()
                | records.Left()
                | records.Copied()
                | records.ReaderClosed()
                | records.Quiet()
                | records.Busy()
                | records.Callback()
            ) if session is not None:
                self._reported(session, record)
            case (
                records.Lease()
                | records.Return()
                | records.Pause()
                | records.Resume()
                | records.Claim()
                | records.Bye()
                | records.AskFree()
                | records.MakeRoom()
                | records.Export()
                | records.Unexport()
                | records.Read()
                | records.EndRead()
                | records.Seal()
                | records.Unseal()
            ) if session is not None:
                self._asked(link, session, record)
            case _:
                self._cut_off(link, f"{type(record).__name__} out of turn")

    def _cut_off(self, link: Link, why: str) -> None:
        self._journal.note("cut off", f"process {link.process.peer.pid} is cut off: {why}")
        link.close()

    def _greet(self, link: Link, hello: records.Hello) -> None:
        try:
            self._check_hello(link, hello)
            if hello.role == records.ROLE_OPERATOR:
                self._welcome_operator(link, hello)
            elif hello.token == NO_TOKEN:
                self._attach(link, hello)
            else:
                self._reattach(link, hello)
        except BrokerError as error:
            self._refuse_hello(link, error)

    def _check_hello(self, link: Link, hello: records.Hello) -> None:
        if not self._may_connect(link.process.peer):
            raise PeerUnidentified(
                message=f"uid {link.process.peer.uid} is neither the daemon's own, nor root, nor of the socket's group"
            )
        if hello.protocol != records.PROTOCOL:
            raise VersionMismatch(
                message=f"client {hello.version[:64]} speaks protocol {hello.protocol}, "
                f"daemon {self._greeting.version} speaks {records.PROTOCOL}",
                client_version=hello.version,
                broker_version=self._greeting.version,
            )
        if hello.role not in (records.ROLE_WORKER, records.ROLE_OPERATOR):
            raise InvalidArgument(message=f"there is no role {hello.role}", argument="role")

    def _refuse_hello(self, link: Link, error: BrokerError) -> None:
        self._journal.note("refused", f"process {link.process.peer.pid} is refused: {type(error).__name__}: {error}")
        link.send(packet_of_error(0, error))
        link.close()

    def _welcome_operator(self, link: Link, hello: records.Hello) -> None:
        token = secrets.token_bytes(16)
        self._operators[link.connection] = token
        self._roster.operator_came(token, link.process)
        self._welcome(link, session=0, token=token, name=hello.name[:64])

    def _attach(self, link: Link, hello: records.Hello) -> None:
        process = self._roster.enlist(link.process)
        # A connection asks once, so its number makes the request unique.
        request = RequestId(f"hello:{link.connection}")
        waiter = Tell(
            on_reply=partial(self._attached, link, process, request),
            on_refusal=partial(self._attach_refused, link, process),
        )
        call = Call(call=self._calls.open(waiter), actor=link.process.peer, request=request)
        self._submit(Attach(call=call, name=hello.name, token=secrets.token_bytes(16), connection=link.connection))

    def _attach_refused(self, link: Link, process: Process, error: BrokerError) -> None:
        process.close()
        self._refuse_hello(link, error)

    def _attached(self, link: Link, process: Process, request: RequestId, outcome: Outcome) -> None:
        made = expect_attached(outcome)
        try:
            self._roster.attached(made, process, request, made.token)
        except UnknownSession as error:
            self._refuse_hello(link, error)
            return
        self._roster.await_word(made.session)
        self._bind(link, made)

    def _reattach(self, link: Link, hello: records.Hello) -> None:
        member = self._roster.member_of(hello.token)
        self._roster.heard(member.session)
        waiter = Tell(
            on_reply=lambda outcome: self._bind(link, expect_attached(outcome)),
            on_refusal=partial(self._refuse_hello, link),
        )
        request = RequestId(f"hello:{link.connection}")
        call = Call(call=self._calls.open(waiter), actor=link.process.peer, request=request)
        self._submit(Reattach(call=call, session=member.session, connection=link.connection))

    def _bind(self, link: Link, session: Attached) -> None:
        """Welcome a worker, and have orders go its way, unless it has left and can't be told."""
        self._welcome(link, session=session.session, token=session.token, name=session.name)
        if link.closed:
            self._lost(link, session.session)
        else:
            self._workers.bind(session.session, link)

    def _welcome(self, link: Link, *, session: int, token: bytes, name: str) -> None:
        welcome = records.Welcome(
            protocol=records.PROTOCOL,
            session=session,
            token=token,
            capacity_bytes=self._greeting.capacity_bytes,
            frame_sizes_bytes=self._greeting.frame_sizes_bytes,
            name=name,
            device=self._greeting.device,
            version=self._greeting.version,
        )
        link.send(records.encode(welcome))

    def _reported(self, session: SessionId, report: Report) -> None:
        self._submit(event_of_report(report, session))

    def _asked(self, link: Link, session: SessionId, request: Request) -> None:
        try:
            check_request(request)
        except InvalidArgument as error:
            link.send(packet_of_error(request.request, error))
            return
        waiter = Tell(
            on_reply=partial(self._answer, link, session, request),
            on_refusal=lambda error: link.send(packet_of_error(request.request, error)),
        )
        # Numbers are unique within a session only, and the core remembers requests by process.
        name = RequestId(f"handle:{session}:{request.request}")
        call = Call(call=self._calls.open(waiter), actor=link.process.peer, request=name)
        self._submit(event_of_request(request, session, call, self._now()))

    def _answer(self, link: Link, session: SessionId, request: Request, outcome: Outcome) -> None:
        link.send(packet_of_outcome(request.request, outcome))
        if isinstance(request, records.Bye):
            self._roster.departed(session)


def expect_attached(outcome: Outcome) -> Attached:
    """Return the answer to a call that made or met a session; anything else is a bug of the core."""
    if not isinstance(outcome, Attached):
        raise TypeError(f"an attach is answered Attached, not {type(outcome).__name__}")
    return outcome
