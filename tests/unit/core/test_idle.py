"""The indexes: who is idle for longest, and who holds most, without looking at everybody."""

from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.idle import Holdings, IdleLeases
from vrambroker.broker.core.ids import Domain, Instant, LeaseId, SessionId, SlotId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.slot import Slot, Step


def idle_lease(number: int, since: int, sizes: tuple[int, ...] = (4,), contents: Contents = Contents.DROP) -> Lease:
    lease = Lease(
        lease=LeaseId(number),
        session=SessionId(1),
        domain=Domain("d"),
        tag="t",
        contents=contents,
        since=Instant(0),
        idle_since=Instant(since),
        paused=True,
    )
    for index, size in enumerate(sizes):
        slot = Slot(slot=SlotId(100 * number + index), size_bytes=size)
        lease.add(slot)
        lease.step(slot, Step.GRANT)
        lease.step(slot, Step.ARRIVE)
    return lease


def test_the_longest_idle_comes_first_whenever_it_was_entered() -> None:
    idle = IdleLeases()
    for lease in (idle_lease(1, 30), idle_lease(2, 10, (4, 16)), idle_lease(3, 20)):
        assert idle.update(lease), "there is more to take than before"
    assert list(idle) == [2, 3, 1]
    assert (idle.size_bytes, len(idle), idle.bytes_in({LeaseId(2), LeaseId(99)})) == (28, 3, 20)


def test_what_may_not_be_taken_is_not_in_it() -> None:
    idle, lease = IdleLeases(), idle_lease(1, 10)
    idle.update(lease)
    for spoil in ("lock", "takeable", "paused"):
        before = getattr(lease, spoil)
        setattr(lease, spoil, {"lock": 5, "takeable": False, "paused": False}[spoil])
        assert not idle.update(lease)
        assert not list(idle), spoil
        assert idle.size_bytes == 0
        setattr(lease, spoil, before)
        assert idle.update(lease)


def test_what_is_about_to_leave_is_no_longer_to_be_taken() -> None:
    idle, lease = IdleLeases(), idle_lease(1, 10, (4, 16))
    idle.update(lease)
    slot = next(iter(lease.slots.values()))
    lease.go(slot)
    assert not idle.update(lease)
    assert idle.size_bytes == 16
    lease.stay(slot)
    assert idle.update(lease)
    assert idle.size_bytes == 20


def test_what_need_not_be_copied_comes_before_what_has_been_idle_for_longer() -> None:
    idle = IdleLeases()
    for lease in (idle_lease(1, 10, contents=Contents.KEEP), idle_lease(2, 30), idle_lease(3, 20)):
        idle.update(lease)
    assert list(idle) == [3, 2, 1]


def test_an_update_without_a_change_tells_so() -> None:
    idle, lease = IdleLeases(), idle_lease(1, 10)
    assert idle.update(lease)
    assert not idle.update(lease)


def test_the_largest_holders_come_first_by_magnitude() -> None:
    holdings = Holdings()
    for number, size in ((1, 5), (2, 500), (3, 50), (4, 6)):
        holdings.update(LeaseId(number), size)
    assert list(holdings.largest()) == [2, 3, 1, 4]
    holdings.update(LeaseId(2), 0)
    holdings.update(LeaseId(1), 5000)
    assert list(holdings.largest()) == [1, 3, 4]
