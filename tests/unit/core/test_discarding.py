"""Pauses after which their owner wants nothing back: kept contents that take no host memory, for that pause alone."""

import pytest

from tests.unit.core.desk import MIB, Answer, Desk, limits, peer
from tests.unit.core.pair import RL
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import InvalidArgument, OutOfHostMemory, WrongState
from vrambroker.broker.core.ids import LeaseId
from vrambroker.broker.core.phase import Order

KEEP, DROP, ZERO = ev.Contents.KEEP, ev.Contents.DROP, ev.Contents.ZERO


def host(desk: Desk, lease: LeaseId) -> int:
    return desk.view(lease).host_bytes // MIB


def parks(desk: Desk) -> list[bool]:
    return [slot.park is not None for order in desk.sent(ef.SendRecall) for slot in order.slots]


def restores(desk: Desk) -> list[bool]:
    """Return, for each slot granted so far, whether something was parked for it."""
    return [slot.restore is not None for order in desk.sent(ef.SendGrant) for slot in order.slots]


def same(desk: Desk, answer: Answer | None) -> list[bool]:
    assert isinstance(answer, ef.Resumed), answer
    return [lease.same_pages for lease in answer.leases]


def test_what_is_discarded_is_not_parked_and_the_next_pause_keeps_again() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    lease = desk.lease(one, "weights", 3)
    assert isinstance(desk.pause(one, "weights", discard=True, release=True), ef.Paused)
    assert (desk.view(lease).state, desk.view(lease).discarded, host(desk, lease)) == (LeaseState.PARKED, True, 0)
    assert same(desk, desk.resume(one, "weights")) == [False]
    assert not desk.view(lease).discarded
    assert (parks(desk), restores(desk)[3:]) == ([False] * 3, [False] * 3)
    desk.pause(one, "weights", release=True)
    desk.resume(one, "weights")
    assert (parks(desk)[3:], restores(desk)[6:]) == ([True] * 3, [True] * 3)


def test_it_needs_no_host_memory_where_a_pause_would_be_refused() -> None:
    desk = Desk(limits(budget=2))
    one = desk.attach(peer(1))
    desk.lease(one, "weights", 3)
    assert isinstance(desk.pause(one, "weights"), OutOfHostMemory)
    assert isinstance(desk.pause(one, "weights", discard=True), ef.Paused)


def test_it_is_taken_before_what_must_be_copied() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    kept = desk.lease(one, "weights", 4)
    discarded = desk.lease(one, "draft", 2)
    desk.pause(one, "weights")
    desk.pause(one, "draft", discard=True)
    desk.lease(two, "other", 4)
    assert desk.view(discarded).state is LeaseState.PARKED
    assert desk.view(kept).state is LeaseState.IDLE


def test_what_nobody_took_is_the_same() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    lease = desk.lease(one, "weights", 2)
    desk.pause(one, "weights", discard=True)
    assert same(desk, desk.resume(one, "weights")) == [True]
    assert not desk.view(lease).discarded


@pytest.mark.parametrize("release", [False, True])
def test_what_is_paused_already_keeps_what_it_has(release: bool) -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    lease = desk.lease(one, "weights", 2)
    desk.pause(one, "weights", release=release)
    assert isinstance(desk.pause(one, "weights", discard=True, release=True), ef.Paused)
    assert (desk.view(lease).discarded, host(desk, lease)) == (False, 2)
    desk.resume(one, "weights")
    assert restores(desk)[2:] == [True] * 2


def test_what_is_dropped_or_zeroed_anyway_is_not_called_discarded() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    leases = [desk.lease(one, "cache", 1, DROP), desk.lease(one, "cache", 1, ZERO), desk.lease(one, "cache", 1, KEEP)]
    desk.pause(one, "cache", discard=True)
    assert [desk.view(lease).discarded for lease in leases] == [False, False, True]


def test_only_the_owner_discards_and_nothing_has_changed() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    desk.lease(one, "weights", 1)
    before = desk.broker.snapshot()
    assert isinstance(desk.pause(one, "weights", discard=True, quiet=False), InvalidArgument)
    assert desk.broker.snapshot() == before


def test_sealed_contents_stay_and_discarded_ones_are_not_sealed() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    desk.lease(one, "weights", 1)
    desk.lease(one, "draft", 1)
    assert desk.seal(one, "weights") == ef.Done()
    before = desk.broker.snapshot()
    assert isinstance(desk.pause(one, "draft", "weights", discard=True), WrongState)
    assert desk.broker.snapshot() == before
    desk.pause(one, "draft", discard=True)
    assert isinstance(desk.seal(one, "draft"), WrongState)


def test_a_copy_ahead_is_not_made_of_it() -> None:
    desk = Desk(limits(copy_ahead=10))
    one = desk.attach(peer(1))
    desk.lease(one, "weights", 2)
    desk.pause(one, "weights", discard=True)
    desk.at(desk.now + 100)
    assert not desk.sent(ef.SendCopy)


@pytest.mark.parametrize("order", Order)
def test_it_comes_back_with_its_phase(order: Order) -> None:
    desk = Desk(scoped=True)
    rollout, trainer = desk.attach(peer(1), "rollout"), desk.attach(peer(2), "trainer")
    weights = desk.lease(rollout, "weights", 4)
    desk.pause(rollout, "weights", discard=True, release=True)
    desk.lease(trainer, "params", 6)
    assert desk.set_plan(RL, order=order) == ef.Done()
    assert isinstance(desk.enter("generate"), ef.Entered)
    assert (desk.view(weights).state, desk.view(weights).discarded) == (LeaseState.RESIDENT, False)
