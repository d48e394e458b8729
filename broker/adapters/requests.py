"""What a worker asks and reports on the handle socket, as events; and the core's answers, as records."""

from typing import assert_never

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.deadlines import NS_PER_MS, deadline
from vrambroker.broker.adapters.error_detail import message_of, to_detail
from vrambroker.broker.adapters.lendings import CONTENTS_OF_WIRE
from vrambroker.broker.core import events
from vrambroker.broker.core.effects import (
    Attached,
    BudgetSet,
    Done,
    Entered,
    Free,
    Held,
    Leased,
    Outcome,
    Paused,
    ReadGranted,
    Resumed,
)
from vrambroker.broker.core.errors import BrokerError, InvalidArgument
from vrambroker.broker.core.events import Call, Contents, Event
from vrambroker.broker.core.ids import ExportKey, Instant, LeaseId, OrderId, ReaderId, SessionId, SlotId

Request = (
    records.Lease
    | records.Return
    | records.Pause
    | records.Resume
    | records.Claim
    | records.Bye
    | records.AskFree
    | records.MakeRoom
    | records.Export
    | records.Unexport
    | records.Read
    | records.EndRead
    | records.Seal
    | records.Unseal
)
TEXT_MAX = 200
"""How much of a peer's own words about a failure or a scope is kept; they go to people's terminals and logs."""

Report = (
    records.Arrived
    | records.Left
    | records.Copied
    | records.ReaderClosed
    | records.Quiet
    | records.Busy
    | records.Callback
)


def contents_of(number: int) -> Contents:
    """Return the policy with this number on the wire; raises `InvalidArgument`."""
    contents = CONTENTS_OF_WIRE.get(number)
    if contents is None:
        raise InvalidArgument(message=f"there is no policy {number}", argument="contents")
    return contents


def check_request(request: Request) -> None:
    """Raise `InvalidArgument` for what has no meaning that the core could be asked about."""
    if isinstance(request, records.Lease):
        contents_of(request.contents)


def event_of_request(request: Request, session: SessionId, call: Call, now: Instant) -> Event:
    """Return the call that a checked request makes."""
    match request:
        case records.Lease():
            return events.Lease(
                call=call,
                session=session,
                tag=request.tag,
                contents=contents_of(request.contents),
                size_bytes=request.size_bytes,
                spare_bytes=request.spare_bytes,
                claimed=True,
                deadline=deadline(now, request.timeout_ms),
            )
        case records.Return():
            slots = tuple(SlotId(slot) for slot in request.slots)
            return events.Return(call=call, session=session, lease=LeaseId(request.lease), slots=slots)
        case records.Pause():
            return events.Pause(
                call=call,
                session=session,
                tags=request.tags,
                release=request.release != 0,
                discard=request.discard != 0,
                # The owner's own threads ask here, and have made sure of it (HANDLES.md; DESIGN, "Quiet").
                quiet=True,
                deadline=deadline(now, request.timeout_ms),
            )
        case records.Resume():
            return events.Resume(
                call=call,
                session=session,
                tags=request.tags,
                wait=request.timeout_ms != 0,
                deadline=deadline(now, request.timeout_ms),
            )
        case records.Claim():
            return events.Claim(call=call, session=session, claim=request.claim)
        case records.Bye():
            return events.Detach(call=call, session=session)
        case records.AskFree():
            return events.AskFree(call=call, session=session)
        case records.MakeRoom():
            return events.MakeRoom(
                call=call,
                size_bytes=request.size_bytes,
                lasts_ns=request.lasts_ms * NS_PER_MS,
                wait=request.timeout_ms != 0,
                deadline=deadline(now, request.timeout_ms),
            )
        case records.Export():
            return _export(request, session, call)
        case records.Unexport():
            return events.Unexport(call=call, session=session)
        case records.Read():
            return events.Read(call=call, session=session, key=ExportKey(request.key), number=request.request)
        case records.EndRead():
            return events.EndRead(call=call, session=session, number=request.read)
        case records.Seal():
            return events.Seal(call=call, session=session, tags=request.tags)
        case records.Unseal():
            return events.Unseal(call=call, session=session, tags=request.tags)
        case _:
            assert_never(request)


def _export(request: records.Export, session: SessionId, call: Call) -> events.Export:
    return events.Export(
        call=call,
        session=session,
        key=ExportKey(request.key),
        lease=LeaseId(request.lease),
        read_only=bool(request.flags & records.EXPORT_READ_ONLY),
        again=bool(request.flags & records.EXPORT_AGAIN),
        slots=tuple(events.ExportedSlot(slot=SlotId(one.slot), offset_bytes=one.offset_bytes) for one in request.slots),
    )


def event_of_report(report: Report, session: SessionId) -> Event:
    """Return what an agent reports."""
    match report:
        case records.Arrived():
            slots = tuple(SlotId(slot) for slot in report.slots)
            failure = readable(report.failure) or None
            return events.Arrived(session=session, lease=LeaseId(report.lease), slots=slots, failure=failure)
        case records.Left():
            slots = tuple(SlotId(slot) for slot in report.slots)
            failure = readable(report.failure) or None
            return events.Left(session=session, lease=LeaseId(report.lease), slots=slots, failure=failure)
        case records.Copied():
            slots = tuple(SlotId(slot) for slot in report.slots)
            failure = readable(report.failure) or None
            return events.Copied(session=session, order=OrderId(report.order), slots=slots, failure=failure)
        case records.ReaderClosed():
            return events.ReaderClosed(session=session, reader=ReaderId(report.reader))
        case records.Quiet():
            return events.Quiet(session=session, order=OrderId(report.order))
        case records.Busy() if report.final:
            return events.Busy(session=session, order=OrderId(report.order), tag=report.tag)
        case records.Busy():
            return events.StillBusy(
                session=session, order=OrderId(report.order), tag=report.tag, scope=readable(report.scope)
            )
        case records.Callback() if report.declined:
            return events.Declined(
                session=session,
                order=OrderId(report.order),
                tag=report.tag,
                callback=readable(report.callback),
                why=readable(report.why),
            )
        case records.Callback():
            return events.Calling(
                session=session, order=OrderId(report.order), tag=report.tag, callback=readable(report.callback)
            )
        case _:
            assert_never(report)


def readable(text: str) -> str:
    """Return what a peer has to say, cut to `TEXT_MAX` characters and with nothing in it that a terminal would obey."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:TEXT_MAX])


def packet_of_outcome(request: int, outcome: Outcome) -> bytes:
    """Return the `DONE` for a request."""
    match outcome:
        case Leased():
            return records.encode(records.Done(request=request, lease=outcome.lease, claim=outcome.claim))
        case Free():
            return records.encode(records.Done(request=request, free_bytes=outcome.free_bytes))
        case Resumed():
            return _resumed(request, outcome)
        case ReadGranted():
            return records.encode(records.Done(request=request, lease=outcome.lease, claim=outcome.reader or 0))
        case Attached() | Paused() | Held() | BudgetSet() | Entered() | Done():
            return records.encode(records.Done(request=request))
        case _:
            assert_never(outcome)


def packet_of_error(request: int, error: BrokerError) -> bytes:
    """Return the `ERROR` for a request (0: the `HELLO`)."""
    record = records.Error(
        request=request,
        error=type(error).__name__,
        message=message_of(error),
        detail=to_detail(error).SerializeToString(),
    )
    return records.encode(record)


def _resumed(request: int, outcome: Resumed) -> bytes:
    def record(with_tags: bool) -> records.Done:
        leases = tuple(
            records.DoneLease(lease=one.lease, same_pages=int(one.same_pages), tag=one.tag if with_tags else "")
            for one in outcome.leases
        )
        return records.Done(request=request, leases=leases)

    try:
        return records.encode(record(with_tags=True))
    except ValueError:
        # As many tags as a call may name, long ones, each under three policies: the numbers alone still fit.
        return records.encode(record(with_tags=False))
