"""Frames by place: each has one, and lent + held + free is the capacity at every step of a frame's life."""

import pytest

from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.ids import Domain, FrameId, LeaseId, SessionId, TicketId
from vrambroker.broker.core.ledger import Frame, Ledger

CAPACITY = 100
TICKET, OTHER = TicketId(1), TicketId(2)
HOME = Domain("home")


def made(ledger: Ledger, number: int = 1, size: int = 10) -> Frame:
    """Return a frame in hand."""
    ledger.reserve(size)
    ledger.create(FrameId(number), size, TICKET)
    frame = ledger.frames[FrameId(number)]
    ledger.created(frame)
    return frame


def lent(ledger: Ledger, number: int = 1) -> Frame:
    frame = made(ledger, number)
    ledger.lend(frame, SessionId(7), LeaseId(8), HOME)
    return frame


def parts(ledger: Ledger) -> tuple[int, int, int]:
    assert ledger.lent_bytes + ledger.held_bytes + ledger.free_bytes == CAPACITY
    return ledger.lent_bytes, ledger.held_bytes, ledger.free_bytes


def test_capacity_goes_round_and_comes_back() -> None:
    ledger = Ledger(CAPACITY)
    ledger.reserve(10)
    assert parts(ledger) == (0, 10, 90)
    ledger.create(FrameId(1), 10, TICKET)
    assert parts(ledger) == (0, 10, 90)
    frame = ledger.frames[FrameId(1)]
    ledger.created(frame)
    assert not ledger.lend(frame, SessionId(7), LeaseId(8), HOME), "a new frame is clean"
    assert parts(ledger) == (10, 0, 90)
    ledger.leave(frame)
    assert parts(ledger) == (10, 0, 90)
    assert ledger.coming.size_bytes == 10
    ledger.come_back(frame)
    assert parts(ledger) == (0, 0, 100)
    assert ledger.pool.size_bytes == 10
    ledger.destroy(frame)
    assert parts(ledger) == (0, 10, 90)
    ledger.vanish(frame)
    assert parts(ledger) == (0, 0, 100)
    assert not ledger.frames
    assert ledger.peak_lent_bytes == 10


def test_a_frame_passed_on_is_dirty() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.come_back(frame)
    ledger.promise(frame, TICKET)
    assert ledger.lend(frame, SessionId(9), LeaseId(10), HOME)


def test_a_frame_never_crosses_domains() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.come_back(frame)
    ledger.promise(frame, TICKET)
    with pytest.raises(InvariantViolation, match="domains"):
        ledger.lend(frame, SessionId(9), LeaseId(10), Domain("away"))


def test_a_promised_frame_comes_back_into_the_hold_and_to_nobody_else() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.leave(frame)
    ledger.promise(frame, TICKET)
    assert not ledger.coming.size_bytes
    with pytest.raises(InvariantViolation, match="nobody has taken"):
        ledger.promise(frame, OTHER)
    ledger.come_back(frame)
    assert parts(ledger) == (0, 10, 90)
    assert not ledger.pool.size_bytes


def test_what_a_promised_frame_leaves_behind_when_destroyed_is_reserved() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.leave(frame)
    ledger.promise(frame, TICKET)
    ledger.come_back(frame)
    ledger.destroy(frame)
    ledger.vanish(frame)
    assert ledger.reserved_bytes == 10
    assert parts(ledger) == (0, 10, 90)


def test_a_fenced_frame_is_held_until_it_vanishes() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.fence(frame)
    assert parts(ledger) == (0, 10, 90)
    ledger.vanish(frame)
    assert parts(ledger) == (0, 0, 100)


def test_what_stays_can_not_be_counted_on_any_more() -> None:
    ledger = Ledger(CAPACITY)
    frame = lent(ledger)
    ledger.leave(frame)
    ledger.stay(frame)
    assert not ledger.coming.size_bytes
    ledger.leave(frame)
    ledger.promise(frame, TICKET)
    with pytest.raises(InvariantViolation, match="withdrawn"):
        ledger.stay(frame)


@pytest.mark.parametrize("step", ["created", "leave", "come_back", "fence", "destroy"])
def test_a_frame_in_hand_or_lent_takes_only_steps_that_make_sense(step: str) -> None:
    ledger = Ledger(CAPACITY)
    frame = made(ledger) if step in ("leave", "come_back", "fence") else lent(ledger)
    with pytest.raises(InvariantViolation):
        getattr(ledger, step)(frame)


def test_only_what_is_free_can_be_reserved() -> None:
    ledger = Ledger(CAPACITY)
    with pytest.raises(InvariantViolation):
        ledger.reserve(101)
    ledger.reserve(100)
    with pytest.raises(InvariantViolation):
        ledger.unreserve(101)


def test_a_shelf_offers_a_domain_its_own_frames_and_clean_ones() -> None:
    ledger = Ledger(CAPACITY)
    own = lent(ledger, 1)
    ledger.come_back(own)
    clean = made(ledger, 2)
    ledger.release(clean)
    foreign = made(ledger, 3)
    ledger.lend(foreign, SessionId(9), LeaseId(10), Domain("away"))
    ledger.come_back(foreign)
    assert [frame.frame for frame in ledger.pool.fitting(HOME, 10)] == [1, 2]
    assert {frame.frame for frame in ledger.pool} == {1, 2, 3}
    assert not list(ledger.pool.fitting(HOME, 20))
