"""The control plane's service: gRPC messages to events, outcomes to messages, errors to statuses.

A call that changes something is one event and one answer; while it waits, nothing of it is here but a future. A caller
that goes away abandons its call. Whatever is not an expected error ends the daemon rather than being answered.
"""

# ruff: noqa: N802  methods are named as in broker.proto

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from vrambroker.broker.adapters.calls import Calls, Tell
from vrambroker.broker.adapters.deadlines import NS_PER_MS, deadline
from vrambroker.broker.adapters.error_detail import STATUS_OF, message_of, to_detail
from vrambroker.broker.adapters.history import History
from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.messages import (
    BUDGET_STATE_TO_WIRE,
    contents_from_wire,
    entered_to_wire,
    event_of,
    plan_from_wire,
)
from vrambroker.broker.adapters.metadata import ERROR_KEY, TOKEN_KEY
from vrambroker.broker.adapters.quota import Quota
from vrambroker.broker.adapters.roster import Caller, Roster
from vrambroker.broker.core import effects, events
from vrambroker.broker.core.effects import Outcome
from vrambroker.broker.core.errors import BrokerError, InvalidArgument, PeerUnidentified, WrongState
from vrambroker.broker.core.events import Call, CallAbandoned, Event
from vrambroker.broker.core.ids import Instant, LeaseId, RequestId, SessionId, SlotId, TicketId
from vrambroker.broker.ports import Deliver
from vrambroker.v1 import broker_pb2 as v1
from vrambroker.v1 import broker_pb2_grpc

REQUEST_ID_MAX = 128
CALLS_PER_PROCESS = 256
CALLS_PER_USER = 512

Expected = TypeVar("Expected", bound=Outcome)
Context = grpc.aio.ServicerContext[Any, Any]
Build = Callable[[Call, Caller], Event]


class BrokerService(broker_pb2_grpc.BrokerServicer):
    """All of `vrambroker.v1.Broker`. `broken` is told of what must not happen."""

    def __init__(
        self,
        *,
        roster: Roster,
        calls: Calls,
        history: History,
        submit: Deliver,
        now: Callable[[], Instant],
        status: Callable[[], v1.Status],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._roster = roster
        self._calls = calls
        self._history = history
        self._submit = submit
        self._now = now
        self._status = status
        self._broken = broken
        self._quota = Quota("calls", per_process=CALLS_PER_PROCESS, per_user=CALLS_PER_USER)

    async def Attach(self, request: v1.AttachRequest, context: Context) -> v1.AttachResponse:
        """Make a session of the calling operator's process; its token becomes the session's."""
        enlisted: list[Process] = []

        def attach(call: Call, caller: Caller) -> Event:
            if caller.attached_by not in (None, call.request):
                raise WrongState(message="this token has had its session: say HELLO again", session=request.name)
            enlisted.append(self._roster.enlist(caller.require_process()))
            return events.Attach(call=call, name=request.name, token=caller.token, connection=None)

        def attached(caller: Caller, made: effects.Attached) -> None:
            self._roster.attached(made, enlisted.pop(), RequestId(request.request_id), caller.token)

        try:
            made = await self._ask(context, request.request_id, attach, effects.Attached, attached)
        finally:
            for process in enlisted:
                process.close()
        return v1.AttachResponse(session=made.session, name=made.name)

    async def Detach(self, request: v1.DetachRequest, context: Context) -> v1.DetachResponse:
        """End the caller's session."""

        def detach(call: Call, caller: Caller) -> Event:
            return events.Detach(call=call, session=caller.require_session())

        def detached(caller: Caller, done: effects.Done) -> None:
            self._roster.departed(caller.require_session())

        await self._ask(context, request.request_id, detach, effects.Done, detached, self._roster.leaver_of)
        return v1.DetachResponse()

    async def Lease(self, request: v1.LeaseRequest, context: Context) -> v1.LeaseResponse:
        """Lend the caller more; the claim in the answer fetches the fds from the handle socket."""

        def lease(call: Call, caller: Caller) -> Event:
            return events.Lease(
                call=call,
                session=caller.require_session(),
                tag=request.tag,
                contents=contents_from_wire(request.contents),
                size_bytes=request.size_bytes,
                claimed=False,
                deadline=deadline(self._now(), request.timeout_ms),
            )

        leased = await self._ask(context, request.request_id, lease, effects.Leased)
        return v1.LeaseResponse(lease=leased.lease, claim=leased.claim)

    async def Return(self, request: v1.ReturnRequest, context: Context) -> v1.ReturnResponse:
        """Take slots, or a whole lease, back from the caller."""

        def give_back(call: Call, caller: Caller) -> Event:
            slots = tuple(SlotId(slot) for slot in request.slots)
            return events.Return(call=call, session=caller.require_session(), lease=LeaseId(request.lease), slots=slots)

        await self._ask(context, request.request_id, give_back, effects.Done)
        return v1.ReturnResponse()

    async def Pause(self, request: v1.PauseRequest, context: Context) -> v1.PauseResponse:
        """Pause tags of a session, once its agent has closed their gates."""

        def pause(call: Call, caller: Caller) -> Event:
            return events.Pause(
                call=call,
                session=self._session(request.session, caller),
                tags=tuple(request.tags),
                release=request.release,
                discard=False,
                quiet=False,
                deadline=deadline(self._now(), request.timeout_ms),
            )

        paused = await self._ask(context, request.request_id, pause, effects.Paused)
        return v1.PauseResponse(leases=paused.leases)

    async def Resume(self, request: v1.ResumeRequest, context: Context) -> v1.ResumeResponse:
        """Resume tags of a session, all or none."""

        def resume(call: Call, caller: Caller) -> Event:
            return events.Resume(
                call=call,
                session=self._session(request.session, caller),
                tags=tuple(request.tags),
                wait=request.timeout_ms != 0,
                deadline=deadline(self._now(), request.timeout_ms),
            )

        resumed = await self._ask(context, request.request_id, resume, effects.Resumed)
        leases = [v1.ResumedLease(lease=one.lease, tag=one.tag, same_pages=one.same_pages) for one in resumed.leases]
        return v1.ResumeResponse(leases=leases)

    async def Prioritize(self, request: v1.PrioritizeRequest, context: Context) -> v1.PrioritizeResponse:
        """Set the priority of tags of a session."""

        def prioritize(call: Call, caller: Caller) -> Event:
            session = self._session(request.session, caller)
            return events.Prioritize(call=call, session=session, tags=tuple(request.tags), priority=request.priority)

        await self._ask(context, request.request_id, prioritize, effects.Done)
        return v1.PrioritizeResponse()

    async def SetBudget(self, request: v1.SetBudgetRequest, context: Context) -> v1.SetBudgetResponse:
        """Set what a session, or one of its tags, may have in use."""

        def set_budget(call: Call, caller: Caller) -> Event:
            return events.SetBudget(
                call=call,
                session=self._session(request.session, caller),
                tag=request.tag,
                soft_bytes=request.soft_bytes if request.HasField("soft_bytes") else None,
                hard_bytes=request.hard_bytes if request.HasField("hard_bytes") else None,
                revision=request.revision,
            )

        budget = await self._ask(context, request.request_id, set_budget, effects.BudgetSet)
        return v1.SetBudgetResponse(
            state=BUDGET_STATE_TO_WIRE[budget.state],
            revision=budget.revision,
            soft_bytes=budget.soft_bytes,
            hard_bytes=budget.hard_bytes,
        )

    async def Hold(self, request: v1.HoldRequest, context: Context) -> v1.HoldResponse:
        """Set capacity aside for a session."""

        def set_aside(call: Call, caller: Caller) -> Event:
            return events.SetAside(
                call=call,
                session=self._session(request.session, caller),
                size_bytes=request.size_bytes,
                wait=request.timeout_ms != 0,
                deadline=deadline(self._now(), request.timeout_ms),
            )

        held = await self._ask(context, request.request_id, set_aside, effects.Held)
        return v1.HoldResponse(ticket=held.ticket)

    async def MakeRoom(self, request: v1.MakeRoomRequest, context: Context) -> v1.MakeRoomResponse:
        """Have room for memory that is no lease."""

        def make_room(call: Call, caller: Caller) -> Event:
            return events.MakeRoom(
                call=call,
                size_bytes=request.size_bytes,
                lasts_ns=request.lasts_ms * NS_PER_MS,
                wait=request.timeout_ms != 0,
                deadline=deadline(self._now(), request.timeout_ms),
            )

        held = await self._ask(context, request.request_id, make_room, effects.Held)
        return v1.MakeRoomResponse(ticket=held.ticket)

    async def Cancel(self, request: v1.CancelRequest, context: Context) -> v1.CancelResponse:
        """End a ticket before its time."""

        def cancel(call: Call, caller: Caller) -> Event:
            return events.Cancel(call=call, ticket=TicketId(request.ticket))

        await self._ask(context, request.request_id, cancel, effects.Done)
        return v1.CancelResponse()

    async def SetPlan(self, request: v1.SetPlanRequest, context: Context) -> v1.SetPlanResponse:
        """Set the plan of phases."""

        def set_plan(call: Call, caller: Caller) -> Event:
            return events.SetPlan(call=call, plan=plan_from_wire(request.plan))

        await self._ask(context, request.request_id, set_plan, effects.Done)
        return v1.SetPlanResponse()

    async def Enter(self, request: v1.EnterRequest, context: Context) -> v1.EnterResponse:
        """Enter a phase, in all sessions."""

        def enter(call: Call, caller: Caller) -> Event:
            until = deadline(self._now(), request.timeout_ms)
            return events.Enter(call=call, phase=request.phase, deadline=until)

        return entered_to_wire(await self._ask(context, request.request_id, enter, effects.Entered))

    async def Seal(self, request: v1.SealRequest, context: Context) -> v1.SealResponse:
        """Keep what is parked of the caller's tags."""

        def seal(call: Call, caller: Caller) -> Event:
            return events.Seal(call=call, session=caller.require_session(), tags=tuple(request.tags))

        await self._ask(context, request.request_id, seal, effects.Done)
        return v1.SealResponse()

    async def Unseal(self, request: v1.UnsealRequest, context: Context) -> v1.UnsealResponse:
        """Let the caller write to its tags again."""

        def unseal(call: Call, caller: Caller) -> Event:
            return events.Unseal(call=call, session=caller.require_session(), tags=tuple(request.tags))

        await self._ask(context, request.request_id, unseal, effects.Done)
        return v1.UnsealResponse()

    async def Mark(self, request: v1.MarkRequest, context: Context) -> v1.MarkResponse:
        """Write a stage's name into the event stream."""

        def mark(call: Call, caller: Caller) -> Event:
            return events.Mark(call=call, label=request.label)

        await self._ask(context, request.request_id, mark, effects.Done)
        return v1.MarkResponse()

    async def GetStatus(self, request: v1.GetStatusRequest, context: Context) -> v1.Status:
        """Tell who holds what."""
        async with self._outermost(context):
            return self._status()

    async def Watch(self, request: v1.WatchRequest, context: Context) -> AsyncIterator[v1.Event]:
        """Tell what happened, if asked for, and what happens."""
        async with self._outermost(context):
            after = 0 if request.history else self._history.last_sequence
            async for line in self._history.watch(after=after, until_now=request.until_now):
                yield event_of(line)

    async def _ask(
        self,
        context: Context,
        request_id: str,
        build: Build,
        expected: type[Expected],
        on_reply: Callable[[Caller, Expected], None] | None = None,
        whose: Callable[[bytes], Caller] | None = None,
    ) -> Expected:
        """Return the core's answer to the call that `build` makes; ends the call with a status if it is refused.

        `on_reply` sees the answer as it is given, before anything else happens. `whose` tells the caller by its token,
        instead of `Roster.caller_of`.
        """
        async with self._outermost(context):
            if not 1 <= len(request_id) <= REQUEST_ID_MAX:
                raise InvalidArgument(
                    message=f"a request id has 1 to {REQUEST_ID_MAX} characters, not {len(request_id)}",
                    argument="request_id",
                )
            caller = (whose or self._roster.caller_of)(_token_of(context))
            return await self._answer(caller, RequestId(request_id), build, expected, on_reply)

    @asynccontextmanager
    async def _outermost(self, context: Context) -> AsyncIterator[None]:
        """Answer an expected error with its status; anything else ends the daemon, where gRPC would say UNKNOWN."""
        try:
            yield
        except BrokerError as error:
            await refuse(context, error)
        except Exception as bug:  # noqa: BLE001  the outermost frame of a call
            self._broken(bug)
            await context.abort(grpc.StatusCode.INTERNAL, "the daemon found a bug in itself and ends")

    async def _answer(
        self,
        caller: Caller,
        request: RequestId,
        build: Build,
        expected: type[Expected],
        on_reply: Callable[[Caller, Expected], None] | None,
    ) -> Expected:
        answer: asyncio.Future[Expected] = asyncio.get_running_loop().create_future()

        def replied(outcome: Outcome) -> None:
            if not isinstance(outcome, expected):
                raise TypeError(f"{expected.__name__} was expected, not {type(outcome).__name__}")
            try:
                if on_reply is not None:
                    on_reply(caller, outcome)
            except BrokerError as error:
                _fail(answer, error)
            if not answer.done():
                answer.set_result(outcome)

        self._quota.require(caller.peer)
        self._quota.take(caller.peer)
        number = self._calls.open(Tell(on_reply=replied, on_refusal=partial(_fail, answer)))
        try:
            self._submit(build(Call(call=number, actor=caller.peer, request=request), caller))
            return await answer
        except asyncio.CancelledError:
            self._submit(CallAbandoned(call=number))
            raise
        finally:
            self._calls.forget(number)
            self._quota.give(caller.peer)

    def _session(self, name: str, caller: Caller) -> SessionId:
        """Return the session that is meant: the named one, or the caller's own."""
        return self._roster.named(name) if name else caller.require_session()


def _token_of(context: Context) -> bytes:
    """Return the token in the metadata; raises `PeerUnidentified`."""
    for key, value in context.invocation_metadata() or ():
        if key == TOKEN_KEY and isinstance(value, bytes):
            return value
    raise PeerUnidentified(message=f"the call has no {TOKEN_KEY}: say HELLO on the handle socket first")


def _fail(answer: asyncio.Future[Expected], error: BrokerError) -> None:
    if not answer.done():
        answer.set_exception(error)


async def refuse(context: Context, error: BrokerError) -> NoReturn:
    """End a call with the error's status and its fields in the trailing metadata."""
    detail = to_detail(error).SerializeToString()
    await context.abort(STATUS_OF[type(error)], f"{type(error).__name__}: {message_of(error)}", ((ERROR_KEY, detail),))
