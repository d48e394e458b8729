"""The one writer: events in order, effects before the next event, deadlines kept, and an end after a bug."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from vrambroker.broker.adapters.clock import MonotonicClock
from vrambroker.broker.core import views
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import (
    DestroyFrame,
    Done,
    Effect,
    Extent,
    Outcome,
    Publish,
    Reply,
    SendCopy,
    SendGrant,
    SendReadGrant,
    SendRecall,
    SpillPlace,
)
from vrambroker.broker.core.errors import BrokerError, InvariantViolation
from vrambroker.broker.core.events import CallAbandoned, DeadlineReached, Drain, Event, FrameDestroyed
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    Instant,
    OrderId,
    ReaderId,
    SessionId,
    TransferId,
)
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.runtime import Bug, Runtime, World

MS = 1_000_000
LIMITS = Limits(capacity_bytes=1, frame_sizes_bytes=(1,), host_budget_bytes=0, arena_file_bytes=1)
Handle = Callable[[Event, Instant], list[Effect]]


class ScriptedCore:
    """A core that does what the test says, and remembers what it was asked."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.handled: list[Event] = []
        self.times: list[Instant] = []
        self.deadline: Instant | None = None

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        self.handled.append(event)
        self.times.append(now)
        return self._handle(event, now)

    def next_deadline(self) -> Instant | None:
        return self.deadline

    def snapshot(self) -> Snapshot:
        return views.snapshot(Book(LIMITS))


class Ports:
    """Answers, peers and an observer: writes down what it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def reply(self, call: CallId, outcome: Outcome) -> None:
        self.done.append(f"reply {call}")

    def refuse(self, call: CallId, error: BrokerError) -> None:
        self.done.append(f"refuse {call}")

    def published(self, line: Publish) -> None:
        self.done.append(f"publish {line.why}")

    def grant(self, order: SendGrant) -> None: ...
    def recall(self, order: SendRecall) -> None: ...
    def copy(self, order: SendCopy) -> None: ...
    def read_grant(self, order: SendReadGrant) -> None: ...
    def close_reader(self, session: SessionId, reader: ReaderId) -> None: ...
    def end_reader(self, reader: ReaderId) -> None: ...
    def export_settled(self, session: SessionId, key: ExportKey) -> None: ...
    def pause_order(self, session: SessionId, order: OrderId, tags: tuple[str, ...]) -> None: ...
    def pause_cancelled(self, session: SessionId, order: OrderId) -> None: ...
    def lease_state(self, session: SessionId, lease: int, paused: bool) -> None: ...
    def draining(self, session: SessionId) -> None: ...
    def offer_arena(self, session: SessionId, file: ArenaFileId) -> None: ...
    def forget_arena(self, file: ArenaFileId) -> None: ...
    def close_connection(self, connection: ConnectionId) -> None: ...


class PromptFrames:
    """Frames that deliver a destroyed one at once, from within the effect, as an adapter may."""

    def __init__(self, done: list[str]) -> None:
        self._done = done
        self.deliver: Callable[[Event], None] = lambda event: None

    def destroy(self, frame: FrameId) -> None:
        self._done.append(f"destroy {frame}")
        self.deliver(FrameDestroyed(frame=frame))

    def sizes_bytes(self) -> tuple[int, ...]:
        return ()

    def device_bytes(self) -> int:
        return 0

    def foreign_bytes(self) -> int:
        return 0

    def create(self, frame: FrameId, size_bytes: int) -> None: ...
    def fence(self, session: SessionId, frames: tuple[FrameId, ...]) -> None: ...
    def fd_of(self, frame: FrameId) -> int | None: ...
    def close(self) -> None: ...


class NoArena:
    def create(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None: ...
    def destroy(self, file: ArenaFileId) -> None: ...
    def punch(self, extent: Extent) -> None: ...
    def fd_of(self, file: ArenaFileId) -> int | None: ...
    def close(self) -> None: ...


class NoSpill:
    def write(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None: ...
    def read(self, transfer: TransferId, extent: Extent, place: SpillPlace) -> None: ...
    def close(self) -> None: ...


class Bench:
    """A runtime around a scripted core."""

    def __init__(self, handle: Handle) -> None:
        self.core = ScriptedCore(handle)
        self.ports = Ports()
        self.bugs: list[Bug] = []
        self.runtime = Runtime(core=self.core, clock=MonotonicClock(), on_bug=self.bugs.append)
        self.frames = PromptFrames(self.ports.done)
        self.frames.deliver = self.runtime.deliver
        self.runtime.start(self.world())

    def world(self) -> World:
        ports = self.ports
        return World(
            frames=self.frames, arena=NoArena(), spill=NoSpill(), peers=ports, answers=ports, observers=(ports,)
        )


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def _abandoned(number: int) -> CallAbandoned:
    return CallAbandoned(call=CallId(number))


def _reply(number: int) -> Reply:
    return Reply(call=CallId(number), outcome=Done())


def test_an_event_that_comes_alone_is_handled_at_once() -> None:
    async def test() -> None:
        bench = Bench(lambda event, now: [_reply(1)])
        bench.runtime.submit(Drain())
        assert bench.ports.done == ["reply 1"]

    _run(test())


def test_effects_are_all_performed_before_what_they_cause_is_handled() -> None:
    def handle(event: Event, now: Instant) -> list[Effect]:
        if isinstance(event, Drain):
            return [DestroyFrame(frame=FrameId(7)), _reply(1)]
        return [_reply(2)]

    async def test() -> None:
        bench = Bench(handle)
        bench.runtime.submit(Drain())
        assert bench.ports.done == ["destroy 7", "reply 1", "reply 2"]
        assert bench.core.handled == [Drain(), FrameDestroyed(frame=FrameId(7))]

    _run(test())


def test_an_event_from_a_thread_is_handled_on_the_loop() -> None:
    threads: list[int] = []

    def handle(event: Event, now: Instant) -> list[Effect]:
        threads.append(threading.get_ident())
        return []

    async def test() -> None:
        bench = Bench(handle)
        for number in range(20):
            await asyncio.to_thread(bench.runtime.deliver, _abandoned(number))
        await asyncio.sleep(0)
        assert bench.core.handled == [_abandoned(number) for number in range(20)]
        assert set(threads) == {threading.get_ident()}

    _run(test())


def test_a_snapshot_is_drawn_anew_after_every_event_and_only_then() -> None:
    async def test() -> None:
        bench = Bench(lambda event, now: [])
        first = bench.runtime.snapshot()
        assert bench.runtime.snapshot() is first
        bench.runtime.submit(Drain())
        second = bench.runtime.snapshot()
        assert second is not first
        assert bench.runtime.snapshot() is second

    _run(test())


def test_what_comes_before_the_start_waits_for_it() -> None:
    async def test() -> None:
        core = ScriptedCore(lambda event, now: [])
        runtime = Runtime(core=core, clock=MonotonicClock(), on_bug=lambda bug: None)
        runtime.submit(Drain())
        assert core.handled == []
        runtime.start(Bench(lambda event, now: []).world())
        assert core.handled == [Drain()]

    _run(test())


def test_a_deadline_is_told_when_it_has_come_and_not_before() -> None:
    reached = asyncio.Event()

    async def test() -> None:
        deadline = Instant(MonotonicClock().now() + 30 * MS)

        def handle(event: Event, now: Instant) -> list[Effect]:
            bench.core.deadline = None if isinstance(event, DeadlineReached) else deadline
            if isinstance(event, DeadlineReached):
                reached.set()
            return []

        bench = Bench(handle)
        bench.runtime.submit(Drain())
        await reached.wait()
        assert bench.core.handled == [Drain(), DeadlineReached()]
        assert bench.core.times[1] >= deadline

    _run(test())


def test_a_deadline_that_moves_forward_moves_the_timer() -> None:
    reached = asyncio.Event()

    async def test() -> None:
        def handle(event: Event, now: Instant) -> list[Effect]:
            match event:
                case Drain():
                    bench.core.deadline = Instant(now + 3_600_000 * MS)
                case CallAbandoned():
                    bench.core.deadline = Instant(now + 5 * MS)
                case _:
                    bench.core.deadline = None
                    reached.set()
            return []

        bench = Bench(handle)
        bench.runtime.submit(Drain())
        bench.runtime.submit(_abandoned(1))
        await reached.wait()
        assert bench.core.handled[-1] == DeadlineReached()

    _run(test())


def test_a_bug_of_the_core_is_told_once_and_ends_everything() -> None:
    def handle(event: Event, now: Instant) -> list[Effect]:
        raise InvariantViolation("lent + held + free = capacity")

    async def test() -> None:
        bench = Bench(handle)
        bench.core.deadline = Instant(0)
        bench.runtime.submit(Drain())
        bench.runtime.submit(_abandoned(1))
        bench.runtime.broken(ValueError("a second one"))
        await asyncio.sleep(0.01)
        assert [(type(bug.error), bug.event) for bug in bench.bugs] == [(InvariantViolation, Drain())]
        assert bench.core.handled == [Drain()]

    _run(test())


def test_a_bug_of_a_port_ends_everything_too() -> None:
    async def test() -> None:
        bench = Bench(lambda event, now: [DestroyFrame(frame=FrameId(1)), _reply(1)])

        def explode(event: Event) -> None:
            raise KeyError(1)

        bench.frames.deliver = explode
        bench.runtime.submit(Drain())
        assert [type(bug.error) for bug in bench.bugs] == [KeyError]
        assert bench.ports.done == ["destroy 1"]

    _run(test())


def test_a_pulse_is_an_event_that_the_core_has_handled() -> None:
    async def test() -> None:
        bench = Bench(lambda event, now: [])
        assert bench.runtime.pulse()
        assert bench.core.handled == [DeadlineReached()]
        bench.runtime.stop()
        assert not bench.runtime.pulse()

    _run(test())


def test_a_core_that_raises_or_has_no_world_has_no_pulse() -> None:
    def handle(event: Event, now: Instant) -> list[Effect]:
        raise InvariantViolation("planted")

    async def test() -> None:
        bench = Bench(handle)
        assert not bench.runtime.pulse()
        assert len(bench.bugs) == 1
        unstarted = Runtime(core=bench.core, clock=MonotonicClock(), on_bug=bench.bugs.append)
        assert not unstarted.pulse()

    _run(test())
