"""What agents say in their own words, as the daemon keeps it."""

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.requests import TEXT_MAX, event_of_report
from vrambroker.broker.core.events import Arrived, Calling, Declined, Left, StillBusy
from vrambroker.broker.core.ids import SessionId

SESSION = SessionId(1)
RUDE = "\x1b[31m\nOutOfMemory: \u202efake" + "x" * 32_000


def test_a_failure_is_cut_and_cannot_speak_to_a_terminal() -> None:
    arrived = event_of_report(records.Arrived(lease=1, slots=(1,), failure=RUDE), SESSION)
    left = event_of_report(records.Left(lease=1, slots=(1,), failure=RUDE), SESSION)
    assert isinstance(arrived, Arrived)
    assert isinstance(left, Left)
    busy = event_of_report(records.Busy(order=1, final=0, tag="kv", scope=RUDE), SESSION)
    assert isinstance(busy, StillBusy)
    running = records.Callback(order=1, declined=0, tag="kv", callback=RUDE, why="")
    refusing = records.Callback(order=1, declined=1, tag="kv", callback=RUDE, why=RUDE)
    calling, declined = event_of_report(running, SESSION), event_of_report(refusing, SESSION)
    assert isinstance(calling, Calling)
    assert isinstance(declined, Declined)
    for text in (arrived.failure, left.failure, busy.scope, calling.callback, declined.callback, declined.why):
        assert text is not None
        assert len(text) == TEXT_MAX
        assert text.isprintable()
        assert "OutOfMemory: " in text


def test_no_failure_stays_none_and_a_plain_one_as_it_is() -> None:
    for failure, told in (("", None), ("mmap: Größe 12 (errno 12)", "mmap: Größe 12 (errno 12)")):
        left = event_of_report(records.Left(lease=1, slots=(1,), failure=failure), SESSION)
        assert isinstance(left, Left)
        assert left.failure == told
