"""A trainer and a rollout that don't fit on the device together, and a plan of two phases for them."""

from tests.unit.core.desk import MIB, Desk, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.ids import SessionId
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.phase import Order

DROP = ev.Contents.DROP
RL = {"generate": ("rollout/*",), "train": ("trainer/*",)}


class Pair:
    """The rollout is parked: all is as in the phase `train`."""

    def __init__(
        self, held_to: Limits | None = None, *, order: Order = Order.DEVICE, scoped: bool = True, cache: int = 2
    ) -> None:
        self.desk = desk = Desk(held_to, scoped=scoped)
        self.trainer, self.rollout = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
        self.weights = desk.lease(self.rollout, "weights", 3)
        self.cache = desk.lease(self.rollout, "kv_cache", cache, DROP)
        assert isinstance(desk.pause(self.rollout, "weights", "kv_cache", release=True), ef.Paused)
        self.params = desk.lease(self.trainer, "params", 5)
        assert desk.set_plan(RL, order=order) == ef.Done()

    def states(self) -> dict[str, LeaseState]:
        leases = (lease for session in self.desk.broker.snapshot().sessions for lease in session.leases)
        return {lease.tag: lease.state for lease in leases}

    def orders(self) -> list[ef.SendPauseOrder]:
        return self.desk.sent(ef.SendPauseOrder)


def limit_to(desk: Desk, session: SessionId, hard: int, revision: int = 0, tag: str = "") -> None:
    """Have a session, or one of its tags, held to so many MiB."""
    call = desk.call(desk.peers[session])
    limit = ev.SetBudget(call=call, session=session, tag=tag, soft_bytes=None, hard_bytes=hard * MIB, revision=revision)
    assert desk.answer(limit) is not None
