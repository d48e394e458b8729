"""Frames of one size made of frames of another: a need of one large frame is met from many small ones, and the other way
round, whether they are free or idle, and not a byte is lost.
"""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import SessionId

DROP, KEEP = ev.Contents.DROP, ev.Contents.KEEP
SIZES = (1, 8, 32)


def desk(*, pool: int = 0) -> Desk:
    return Desk(limits(capacity=32, sizes=SIZES, pool=pool, file=32))


def sizes_created(desk: Desk) -> list[int]:
    return [effect.size_bytes // MIB for effect in desk.sent(ef.CreateFrame)]


def destroyed(desk: Desk) -> int:
    return len(desk.sent(ef.DestroyFrame))


def small_ones(desk: Desk, contents: ev.Contents) -> tuple[SessionId, list[str]]:
    """Fill the device with 32 frames of 1 MiB, each a tag of its own."""
    session = desk.attach(peer(1), "small")
    tags = [f"t{number}" for number in range(32)]
    for tag in tags:
        desk.lease(session, tag, 1, contents)
    assert sizes_created(desk) == [1] * 32
    return session, tags


@pytest.mark.parametrize("contents", [DROP, KEEP])
def test_one_large_frame_of_many_small_idle_ones(contents: ev.Contents) -> None:
    there = desk()
    small, tags = small_ones(there, contents)
    for tag in tags:
        there.pause(small, tag)
    large = there.attach(peer(2), "large")
    lease = there.lease(large, "w", 32, DROP)
    assert (sizes_created(there)[32:], destroyed(there)) == ([32], 32)
    assert there.view(lease).device_bytes == 32 * MIB
    there.pause(large, "w")
    for number in range(0, 32, 4):
        assert isinstance(there.resume(small, *tags[number : number + 4]), ef.Resumed)
    assert sizes_created(there)[33:] == [1] * 32
    assert destroyed(there) == 33


def test_one_large_frame_of_many_small_free_ones() -> None:
    there = desk(pool=32)
    small, tags = small_ones(there, DROP)
    for tag in tags:
        there.pause(small, tag, release=True)
    assert (there.free, destroyed(there)) == (32, 0), "free, but in frames"
    large = there.attach(peer(2), "large")
    there.lease(large, "w", 32, DROP)
    assert (sizes_created(there)[32:], destroyed(there)) == ([32], 32)


@pytest.mark.parametrize("free", [True, False])
def test_many_small_frames_of_one_large_one(free: bool) -> None:
    there = desk(pool=32)
    large = there.attach(peer(2), "large")
    there.lease(large, "w", 32, DROP)
    there.pause(large, "w", release=free)
    small = there.attach(peer(1), "small")
    there.lease(small, "one", 1)
    assert (sizes_created(there), destroyed(there)) == ([32, 1], 1), "no more is made than is asked for"
    for number in range(31):
        there.lease(small, f"t{number}", 1)
    assert sizes_created(there) == [32, *[1] * 32]
    assert there.free == 0


def test_who_is_idle_for_longest_gives_first_though_others_have_frames_that_serve_as_they_are() -> None:
    there = desk()
    first = there.attach(peer(1), "first")
    for number in range(24):
        there.lease(first, f"t{number}", 1, DROP)
    large = there.lease(first, "large", 8, DROP)
    for tag in (*(f"t{number}" for number in range(24)), "large"):
        there.pause(first, tag)
    there.lease(there.attach(peer(2), "second"), "w", 8, DROP)
    assert destroyed(there) == 8
    assert there.view(large).device_bytes == 8 * MIB
