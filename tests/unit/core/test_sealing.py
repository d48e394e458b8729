"""Sealed leases: copied out once, taken before those that must be copied, and copies that give way to others' contents."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import (
    InvalidArgument,
    NotOwner,
    OutOfHostMemory,
    RequestConflict,
    UnknownTag,
    WrongState,
)
from vrambroker.broker.core.ids import Domain, LeaseId, SessionId

ONE, TWO = peer(1), peer(2)


def parks(desk: Desk) -> list[bool]:
    """Return, for each slot ordered out so far, whether it had to be copied."""
    return [slot.park is not None for order in desk.sent(ef.SendRecall) for slot in order.slots]


def host(desk: Desk, lease: LeaseId) -> int:
    return desk.view(lease).host_bytes // MIB


def parked_once(desk: Desk, session: SessionId, tag: str, size: int) -> LeaseId:
    """Return a sealed, resident lease whose copy is in the arena."""
    lease = desk.lease(session, tag, size)
    assert desk.seal(session, tag) == ef.Done()
    desk.pause(session, tag, release=True)
    assert isinstance(desk.resume(session, tag), ef.Resumed)
    return lease


def test_a_sealed_lease_is_copied_out_once() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    lease = parked_once(desk, one, "weights", 3)
    assert (host(desk, lease), desk.view(lease).state) == (3, ef.LeaseState.RESIDENT)
    for _ in range(3):
        desk.pause(one, "weights", release=True)
        desk.resume(one, "weights")
    assert parks(desk) == [True] * 3 + [False] * 9
    restored = [slot.restore for order in desk.sent(ef.SendGrant)[-1:] for slot in order.slots]
    assert all(restored)


def test_what_was_parked_before_the_seal_counts() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 2)
    desk.pause(one, "weights", release=True)
    assert desk.seal(one, "weights") == ef.Done()
    desk.resume(one, "weights")
    desk.pause(one, "weights", release=True)
    assert parks(desk) == [True, True, False, False]


def test_what_was_never_parked_of_it_is_copied_when_it_goes() -> None:
    desk = Desk()
    one, two = desk.attach(ONE), desk.attach(TWO)
    lease = desk.lease(one, "weights", 4)
    desk.seal(one, "weights")
    desk.pause(one, "weights")
    desk.lease(two, "other", 6)
    assert parks(desk) == [True] * 2
    desk.pause(two, "other", release=True)
    desk.resume(one, "weights")
    assert host(desk, lease) == 2, "its other places were never filled"
    desk.pause(one, "weights", release=True)
    assert sorted(parks(desk)[-4:]) == [False, False, True, True]


def test_of_a_lease_that_is_partly_parked_the_parked_frames_go_first() -> None:
    desk = Desk()
    one, two = desk.attach(ONE), desk.attach(TWO)
    desk.lease(one, "weights", 4)
    desk.seal(one, "weights")
    desk.pause(one, "weights")
    other = desk.lease(two, "other", 6)
    desk.give(two, other)
    desk.resume(one, "weights")
    desk.pause(one, "weights")
    desk.lease(two, "again", 6)
    assert parks(desk) == [True, True, False, False]


def test_unsealing_gives_the_copy_back() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    lease = parked_once(desk, one, "weights", 3)
    assert desk.unseal(one, "weights") == ef.Done()
    assert (host(desk, lease), desk.broker.snapshot().host_used_bytes) == (0, 0)
    assert not desk.view(lease).sealed
    desk.pause(one, "weights", release=True)
    assert parks(desk) == [True] * 6


def test_a_paused_lease_that_is_unsealed_comes_back_from_its_copy() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    lease = parked_once(desk, one, "weights", 3)
    desk.pause(one, "weights", release=True)
    desk.unseal(one, "weights")
    assert host(desk, lease) == 3
    desk.resume(one, "weights")
    assert all(slot.restore for slot in desk.sent(ef.SendGrant)[-1].slots)
    assert host(desk, lease) == 0


def test_sealing_is_idempotent_and_told_once() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 1)
    for call in (desk.seal, desk.seal, desk.unseal, desk.unseal):
        assert call(one, "weights") == ef.Done()
    told = [line.kind for line in desk.sent(ef.Publish) if "SEALED" in line.kind.name]
    assert told == [ef.Kind.LEASE_SEALED, ef.Kind.LEASE_UNSEALED]


def test_a_replay_is_answered_as_before_and_another_call_conflicts() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 1)
    for _ in range(2):
        assert desk.answer(ev.Seal(call=desk.call(ONE, "s"), session=one, tags=("weights",))) == ef.Done()
    other = desk.answer(ev.Unseal(call=desk.call(ONE, "s"), session=one, tags=("weights",)))
    assert isinstance(other, RequestConflict)


def test_a_sealed_tag_does_not_grow() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 1)
    desk.seal(one, "weights")
    for contents in ev.Contents:
        refused = desk.lend(one, "weights", 1, contents)
        assert isinstance(refused, WrongState)
        assert "unsealed" in refused.message
    desk.unseal(one, "weights")
    assert isinstance(desk.lend(one, "weights", 1), ef.Leased)


def test_what_grows_is_not_sealed() -> None:
    desk = Desk(held_back=("arrive",))
    one = desk.attach(ONE)
    desk.lend(one, "weights", 1)
    assert isinstance(desk.seal(one, "weights"), WrongState)
    desk.let_go("arrive")
    assert desk.seal(one, "weights") == ef.Done()


@pytest.mark.parametrize("contents", [ev.Contents.DROP, ev.Contents.ZERO])
def test_only_kept_contents_are_sealed_and_all_of_the_tags_or_none(contents: ev.Contents) -> None:
    desk = Desk()
    one = desk.attach(ONE)
    lease = desk.lease(one, "weights", 1)
    desk.lease(one, "cache", 1, contents)
    assert isinstance(desk.seal(one, "weights", "cache"), InvalidArgument)
    assert not desk.view(lease).sealed


def test_what_can_never_be_sealed_is_said_first() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 1)
    desk.pause(one, "weights", discard=True)
    assert isinstance(desk.seal(one, "weights"), WrongState)
    desk.lease(one, "cache", 1, contents=ev.Contents.DROP)
    assert isinstance(desk.seal(one, "weights", "cache"), InvalidArgument)


def test_nobody_else_seals_or_unseals() -> None:
    desk = Desk()
    one = desk.attach(ONE)
    desk.lease(one, "weights", 1)
    assert isinstance(desk.seal(one, "weights", actor=TWO), NotOwner)
    assert isinstance(desk.unseal(one, "weights", actor=TWO), NotOwner)
    assert isinstance(desk.seal(one, "nothing"), UnknownTag)
    assert isinstance(desk.unseal(one, "nothing"), UnknownTag)
    assert isinstance(desk.seal(one), InvalidArgument)


def test_the_cheapest_go_first() -> None:
    desk = Desk()
    one, two = desk.attach(ONE), desk.attach(TWO)
    parked_once(desk, one, "sealed", 2)
    desk.lease(one, "kept", 2)
    desk.lease(one, "dropped", 2, ev.Contents.DROP)
    desk.pause(one, "kept")
    desk.pause(one, "sealed")
    desk.pause(one, "dropped")
    before = len(desk.sent(ef.SendRecall))
    for number in range(3):
        desk.lease(two, f"taken-{number}", 3 if not number else 2)
    tags = {view.lease: view.tag for one in desk.broker.snapshot().sessions for view in one.leases}
    taken = list(dict.fromkeys(tags[order.lease] for order in desk.sent(ef.SendRecall)[before:]))
    assert taken == ["dropped", "sealed", "kept"]


def test_a_copy_that_nobody_needs_gives_way_to_contents_that_must_be_kept() -> None:
    desk = Desk(limits(budget=4, file=4))
    one, two = desk.attach(ONE), desk.attach(TWO)
    lease = parked_once(desk, one, "weights", 3)
    other = desk.lease(two, "other", 3)
    assert isinstance(desk.pause(two, "other"), ef.Paused)
    assert (host(desk, lease), host(desk, other)) == (1, 3), "no more than it took"
    assert isinstance(desk.pause(one, "weights"), OutOfHostMemory), "others' contents are no cache"
    desk.resume(two, "other")
    desk.pause(one, "weights", release=True)
    assert sorted(parks(desk)[-3:]) == [False, True, True]


def test_a_copy_is_not_given_up_in_vain_nor_for_its_own_lease() -> None:
    desk = Desk(limits(budget=4, file=4))
    one, two = desk.attach(ONE), desk.attach(TWO)
    lease = parked_once(desk, one, "weights", 3)
    desk.lease(two, "other", 5)
    before = desk.broker.snapshot()
    refused = desk.pause(two, "other")
    assert isinstance(refused, OutOfHostMemory)
    assert (refused.requested_bytes, refused.free_bytes) == (5 * MIB, 4 * MIB)
    assert desk.broker.snapshot() == before, "a refused call changes nothing"
    assert desk.view(lease).host_bytes == 3 * MIB


def test_a_copy_that_is_all_there_is_stays() -> None:
    desk = Desk(limits(budget=4, file=4))
    one, two = desk.attach(ONE), desk.attach(TWO)
    lease = parked_once(desk, one, "weights", 3)
    desk.lease(two, "other", 3)
    desk.pause(one, "weights")
    assert isinstance(desk.pause(two, "other"), OutOfHostMemory), "it is paused, so its frames may be taken"
    assert host(desk, lease) == 3


@pytest.mark.parametrize(("size", "fits"), [(2, True), (5, False)])
def test_the_file_of_another_domain_goes_whole_or_not_at_all(size: int, fits: bool) -> None:
    desk = Desk(limits(capacity=16, budget=4, file=4))
    one, two = desk.attach(ONE), desk.attach(peer(2, domain=Domain("away")))
    parked_once(desk, one, "weights", 2)
    desk.lease(two, "other", size)
    answer = desk.pause(two, "other")
    assert isinstance(answer, ef.Paused if fits else OutOfHostMemory)


def test_its_own_copy_is_not_given_up_for_the_rest_of_a_lease() -> None:
    desk = Desk(limits(budget=4, file=4))
    one, two = desk.attach(ONE), desk.attach(TWO)
    lease = desk.lease(one, "weights", 4)
    desk.seal(one, "weights")
    desk.pause(one, "weights")
    desk.give(two, desk.lease(two, "other", 6))
    desk.resume(one, "weights")
    desk.lease(two, "kept", 1)
    desk.pause(two, "kept")
    assert isinstance(desk.pause(one, "weights"), OutOfHostMemory)
    assert host(desk, lease) == 2


def test_a_copy_that_turned_out_to_be_no_help_stays() -> None:
    desk = Desk(limits(capacity=16, budget=8, file=4))
    one, two = desk.attach(ONE), desk.attach(peer(2, domain=Domain("away")))
    lease, other = parked_once(desk, one, "weights", 2), parked_once(desk, two, "weights", 4)
    desk.lease(one, "activations", 6)
    assert isinstance(desk.pause(one, "activations"), ef.Paused)
    assert (host(desk, lease), host(desk, other)) == (2, 0), "two beside it, and four in place of the other's"


def test_larger_places_are_made_of_smaller_copies() -> None:
    desk = Desk(limits(capacity=64, sizes=(1, 4, 16), budget=16, file=16))
    one, two = desk.attach(ONE), desk.attach(TWO)
    for number in range(16):
        parked_once(desk, one, f"small-{number}", 1)
    assert isinstance(desk.pause(two, "none"), UnknownTag)
    desk.lease(two, "large", 17)
    before = desk.broker.snapshot()
    assert isinstance(desk.pause(two, "large"), OutOfHostMemory)
    assert desk.broker.snapshot() == before
    desk.lease(two, "medium", 4)
    assert isinstance(desk.pause(two, "medium"), ef.Paused)
    assert desk.broker.snapshot().host_used_bytes == 16 * MIB


def test_a_slot_that_is_returned_takes_its_copy_along_and_a_dead_ones_is_wiped() -> None:
    desk = Desk(held_back=("punch",))
    one = desk.attach(ONE)
    lease = parked_once(desk, one, "weights", 3)
    desk.give(one, lease, [desk.view(lease).slots[0].slot])
    assert host(desk, lease) == 2
    desk.do(ev.ProcessEnded(session=one))
    assert len(desk.waiting("punch")) == 2
    desk.let_go("punch")
    assert desk.broker.snapshot().host_used_bytes == 0


def test_the_last_copy_in_the_file_of_another_domain_brings_all_of_the_file() -> None:
    desk = Desk(limits(capacity=8, budget=6, file=4))
    one, two = desk.attach(ONE), desk.attach(peer(2, domain=Domain("away")))
    copied = desk.lease(one, "weights", 1)
    desk.lease(one, "optimizer", 3)
    assert desk.seal(one, "weights") == ef.Done()
    desk.pause(one, "weights", "optimizer", release=True)
    desk.resume(one, "weights", "optimizer")
    assert host(desk, copied) == 1
    desk.lease(two, "params", 4)
    assert isinstance(desk.pause(two, "params"), ef.Paused)
    assert host(desk, copied) == 0
