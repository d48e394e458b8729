"""The core's values as messages: every field of a waiting ticket in its own place; and what no timeout means."""

from dataclasses import replace

import pytest

from tests.unit.core.desk import MIB, Desk, peer
from vrambroker.broker.adapters.deadlines import deadline
from vrambroker.broker.adapters.history import Line
from vrambroker.broker.adapters.messages import Here, event_of, plan_from_wire, status_of
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.phase import Order, Pattern, Ranked
from vrambroker.client.status import event_of as stream_event_of
from vrambroker.v1 import broker_pb2 as v1


def test_a_ticket_is_told_with_what_it_has_and_what_it_was_promised() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "trainer"), desk.attach(peer(2), "rollout")
    desk.lease(two, "kv", 3, Contents.DROP)
    desk.lease(one, "w", 4)
    desk.pause(two, "kv")
    desk.held_back.add("leave")
    asked = desk.now + 1
    assert desk.lend(one, "grads", 4, deadline=Instant(5_000)) is None
    here = Here(device="host", version="1", pid=7)
    status = status_of(desk.broker.snapshot(), here=here, foreign_bytes=0, now=desk.now)
    assert list(status.queue) == [
        v1.Ticket(
            ticket=desk.queue()[0].ticket,
            session="trainer",
            tags=["grads"],
            size_bytes=4 * MIB,
            in_hand_bytes=1 * MIB,
            promised_bytes=3 * MIB,
            admitted=True,
            since_ns=asked,
            deadline_ns=5_000,
            waits_for=[v1.Holder(session="rollout", tag="kv", state="leaving", size_bytes=3 * MIB)],
        )
    ]
    desk.let_go("leave")
    status = status_of(desk.broker.snapshot(), here=here, foreign_bytes=0, now=desk.now)
    assert not status.queue
    tags = [tag for session in status.sessions for tag in session.tags]
    assert {tag.tag: tag.state for tag in tags}["kv"] == v1.LEASE_STATE_PARKED


def test_a_plan_is_told_as_it_was_set() -> None:
    desk = Desk()
    ranked = (Ranked(pattern=Pattern(session="rollout", tag="*"), priority=-2),)
    desk.set_plan({"train": ("trainer/*", "judge/w?"), "idle": ("x/y",)}, order=Order.HOST, priorities=ranked)
    here = Here(device="host", version="1", pid=7)
    status = status_of(desk.broker.snapshot(), here=here, foreign_bytes=0, now=desk.now)
    assert plan_from_wire(status.plan) == desk.broker.snapshot().plan
    assert status.plan.order == v1.ORDER_HOST
    desk.enter("idle")
    status = status_of(desk.broker.snapshot(), here=here, foreign_bytes=0, now=desk.now)
    assert (status.phase, status.entering) == ("idle", "")
    assert not status_of(Desk().broker.snapshot(), here=here, foreign_bytes=0, now=desk.now).HasField("plan")


@pytest.mark.parametrize(
    "plan",
    [
        v1.Plan(phases=[v1.Phase(name="a", tags=["s/t"])]),
        v1.Plan(order=v1.ORDER_HOST, phases=[v1.Phase(name="a", tags=["s"])]),
        v1.Plan(order=v1.ORDER_HOST, priorities=[v1.TagPriority(tag="/", priority=1)]),
    ],
)
def test_what_is_no_plan(plan: v1.Plan) -> None:
    with pytest.raises(InvalidArgument):
        plan_from_wire(plan)


def test_a_timeout_is_milliseconds_from_now_and_none_is_ten_seconds() -> None:
    assert deadline(Instant(1_000), 1) == 1_001_000
    assert deadline(Instant(1_000), 250) == 250_001_000
    assert deadline(Instant(1_000), 0) == 10_000_001_000


def test_a_line_that_tells_nothing_of_what_is_outside_differs_from_one_that_tells_of_nothing() -> None:
    silent = Publish(kind=Kind.MARKED, at=Instant(1), why="train")
    messages = [event_of(Line(sequence=1, time_ns=1, told=told)) for told in (silent, replace(silent, outside_bytes=0))]
    assert [message.HasField("outside_bytes") for message in messages] == [False, True]
    assert [stream_event_of(message).outside_bytes for message in messages] == [None, 0]
