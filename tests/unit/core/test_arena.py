"""Files and extents: aligned, disjoint, counted, within the budget, and merged again when they are free."""

from itertools import pairwise
from random import Random

import pytest

from vrambroker.broker.core.arena import Arena, Room
from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.ids import ArenaFileId, Domain, LeaseId, SlotId
from vrambroker.broker.core.snapshot import FileState

HOME, AWAY = Domain("home"), Domain("away")


def arena(*, budget: int = 256, file: int = 64, sizes: tuple[int, ...] = (4, 16)) -> Arena:
    return Arena(budget_bytes=budget, file_bytes=file, sizes_bytes=sizes)


def take(of: Arena, size: int, slot: int = 1, domain: Domain = HOME) -> Extent:
    return of.take(domain, size, LeaseId(1), SlotId(slot))


def add_file(to: Arena, number: int, size: int, domain: Domain = HOME, *, ready: bool = True) -> None:
    """Plan a file, have it begun, and mostly made."""
    to.add_file(ArenaFileId(number), domain, size)
    assert [file.file for file in to.begin_planned()] == [number]
    if ready:
        to.made(ArenaFileId(number))


def files_needed(of: Arena, domain: Domain, need: dict[int, int]) -> tuple[int, ...] | None:
    """Return the sizes of the files to make where none is to be given up."""
    room = of.room_for(domain, need)
    assert room is None or not room.give_up
    return room.make if room is not None else None


def test_files_are_needed_only_for_what_does_not_fit_yet() -> None:
    small = arena()
    assert files_needed(small, HOME, {}) == ()
    assert files_needed(small, HOME, {4: 16}) == (64,)
    add_file(small, 1, 64)
    assert files_needed(small, HOME, {4: 16}) == ()
    assert files_needed(small, HOME, {4: 4, 16: 3}) == ()
    assert files_needed(small, HOME, {4: 5, 16: 3}) == (64,)
    assert files_needed(small, AWAY, {4: 1}) == (64,)


def test_the_budget_is_not_exceeded_and_a_last_file_may_be_smaller() -> None:
    small = arena(budget=100)
    assert files_needed(small, HOME, {16: 5}) == (64, 36)
    assert files_needed(small, HOME, {16: 6}) == (64, 36)
    assert files_needed(small, HOME, {16: 6, 4: 1}) == (64, 36)
    assert files_needed(small, HOME, {16: 6, 4: 2}) is None
    assert files_needed(small, HOME, {16: 7}) is None


def test_a_file_holds_the_largest_slot_even_where_files_are_to_be_smaller() -> None:
    small = arena(budget=40, file=8)
    assert files_needed(small, HOME, {16: 1}) == (16,)
    assert files_needed(small, HOME, {16: 1, 4: 1}) == (16, 8)
    assert files_needed(small, HOME, {16: 3}) is None


def test_extents_are_aligned_and_split_from_larger_blocks_only_when_need_be() -> None:
    small = arena(file=64, sizes=(1, 4, 16))
    add_file(small, 1, 64)
    offsets = [take(small, size).offset_bytes for size in (1, 16, 4, 1)]
    assert offsets[0] == 0
    assert offsets[1] % 16 == 0
    assert offsets[2] % 4 == 0
    assert offsets[3] == 1, "the next small one comes from the block that is split already"


def test_what_is_free_again_merges_into_whole_blocks() -> None:
    small = arena(file=64, sizes=(1, 4, 16))
    add_file(small, 1, 64)
    extents = [take(small, 1, slot) for slot in range(64)]
    assert small.used_bytes == 64
    Random(5).shuffle(extents)
    for extent in extents:
        small.give(extent)
    assert small.blocks_of(HOME).numbers() == {1: 0, 4: 0, 16: 4}
    assert small.used_bytes == 0


@pytest.mark.parametrize("seed", range(10))
def test_count_and_blocks_agree_whatever_happens(seed: int) -> None:
    chance = Random(seed)
    mixed = arena(budget=1000, file=84, sizes=(4, 16, 48))
    held: list[Extent] = []
    number = 0
    for _ in range(200):
        if held and chance.random() < 0.5:
            mixed.give(held.pop(chance.randrange(len(held))))
            continue
        need = {size: chance.randint(0, 3) for size in (4, 16, 48)}
        files = files_needed(mixed, HOME, need)
        for size in files or ():
            number += 1
            add_file(mixed, number, size)
        if files is not None:
            wanted = [size for size, times in need.items() for _ in range(times)]
            chance.shuffle(wanted)
            held.extend(take(mixed, size) for size in wanted)
    taken = sorted((one.file, one.offset_bytes, one.size_bytes) for one in held)
    for (file, offset, size), following in pairwise(taken):
        assert file < following[0] or offset + size <= following[1]
    assert all(offset % size == 0 for _, offset, size in taken)
    assert mixed.size_bytes <= 1000


def test_an_extent_of_a_dead_client_is_free_only_when_it_is_punched() -> None:
    small = arena(budget=16, file=16)
    add_file(small, 1, 16)
    extent = take(small, 16)
    assert small.begin_punching(extent)
    assert files_needed(small, HOME, {4: 1}) is None
    small.punched(ArenaFileId(1), 0)
    assert files_needed(small, HOME, {16: 1}) == ()
    with pytest.raises(InvariantViolation):
        small.punched(ArenaFileId(1), 0)


def test_nothing_is_punched_in_a_file_that_nobody_could_write_to() -> None:
    small = arena()
    add_file(small, 1, 64, ready=False)
    assert not small.begin_punching(take(small, 16))
    assert small.used_bytes == 0


def test_a_file_counts_against_the_budget_until_it_is_gone() -> None:
    small = arena(budget=64)
    add_file(small, 1, 64)
    assert small.give_up(small.files[ArenaFileId(1)])
    assert files_needed(small, HOME, {4: 1}) == (64,), "its room is promised already"
    small.add_file(ArenaFileId(2), HOME, 64)
    extent = take(small, 4)
    assert (extent.file, small.size_bytes, small.begin_planned()) == (2, 64, [])
    assert files_needed(small, AWAY, {4: 1}) is None
    small.destroyed(ArenaFileId(1))
    assert small.size_bytes == 0
    assert [file.file for file in small.begin_planned()] == [2]
    assert small.size_bytes == 64


def test_a_planned_file_is_not_made_if_nothing_of_it_is_left() -> None:
    small = arena(budget=64)
    add_file(small, 1, 64)
    small.give_up(small.files[ArenaFileId(1)])
    small.add_file(ArenaFileId(2), HOME, 64)
    extents = [take(small, 4, slot) for slot in (1, 2)]
    small.give(extents[0])
    small.begin_punching(extents[1])
    assert list(small.files) == [1]
    assert (small.planned_bytes, small.used_bytes) == (0, 0)
    small.destroyed(ArenaFileId(1))
    assert small.begin_planned() == []


def test_empty_files_are_given_up_for_what_does_not_fit_otherwise() -> None:
    small = arena(budget=200)
    for number in (1, 2, 3):
        add_file(small, number, 64)
    take(small, 4)
    assert small.room_for(AWAY, {4: 2}) == Room(make=(8,), give_up=()), "the budget has some left"
    assert small.room_for(AWAY, {16: 2}) == Room(make=(64,), give_up=(ArenaFileId(2),))
    assert small.room_for(AWAY, {16: 8}) == Room(make=(64, 64), give_up=(ArenaFileId(2), ArenaFileId(3)))
    assert small.room_for(AWAY, {16: 8, 4: 2}) == Room(make=(64, 64, 8), give_up=(ArenaFileId(2), ArenaFileId(3)))
    assert small.room_for(AWAY, {16: 8, 4: 3}) is None, "what is in use stays"
    assert small.free_bytes(AWAY) == 64 + 64 + 8


def test_a_domain_gives_up_its_own_empty_files_last_and_only_those_that_are_too_small() -> None:
    small = arena(budget=48)
    for number, domain in ((1, HOME), (2, HOME), (3, AWAY)):
        add_file(small, number, 12, domain)
    assert small.room_for(HOME, {4: 6}) == Room(make=(), give_up=())
    assert small.room_for(HOME, {16: 1}) == Room(make=(24,), give_up=(ArenaFileId(3),))
    assert small.room_for(HOME, {16: 1, 4: 8}) == Room(make=(24,), give_up=(ArenaFileId(3),))
    assert small.room_for(HOME, {16: 2}) == Room(make=(36,), give_up=(ArenaFileId(3), ArenaFileId(1)))
    assert small.room_for(HOME, {16: 3}) == Room(make=(48,), give_up=tuple(map(ArenaFileId, (3, 1, 2))))
    assert small.room_for(HOME, {16: 3, 4: 1}) is None


def test_a_file_given_up_while_it_is_made_goes_when_it_is_ready() -> None:
    small = arena(budget=64)
    add_file(small, 1, 64, ready=False)
    assert small.room_for(AWAY, {16: 4}) == Room(make=(64,), give_up=(ArenaFileId(1),))
    assert not small.give_up(small.files[ArenaFileId(1)]), "not before it is ready"
    assert (small.size_bytes, small.going_bytes) == (64, 64)
    assert small.made(ArenaFileId(1)).state is FileState.DESTROYING
    small.destroyed(ArenaFileId(1))
    assert small.size_bytes == 0


def test_a_file_with_something_in_it_is_not_destroyed() -> None:
    small = arena()
    add_file(small, 1, 64)
    take(small, 4)
    assert small.disused(HOME) == []
    with pytest.raises(InvariantViolation):
        small.give_up(small.files[ArenaFileId(1)])
