"""The memory of calls: a replay gets the same answer, a conflict is told, and the memory is bounded."""

import pytest

from tests.unit.core.desk import peer
from vrambroker.broker.core.effects import Done, Leased
from vrambroker.broker.core.errors import InvariantViolation, RequestConflict
from vrambroker.broker.core.events import Attach, Call, Peer
from vrambroker.broker.core.ids import CallId, ConnectionId, LeaseId, RequestId
from vrambroker.broker.core.requests import Progress, Remembered, Requests, fingerprint


def call(number: int, request: str, who: Peer | None = None) -> Call:
    return Call(call=CallId(number), actor=who or peer(1), request=RequestId(request))


def memory(remembered: int = 8, strangers: int = 4) -> Requests:
    return Requests(remembered_max=remembered, strangers_max=strangers)


def test_a_replay_of_a_finished_call_gets_what_the_first_one_got() -> None:
    requests = memory()
    assert requests.begin(call(1, "a"), ("x",)) is Progress.NEW
    outcome = Leased(lease=LeaseId(5), claim=0)
    assert requests.finish(CallId(1), outcome) == (1,)
    for number in range(2, 102):
        assert requests.begin(call(number, "a"), ("x",)) == Remembered(outcome=outcome)


def test_a_replay_while_the_first_is_under_way_is_answered_with_it() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    assert requests.begin(call(2, "a"), ("x",)) is Progress.JOINED
    assert list(requests.first_calls()) == [1]
    assert requests.finish(CallId(1), Done()) == (1, 2)


def test_the_same_request_with_other_contents_is_a_conflict_under_way_and_finished() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    with pytest.raises(RequestConflict) as refused:
        requests.begin(call(2, "a"), ("y",))
    assert refused.value.request == "a"
    requests.finish(CallId(1), Done())
    with pytest.raises(RequestConflict):
        requests.begin(call(3, "a"), ("y",))


def test_processes_do_not_share_request_ids() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    assert requests.begin(call(2, "a", peer(2)), ("y",)) is Progress.NEW


def test_a_refusal_is_not_remembered() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    requests.begin(call(2, "a"), ("x",))
    assert requests.refuse(CallId(1)) == (1, 2)
    assert requests.begin(call(3, "a"), ("y",)) is Progress.NEW


def test_a_call_is_answered_once() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    requests.finish(CallId(1), Done())
    with pytest.raises(InvariantViolation):
        requests.finish(CallId(1), Done())


def test_only_so_many_finished_calls_are_remembered_for_each_process() -> None:
    requests = memory(remembered=2)
    for number in (1, 2, 3):
        requests.begin(call(number, f"r{number}"), ("x",))
        requests.finish(CallId(number), Done())
    assert requests.begin(call(4, "r1"), ("x",)) is Progress.NEW
    assert isinstance(requests.begin(call(5, "r3"), ("x",)), Remembered)


def test_only_so_many_processes_without_a_session_are_remembered() -> None:
    requests = memory(strangers=4)
    for number in range(1, 50):
        requests.begin(call(number, "a", peer(number)), ("x",))
        requests.finish(CallId(number), Done())
    assert requests.actors == 4
    assert isinstance(requests.begin(call(100, "a", peer(49)), ("x",)), Remembered)


def test_a_process_with_a_session_is_remembered_whatever_strangers_do() -> None:
    requests = memory(strangers=1)
    requests.begin(call(1, "a"), ("x",))
    requests.adopt(peer(1))
    requests.finish(CallId(1), Done())
    for number in range(2, 20):
        requests.begin(call(number, "a", peer(number)), ("x",))
        requests.finish(CallId(number), Done())
    assert isinstance(requests.begin(call(50, "a"), ("x",)), Remembered)
    requests.disown(peer(1))
    requests.forget(peer(1))
    assert requests.begin(call(51, "a"), ("x",)) is Progress.NEW


def test_refused_strangers_leave_nothing_behind() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    requests.refuse(CallId(1))
    assert requests.actors == 0


def test_a_call_is_abandoned_when_all_of_its_replays_are() -> None:
    requests = memory()
    requests.begin(call(1, "a"), ("x",))
    requests.begin(call(2, "a"), ("x",))
    assert requests.abandon(CallId(1)) is None
    assert requests.abandon(CallId(2)) == 1
    requests.begin(call(3, "a"), ("x",))
    assert requests.abandon(CallId(2)) is None, "somebody waits for it again"
    assert requests.abandon(CallId(99)) is None


def test_the_fingerprint_is_all_but_what_changes_from_try_to_try() -> None:
    one = Attach(call=call(1, "a"), name="n", token=b"1", connection=ConnectionId(1))
    other = Attach(call=call(2, "a"), name="n", token=b"2", connection=None)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(Attach(call=call(1, "a"), name="m", token=b"1", connection=None))
