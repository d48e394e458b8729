"""The control plane from Python: status, the event stream, marks, and other sessions' tags, over gRPC.

gRPC is imported and a channel opened when first needed, once per process: a forked child gets a channel of its own.
Calls that change something name their caller by a token: a session has one, `OperatorHandshake` gets one for others.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.metadata import ERROR_KEY, TOKEN_KEY, grpc_address
from vrambroker.broker.core.errors import (
    BrokerError,
    BrokerLost,
    DriverFailed,
    InvalidArgument,
    VersionMismatch,
    WaitExpired,
)
from vrambroker.client import discovery, native
from vrambroker.client.discovery import Endpoint
from vrambroker.client.status import (
    BudgetStatus,
    Entered,
    Status,
    StreamEvent,
    budget_answer_of,
    entered_of,
    event_of,
    status_of,
)

if TYPE_CHECKING:
    import grpc

    from vrambroker.v1.broker_pb2_grpc import BrokerStub

# What an answer may take beyond the time that the daemon itself was given to wait.
ANSWER_TIMEOUT_S = 10.0
# How long a call that lost its daemon waits for the connection to come back.
RECONNECT_TIMEOUT_S = 5.0

_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel of one's own: closing it must not be put off by another user of the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # A unix socket is never reached through a proxy.
    ("grpc.enable_http_proxy", 0),
)

Answer = TypeVar("Answer")


class Control:
    """The control plane of one device's broker. Synchronous, thread-safe, and good in a forked child.

    Ownership: whoever makes it closes it. Every method raises the daemon's error as its class, `BrokerUnavailable` if
    no daemon answers, `BrokerLost` if it went away and did not come back within `RECONNECT_TIMEOUT_S`.
    """

    def __init__(self, endpoint: Endpoint, *, token: Callable[[], bytes], attached: bool = False) -> None:
        """`token` is asked at each call that needs one. `attached`: the daemon has answered this process before."""
        self._endpoint = endpoint
        self._token = token
        # By process: a child forgets its parent's channel and never closes it, since the threads behind it are not
        # there.
        self._channels: dict[int, grpc.Channel] = {}
        self._answered = attached

    def status(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
        """Return who holds what now. Needs no token."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.GetStatusRequest()
        return status_of(self._ask(lambda stub: stub.GetStatus, request, timeout_s=timeout_s, named=False))

    def pause(
        self, session: str, tags: Sequence[str], *, release: bool = False, timeout_s: float = 10.0
    ) -> tuple[int, ...]:
        """Pause tags of a session (empty: the caller's own); returns the leases it concerned.

        `timeout_s` bounds the wait for open `use` scopes and `on_pause` callbacks. Raises `NotQuiescent` if the session has
        neither, if they take too long, or if a callback declines.
        """
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.PauseRequest(
            request_id=_request_id(),
            session=_text(session, "session"),
            tags=[_text(tag, "tag") for tag in tags],
            release=release,
            timeout_ms=native.milliseconds(timeout_s),
        )
        answer = self._ask(lambda stub: stub.Pause, request, timeout_s=timeout_s + ANSWER_TIMEOUT_S)
        return tuple(answer.leases)

    def resume(self, session: str, tags: Sequence[str], *, timeout_s: float = 10.0) -> dict[str, bool]:
        """Resume tags of a session, all or none; tells of each whether its pages are the same."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.ResumeRequest(
            request_id=_request_id(),
            session=_text(session, "session"),
            tags=[_text(tag, "tag") for tag in tags],
            timeout_ms=native.milliseconds(timeout_s),
        )
        answer = self._ask(lambda stub: stub.Resume, request, timeout_s=timeout_s + ANSWER_TIMEOUT_S)
        same: dict[str, bool] = {}
        for lease in answer.leases:
            same[lease.tag] = same.get(lease.tag, True) and lease.same_pages
        return same

    def prioritize(
        self, session: str, tags: Sequence[str], priority: int, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """Set the priority of tags of a session (empty: the caller's own), -100 to 100."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.PrioritizeRequest(
            request_id=_request_id(), session=session, tags=tags, priority=native.whole_number(priority, "priority", 32)
        )
        self._ask(lambda stub: stub.Prioritize, request, timeout_s=timeout_s)

    def set_budget(
        self,
        session: str,
        tag: str,
        *,
        soft_bytes: int | None,
        hard_bytes: int | None,
        revision: int,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> tuple[str, BudgetStatus]:
        """Set what a session (empty: the caller's own), or one of its tags (empty: all of it), may have in use.

        `revision`: of the budget to be replaced, 0 if there is none. Returns `applied`, `deferred` (more is in use already)
        or `conflict` (somebody else has changed it: nothing was), and the budget in force.
        """
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.SetBudgetRequest(
            request_id=_request_id(),
            session=session,
            tag=tag,
            soft_bytes=None if soft_bytes is None else native.whole_number(soft_bytes, "soft_bytes", 64),
            hard_bytes=None if hard_bytes is None else native.whole_number(hard_bytes, "hard_bytes", 64),
            revision=native.whole_number(revision, "revision", 64),
        )
        answer = self._ask(lambda stub: stub.SetBudget, request, timeout_s=timeout_s)
        return budget_answer_of(tag, answer)

    def hold(self, session: str, size_bytes: int, *, timeout_s: float = 10.0) -> int:
        """Set capacity aside for a session (empty: the caller's own); returns the ticket to `cancel` it by."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.HoldRequest(
            request_id=_request_id(),
            session=session,
            size_bytes=native.whole_number(size_bytes, "size_bytes", 64),
            timeout_ms=native.milliseconds(timeout_s),
        )
        return self._ask(lambda stub: stub.Hold, request, timeout_s=timeout_s + ANSWER_TIMEOUT_S).ticket

    def make_room(self, size_bytes: int, *, lasts_s: float = 30.0, timeout_s: float = 10.0) -> int:
        """Have so much free for memory that is no lease, for so long; returns the ticket to `cancel` it by."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.MakeRoomRequest(
            request_id=_request_id(),
            size_bytes=native.whole_number(size_bytes, "size_bytes", 64),
            lasts_ms=native.milliseconds(lasts_s),
            timeout_ms=native.milliseconds(timeout_s),
        )
        return self._ask(lambda stub: stub.MakeRoom, request, timeout_s=timeout_s + ANSWER_TIMEOUT_S).ticket

    def cancel(self, ticket: int, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """End a ticket: whoever waits for it gets `Cancelled`. Raises `UnknownTicket` if there is none."""
        from vrambroker.v1 import broker_pb2

        number = native.whole_number(ticket, "ticket", 64)
        request = broker_pb2.CancelRequest(request_id=_request_id(), ticket=number)
        self._ask(lambda stub: stub.Cancel, request, timeout_s=timeout_s)

    def set_plan(
        self,
        phases: Mapping[str, Sequence[str]],
        *,
        order: str = "device",
        priorities: Mapping[str, int] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Set the device's plan: of each phase the tags that it lists, as SESSION/TAG patterns; tags come in a change of
        phase by priority, 0 unless given. `order` is what a handover keeps lowest: `device` or `host` memory.

        Raises `InvalidArgument`, `NotOwner` if another user set the one there is, `WrongState` while a phase is entered.
        """
        from vrambroker.v1 import broker_pb2

        orders = {"device": broker_pb2.ORDER_DEVICE, "host": broker_pb2.ORDER_HOST}
        if order not in orders:
            raise InvalidArgument(message=f"order {order!r} is not one of: {', '.join(orders)}", argument="order")
        ranked = (priorities or {}).items()
        plan = broker_pb2.Plan(
            order=orders[order],
            phases=[broker_pb2.Phase(name=name, tags=tags) for name, tags in phases.items()],
            priorities=[
                broker_pb2.TagPriority(tag=tag, priority=native.whole_number(priority, "priority", 32))
                for tag, priority in ranked
            ],
        )
        request = broker_pb2.SetPlanRequest(request_id=_request_id(), plan=plan)
        self._ask(lambda stub: stub.SetPlan, request, timeout_s=timeout_s)

    def enter(self, phase: str, *, timeout_s: float = 10.0) -> Entered:
        """Enter a phase of the plan, in all sessions, or change nothing; tells what was moved.

        `timeout_s` bounds the wait for open `use` scopes, for the pauses of sessions without scopes, and for memory to
        arrive. Raises `UnknownPhase`, `NotQuiescent`, `OutOfDeviceMemory`, `OutOfHostMemory`, `WaitExpired`, and
        `WrongState` while another phase is entered.
        """
        from vrambroker.v1 import broker_pb2

        # 0 would be the daemon's default.
        timeout_ms = max(1, native.milliseconds(timeout_s))
        request = broker_pb2.EnterRequest(request_id=_request_id(), phase=phase, timeout_ms=timeout_ms)
        return entered_of(self._ask(lambda stub: stub.Enter, request, timeout_s=timeout_s + ANSWER_TIMEOUT_S))

    def mark(self, label: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Write a stage's name into the event stream, for the timeline."""
        from vrambroker.v1 import broker_pb2

        request = broker_pb2.MarkRequest(request_id=_request_id(), label=_text(label, "label"))
        self._ask(lambda stub: stub.Mark, request, timeout_s=timeout_s)

    def watch(self, *, history: bool = False, until_now: bool = False) -> Iterator[StreamEvent]:
        """Yield what happens, in order; with `history` what the daemon remembers first, with `until_now` only that.

        Blocks between events. The stream ends when the iterator is closed, or `close` is called from another thread.
        """
        import grpc

        from vrambroker.v1 import broker_pb2

        stub = self._stub()
        stream: Any = stub.Watch(broker_pb2.WatchRequest(history=history, until_now=until_now))
        try:
            for message in stream:
                self._answered = True
                yield event_of(message)
        except grpc.RpcError as error:
            # Cancelled is what `close` makes of a stream that another thread is reading.
            if _code_of(error) is not grpc.StatusCode.CANCELLED:
                raise self._exception_of(error) from error
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the channel; the next call would open another."""
        channel = self._channels.pop(os.getpid(), None)
        if channel is not None:
            channel.close()

    def _stub(self) -> "BrokerStub":
        import grpc

        from vrambroker.v1.broker_pb2_grpc import BrokerStub

        pid = os.getpid()
        channel = self._channels.get(pid)
        if channel is None:
            fresh = grpc.insecure_channel(grpc_address(self._endpoint.rpc_socket), options=_CHANNEL_OPTIONS)
            channel = self._channels.setdefault(pid, fresh)
            if channel is not fresh:
                fresh.close()
        return BrokerStub(channel)

    def _ask(
        self,
        method: "Callable[[BrokerStub], grpc.UnaryUnaryMultiCallable[Any, Answer]]",
        request: object,
        *,
        timeout_s: float,
        named: bool = True,
    ) -> Answer:
        """Make a call; if the daemon went away under it, make it once more, under the same request id."""
        import grpc

        metadata = ((TOKEN_KEY, self._token()),) if named else ()
        call = method(self._stub())
        try:
            answer = call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if not self._answered or not _is_lost(error):
                raise self._exception_of(error) from error
            try:
                answer = call(request, timeout=RECONNECT_TIMEOUT_S, metadata=metadata, wait_for_ready=True)
            except grpc.RpcError as second:
                raise self._exception_of(second, lost=True) from second
        self._answered = True
        return answer

    def _exception_of(self, error: "grpc.RpcError", *, lost: bool = False) -> BrokerError:
        import grpc

        detail = _detail_of(error)
        if detail is not None:
            return native.decoded(detail)
        code, text = _code_of(error), _text_of(error)
        if (code is grpc.StatusCode.UNAVAILABLE and self._answered) or lost:
            return BrokerLost(
                message=f"the broker at {self._endpoint.rpc_socket} went away ({text}): see its log, "
                f"start it again with `broker serve --device {self._endpoint.device}`, and attach anew"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return discovery.unreachable(self._endpoint, text)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return WaitExpired(message=f"the broker at {self._endpoint.rpc_socket} did not answer in time")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return VersionMismatch(message=f"the broker at {self._endpoint.rpc_socket} is of another version: {text}")
        return DriverFailed(message=f"gRPC: {code.name}: {text}", driver_call="grpc", driver_result=code.name)


class OperatorHandshake:
    """A token for a process that is no session (HANDLES.md, role 2): an operator's tool, an orchestrator.

    The daemon ties it to this process and to a connection, held here until `close`; if the daemon was started again, or
    in a forked child, `token` shakes hands anew. Ownership: whoever makes it closes it.
    """

    def __init__(self, endpoint: Endpoint, *, version: str, timeout_s: float = 5.0) -> None:
        """Shake hands. Raises `BrokerUnavailable`, `VersionMismatch`, or what the daemon refuses with."""
        self._endpoint = endpoint
        self._version = version
        self._timeout_s = timeout_s
        self._by_process = {os.getpid(): _shake_hands(endpoint, version, timeout_s)}

    @property
    def token(self) -> bytes:
        """The token of this process, good now. Raises as the constructor does."""
        pid = os.getpid()
        handshake = self._by_process.get(pid)
        if handshake is None or handshake.is_over():
            # Over, or inherited at a fork: closing ours of an inherited one does not end the parent's.
            self._close_all()
            handshake = self._by_process[pid] = _shake_hands(self._endpoint, self._version, self._timeout_s)
        return handshake.token

    def close(self) -> None:
        """Void the token."""
        self._close_all()

    def _close_all(self) -> None:
        while self._by_process:
            self._by_process.popitem()[1].connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handshake:
    """A token, good as long as its connection is open."""

    connection: socket.socket
    token: bytes

    def is_over(self) -> bool:
        """Whether the daemon has closed the connection; it sends operators nothing, so anything there is the end."""
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def _shake_hands(endpoint: Endpoint, version: str, timeout_s: float) -> _Handshake:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        welcome = _welcome(connection, endpoint, version)
        # With a timeout, Python waits for it before a read, whatever the flags say.
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return _Handshake(connection=connection, token=welcome.token)


def _welcome(connection: socket.socket, endpoint: Endpoint, version: str) -> records.Welcome:
    hello = records.Hello(
        protocol=records.PROTOCOL, role=records.ROLE_OPERATOR, token=bytes(16), name="operator", version=version
    )
    path = str(endpoint.handle_socket)
    try:
        connection.connect(path)
        connection.send(records.encode(hello))
        packet = connection.recv(records.PACKET_BYTES_MAX)
    except OSError as error:
        raise discovery.unreachable(endpoint, str(error)) from error
    if not packet:
        raise discovery.unreachable(endpoint, "it closed the connection")
    try:
        answer = records.decode(packet, 0, (records.Welcome, records.Error))
    except records.BadRecord as error:
        raise VersionMismatch(
            message=f"the daemon at {path} does not speak protocol {records.PROTOCOL} ({error}): "
            "client and daemon must be of the same version",
            client_version=version,
        ) from error
    if isinstance(answer, records.Error):
        raise native.decoded(answer.detail)
    assert isinstance(answer, records.Welcome)
    return answer


def _text(text: object, argument: str) -> str:
    """Return what a message can carry, as it is; whether the daemon likes it is its own matter."""
    # Bytes that were no UTF-8 come as lone surrogates from a command line.
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidArgument(message=f"{argument} {text!r} is no text", argument=argument)
    return text


def _request_id() -> str:
    return uuid4().hex


def _is_lost(error: "grpc.RpcError") -> bool:
    import grpc

    return _code_of(error) is grpc.StatusCode.UNAVAILABLE and _detail_of(error) is None


def _code_of(error: "grpc.RpcError") -> "grpc.StatusCode":
    import grpc

    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _text_of(error: "grpc.RpcError") -> str:
    import grpc

    return (error.details() if isinstance(error, grpc.Call) else None) or str(error)


def _detail_of(error: "grpc.RpcError") -> bytes | None:
    import grpc

    if not isinstance(error, grpc.Call):
        return None
    trailing: Any = error.trailing_metadata() or ()
    return next((value for key, value in trailing if key == ERROR_KEY and isinstance(value, bytes)), None)
