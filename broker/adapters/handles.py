"""The handle socket's server: accepts processes, tells who they are, and passes on what they ask and report.

What the core orders goes out through `workers.py`; a connection's own queue is `link.py`. Nothing here decides.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.calls import Calls, Tell
from vrambroker.broker.adapters.identity import identify
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
from vrambroker.broker.core.errors import BrokerError, InvalidArgument, PeerUnidentified, VersionMismatch
from vrambroker.broker.core.events import Attach, Call, ConnectionLost, Peer, ProcessEnded, Reattach
from vrambroker.broker.core.ids import ConnectionId, Instant, RequestId, SessionId
from vrambroker.broker.ports import Deliver

log = logging.getLogger(__name__)

HELLO_WITHIN_S = 5.0
CONNECTIONS_MAX = 1_024
ACCEPTED_PER_TURN = 64
ACCEPT_AGAIN_S = 0.1
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
        greeting: Greeting,
        may_connect: Callable[[Peer], bool],
        roster: Roster,
        workers: Workers,
        calls: Calls,
        submit: Deliver,
        now: Callable[[], Instant],
    ) -> None:
        self._listener = listener
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
        self._accept_again: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Close the listener and every connection."""
        self._loop.remove_reader(self._listener.fileno())
        if self._accept_again is not None:
            self._accept_again.cancel()
        self._listener.close()
        for link in tuple(self._links.values()):
            link.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                peer_socket, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of fds or memory: the backlog stays readable, so look again later rather than at once.
                log.warning("can't accept: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._accept_again = self._loop.call_later(ACCEPT_AGAIN_S, self._listen_again)
                return
            self._take_in(peer_socket)

    def _listen_again(self) -> None:
        self._accept_again = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _take_in(self, peer_socket: socket.socket) -> None:
        if len(self._links) >= CONNECTIONS_MAX:
            peer_socket.close()
            return
        try:
            process = identify(peer_socket)
        except PeerUnidentified as error:
            log.info("a connection is refused: %s", error)
            peer_socket.close()
            return
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
            self._submit(ConnectionLost(session=session, connection=link.connection))

    def _received(self, link: Link, packet: bytes) -> None:
        try:
            record = records.decode(packet, 0, records.FROM_CLIENT)
        except records.BadRecord as error:
            log.info("process %d is cut off: %s", link.process.peer.pid, error)
            link.close()
            return
        session = self._workers.session_on(link.connection)
        match record:
            case records.Hello() if link.connection in self._silent:
                self._silent.pop(link.connection).cancel()
                self._greet(link, record)
            case records.Taken() if session is not None:
                link.taken(record.batch)
            case records.Arrived() | records.Left() | records.Quiet() | records.Busy() if session is not None:
                self._reported(session, record)
            case (
                records.Lease()
                | records.Return()
                | records.Pause()
                | records.Resume()
                | records.Claim()
                | records.Bye()
            ) if session is not None:
                self._asked(link, session, record)
            case _:
                log.info("process %d is cut off: %s out of turn", link.process.peer.pid, type(record).__name__)
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
        link.send(packet_of_error(0, error))
        link.close()

    def _welcome_operator(self, link: Link, hello: records.Hello) -> None:
        token = secrets.token_bytes(16)
        self._operators[link.connection] = token
        self._roster.operator_came(token, link.process)
        self._welcome(link, session=0, token=token, name=hello.name[:64])

    def _attach(self, link: Link, hello: records.Hello) -> None:
        # A connection asks once, so its number makes the request unique.
        request = RequestId(f"hello:{link.connection}")
        call = self._call(link, request, partial(self._attached, link, request))
        self._submit(Attach(call=call, name=hello.name, token=secrets.token_bytes(16), connection=link.connection))

    def _reattach(self, link: Link, hello: records.Hello) -> None:
        member = self._roster.member_of(hello.token)
        request = RequestId(f"hello:{link.connection}")
        call = self._call(link, request, partial(self._reattached, link))
        self._submit(Reattach(call=call, session=member.session, connection=link.connection))

    def _call(self, link: Link, request: RequestId, on_reply: Callable[[Outcome], None]) -> Call:
        waiter = Tell(on_reply=on_reply, on_refusal=partial(self._refuse_hello, link))
        return Call(call=self._calls.open(waiter), actor=link.process.peer, request=request)

    def _attached(self, link: Link, request: RequestId, outcome: Outcome) -> None:
        made = expect_attached(outcome)
        if link.closed:
            # Nobody has got the token, so nobody can ever use this session or come back to it.
            self._submit(ProcessEnded(session=made.session))
            return
        self._roster.attached(made, link.process, request)
        self._bind(link, made)

    def _reattached(self, link: Link, outcome: Outcome) -> None:
        known = expect_attached(outcome)
        if link.closed:
            self._submit(ConnectionLost(session=known.session, connection=link.connection))
            return
        self._bind(link, known)

    def _bind(self, link: Link, session: Attached) -> None:
        self._welcome(link, session=session.session, token=session.token, name=session.name)
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
            self._roster.forget(session)


def expect_attached(outcome: Outcome) -> Attached:
    """Return the answer to a call that made or met a session; anything else is a bug of the core."""
    if not isinstance(outcome, Attached):
        raise TypeError(f"an attach is answered Attached, not {type(outcome).__name__}")
    return outcome
