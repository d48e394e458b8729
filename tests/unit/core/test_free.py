"""What a session is told to be free: what it could be lent at once, beside what others have and can't give."""

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import NotOwner, OutOfDeviceMemory, QuotaExceeded, UnknownSession
from vrambroker.broker.core.ids import SessionId

DROP = ev.Contents.DROP


def lend_all(desk: Desk, session: SessionId, free: int) -> None:
    """Have it prove true: so much is lent, and nothing more."""
    if free:
        desk.lease(session, "proof", free, DROP)
    assert isinstance(desk.lend(session, "more", 1, DROP), OutOfDeviceMemory | QuotaExceeded)


def test_what_others_have_in_use_is_not_free_and_what_is_idle_is() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "one"), desk.attach(peer(2), "two")
    assert (desk.ask_free(one), desk.ask_free(two)) == (8, 8)
    desk.lease(one, "weights", 3)
    desk.lease(two, "kv", 2, DROP)
    assert desk.ask_free(one) == 3
    desk.pause(two, "kv")
    assert (desk.ask_free(one), desk.ask_free(two)) == (5, 5)
    lend_all(desk, one, 5)


def test_ones_own_idle_memory_is_free_to_oneself() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    desk.lease(one, "kv", 6, DROP)
    desk.pause(one, "kv")
    assert desk.ask_free(one) == 8
    lend_all(desk, one, 8)


def test_what_is_set_aside_is_free_to_its_owner_alone() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.hold(one, 5)
    assert (desk.ask_free(one), desk.ask_free(two)) == (8, 3)
    lend_all(desk, one, 8)


def test_what_is_kept_free_for_memory_outside_of_leases_is_not() -> None:
    desk = Desk(limits(device=10, keep_free=2))
    one = desk.attach(peer(1))
    desk.do(ev.OutsideMeasured(used_bytes=3 * MIB))
    assert desk.ask_free(one) == 5
    lend_all(desk, one, 5)


def test_what_is_idle_is_not_free_while_somebody_waits_for_it() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "a", 5, DROP)
    desk.pause(one, "a")
    desk.lease(two, "b", 6, DROP)
    assert (desk.ask_free(one), desk.ask_free(two)) == (2, 2)
    desk.resume(one, "a")
    assert desk.queue()
    assert (desk.ask_free(one), desk.ask_free(two)) == (0, 0)
    lend_all(desk, two, 0)


def test_a_budget_leaves_no_more_than_it_says() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    call = desk.call(peer(1))
    desk.answer(
        ev.SetBudget(call=call, session=one, tag="", soft_bytes=None, hard_bytes=4 * MIB, revision=0),
    )
    desk.lease(one, "a", 3)
    assert desk.ask_free(one) == 1
    lend_all(desk, one, 1)
    assert desk.ask_free(one) == 0


def test_it_is_told_in_whole_frames() -> None:
    desk = Desk(limits(capacity=8, sizes=(2, 4)))
    one = desk.attach(peer(1))
    desk.answer(
        ev.SetBudget(call=desk.call(peer(1)), session=one, tag="", soft_bytes=None, hard_bytes=5 * MIB, revision=0)
    )
    assert desk.ask_free(one) == 4


def test_it_is_told_to_the_session_alone() -> None:
    desk = Desk()
    one = desk.attach(peer(1))
    for actor, session, error in (
        (peer(2, uid=2), one, NotOwner),
        (peer(1), SessionId(99), UnknownSession),
    ):
        assert isinstance(desk.answer(ev.AskFree(call=desk.call(actor), session=session)), error)
