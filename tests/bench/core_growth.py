"""How long the core takes to decide, by the number of leases it knows. No process, no socket: the function itself."""

from itertools import count

from harness import MIB, median_seconds

from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.effects import Attached, CreateFrame, Reply, SendGrant
from vrambroker.broker.core.events import (
    Arrived,
    Attach,
    Call,
    Contents,
    Event,
    FrameCreated,
    Lease,
    Pause,
    Peer,
    Resume,
)
from vrambroker.broker.core.ids import CallId, ConnectionId, Domain, Instant, RequestId, SessionId
from vrambroker.broker.core.limits import Limits

LEASES_PER_SESSION = 100
ROUNDS = 200
PEER = Peer(pid=1, uid=0, gid=0, domain=Domain("bench"))


class World:
    """A broker whose frames and clients answer at once."""

    def __init__(self, leases: int) -> None:
        self._broker = Broker(
            Limits(
                capacity_bytes=2 * MIB * leases,
                frame_sizes_bytes=(2 * MIB,),
                host_budget_bytes=64 * MIB,
                arena_file_bytes=64 * MIB,
            )
        )
        self._numbers = count(1)
        self._session = SessionId(0)

    def tell(self, event: Event) -> None:
        waiting: list[Event] = [event]
        while waiting:
            for effect in self._broker.handle(waiting.pop(0), Instant(next(self._numbers))):
                if isinstance(effect, CreateFrame):
                    waiting.append(FrameCreated(frame=effect.frame))
                elif isinstance(effect, SendGrant):
                    slots = tuple(slot.slot for slot in effect.slots)
                    waiting.append(Arrived(session=effect.session, lease=effect.lease, slots=slots, failure=None))
                elif isinstance(effect, Reply) and isinstance(effect.outcome, Attached):
                    self._session = effect.outcome.session

    def call(self) -> Call:
        number = next(self._numbers)
        return Call(call=CallId(number), actor=PEER, request=RequestId(str(number)))

    def attach(self, number: int) -> SessionId:
        token = number.to_bytes(16, "little")
        self.tell(Attach(call=self.call(), name=f"s{number}", token=token, connection=ConnectionId(number)))
        return self._session

    def lease(self, session: SessionId, tag: str) -> None:
        self.tell(
            Lease(
                call=self.call(),
                session=session,
                tag=tag,
                contents=Contents.DROP,
                size_bytes=2 * MIB,
                claimed=True,
                deadline=Instant(1 << 60),
            )
        )

    def cycle(self, session: SessionId, tag: str) -> None:
        later = Instant(1 << 60)
        self.tell(Pause(call=self.call(), session=session, tags=(tag,), release=False, quiet=True, deadline=later))
        self.tell(Resume(call=self.call(), session=session, tags=(tag,), wait=True, deadline=later))


def decision_seconds(leases: int) -> float:
    """Return the median time in which the core decides a pause and a resume among so many leases."""
    world = World(leases)
    session = SessionId(0)
    for number in range(1, leases // LEASES_PER_SESSION + 1):
        session = world.attach(number)
        for tag in range(LEASES_PER_SESSION):
            world.lease(session, f"t{tag}")
    return median_seconds(lambda: world.cycle(session, "t50"), ROUNDS)
