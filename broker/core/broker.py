"""The broker: every event goes in here, and what the world is to do comes out. Pure: no clock, no I/O, no chance.

`handle` looks up what an event means, lets its handler change the book, and settles what that has stirred. A call
that is refused has changed nothing, since every handler raises before it writes.
"""

from itertools import pairwise
from typing import assert_never

from vrambroker.broker.core import (
    attachment,
    background,
    budgets,
    free,
    gathering,
    invariants,
    lending,
    outcomes,
    outside,
    pausing,
    phases,
    reading,
    reports,
    requests,
    reserving,
    resuming,
    sealing,
    settlement,
    spilling,
    turns,
    views,
    withheld,
)
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.book import Book, Clearing, PauseOrder, Release
from vrambroker.broker.core.effects import Attached, Done, Effect, Kind, Refuse, Reply, SendDraining
from vrambroker.broker.core.errors import BrokerError, InvalidArgument, WaitExpired, invariant
from vrambroker.broker.core.ids import OUTSIDE, Instant
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.requests import MutatingCall, Progress, Remembered
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.core.ticket import Stage, Ticket

LABEL_LENGTH_MAX = 256

Report = (
    ev.ConnectionLost
    | ev.ProcessEnded
    | ev.FencePassed
    | ev.CallAbandoned
    | ev.Drain
    | ev.DeadlineReached
    | ev.Reconfigure
    | ev.Arrived
    | ev.Left
    | ev.Copied
    | ev.ReaderClosed
    | ev.Quiet
    | ev.Busy
    | ev.StillBusy
    | ev.Calling
    | ev.Declined
)
DriverOutcome = (
    ev.FrameCreated
    | ev.FrameCreateFailed
    | ev.FrameDestroyed
    | ev.OutsideMeasured
    | ev.ArenaFileReady
    | ev.ArenaFileFailed
    | ev.ArenaFileDestroyed
    | ev.ExtentPunched
    | ev.Transferred
    | ev.TransferFailed
)


class Broker:
    """The ledger of one device and all decisions about it."""

    def __init__(self, limits: Limits) -> None:
        _require_sound(limits)
        self._book = Book(limits)
        self._told = settlement.totals(self._book)

    def handle(self, event: ev.Event, now: Instant) -> list[Effect]:
        """Take note of what happened and return what is to be done, in order. Time never goes back: an earlier `now`
        is the last one.
        """
        book = self._book
        book.now = max(book.now, now)
        match event:
            case (
                ev.Attach()
                | ev.Detach()
                | ev.Lease()
                | ev.Claim()
                | ev.Return()
                | ev.Pause()
                | ev.Resume()
                | ev.Prioritize()
                | ev.SetBudget()
                | ev.SetAside()
                | ev.MakeRoom()
                | ev.AskFree()
                | ev.Cancel()
                | ev.Seal()
                | ev.Unseal()
                | ev.Export()
                | ev.Unexport()
                | ev.Read()
                | ev.EndRead()
                | ev.Mark()
                | ev.SetPlan()
                | ev.Enter()
            ):
                _call(book, event)
            case ev.Reattach():
                _reattach(book, event)
            case (
                ev.ConnectionLost()
                | ev.ProcessEnded()
                | ev.FencePassed()
                | ev.CallAbandoned()
                | ev.Drain()
                | ev.DeadlineReached()
                | ev.Reconfigure()
                | ev.Arrived()
                | ev.Left()
                | ev.Copied()
                | ev.ReaderClosed()
                | ev.Quiet()
                | ev.Busy()
                | ev.StillBusy()
                | ev.Calling()
                | ev.Declined()
            ):
                _report(book, event)
            case _:
                _outcome(book, event)
        self._told = settlement.settle(book, self._told)
        effects, book.effects = book.effects, []
        return effects

    def next_deadline(self) -> Instant | None:
        """Return the instant at which `DeadlineReached` is due, if anything waits for one."""
        book = self._book
        retries = (book.arena.retry_at, book.spill.staging.retry_at, book.spill.retry_at)
        others = (book.pool_until, phases.next_deadline(book), withheld.next_deadline(book), book.copy_at)
        deadlines = (book.next_deadline(), *others, *retries)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def snapshot(self) -> Snapshot:
        """Return everything the broker knows as plain frozen values."""
        return views.snapshot(self._book)

    def check(self) -> None:
        """Raise `InvariantViolation` if the book contradicts itself. Looks at everything."""
        invariants.check(self._book)


def _require_sound(limits: Limits) -> None:
    sizes = limits.frame_sizes_bytes
    invariant(bool(sizes) and sizes[0] > 0, "there is at least one frame size")
    chained = all(larger > size and larger % size == 0 for size, larger in pairwise(sizes))
    invariant(chained, "frame sizes ascend, and each divides the next")
    spills = bool(limits.spill_budget_bytes)
    staging = sizes[-1] <= limits.staging_bytes <= limits.host_budget_bytes if spills else not limits.staging_bytes
    invariant(staging, "what is spilled goes through the host's budget, frame by frame")
    invariant(limits.spill_budget_bytes % sizes[0] == 0, "the spill store is whole frames")
    invariant(limits.capacity_bytes > 0 and limits.capacity_bytes % sizes[0] == 0, "the capacity is whole frames")


def _call(book: Book, event: MutatingCall) -> None:
    """Carry out a call, unless it is a replay: then it is answered as the first one was, or with it."""
    call = event.call
    try:
        known = book.requests.begin(call, requests.fingerprint(event))
    except BrokerError as error:
        book.emit(Refuse(call=call.call, error=error))
        return
    match known:
        case Remembered(outcome=outcome):
            book.emit(Reply(call=call.call, outcome=outcome))
            if isinstance(event, ev.Attach) and isinstance(outcome, Attached):
                attachment.reattach_replayed(book, outcome, event.connection)
        case Progress.JOINED:
            pass
        case Progress.NEW:
            try:
                _perform(book, event)
            except BrokerError as error:
                _refuse(book, event, error)


def _refuse(book: Book, event: MutatingCall, error: BrokerError) -> None:
    match event:
        case ev.Lease(session=session, tag=tag):
            book.refuse(event.call.call, error, session=book.name_of(session), tag=tag)
        case ev.SetAside(session=session):
            book.refuse(event.call.call, error, session=book.name_of(session))
        case ev.MakeRoom():
            book.refuse(event.call.call, error, session=book.name_of(OUTSIDE))
        case ev.Pause(session=session, tags=tags) | ev.Resume(session=session, tags=tags):
            book.refuse(event.call.call, error, session=book.name_of(session), tag=tags[0] if tags else "")
        case _:
            book.refuse(event.call.call, error)


def _perform(book: Book, event: MutatingCall) -> None:
    match event:
        case ev.Attach():
            attachment.attach(book, event)
        case ev.Detach():
            attachment.detach(book, event)
        case ev.Lease():
            lending.lend(book, event)
        case ev.Claim():
            lending.claim(book, event)
        case ev.Return():
            lending.give(book, event)
        case ev.Pause():
            pausing.pause(book, event)
        case ev.Resume():
            resuming.resume(book, event)
        case ev.Prioritize():
            turns.prioritize(book, event)
        case ev.SetBudget():
            budgets.set_budget(book, event)
        case ev.SetAside():
            reserving.set_aside(book, event)
        case ev.MakeRoom():
            outside.make_room(book, event)
        case ev.AskFree():
            free.tell(book, event)
        case ev.Cancel():
            turns.cancel(book, event)
        case ev.Seal():
            sealing.seal(book, event)
        case ev.Unseal():
            sealing.unseal(book, event)
        case ev.Export():
            reading.export(book, event)
        case ev.Unexport():
            reading.unexport(book, event)
        case ev.Read():
            reading.read(book, event)
        case ev.EndRead():
            reading.end_read(book, event)
        case ev.Mark():
            _mark(book, event)
        case ev.SetPlan():
            phases.set_plan(book, event)
        case ev.Enter():
            phases.enter(book, event)
        case _:
            assert_never(event)


def _reattach(book: Book, event: ev.Reattach) -> None:
    """Carry out a reattachment, every time it is asked for: each one is about another connection."""
    try:
        attachment.reattach(book, event)
    except BrokerError as error:
        book.emit(Refuse(call=event.call.call, error=error))


def _mark(book: Book, event: ev.Mark) -> None:
    if not (0 < len(event.label) <= LABEL_LENGTH_MAX and event.label.isprintable()):
        raise InvalidArgument(message=f"a label is 1 to {LABEL_LENGTH_MAX} printable characters", argument="label")
    book.publish(Kind.MARKED, event.label)
    book.reply(event.call.call, Done())


def _report(book: Book, event: Report) -> None:
    match event:
        case ev.ConnectionLost():
            attachment.connection_lost(book, event)
        case ev.ProcessEnded():
            attachment.process_ended(book, event)
        case ev.FencePassed():
            attachment.fence_passed(book, event)
        case ev.CallAbandoned():
            _abandon(book, event)
        case ev.Drain():
            _drain(book)
        case ev.DeadlineReached():
            _expire(book)
        case ev.Reconfigure():
            outside.reconfigure(book, event)
        case ev.Arrived():
            reports.arrived(book, event)
        case ev.Left():
            reports.left(book, event)
        case ev.Copied():
            background.copied(book, event)
        case ev.ReaderClosed():
            reading.closed(book, event)
        case ev.Quiet():
            if not gathering.quiet(book, event):
                pausing.quiet(book, event)
        case ev.Busy():
            if not gathering.busy(book, event):
                pausing.busy(book, event)
        case ev.StillBusy():
            if not gathering.still_busy(book, event):
                pausing.still_busy(book, event)
        case ev.Calling():
            if not gathering.calling(book, event):
                pausing.calling(book, event)
        case ev.Declined():
            if not phases.declined(book, event):
                pausing.declined(book, event)
        case _:
            assert_never(event)


def _outcome(book: Book, event: DriverOutcome) -> None:
    match event:
        case ev.FrameCreated():
            outcomes.frame_created(book, event)
        case ev.FrameCreateFailed():
            outcomes.frame_create_failed(book, event)
        case ev.FrameDestroyed():
            outcomes.frame_destroyed(book, event)
        case ev.OutsideMeasured():
            outside.measured(book, event)
        case ev.ArenaFileReady():
            outcomes.arena_file_ready(book, event)
        case ev.ArenaFileFailed():
            outcomes.arena_file_failed(book, event)
        case ev.ArenaFileDestroyed():
            outcomes.arena_file_destroyed(book, event)
        case ev.ExtentPunched():
            outcomes.extent_punched(book, event)
        case ev.Transferred():
            spilling.transferred(book, event)
        case ev.TransferFailed():
            spilling.transfer_failed(book, event)
        case _:
            assert_never(event)


def _abandon(book: Book, event: ev.CallAbandoned) -> None:
    """Withdraw a call that nobody waits for, if nothing has been granted yet; what is under way goes on."""
    call = book.requests.abandon(event.call)
    if call is None:
        return
    if book.handover is not None and book.handover.call == call:
        phases.abandon(book)
        return
    what = book.waits.get(call)
    error = WaitExpired(message="the caller went away")
    match what:
        case Ticket(stage=Stage.QUEUED | Stage.ADMITTED) if not what.slots:
            lending.withdraw(book, what, error)
        case PauseOrder():
            pausing.cancel(book, what, error)
        case Clearing():
            book.refuse(call, error)
        case Ticket() | Release() | None:
            pass


def _drain(book: Book) -> None:
    if book.draining:
        return
    book.draining = True
    book.publish(Kind.DRAINING, "the daemon is shutting down and takes no new work")
    for session in book.sessions.live:
        book.emit(SendDraining(session=session))


def _expire(book: Book) -> None:
    """Refuse everything whose time is up."""
    spilling.try_again_if_due(book)
    phases.expire(book)
    withheld.expire(book)
    while (expired := book.pop_expired()) is not None:
        match expired:
            case Ticket():
                resuming.expire(book, expired)
            case PauseOrder():
                pausing.expire(book, expired)
            case Release():
                pausing.expire_release(book, expired)
            case Clearing():
                pausing.expire_clearing(book, expired)
