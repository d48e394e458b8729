"""The core alone, in a world that answers at once: no process, no socket, no device."""

import time
from collections import deque
from dataclasses import dataclass
from itertools import count

from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.effects import (
    Attached,
    CreateArenaFile,
    CreateFrame,
    DestroyArenaFile,
    DestroyFrame,
    Effect,
    PunchExtent,
    Refuse,
    Reply,
    SendGrant,
    SendPauseOrder,
    SendRecall,
)
from vrambroker.broker.core.events import (
    ArenaFileDestroyed,
    ArenaFileReady,
    Arrived,
    Attach,
    Call,
    Contents,
    DeadlineReached,
    Event,
    ExtentPunched,
    FrameCreated,
    FrameDestroyed,
    Lease,
    Left,
    Pause,
    Peer,
    Quiet,
    Resume,
)
from vrambroker.broker.core.ids import CallId, ConnectionId, Domain, Instant, RequestId, SessionId
from vrambroker.broker.core.limits import Limits

MIB = 1 << 20
NEVER = Instant(1 << 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One event handled: how long it took, by the wall clock and in CPU time of this thread."""

    event: str
    wall_ns: int
    cpu_ns: int


class CoreWorld:
    """A broker whose frames, files and clients answer at once. `decisions` is filled if it is given."""

    def __init__(self, limits: Limits, *, decisions: list[Decision] | None = None) -> None:
        self.broker = Broker(limits)
        self.decisions = decisions
        self.now = Instant(1)
        self._numbers = count(1)
        self.outcomes: list[Reply | Refuse] = []

    def tell(self, *events: Event) -> list[Reply | Refuse]:
        """Have events happen, and all that follows from them; returns the answers of calls that came meanwhile."""
        self.outcomes = []
        waiting = deque(events)
        while waiting:
            self.now = Instant(self.now + 1)
            for effect in self._handle(waiting.popleft()):
                self.seen(effect)
                answer = answer_to(effect)
                if answer is not None:
                    waiting.append(answer)
        return self.outcomes

    def wait(self, span_ns: int) -> None:
        """Let time go by, and what is due happen."""
        until = Instant(self.now + span_ns)
        while (due := self.broker.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.tell(DeadlineReached())
        self.now = max(self.now, until)

    def seen(self, effect: Effect) -> None:
        """Take note of what the core orders."""
        if isinstance(effect, Reply | Refuse):
            self.outcomes.append(effect)

    def _handle(self, event: Event) -> list[Effect]:
        if self.decisions is None:
            return self.broker.handle(event, self.now)
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        effects = self.broker.handle(event, self.now)
        cpu_ns, wall_ns = time.thread_time_ns() - cpu_ns, time.perf_counter_ns() - wall_ns
        self.decisions.append(Decision(event=type(event).__name__, wall_ns=wall_ns, cpu_ns=cpu_ns))
        return effects

    def call(self, domain: str = "bench", pid: int = 1) -> Call:
        number = next(self._numbers)
        peer = Peer(pid=pid, uid=0, gid=0, domain=Domain(domain))
        return Call(call=CallId(number), actor=peer, request=RequestId(str(number)))

    def attach(self, name: str, domain: str = "bench") -> SessionId:
        number = next(self._numbers)
        call = self.call(domain)
        token = number.to_bytes(16, "little")
        (answer,) = self.tell(Attach(call=call, name=name, token=token, connection=ConnectionId(number)))
        assert isinstance(answer, Reply) and isinstance(answer.outcome, Attached)
        return answer.outcome.session

    def lease(
        self,
        session: SessionId,
        tag: str,
        size_bytes: int,
        contents: Contents = Contents.DROP,
        *,
        spare_bytes: int = 0,
        domain: str = "bench",
    ) -> bool:
        """Lease so much more; tells whether it was lent."""
        call = self.call(domain)
        answers = self.tell(
            Lease(
                call=call,
                session=session,
                tag=tag,
                contents=contents,
                size_bytes=size_bytes,
                claimed=True,
                deadline=NEVER,
                spare_bytes=spare_bytes,
            )
        )
        return any(isinstance(answer, Reply) and answer.call == call.call for answer in answers)

    def pause(self, session: SessionId, tag: str, *, release: bool = False, domain: str = "bench") -> bool:
        call = self.call(domain)
        answers = self.tell(
            Pause(call=call, session=session, tags=(tag,), release=release, discard=False, quiet=True, deadline=NEVER)
        )
        return any(isinstance(answer, Reply) and answer.call == call.call for answer in answers)

    def resume(
        self, session: SessionId, tag: str, *, wait: bool = True, within_ns: int = 1 << 59, domain: str = "bench"
    ) -> bool:
        """Ask for a tag; tells whether it is back already."""
        call, deadline = self.call(domain), Instant(self.now + within_ns)
        answers = self.tell(Resume(call=call, session=session, tags=(tag,), wait=wait, deadline=deadline))
        return any(isinstance(answer, Reply) and answer.call == call.call for answer in answers)


def answer_to(effect: Effect) -> Event | None:
    """Return what a world that is never late and never fails says to an order."""
    match effect:
        case CreateFrame(frame=frame):
            return FrameCreated(frame=frame)
        case DestroyFrame(frame=frame):
            return FrameDestroyed(frame=frame)
        case SendGrant(session=session, lease=lease, slots=slots):
            return Arrived(session=session, lease=lease, slots=tuple(slot.slot for slot in slots), failure=None)
        case SendRecall(session=session, lease=lease, slots=slots):
            return Left(session=session, lease=lease, slots=tuple(slot.slot for slot in slots), failure=None)
        case CreateArenaFile(file=file):
            return ArenaFileReady(file=file)
        case DestroyArenaFile(file=file):
            return ArenaFileDestroyed(file=file)
        case PunchExtent(extent=extent):
            return ExtentPunched(file=extent.file, offset_bytes=extent.offset_bytes)
        case SendPauseOrder(session=session, order=order):
            return Quiet(session=session, order=order)
        case _:
            return None
