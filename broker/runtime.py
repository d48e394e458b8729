"""The only writer: one queue of events, each handled by the core, its effects performed in order before the next.

Everything happens on the loop's thread. An event that is submitted while another is being handled waits its turn;
one that comes alone is handled at once, so that a request on the handle socket costs no trip through the loop. There
is no `await` between a decision and its effects, no lock, and no policy.

If the core raises, its ledger can't be trusted any more: nothing is handled from then on, and the daemon ends.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from vrambroker.broker.core.effects import (
    CloseConnection,
    CreateArenaFile,
    CreateFrame,
    DestroyArenaFile,
    DestroyFrame,
    Effect,
    EndReader,
    OfferArenaFile,
    Publish,
    PunchExtent,
    Refuse,
    Reply,
    SendCloseReader,
    SendCopy,
    SendDraining,
    SendExportSettled,
    SendGrant,
    SendLeaseState,
    SendPauseCancelled,
    SendPauseOrder,
    SendReadGrant,
    SendRecall,
    SpillIn,
    SpillOut,
    WatchFence,
)
from vrambroker.broker.core.events import DeadlineReached, Event
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.ports import Answers, Arena, Clock, Core, Frames, Observer, Peers, Spill

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ports, as the daemon chose them."""

    frames: Frames
    arena: Arena
    spill: Spill
    peers: Peers
    answers: Answers
    observers: tuple[Observer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """What must not happen: the event that was being handled, if any, and what was raised."""

    event: Event | None
    error: BaseException


class Runtime:
    """Feeds the core. `on_bug` is called once, on the loop."""

    def __init__(self, *, core: Core, clock: Clock, on_bug: Callable[[Bug], None]) -> None:
        self._core = core
        self._handled = 0
        self._clock = clock
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._queue: deque[Event] = deque()
        self._drawn: Snapshot | None = None
        self._world: World | None = None
        self._busy = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for: Instant | None = None

    def start(self, world: World) -> None:
        """Begin to handle events; the ports need the runtime to deliver to, so they come after it."""
        self._world = world
        self._drain()

    def stop(self) -> None:
        """Handle nothing any more."""
        self._stopped = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()

    def snapshot(self) -> Snapshot:
        """Return all that the core knows. Drawn anew only after an event, since nothing else changes it."""
        if self._drawn is None:
            self._drawn = self._core.snapshot()
        return self._drawn

    def now(self) -> Instant:
        """Return the time on the clock that deadlines are on."""
        return self._clock.now()

    def submit(self, event: Event) -> None:
        """Handle an event, or queue it behind the one being handled. On the loop's thread only."""
        if self._stopped:
            return
        self._queue.append(event)
        if not self._busy:
            self._drain()

    def deliver(self, event: Event) -> None:
        """Submit an event from any thread."""
        if threading.get_ident() == self._thread:
            self.submit(event)
        else:
            self._loop.call_soon_threadsafe(self.submit, event)

    def pulse(self) -> bool:
        """Have the core handle an event that means nothing, and tell whether it has: then nothing is stuck here."""
        handled = self._handled
        self.submit(DeadlineReached())
        return self._handled > handled

    def broken(self, error: BaseException, event: Event | None = None) -> None:
        """Stop for good, because of something that is no expected error."""
        if not self._stopped:
            self.stop()
            self._on_bug(Bug(event=event, error=error))

    def _drain(self) -> None:
        world = self._world
        if world is None:
            return
        event: Event | None = None
        self._busy = True
        try:
            while self._queue and not self._stopped:
                event = self._queue.popleft()
                self._drawn = None
                for effect in self._core.handle(event, self._clock.now()):
                    perform(effect, world)
                self._handled += 1
            event = None
            self._arm()
        except Exception as error:  # noqa: BLE001  the daemon's outermost frame: nothing above it knows the event
            self.broken(error, event)
        finally:
            self._busy = False

    def _arm(self) -> None:
        """Set the timer to the core's next deadline."""
        deadline = None if self._stopped else self._core.next_deadline()
        if deadline == self._timer_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_for = None, deadline
        if deadline is not None:
            # The loop's own clock counts milliseconds; a timer that fires early is armed again.
            delay_s = max(0, deadline - self._clock.now()) / NS_PER_S
            self._timer = self._loop.call_later(delay_s, self._deadline_reached)

    def _deadline_reached(self) -> None:
        deadline, self._timer, self._timer_for = self._timer_for, None, None
        if deadline is not None and self._clock.now() >= deadline:
            self.submit(DeadlineReached())
        else:
            self._arm()


def perform(effect: Effect, world: World) -> None:
    """Do what the core asks for."""
    match effect:
        case Reply():
            world.answers.reply(effect.call, effect.outcome)
        case Refuse():
            world.answers.refuse(effect.call, effect.error)
        case SendGrant():
            world.peers.grant(effect)
        case SendRecall():
            world.peers.recall(effect)
        case SendCopy():
            world.peers.copy(effect)
        case SendReadGrant() | SendCloseReader() | EndReader() | SendExportSettled():
            _perform_for_reader(effect, world.peers)
        case SendPauseOrder():
            world.peers.pause_order(effect.session, effect.order, effect.tags)
        case SendPauseCancelled():
            world.peers.pause_cancelled(effect.session, effect.order)
        case SendLeaseState():
            world.peers.lease_state(effect.session, effect.lease, effect.paused)
        case SendDraining():
            world.peers.draining(effect.session)
        case CloseConnection():
            world.peers.close_connection(effect.connection)
        case WatchFence():
            world.frames.fence(effect.session, effect.frames)
        case CreateFrame():
            world.frames.create(effect.frame, effect.size_bytes)
        case DestroyFrame():
            world.frames.destroy(effect.frame)
        case CreateArenaFile():
            world.arena.create(effect.file, effect.domain, effect.size_bytes)
        case OfferArenaFile():
            world.peers.offer_arena(effect.session, effect.file)
        case DestroyArenaFile():
            world.peers.forget_arena(effect.file)
        case PunchExtent():
            world.arena.punch(effect.extent)
        case SpillOut():
            world.spill.write(effect.transfer, effect.extent, effect.place)
        case SpillIn():
            world.spill.read(effect.transfer, effect.extent, effect.place)
        case Publish():
            for observer in world.observers:
                observer.published(effect)
        case _:
            assert_never(effect)


def _perform_for_reader(effect: SendReadGrant | SendCloseReader | EndReader | SendExportSettled, peers: Peers) -> None:
    match effect:
        case SendReadGrant():
            peers.read_grant(effect)
        case SendCloseReader():
            peers.close_reader(effect.session, effect.reader)
        case EndReader():
            peers.end_reader(effect.reader)
        case SendExportSettled():
            peers.export_settled(effect.session, effect.key)
