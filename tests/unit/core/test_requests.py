"""The memory of calls: a replay gets the same answer, a conflict is told, and the memory is bounded."""

from dataclasses import fields, replace
from typing import Any

import pytest

from tests.unit.core.desk import peer
from vrambroker.broker.core.effects import Done, Leased
from vrambroker.broker.core.errors import InvariantViolation, QuotaExceeded, RequestConflict
from vrambroker.broker.core.events import (
    Attach,
    Call,
    Claim,
    Contents,
    Detach,
    Lease,
    Mark,
    Pause,
    Peer,
    Resume,
    Return,
    Seal,
    Unseal,
)
from vrambroker.broker.core.ids import CallId, ConnectionId, Instant, LeaseId, RequestId, SessionId, SlotId
from vrambroker.broker.core.requests import MutatingCall, Progress, Remembered, Requests, fingerprint


def call(number: int, request: str, who: Peer | None = None) -> Call:
    return Call(call=CallId(number), actor=who or peer(1), request=RequestId(request))


def memory(remembered: int = 8, strangers: int = 4, replays: int = 100) -> Requests:
    return Requests(remembered_max=remembered, strangers_max=strangers, replays_max=replays)


def test_a_replay_of_a_finished_call_gets_what_the_first_one_got() -> None:
    requests = memory()
    assert requests.begin(call(1, "a"), b"x") is Progress.NEW
    outcome = Leased(lease=LeaseId(5), claim=0)
    assert requests.finish(CallId(1), outcome) == (1,)
    for number in range(2, 102):
        assert requests.begin(call(number, "a"), b"x") == Remembered(outcome=outcome)


def test_a_replay_while_the_first_is_under_way_is_answered_with_it() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    assert requests.begin(call(2, "a"), b"x") is Progress.JOINED
    assert list(requests.first_calls()) == [1]
    assert requests.finish(CallId(1), Done()) == (1, 2)


def test_the_same_request_with_other_contents_is_a_conflict_under_way_and_finished() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    with pytest.raises(RequestConflict) as refused:
        requests.begin(call(2, "a"), b"y")
    assert refused.value.request == "a"
    requests.finish(CallId(1), Done())
    with pytest.raises(RequestConflict):
        requests.begin(call(3, "a"), b"y")


def test_processes_do_not_share_request_ids() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    assert requests.begin(call(2, "a", peer(2)), b"y") is Progress.NEW


def test_a_refusal_is_not_remembered() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    requests.begin(call(2, "a"), b"x")
    assert requests.refuse(CallId(1)) == (1, 2)
    assert requests.begin(call(3, "a"), b"y") is Progress.NEW


def test_a_call_is_answered_once() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    requests.finish(CallId(1), Done())
    with pytest.raises(InvariantViolation):
        requests.finish(CallId(1), Done())


def test_only_so_many_finished_calls_are_remembered_for_each_process() -> None:
    requests = memory(remembered=2)
    for number in (1, 2, 3):
        requests.begin(call(number, f"r{number}"), b"x")
        requests.finish(CallId(number), Done())
    assert requests.begin(call(4, "r1"), b"x") is Progress.NEW
    assert isinstance(requests.begin(call(5, "r3"), b"x"), Remembered)


def test_only_so_many_processes_without_a_session_are_remembered() -> None:
    requests = memory(strangers=4)
    for number in range(1, 50):
        requests.begin(call(number, "a", peer(number)), b"x")
        requests.finish(CallId(number), Done())
    assert requests.actors == 4
    assert isinstance(requests.begin(call(100, "a", peer(49)), b"x"), Remembered)


def test_a_process_with_a_session_is_remembered_whatever_strangers_do() -> None:
    requests = memory(strangers=1)
    requests.begin(call(1, "a"), b"x")
    requests.adopt(peer(1))
    requests.finish(CallId(1), Done())
    for number in range(2, 20):
        requests.begin(call(number, "a", peer(number)), b"x")
        requests.finish(CallId(number), Done())
    assert isinstance(requests.begin(call(50, "a"), b"x"), Remembered)
    requests.disown(peer(1))
    requests.forget(peer(1))
    assert requests.begin(call(51, "a"), b"x") is Progress.NEW


def test_refused_strangers_leave_nothing_behind() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    requests.refuse(CallId(1))
    assert requests.actors == 0


def test_a_call_is_abandoned_when_all_of_its_replays_are() -> None:
    requests = memory()
    requests.begin(call(1, "a"), b"x")
    requests.begin(call(2, "a"), b"x")
    assert requests.abandon(CallId(1)) is None
    assert requests.abandon(CallId(2)) == 1
    requests.begin(call(3, "a"), b"x")
    assert requests.abandon(CallId(2)) is None, "somebody waits for it again"
    assert requests.abandon(CallId(99)) is None


def test_a_request_under_way_is_sent_again_only_so_often() -> None:
    requests = memory(replays=3)
    for number in (1, 2, 3, 4):
        requests.begin(call(number, "a"), b"x")
    for number in range(5, 100):
        with pytest.raises(QuotaExceeded, match="sent 4 times"):
            requests.begin(call(number, "a"), b"x")
    assert requests.finish(CallId(1), Done()) == (1, 2, 3, 4)
    assert isinstance(requests.begin(call(100, "a"), b"x"), Remembered)


ONE = call(1, "a")
NOW, LATER = Instant(1), Instant(2)
CHANGES = [
    (Attach(call=ONE, name="n", token=b"1", connection=ConnectionId(1)), {"name": "m"}),
    (Detach(call=ONE, session=SessionId(1)), {"session": 2}),
    (
        Lease(
            call=ONE,
            session=SessionId(1),
            tag="t",
            contents=Contents.KEEP,
            size_bytes=1,
            claimed=True,
            deadline=NOW,
        ),
        {"session": 2, "tag": "u", "contents": Contents.DROP, "size_bytes": 2, "spare_bytes": 1, "claimed": False},
    ),
    (Claim(call=ONE, session=SessionId(1), claim=1), {"session": 2, "claim": 2}),
    (
        Return(call=ONE, session=SessionId(1), lease=LeaseId(1), slots=(SlotId(1), SlotId(2))),
        {"session": 2, "lease": 2, "slots": (SlotId(1),)},
    ),
    (
        Pause(call=ONE, session=SessionId(1), tags=("a", "b"), release=False, discard=False, quiet=False, deadline=NOW),
        {"session": 2, "tags": ("a,b",), "release": True, "discard": True, "quiet": True},
    ),
    (
        Resume(call=ONE, session=SessionId(1), tags=("a", "b"), wait=False, deadline=NOW),
        {"session": 2, "tags": ("ab",), "wait": True},
    ),
    (Seal(call=ONE, session=SessionId(1), tags=("a", "b")), {"session": 2, "tags": ("ab",)}),
    (Unseal(call=ONE, session=SessionId(1), tags=("a", "b")), {"session": 2, "tags": ("ab",)}),
    (Mark(call=ONE, label="a"), {"label": "b"}),
]
EVERY_TRY = {"call": call(2, "a"), "deadline": LATER, "token": b"2", "connection": None}


@pytest.mark.parametrize(("event", "changes"), CHANGES, ids=lambda one: type(one).__name__)
def test_the_fingerprint_is_all_but_what_changes_from_try_to_try(
    event: MutatingCall, changes: dict[str, object]
) -> None:
    names = {field.name for field in fields(event)}
    assert names == changes.keys() | (names & EVERY_TRY.keys()), "each field is one or the other"
    again: dict[str, Any] = {name: value for name, value in EVERY_TRY.items() if name in names}
    assert fingerprint(replace(event, **again)) == fingerprint(event)
    for name, value in changes.items():
        other: dict[str, Any] = {name: value}
        assert fingerprint(replace(event, **other)) != fingerprint(event), name


def test_a_fingerprint_is_as_short_for_a_long_call() -> None:
    slots = tuple(SlotId(number) for number in range(100_000))
    long = Return(call=ONE, session=SessionId(1), lease=LeaseId(1), slots=slots)
    assert len(fingerprint(long)) == 16
