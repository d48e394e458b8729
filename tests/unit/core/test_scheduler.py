"""Whose memory is taken: a plan covers the whole need, takes no more than it must, and in the right order."""

from collections.abc import Mapping

from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.idle import IdleLeases
from vrambroker.broker.core.ids import Domain, FrameId, Instant, LeaseId, SessionId, SlotId, TicketId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame, Ledger
from vrambroker.broker.core.scheduler import Need, Plan, Reach, Supply, plan
from vrambroker.broker.core.slot import Slot, Step

HOME, AWAY = Domain("home"), Domain("away")
SPARE = TicketId(99)


class Stock:
    """A ledger filled by hand, and idle leases over it."""

    def __init__(self, capacity: int) -> None:
        self.ledger = Ledger(capacity)
        self.idle = IdleLeases()
        self.leases: dict[LeaseId, list[Frame]] = {}
        self._next = 0

    def _lent(self, size: int, lease: int, domain: Domain) -> Frame:
        self._next += 1
        self.ledger.reserve(size)
        self.ledger.create(FrameId(self._next), size, SPARE)
        frame = self.ledger.frames[FrameId(self._next)]
        self.ledger.created(frame)
        self.ledger.lend(frame, SessionId(1), LeaseId(lease), domain)
        return frame

    def pooled(self, size: int, domain: Domain = HOME) -> Frame:
        frame = self._lent(size, 1, domain)
        self.ledger.come_back(frame)
        return frame

    def coming(self, size: int, domain: Domain = HOME) -> Frame:
        frame = self._lent(size, 1, domain)
        self.ledger.leave(frame)
        return frame

    def melting(self, size: int) -> Frame:
        frame = self.pooled(size)
        self.ledger.destroy(frame)
        return frame

    def idle_lease(self, number: int, since: int, *sizes: int, domain: Domain = HOME) -> LeaseId:
        lease = Lease(
            lease=LeaseId(number),
            session=SessionId(1),
            domain=domain,
            tag="t",
            contents=Contents.DROP,
            since=Instant(0),
            idle_since=Instant(since),
            paused=True,
        )
        self.leases[lease.lease] = [self._lent(size, number, domain) for size in sizes]
        for index, size in enumerate(sizes):
            slot = Slot(slot=SlotId(1000 * number + index), size_bytes=size)
            lease.add(slot)
            lease.step(slot, Step.GRANT)
            lease.step(slot, Step.ARRIVE)
        self.idle.update(lease)
        return lease.lease

    def plan(self, parts: Mapping[int, int], reach: Reach = Reach.ALL, *spared: LeaseId) -> Plan | None:
        supply = Supply(ledger=self.ledger, idle=self.idle, frames_of=self.leases.__getitem__)
        return plan(Need(parts=parts, domain=HOME, spared=frozenset(spared)), supply, reach)


def test_nothing_is_needed_for_nothing() -> None:
    found = Stock(10).plan({})
    assert found == Plan(exact=(), melting=(), to_create={}, reserve_bytes=0, recalls={})


def test_pooled_frames_come_before_free_capacity() -> None:
    stock = Stock(100)
    frame = stock.pooled(4)
    assert stock.plan({4: 2}, Reach.FREE) == Plan(
        exact=(frame.frame,), melting=(), to_create={4: 1}, reserve_bytes=4, recalls={}
    )


def test_pooled_frames_of_another_size_or_domain_are_destroyed_only_when_need_be() -> None:
    stock = Stock(16)
    other, foreign = stock.pooled(8), stock.pooled(4, AWAY)
    roomy = stock.plan({4: 1}, Reach.FREE)
    assert roomy is not None
    assert roomy.melting == ()
    tight = stock.plan({4: 2}, Reach.FREE)
    assert tight is not None
    assert set(tight.melting) <= {other.frame, foreign.frame}
    assert tight.reserve_bytes + 4 >= 8
    everything = stock.plan({4: 4}, Reach.FREE)
    assert everything is not None
    assert set(everything.melting) == {other.frame, foreign.frame}
    assert stock.plan({4: 5}, Reach.FREE) is None


def test_what_is_coming_is_not_free() -> None:
    stock = Stock(8)
    frame = stock.coming(4)
    assert stock.plan({4: 2}, Reach.FREE) is None
    found = stock.plan({4: 2})
    assert found is not None
    assert (found.exact, found.reserve_bytes) == ((frame.frame,), 4)


def test_free_capacity_comes_before_what_is_coming() -> None:
    stock = Stock(8)
    stock.coming(4)
    found = stock.plan({4: 1})
    assert found is not None
    assert (found.exact, found.to_create) == ((), {4: 1})


def test_what_is_coming_comes_before_a_recall() -> None:
    stock = Stock(12)
    coming, melting = stock.coming(4), stock.melting(4)
    stock.idle_lease(7, 1, 4)
    found = stock.plan({4: 2})
    assert found is not None
    assert (found.exact, found.melting, found.recalls) == ((coming.frame,), (melting.frame,), {})


def test_the_longest_idle_is_recalled_first_and_no_more_than_it_takes() -> None:
    stock = Stock(12)
    stock.idle_lease(1, 30, 4)
    stock.idle_lease(2, 10, 4)
    stock.idle_lease(3, 20, 4)
    one, two = stock.plan({4: 1}), stock.plan({4: 2})
    assert one is not None
    assert two is not None
    assert (list(one.recalls), list(two.recalls)) == ([2], [2, 3])
    assert stock.plan({4: 4}) is None


def test_no_more_of_a_lease_is_recalled_than_it_takes() -> None:
    stock = Stock(16)
    lease = stock.idle_lease(1, 10, 8, 4, 4)
    found = stock.plan({4: 1})
    assert found is not None
    assert {giver: len(frames) for giver, frames in found.recalls.items()} == {lease: 1}
    assert (len(found.exact), found.melting) == (1, ())


def test_the_requesters_own_leases_are_spared() -> None:
    stock = Stock(8)
    own = stock.idle_lease(1, 10, 4)
    other = stock.idle_lease(2, 20, 4)
    found = stock.plan({4: 1}, Reach.ALL, own)
    assert found is not None
    assert list(found.recalls) == [other]
    assert stock.plan({4: 2}, Reach.ALL, own) is None


def test_frames_of_another_domain_or_size_are_taken_for_their_bytes() -> None:
    stock = Stock(16)
    stock.idle_lease(1, 10, 16, domain=AWAY)
    found = stock.plan({4: 3})
    assert found is not None
    assert found.exact == ()
    assert len(found.melting) == 1
    assert found.to_create == {4: 3}


def test_small_frames_make_up_a_large_one() -> None:
    stock = Stock(16)
    stock.idle_lease(1, 10, 4, 4, 4, 4)
    found = stock.plan({16: 1})
    assert found is not None
    assert (len(found.melting), found.to_create, found.reserve_bytes) == (4, {16: 1}, 0)


def test_a_better_find_makes_an_earlier_one_needless() -> None:
    stock = Stock(36)
    stock.idle_lease(1, 10, 4, 4)
    stock.idle_lease(2, 20, 16)
    found = stock.plan({16: 1, 4: 3})
    assert found is not None
    assert (list(found.recalls), found.melting, len(found.exact)) == ([2], (), 1)


def test_a_plan_covers_what_it_is_to_make() -> None:
    stock = Stock(40)
    stock.pooled(4, AWAY)
    stock.coming(16, AWAY)
    stock.idle_lease(1, 10, 4, 16)
    found = stock.plan({16: 1, 4: 5})
    assert found is not None
    melting = sum(stock.ledger.frames[frame].size_bytes for frame in found.melting)
    assert sum(size * number for size, number in found.to_create.items()) <= found.reserve_bytes + melting
