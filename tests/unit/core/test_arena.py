"""Files and extents: aligned, disjoint, counted, within the budget, and merged again when they are free."""

from itertools import pairwise
from random import Random

import pytest

from vrambroker.broker.core.arena import Arena, FileState
from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.ids import ArenaFileId, Domain, LeaseId, SlotId

HOME = Domain("home")


def arena(*, budget: int = 256, file: int = 64, sizes: tuple[int, ...] = (4, 16)) -> Arena:
    return Arena(budget_bytes=budget, file_bytes=file, sizes_bytes=sizes)


def take(of: Arena, size: int, slot: int = 1, domain: Domain = HOME) -> Extent:
    return of.take(domain, size, LeaseId(1), SlotId(slot))


def test_files_are_needed_only_for_what_does_not_fit_yet() -> None:
    small = arena()
    assert small.files_needed(HOME, {}) == ()
    assert small.files_needed(HOME, {4: 16}) == (64,)
    small.add_file(ArenaFileId(1), HOME, 64)
    assert small.files_needed(HOME, {4: 16}) == ()
    assert small.files_needed(HOME, {4: 4, 16: 3}) == ()
    assert small.files_needed(HOME, {4: 5, 16: 3}) == (64,)
    assert small.files_needed(Domain("away"), {4: 1}) == (64,)


def test_the_budget_is_not_exceeded_and_a_last_file_may_be_smaller() -> None:
    small = arena(budget=100)
    assert small.files_needed(HOME, {16: 5}) == (64, 36)
    assert small.files_needed(HOME, {16: 6}) == (64, 36)
    assert small.files_needed(HOME, {16: 6, 4: 1}) == (64, 36)
    assert small.files_needed(HOME, {16: 6, 4: 2}) is None
    assert small.files_needed(HOME, {16: 7}) is None


def test_a_file_holds_the_largest_slot_even_where_files_are_to_be_smaller() -> None:
    small = arena(budget=40, file=8)
    assert small.files_needed(HOME, {16: 1}) == (16,)
    assert small.files_needed(HOME, {16: 1, 4: 1}) == (16, 8)
    assert small.files_needed(HOME, {16: 3}) is None


def test_extents_are_aligned_and_split_from_larger_blocks_only_when_need_be() -> None:
    small = arena(file=64, sizes=(1, 4, 16))
    small.add_file(ArenaFileId(1), HOME, 64)
    offsets = [take(small, size).offset_bytes for size in (1, 16, 4, 1)]
    assert offsets[0] == 0
    assert offsets[1] % 16 == 0
    assert offsets[2] % 4 == 0
    assert offsets[3] == 1, "the next small one comes from the block that is split already"


def test_what_is_free_again_merges_into_whole_blocks() -> None:
    small = arena(file=64, sizes=(1, 4, 16))
    small.add_file(ArenaFileId(1), HOME, 64)
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
        files = mixed.files_needed(HOME, need)
        for size in files or ():
            number += 1
            mixed.add_file(ArenaFileId(number), HOME, size)
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
    small.add_file(ArenaFileId(1), HOME, 16)
    small.files[ArenaFileId(1)].state = FileState.READY
    extent = take(small, 16)
    assert small.begin_punching(extent)
    assert small.files_needed(HOME, {4: 1}) is None
    small.punched(ArenaFileId(1), 0)
    assert small.files_needed(HOME, {16: 1}) == ()
    with pytest.raises(InvariantViolation):
        small.punched(ArenaFileId(1), 0)


def test_nothing_is_punched_in_a_file_that_nobody_could_write_to() -> None:
    small = arena()
    small.add_file(ArenaFileId(1), HOME, 64)
    assert not small.begin_punching(take(small, 16))
    assert small.used_bytes == 0


def test_a_file_counts_against_the_budget_until_it_is_gone() -> None:
    small = arena(budget=64)
    small.add_file(ArenaFileId(1), HOME, 64)
    file = small.files[ArenaFileId(1)]
    file.state = FileState.READY
    small.retire(file)
    assert small.files_needed(HOME, {4: 1}) is None
    small.destroyed(ArenaFileId(1))
    assert small.files_needed(HOME, {4: 1}) == (64,)


def test_a_file_with_something_in_it_is_not_destroyed() -> None:
    small = arena()
    small.add_file(ArenaFileId(1), HOME, 64)
    small.files[ArenaFileId(1)].state = FileState.READY
    take(small, 4)
    assert small.disused(HOME) == []
    with pytest.raises(InvariantViolation):
        small.retire(small.files[ArenaFileId(1)])
