"""The log: what matters, once each, and never a flood."""

import logging

import pytest

from vrambroker.broker.adapters.journal import LINES_MAX, SPAN_NS, Journal
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import Instant


class Bench:
    def __init__(self) -> None:
        self.now = Instant(0)
        self.journal = Journal(lambda: self.now)


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_who_came_and_who_was_refused_is_told_and_what_moves_all_the_time_is_not(
    told: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for kind in Kind:
        bench.journal.published(Publish(kind=kind, at=bench.now, why="because", session="trainer"))
    kinds = [line.split(":")[0] for line in told.messages]
    assert {"session_attached", "session_ended", "ticket_refused", "draining"} <= set(kinds)
    assert not {"lease_changed", "device_changed", "ticket_queued", "recalled"} & set(kinds)
    assert "session_attached: trainer: because" in told.messages


def test_a_flood_is_cut_by_kind_and_counted(told: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for number in range(LINES_MAX + 700):
        bench.journal.note("cut off", f"{number}")
    bench.journal.note("refused", "somebody else")
    assert told.messages[-1] == "refused: somebody else"
    assert len(told.messages) == LINES_MAX + 1
    bench.now = Instant(SPAN_NS)
    bench.journal.note("cut off", "later")
    bench.journal.note("cut off", "and again")
    assert [line.partition(": ")[2] for line in told.messages[-3:]] == [
        "700 more lines like these were left out",
        "later",
        "and again",
    ]
