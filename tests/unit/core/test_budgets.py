"""Budgets: what a session or a tag may have in use, changed while it runs."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import BudgetState
from vrambroker.broker.core.errors import InvalidArgument, NotOwner, QuotaExceeded
from vrambroker.broker.core.ids import CallId, SessionId

DROP = ev.Contents.DROP


def budget(
    desk: Desk,
    session: SessionId,
    tag: str = "",
    *,
    soft: int | None = None,
    hard: int | None = None,
    revision: int = 0,
    actor: ev.Peer | None = None,
) -> object:
    call = desk.call(actor or desk.peers[session])
    sizes = [None if size is None else size * MIB for size in (soft, hard)]
    return desk.answer(
        ev.SetBudget(call=call, session=session, tag=tag, soft_bytes=sizes[0], hard_bytes=sizes[1], revision=revision)
    )


def answered(state: BudgetState, revision: int, hard: int | None, soft: int | None = None) -> ef.BudgetSet:
    hard_bytes, soft_bytes = (None if size is None else size * MIB for size in (hard, soft))
    return ef.BudgetSet(state=state, revision=revision, soft_bytes=soft_bytes, hard_bytes=hard_bytes)


def test_a_hard_limit_is_the_end_of_lending() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    assert budget(desk, session, hard=4) == answered(BudgetState.APPLIED, 1, 4)
    desk.lease(session, "a", 3)
    refused = desk.lend(session, "b", 2)
    assert isinstance(refused, QuotaExceeded)
    assert (refused.limit, refused.limit_value) == ("hard_bytes", 4 * MIB)
    desk.lease(session, "b", 1)
    assert budget(desk, session, revision=1) == answered(BudgetState.APPLIED, 2, None), "and lifted"
    desk.lease(session, "b", 2)


def test_a_tag_has_a_budget_of_its_own() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    budget(desk, session, "a", hard=2)
    assert isinstance(desk.lend(session, "a", 3), QuotaExceeded)
    desk.lease(session, "a", 2)
    desk.lease(session, "b", 3)
    assert desk.broker.snapshot().sessions[0].budgets["a"].hard_bytes == 2 * MIB


def test_nothing_is_lent_to_spare_beyond_it() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    budget(desk, session, hard=3)
    desk.lend(session, "a", 2, spare=4)
    assert desk.free == 6


def test_what_is_idle_is_not_in_use_and_does_not_come_back_beyond_it() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "a", 3)
    desk.pause(session, "a")
    budget(desk, session, hard=4)
    desk.lease(session, "b", 2)
    assert isinstance(desk.resume(session, "a"), QuotaExceeded)
    desk.pause(session, "b")
    assert isinstance(desk.resume(session, "a"), ef.Resumed)
    assert isinstance(desk.resume(session, "a"), ef.Resumed), "resuming what is resident is no error"


def test_who_waits_is_held_to_it_when_its_turn_comes() -> None:
    desk = Desk()
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    for tag in ("a", "b"):
        desk.lease(session, tag, 3, DROP)
        desk.pause(session, tag, release=True)
    desk.lease(other, "x", 8)
    budget(desk, session, hard=4)
    calls: list[CallId] = []
    for tag in ("a", "b"):
        assert desk.resume(session, tag) is None
        calls.append(desk.last_call)
    desk.pause(other, "x")
    assert isinstance(desk.answers[calls[0]], ef.Resumed)
    assert isinstance(desk.answers[calls[1]], QuotaExceeded)
    assert not desk.queue()


def test_less_than_is_in_use_is_deferred_and_takes_nothing_away() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    lease = desk.lease(session, "a", 4)
    assert budget(desk, session, hard=2) == answered(BudgetState.DEFERRED, 1, 2)
    assert desk.view(lease).device_bytes == 4 * MIB
    assert isinstance(desk.lend(session, "b", 1), QuotaExceeded)
    desk.give(session, lease, [slot.slot for slot in desk.view(lease).slots[:3]])
    desk.lease(session, "b", 1)


def test_whoever_knows_another_budget_changes_nothing() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    budget(desk, session, hard=4)
    assert budget(desk, session, hard=8) == answered(BudgetState.CONFLICT, 1, 4)
    assert budget(desk, session, hard=8, revision=7) == answered(BudgetState.CONFLICT, 1, 4)
    assert isinstance(desk.lend(session, "a", 5), QuotaExceeded)


def test_who_is_over_its_soft_limit_gives_first() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "one"), desk.attach(peer(2), "two")
    older, newer = desk.lease(one, "a", 3, DROP), desk.lease(two, "a", 3, DROP)
    desk.pause(one, "a")
    desk.pause(two, "a")
    budget(desk, two, soft=2)
    three = desk.attach(peer(3))
    desk.lease(three, "x", 3)
    assert [desk.view(lease).device_bytes // MIB for lease in (older, newer)] == [3, 2]
    desk.lease(three, "x", 1)
    assert [desk.view(lease).device_bytes // MIB for lease in (older, newer)] == [2, 2], "it is within it again"


@pytest.mark.parametrize(("soft", "hard"), [(0, None), (None, 0), (9, None), (None, 9), (4, 3)])
def test_what_is_no_budget(soft: int | None, hard: int | None) -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    assert isinstance(budget(desk, session, soft=soft, hard=hard), InvalidArgument)
    assert isinstance(budget(desk, session, "no/tag", hard=4), InvalidArgument)
    assert isinstance(budget(desk, session, hard=4, actor=peer(9, uid=7)), NotOwner)
    assert not desk.broker.snapshot().sessions[0].budgets


def test_there_is_a_limit_on_budgets() -> None:
    desk = Desk(limits())
    session = desk.attach(peer(1))
    most = limits().budgets_per_session_max
    for number in range(most):
        budget(desk, session, f"t{number}", hard=4)
    assert isinstance(budget(desk, session, "more", hard=4), QuotaExceeded)
    assert budget(desk, session, "t0", hard=5, revision=1) == answered(BudgetState.APPLIED, 2, 5)
