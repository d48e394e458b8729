"""Who comes, comes again, goes, and dies; and what becomes of what they held."""

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import Draining, NotOwner, QuotaExceeded, UnknownSession, UnknownTag
from vrambroker.broker.core.ids import ConnectionId, Domain, FrameId, Instant, LeaseId, SessionId, SlotId
from vrambroker.broker.core.snapshot import FramePlace


def reattach(desk: Desk, session: SessionId, connection: int, who: ev.Peer) -> list[ef.Effect]:
    return desk.do(ev.Reattach(call=desk.call(who), session=session, connection=ConnectionId(connection)))


def test_a_taken_name_gets_a_number_and_is_free_when_its_session_ends() -> None:
    desk = Desk()
    names = []
    for pid in (1, 2, 3):
        desk.attach(peer(pid), "a")
        names = [session.name for session in desk.broker.snapshot().sessions]
    assert names == ["a", "a-2", "a-3"]
    desk.do(ev.ProcessEnded(session=SessionId(1)))
    desk.attach(peer(4), "a")
    assert [session.name for session in desk.broker.snapshot().sessions] == ["a-2", "a-3", "a"]


def test_an_attach_repeated_over_another_connection_moves_the_session_there() -> None:
    desk = Desk()
    first = ev.Attach(call=desk.call(peer(1), "r"), name="a", token=b"1", connection=ConnectionId(5))
    answer = desk.answer(first)
    again = ev.Attach(call=desk.call(peer(1), "r"), name="a", token=b"2", connection=ConnectionId(6))
    assert desk.answer(again) == answer
    assert desk.sent(ef.CloseConnection) == [ef.CloseConnection(connection=ConnectionId(5))]
    assert len(desk.broker.snapshot().sessions) == 1
    desk.do(ev.ConnectionLost(session=SessionId(1), connection=ConnectionId(5)))
    assert desk.broker.snapshot().sessions[0].connected, "the news of the old connection is stale"
    desk.do(ev.ConnectionLost(session=SessionId(1), connection=ConnectionId(6)))
    assert not desk.broker.snapshot().sessions[0].connected


def test_there_is_a_limit_and_a_time_to_attach() -> None:
    desk = Desk(limits(sessions=1))
    desk.attach(peer(1))
    assert isinstance(
        desk.answer(ev.Attach(call=desk.call(peer(2)), name="b", token=b"", connection=None)), QuotaExceeded
    )
    desk.do(ev.Drain())
    assert isinstance(desk.answer(ev.Attach(call=desk.call(peer(2)), name="b", token=b"", connection=None)), Draining)


def test_a_lost_connection_is_not_a_lost_process() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 2)
    desk.do(ev.ConnectionLost(session=session, connection=ConnectionId(1001)))
    assert desk.broker.snapshot().lent_bytes == 2 * MIB


def test_what_is_outstanding_is_sent_anew_over_a_new_connection() -> None:
    desk = Desk(held_back=("arrive", "leave"))
    session = desk.attach(peer(1))
    desk.lend(session, "w", 2)
    desk.let_go("arrive")
    desk.pause(session, "w")
    desk.lend(session, "g", 1)
    desk.held_back.add("arrive")
    desk.lend(session, "g", 2, ev.Contents.DROP)
    desk.pause(session, "w", release=True)
    desk.pause(session, "g", quiet=False, actor=peer(2))
    before = [effect for effect in desk.effects if isinstance(effect, ef.SendGrant | ef.SendRecall)]
    desk.drop("arrive")
    effects = reattach(desk, session, 77, peer(1))
    assert effects[0] == ef.CloseConnection(connection=ConnectionId(1001))
    assert isinstance(effects[1], ef.Reply)
    assert isinstance(effects[1].outcome, ef.Attached)
    grants = [effect for effect in effects if isinstance(effect, ef.SendGrant)]
    recalls = [effect for effect in effects if isinstance(effect, ef.SendRecall)]
    states = [(effect.lease, effect.paused) for effect in effects if isinstance(effect, ef.SendLeaseState)]
    assert grants == [before[-2]]
    assert recalls == [before[-1]]
    assert sorted(paused for _, paused in states) == [False, False, True]


def test_a_pause_order_is_sent_anew() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 1)
    desk.pause(session, "w", quiet=False, actor=peer(2))
    effects = reattach(desk, session, 77, peer(1))
    assert [effect for effect in effects if isinstance(effect, ef.SendPauseOrder)] == desk.sent(ef.SendPauseOrder)[:1]


def test_only_the_process_itself_comes_back() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    before = desk.broker.snapshot()
    reattach(desk, session, 77, peer(2))
    assert isinstance(desk.answers[desk.last_call], NotOwner)
    reattach(desk, SessionId(99), 77, peer(1))
    assert isinstance(desk.answers[desk.last_call], UnknownSession)
    assert desk.broker.snapshot() == before


def test_a_goodbye_returns_everything_unfenced() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.lease(session, "w", 3)
    desk.pause(session, "w")
    desk.lend(session, "g", 1, claimed=False)
    assert isinstance(desk.answer(ev.Detach(call=desk.call(peer(1)), session=session)), ef.Done)
    seen = desk.broker.snapshot()
    assert (seen.free_bytes, seen.sessions, seen.arena, seen.queue) == (8 * MIB, (), (), ())
    assert not desk.sent(ef.WatchFence)
    assert isinstance(desk.answer(ev.Detach(call=desk.call(peer(1)), session=session)), UnknownSession)


def test_a_dead_process_is_fenced_and_its_frames_are_nobodys_until_then() -> None:
    desk = Desk(held_back=("fence",))
    session = desk.attach(peer(1))
    desk.lease(session, "w", 3)
    desk.do(ev.ProcessEnded(session=session))
    seen = desk.broker.snapshot()
    assert (seen.lent_bytes, seen.held_bytes, seen.free_bytes) == (0, 3 * MIB, 5 * MIB)
    assert {frame.place for frame in seen.frames} == {FramePlace.FENCED}
    assert [one.ended for one in seen.sessions] == [True]
    other = desk.attach(peer(2))
    refused = desk.lend(other, "kv", 6)
    assert "fenced" in str(getattr(refused, "holders", ""))
    desk.let_go("fence")
    assert desk.free == 8
    assert desk.sent(ef.DestroyFrame) == [], "the adapter closes what is behind the fence"
    desk.lease(other, "kv", 8)


def test_a_fence_is_passed_in_parts() -> None:
    desk = Desk(held_back=("fence",))
    session = desk.attach(peer(1))
    desk.lease(session, "w", 3)
    desk.do(ev.ProcessEnded(session=session))
    frames = desk.sent(ef.WatchFence)[0].frames
    desk.drop("fence")
    for number, frame in enumerate(frames):
        assert desk.free == 5 + number
        desk.do(ev.FencePassed(session=session, frames=(FrameId(frame),)))
    assert (desk.free, desk.broker.snapshot().sessions) == (8, ())


def test_what_a_dead_process_has_parked_is_punched_before_anybody_gets_the_place() -> None:
    desk = Desk(limits(budget=8), held_back=("punch",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(session, "w", 4)
    desk.pause(session, "w", release=True)
    desk.do(ev.ProcessEnded(session=session))
    assert len(desk.sent(ef.PunchExtent)) == 4
    desk.lease(other, "kv", 8)
    assert type(desk.pause(other, "kv")).__name__ == "OutOfHostMemory"
    desk.let_go("punch")
    assert isinstance(desk.pause(other, "kv"), ef.Paused)


def test_the_arena_of_a_domain_goes_with_its_last_session() -> None:
    desk = Desk(limits(budget=16), held_back=("file",))
    one = desk.attach(peer(1, domain=Domain("one")))
    desk.lease(one, "w", 2)
    desk.pause(one, "w")
    desk.do(ev.ProcessEnded(session=one))
    assert not desk.sent(ef.DestroyArenaFile), "the file is still being made"
    desk.let_go("file")
    assert len(desk.sent(ef.DestroyArenaFile)) == 1
    assert desk.broker.snapshot().host_file_bytes == 0


def test_calls_about_an_ended_session_are_refused() -> None:
    desk = Desk(held_back=("leave",))
    session, other = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(session, "w", 4)
    desk.lease(session, "x", 1)
    desk.lease(other, "kv", 3)
    desk.pause(session, "w", release=True)
    release = desk.last_call
    desk.pause(session, "x", quiet=False, actor=peer(2))
    order = desk.last_call
    desk.resume(session, "w")
    resume = desk.last_call
    desk.do(ev.ProcessEnded(session=session))
    assert [type(desk.answers[call]) for call in (release, order, resume)] == [UnknownSession] * 3
    assert not desk.queue()


def test_a_peers_death_takes_a_promise_and_the_ticket_keeps_its_place() -> None:
    desk = Desk(held_back=("leave", "fence"))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "w", 5, ev.Contents.DROP)
    desk.lease(two, "kv", 2, ev.Contents.DROP)
    desk.pause(two, "kv", release=True)
    desk.let_go("leave")
    desk.held_back.add("leave")
    desk.lease(one, "x", 3)
    desk.pause(one, "w")
    desk.resume(two, "kv")
    call = desk.last_call
    (ticket,) = desk.queue()
    assert ticket.admitted
    assert ticket.waits_for[0].session == "trainer"
    desk.drop("leave")
    desk.do(ev.ProcessEnded(session=one))
    (ticket,) = desk.queue()
    assert not ticket.admitted
    assert call not in desk.answers
    desk.let_go("fence")
    assert isinstance(desk.answers[call], ef.Resumed)


def test_a_process_that_ended_twice_or_never_lived_is_no_news() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    desk.do(ev.ProcessEnded(session=session))
    before = desk.broker.snapshot()
    for number in (session, SessionId(99)):
        desk.do(ev.ProcessEnded(session=number))
        desk.do(ev.ConnectionLost(session=number, connection=ConnectionId(1)))
        desk.do(ev.Arrived(session=number, lease=LeaseId(1), slots=(SlotId(1),), failure=None))
    assert desk.broker.snapshot() == before


def test_unknown_tags_are_named() -> None:
    desk = Desk()
    session = desk.attach(peer(1))
    refused = desk.resume(session, "nothing")
    assert isinstance(refused, UnknownTag)
    assert (refused.session, refused.tag) == ("trainer", "nothing")


def test_a_process_is_remembered_until_its_last_session_has_ended() -> None:
    desk = Desk(limits(sessions=2))
    one, other = desk.attach(peer(1)), desk.attach(peer(1))
    desk.lend(other, "w", 1, request="r")
    desk.answer(ev.Detach(call=desk.call(peer(1)), session=one))
    for pid in range(10, 20):
        desk.answer(ev.Mark(call=desk.call(peer(pid)), label="strangers come and go"))
    assert desk.lend(other, "w", 1, request="r") == desk.lend(other, "w", 1, request="r")
    assert desk.free == 7
    desk.answer(ev.Detach(call=desk.call(peer(1)), session=other))
    desk.answer(ev.Mark(call=desk.call(peer(1), "m"), label="a"))
    for pid in range(10, 20):
        desk.answer(ev.Mark(call=desk.call(peer(pid)), label="strangers come and go"))
    assert desk.answer(ev.Mark(call=desk.call(peer(1), "m"), label="b")) == ef.Done(), "it is a stranger now"


def test_an_agent_that_comes_back_hears_again_which_orders_are_over() -> None:
    """Of a lease in which nothing was granted it knows no state, so nothing else opens the gates."""
    desk = Desk()
    one = desk.attach(peer(1))
    desk.lease(one, "a", 2)
    assert desk.pause(one, "a", quiet=False, deadline=Instant(desk.now + 5), actor=peer(9)) is None
    (order,) = desk.sent(ef.SendPauseOrder)
    desk.at(desk.now + 6)
    desk.do(ev.ConnectionLost(session=one, connection=ConnectionId(1001)))
    desk.effects.clear()
    desk.answer(ev.Reattach(call=desk.call(peer(1)), session=one, connection=ConnectionId(77)))
    assert [sent.order for sent in desk.sent(ef.SendPauseCancelled)] == [order.order]
    assert not desk.sent(ef.SendPauseOrder)
