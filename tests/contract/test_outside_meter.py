"""What is told of memory outside of leases: what two readings in a row agree on, and no trifles."""

from vrambroker.broker.adapters.outside_meter import OutsideMeter
from vrambroker.broker.core.events import Event, OutsideMeasured

STEP = 10


def told(*readings: int) -> list[int]:
    """Return what is delivered after each of these readings."""
    pending, delivered = list(readings), list[int]()

    def deliver(event: Event) -> None:
        assert isinstance(event, OutsideMeasured)
        delivered.append(event.used_bytes)

    meter = OutsideMeter(read=lambda: pending.pop(0), deliver=deliver, step_bytes=STEP)
    for _ in readings:
        meter.look()
    meter.close()
    return delivered


def test_growth_is_told_when_two_readings_agree_on_it() -> None:
    assert told(0, 30) == []
    assert told(0, 30, 40) == [30]
    assert told(0, 30, 40, 41) == [30, 40]


def test_a_frame_that_was_taken_for_something_else_once_is_not_told() -> None:
    assert told(0, 500, 0, 0) == []
    assert told(50, 50, 0, 50) == [50]


def test_what_goes_is_told_likewise_down_to_nothing() -> None:
    assert told(50, 50, 20, 30) == [50, 30]
    assert told(12, 12, 3, 3) == [12]
    assert told(12, 12, 0, 0) == [12, 0]


def test_trifles_are_not_told() -> None:
    assert told(0, 9, 9, 9) == []
    assert told(50, 50, 59, 59, 41, 41) == [50]
