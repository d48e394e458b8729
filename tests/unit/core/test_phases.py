"""Phases: what is refused before anything moves, and what a change of phase waits for."""

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, limits, peer
from tests.unit.core.pair import RL, Pair, limit_to
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.effects import Kind, LeaseState
from vrambroker.broker.core.errors import (
    Draining,
    InvalidArgument,
    NotOwner,
    NotQuiescent,
    OutOfDeviceMemory,
    OutOfHostMemory,
    QuotaExceeded,
    UnknownPhase,
    WaitExpired,
    WrongState,
)
from vrambroker.broker.core.ids import ConnectionId, Instant, LeaseId, SessionId
from vrambroker.broker.core.phase import Matcher, Order, Pattern, Ranked


def test_a_phase_change_pauses_and_resumes_across_sessions() -> None:
    pair = Pair()
    entered = pair.desk.enter("generate")
    assert isinstance(entered, ef.Entered)
    assert [(one.session, one.tag) for one in entered.paused] == [("trainer", "params")]
    assert {(one.session, one.tag): one.same_pages for one in entered.resumed} == {
        ("rollout", "weights"): False,
        ("rollout", "kv_cache"): False,
    }
    assert pair.states() == {
        "weights": LeaseState.RESIDENT,
        "kv_cache": LeaseState.RESIDENT,
        "params": LeaseState.PARTIAL,
    }
    assert pair.desk.broker.snapshot().phase == "generate"
    assert isinstance(pair.desk.enter("train"), ef.Entered)
    assert pair.states()["params"] is LeaseState.RESIDENT
    assert pair.desk.view(pair.weights).paused


def test_entering_the_phase_that_is_there_moves_nothing() -> None:
    pair = Pair()
    before = pair.desk.broker.snapshot().sessions
    assert pair.desk.enter("train") == ef.Entered(phase="train", paused=(), resumed=())
    assert pair.desk.broker.snapshot().sessions == before
    assert not pair.orders()


def test_what_nobody_needs_stays_in_place_and_comes_back_with_the_same_pages() -> None:
    pair = Pair(limits(capacity=16))
    assert isinstance(pair.desk.enter("generate"), ef.Entered)
    assert pair.states()["params"] is LeaseState.IDLE
    back = pair.desk.enter("train")
    assert isinstance(back, ef.Entered)
    assert [one.same_pages for one in back.resumed] == [True]


def test_tags_that_no_phase_lists_are_left_alone() -> None:
    pair = Pair(limits(capacity=10))
    judge = pair.desk.attach(peer(3), "judge")
    there, away = pair.desk.lease(judge, "there", 1), pair.desk.lease(judge, "away", 1)
    pair.desk.pause(judge, "away")
    for phase in ("generate", "train"):
        assert isinstance(pair.desk.enter(phase), ef.Entered)
        assert not pair.desk.view(there).paused
        assert pair.desk.view(away).paused


def test_the_stream_tells_what_is_entered() -> None:
    pair = Pair()
    pair.desk.enter("generate")
    lines = [line for line in pair.desk.sent(ef.Publish) if line.phase]
    assert [(line.kind, line.phase) for line in lines] == [
        (Kind.PHASE_ENTERING, "generate"),
        (Kind.PHASE_ENTERED, "generate"),
    ]
    assert lines[1].why == "generate: paused trainer/params; resumed rollout/weights, rollout/kv_cache"


class TestRefused:
    """Refused at once, and nothing has changed."""

    def refused(self, pair: Pair, phase: str = "generate", actor: ev.Peer | None = None) -> object:
        before = pair.desk.broker.snapshot()
        answer = pair.desk.enter(phase, actor=actor)
        assert pair.desk.broker.snapshot() == before
        assert not pair.orders()
        return answer

    def test_without_a_plan_there_is_no_phase(self) -> None:
        assert isinstance(Desk().enter("train"), UnknownPhase)

    def test_a_phase_that_is_not_in_the_plan(self) -> None:
        refused = self.refused(Pair(), "update")
        assert isinstance(refused, UnknownPhase)
        assert refused.phase == "update"
        assert "generate, train" in refused.message

    def test_what_does_not_fit_the_device(self) -> None:
        pair = Pair()
        judge = pair.desk.attach(peer(3), "judge")
        pair.desk.lease(judge, "weights", 3)
        pair.desk.set_plan({"generate": ("rollout/*", "judge/*"), "train": ("trainer/*",)})
        pair.desk.pause(judge, "weights", release=True)
        pair.desk.lease(judge, "left_alone", 1)
        pair.desk.set_plan({"generate": ("rollout/*", "judge/weights"), "train": ("trainer/*",)})
        refused = self.refused(pair)
        assert isinstance(refused, OutOfDeviceMemory)
        assert refused.requested_bytes == 8 * MIB
        assert ("judge", "left_alone") in [(one.session, one.tag) for one in refused.holders]
        assert f"{MIB} bytes too few" in refused.message

    @pytest.mark.parametrize("order", list(Order))
    def test_what_is_over_a_hard_budget(self, order: Order) -> None:
        pair = Pair(limits(capacity=16), order=order)
        limit_to(pair.desk, pair.rollout, 4)
        refused = self.refused(pair)
        assert isinstance(refused, QuotaExceeded)
        assert "rollout uses 0 bytes" in refused.message
        limit_to(pair.desk, pair.rollout, 5, revision=1)
        assert isinstance(pair.desk.enter("generate"), ef.Entered)

    def test_what_is_over_a_hard_budget_of_its_tag(self) -> None:
        pair = Pair(limits(capacity=16))
        limit_to(pair.desk, pair.rollout, 2, tag="weights")
        refused = self.refused(pair)
        assert isinstance(refused, QuotaExceeded)
        assert refused.limit_value == 2 * MIB

    @pytest.mark.parametrize(("order", "fits"), [(Order.DEVICE, True), (Order.HOST, False)])
    def test_what_leaves_before_does_not_count_against_a_hard_budget(self, order: Order, fits: bool) -> None:
        desk = Desk(limits(capacity=16), scoped=True)
        both = desk.attach(peer(1), "both")
        desk.lease(both, "a", 4)
        desk.lease(both, "b", 4)
        desk.pause(both, "b", release=True)
        desk.set_plan({"a": ("both/a",), "b": ("both/b",)}, order=order)
        limit_to(desk, both, 7)
        before = desk.broker.snapshot()
        answer = desk.enter("b")
        assert isinstance(answer, ef.Entered if fits else QuotaExceeded), "under `host`, kept contents leave last"
        assert fits or desk.broker.snapshot() == before

    def test_what_must_be_kept_and_has_no_place(self) -> None:
        refused = self.refused(Pair(limits(budget=7, file=1)))
        assert isinstance(refused, OutOfHostMemory)
        assert (refused.requested_bytes, refused.free_bytes) == (5 * MIB, 4 * MIB)
        assert [(one.session, one.tag) for one in refused.holders] == [("rollout", "weights")]

    def test_a_stranger_may_not_move_others_memory(self) -> None:
        assert isinstance(self.refused(Pair(), actor=peer(9, uid=5)), NotOwner)

    def test_while_draining(self) -> None:
        pair = Pair()
        pair.desk.do(ev.Drain())
        assert isinstance(self.refused(pair), Draining)

    def test_while_another_phase_is_being_entered(self) -> None:
        pair = Pair(scoped=False)
        assert pair.desk.enter("generate") is None
        assert pair.desk.broker.snapshot().entering == "generate"
        assert isinstance(pair.desk.enter("train"), WrongState)
        assert isinstance(pair.desk.set_plan(RL), WrongState)

    def test_a_replay_waits_for_the_same_answer(self) -> None:
        pair = Pair(scoped=False)
        assert pair.desk.enter("generate", request="r") is None
        first = pair.desk.last_call
        assert pair.desk.enter("generate", request="r") is None
        (order,) = pair.orders()
        pair.desk.do(ev.Quiet(session=pair.trainer, order=order.order))
        assert isinstance(pair.desk.answers[first], ef.Entered)
        assert pair.desk.answers[pair.desk.last_call] == pair.desk.answers[first]
        assert pair.desk.enter("generate", request="r") == pair.desk.answers[first]


class TestPlan:
    def test_only_who_set_it_or_root_replaces_it(self) -> None:
        desk = Desk()
        assert desk.set_plan(RL) == ef.Done()
        assert isinstance(desk.set_plan(RL, actor=peer(5, uid=7)), NotOwner)
        assert desk.set_plan(RL, actor=peer(5, uid=0)) == ef.Done()

    def test_a_plan_without_phases_is_none(self) -> None:
        assert isinstance(Desk().set_plan({}), InvalidArgument)

    def test_the_phase_is_forgotten_with_a_plan_that_has_it_not(self) -> None:
        pair = Pair()
        pair.desk.enter("train")
        pair.desk.set_plan(RL)
        assert pair.desk.broker.snapshot().phase == "train"
        pair.desk.set_plan({"idle": ("nobody/*",)})
        assert pair.desk.broker.snapshot().phase == ""


class TestQuiet:
    """Nothing is paused before all of it is out of use."""

    def three(self) -> tuple[Pair, SessionId, LeaseId]:
        pair = Pair(limits(capacity=10), scoped=False)
        judge = pair.desk.attach(peer(3), "judge")
        lease = pair.desk.lease(judge, "weights", 2)
        pair.desk.set_plan({"generate": ("rollout/*",), "train": ("trainer/*", "judge/*")})
        assert pair.desk.enter("generate", deadline=Instant(500)) is None
        assert [(one.session, one.tags) for one in pair.orders()] == [
            (pair.trainer, ("params",)),
            (judge, ("weights",)),
        ]
        return pair, judge, lease

    def test_one_that_is_quiet_waits_for_the_other(self) -> None:
        pair, judge, lease = self.three()
        first, second = pair.orders()
        before = pair.desk.broker.snapshot()
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        assert pair.desk.broker.snapshot() == before
        pair.desk.do(ev.Quiet(session=judge, order=second.order))
        assert isinstance(pair.desk.answers[pair.desk.last_call], ef.Entered)
        assert pair.desk.view(lease).paused
        assert not pair.desk.broker.snapshot().entering

    def test_its_time_runs_out_and_the_scope_is_named(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        before = pair.desk.broker.snapshot().sessions
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        pair.desk.do(ev.StillBusy(session=judge, order=second.order, tag="weights", scope="scoring"))
        assert pair.desk.broker.next_deadline() == 500
        pair.desk.at(500)
        refused = pair.desk.answers[pair.desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("judge", "weights", "scoring")
        assert "judge/weights is in use by the scope 'scoring'" in refused.message
        assert "trainer" not in refused.message
        assert pair.desk.broker.snapshot().sessions == before
        cancelled = pair.desk.sent(ef.SendPauseCancelled)
        assert {one.order for one in cancelled} == {first.order, second.order}, "the gates are opened again"
        assert not pair.desk.sent(ef.SendLeaseState)[3:]

    def test_a_callback_that_takes_too_long_is_named(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        pair.desk.do(ev.Calling(session=judge, order=second.order, tag="weights", callback="drain"))
        pair.desk.at(500)
        refused = pair.desk.answers[pair.desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("judge", "weights", "drain")
        assert "judge/weights was not brought to rest in time by its callback 'drain'" in refused.message

    def test_an_application_that_declines_ends_it_at_once_and_nothing_has_changed(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        before = pair.desk.broker.snapshot().sessions
        declined = ev.Declined(session=judge, order=second.order, tag="weights", callback="drain", why="in an episode")
        pair.desk.do(ev.Declined(session=pair.trainer, order=second.order, tag="weights", callback="x", why="not mine"))
        assert pair.desk.last_call not in pair.desk.answers
        pair.desk.do(declined)
        refused = pair.desk.answers[pair.desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert (refused.session, refused.tag, refused.scope) == ("judge", "weights", "drain")
        assert "judge/weights is not to be paused now: in an episode (its callback 'drain')" in refused.message
        assert pair.desk.broker.snapshot().sessions == before
        assert pair.desk.broker.snapshot().entering == ""
        assert [one.order for one in pair.desk.sent(ef.SendPauseCancelled)] == [first.order]
        pair.desk.do(declined)

    def test_a_session_without_scopes_pauses_itself(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        pair.desk.do(ev.Busy(session=pair.trainer, order=first.order, tag="params"))
        pair.desk.do(ev.Quiet(session=judge, order=second.order))
        call = pair.desk.last_call
        assert call not in pair.desk.answers
        assert len(pair.orders()) == 2, "it is not asked again and again"
        assert isinstance(pair.desk.pause(pair.trainer, "params"), ef.Paused)
        entered = pair.desk.answers[call]
        assert isinstance(entered, ef.Entered)
        assert [one.session for one in entered.paused] == ["judge"]

    def test_a_session_without_scopes_that_does_not_pause_is_named(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        pair.desk.do(ev.Busy(session=pair.trainer, order=first.order, tag="params"))
        pair.desk.do(ev.Busy(session=judge, order=second.order, tag="weights"))
        pair.desk.at(500)
        refused = pair.desk.answers[pair.desk.last_call]
        assert isinstance(refused, NotQuiescent)
        assert refused.session == "trainer"
        for name in ("trainer/params", "judge/weights"):
            assert f"{name} has no scopes, and its owner did not pause it" in refused.message

    def test_tags_beside_one_without_scopes_are_asked_for_again(self) -> None:
        pair = Pair(scoped=False)
        pair.desk.lease(pair.trainer, "grads", 1)
        pair.desk.enter("generate")
        (order,) = pair.orders()
        assert order.tags == ("params", "grads")
        pair.desk.do(ev.Busy(session=pair.trainer, order=order.order, tag="params"))
        assert pair.orders()[-1].tags == ("grads",)

    def test_what_its_owner_has_resumed_meanwhile_is_asked_for_again(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        call = pair.desk.last_call
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        pair.desk.pause(pair.trainer, "params")
        pair.desk.resume(pair.trainer, "params")
        pair.desk.do(ev.Quiet(session=judge, order=second.order))
        assert call not in pair.desk.answers, "its gate was opened when it was resumed"
        third = pair.orders()[-1]
        assert (third.session, third.tags) == (pair.trainer, ("params",))
        pair.desk.do(ev.Quiet(session=pair.trainer, order=third.order))
        assert isinstance(pair.desk.answers[call], ef.Entered)

    def test_an_agent_that_was_away_is_asked_again(self) -> None:
        pair, judge, _ = self.three()
        first, second = pair.orders()
        call = pair.desk.last_call
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        pair.desk.do(ev.ConnectionLost(session=pair.trainer, connection=ConnectionId(1001)))
        pair.desk.do(ev.Quiet(session=judge, order=second.order))
        assert call not in pair.desk.answers, "nobody knows what its gates do"
        again = ev.Reattach(call=pair.desk.call(peer(1)), session=pair.trainer, connection=ConnectionId(7))
        assert isinstance(pair.desk.answer(again), ef.Attached)
        assert pair.orders()[-1] == first
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        assert isinstance(pair.desk.answers[call], ef.Entered)

    def test_a_growing_lease_is_waited_for(self) -> None:
        pair = Pair()
        pair.desk.held_back.add("arrive")
        assert pair.desk.lend(pair.trainer, "params", 1) is None
        assert pair.desk.enter("generate", deadline=Instant(500)) is None
        call = pair.desk.last_call
        assert not pair.desk.view(pair.params).paused
        pair.desk.let_go("arrive")
        assert isinstance(pair.desk.answers[call], ef.Entered)

    def test_a_lease_that_grows_for_ever_is_named(self) -> None:
        pair = Pair()
        pair.desk.held_back.add("arrive")
        assert pair.desk.lend(pair.trainer, "params", 1) is None
        pair.desk.enter("generate", deadline=Instant(500))
        call = pair.desk.last_call
        pair.desk.at(500)
        refused = pair.desk.answers[call]
        assert isinstance(refused, WaitExpired)
        assert [(one.session, one.tag) for one in refused.holders] == [("trainer", "params")]

    def test_a_session_that_ends_is_not_waited_for(self) -> None:
        pair, judge, _ = self.three()
        first, _ = pair.orders()
        pair.desk.do(ev.Quiet(session=pair.trainer, order=first.order))
        pair.desk.do(ev.ProcessEnded(session=judge))
        assert isinstance(pair.desk.answers[pair.desk.last_call], ef.Entered)

    def test_tags_that_come_into_use_meanwhile_are_asked_for_as_well(self) -> None:
        pair, judge, _ = self.three()
        pair.desk.lease(pair.trainer, "grads", 1)
        assert pair.orders()[-1].tags == ("grads",)
        for order in pair.orders():
            pair.desk.do(ev.Quiet(session=order.session, order=order.order))
        assert judge
        assert pair.desk.broker.snapshot().phase == "generate"

    def test_somebody_elses_session_that_comes_meanwhile_ends_it(self) -> None:
        pair = Pair(limits(capacity=10), scoped=False)
        pair.desk.set_plan({"generate": ("rollout/*",), "train": ("trainer*/*",)})
        pair.desk.enter("generate", actor=peer(99, uid=1))
        call = pair.desk.last_call
        pair.desk.lease(pair.desk.attach(peer(5, uid=5), "trainer"), "params", 1)
        refused = pair.desk.answers[call]
        assert isinstance(refused, NotOwner)
        assert refused.session == "trainer-2"

    def test_who_goes_away_ends_it_as_long_as_nothing_has_moved(self) -> None:
        pair, _, _ = self.three()
        pair.desk.do(ev.CallAbandoned(call=pair.desk.last_call))
        assert isinstance(pair.desk.answers[pair.desk.last_call], WaitExpired)
        assert len(pair.desk.sent(ef.SendPauseCancelled)) == 2

    def test_reports_about_nothing_are_passed_over(self) -> None:
        pair, judge, _ = self.three()
        first, _ = pair.orders()
        pair.desk.do(ev.Quiet(session=judge, order=first.order))
        pair.desk.do(ev.Busy(session=pair.trainer, order=first.order, tag="nonsense"))
        pair.desk.do(ev.StillBusy(session=pair.trainer, order=first.order, tag="nonsense", scope="x"))
        assert pair.desk.broker.snapshot().entering
        assert len(pair.orders()) == 2


@pytest.mark.parametrize("first", ["weights", "kv_cache"])
def test_higher_priorities_ask_for_room_first(first: str) -> None:
    pair = Pair(scoped=False)
    ranked = Ranked(pattern=Pattern(session="rollout", tag=first), priority=1)
    pair.desk.set_plan(RL, priorities=(ranked,))
    pair.desk.enter("generate", deadline=FAR)
    (order,) = pair.orders()
    pair.desk.do(ev.Quiet(session=pair.trainer, order=order.order))
    queued = [line.tag for line in pair.desk.sent(ef.Publish) if line.kind is Kind.TICKET_QUEUED and line.ticket]
    assert queued[-2] == first


def test_a_change_of_phase_reads_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()

    def read(*_: object) -> bool:
        raise AssertionError("a pattern was read again")

    monkeypatch.setattr(Pattern, "matches", read)
    monkeypatch.setattr(Matcher, "phases_of", read)
    # Which reads all of them.
    monkeypatch.setattr(Broker, "check", Broker.snapshot)
    assert isinstance(pair.desk.enter("generate"), ef.Entered)
