"""Nothing waits for ever: not for a peer that doesn't let go, nor for one that doesn't map, nor for a claim."""

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import Kind, LeaseState
from vrambroker.broker.core.errors import UnknownLease, WaitExpired
from vrambroker.broker.core.ids import Instant, LeaseId, SessionId
from vrambroker.broker.core.ticket import Stage

DROP, KEEP = ev.Contents.DROP, ev.Contents.KEEP


def refusal(desk: Desk) -> WaitExpired:
    """Return what the latest call was refused with."""
    refused = desk.answers[desk.last_call]
    assert isinstance(refused, WaitExpired), refused
    return refused


def named(refused: WaitExpired) -> list[tuple[str, str, int]]:
    return [(one.session, one.tag, one.size_bytes // MIB) for one in refused.holders]


def away(desk: Desk, size: int = 4) -> tuple[SessionId, LeaseId]:
    """Return a lease whose contents are parked, of a client that maps nothing from now on."""
    session = desk.attach(peer(1), "frozen")
    lease = desk.lease(session, "w", size)
    desk.pause(session, "w", release=True)
    desk.held_back.add("arrive")
    return session, lease


def test_a_release_names_who_has_not_let_go_in_time() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1), "frozen")
    lease = desk.lease(session, "w", 4)
    assert desk.pause(session, "w", release=True, deadline=Instant(300)) is None
    desk.at(298)
    assert desk.last_call not in desk.answers
    desk.at(300)
    assert named(refusal(desk)) == [("frozen", "w", 4)]
    assert refusal(desk).message.startswith("frozen/w had not let go")
    assert desk.broker.next_deadline() is None
    desk.let_go("leave")
    assert (desk.free, desk.view(lease).state) == (8, LeaseState.PARKED), "nothing is lost by it"
    assert isinstance(desk.resume(session, "w"), ef.Resumed)


def test_a_release_from_outside_is_bounded_from_its_gates_to_its_end() -> None:
    desk = Desk(held_back=("leave",))
    session = desk.attach(peer(1), "frozen")
    desk.lease(session, "w", 4)
    desk.pause(session, "w", release=True, quiet=False, actor=peer(9), deadline=Instant(300))
    desk.do(ev.Quiet(session=session, order=desk.sent(ef.SendPauseOrder)[-1].order))
    desk.at(300)
    assert named(refusal(desk)) == [("frozen", "w", 4)]


def test_what_was_not_ordered_out_yet_stays_when_a_release_expires() -> None:
    desk = Desk(held_back=("file",))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 4)
    desk.pause(session, "w", release=True, deadline=Instant(300))
    desk.at(300)
    assert isinstance(refusal(desk), WaitExpired)
    assert desk.view(lease).state is LeaseState.IDLE
    desk.let_go("file")
    assert not desk.sent(ef.SendRecall)
    assert desk.resume(session, "w") == ef.Resumed(leases=(ef.ResumedLease(lease=lease, tag="w", same_pages=True),)), (
        "residency is as it was"
    )


def test_a_release_that_others_count_on_goes_on_without_its_caller() -> None:
    desk = Desk(held_back=("file",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(one, "w", 6)
    desk.pause(one, "w", release=True, deadline=Instant(300))
    desk.lend(two, "x", 4, DROP)
    growth = desk.last_call
    desk.at(300)
    desk.let_go("file")
    assert isinstance(desk.answers[growth], ef.Leased)
    assert desk.view(lease).device_bytes == 4 * MIB, "what nobody counts on stays"


def test_a_grant_that_is_not_mapped_in_time_is_undone_and_may_be_tried_again() -> None:
    desk = Desk()
    session, lease = away(desk)
    desk.resume(session, "w", deadline=Instant(300))
    parked = {slot.slot: slot.extent for slot in desk.view(lease).slots}
    assert desk.view(lease).state is LeaseState.ARRIVING
    desk.at(300)
    assert named(refusal(desk)) == [("frozen", "w", 4)]
    assert "frozen/w to map" in refusal(desk).message
    desk.let_go("arrive")
    assert desk.view(lease).state is LeaseState.PARKED, "frames that were granted go back"
    assert desk.free == 8
    assert {slot.slot: slot.extent for slot in desk.view(lease).slots} == parked
    assert isinstance(desk.resume(session, "w"), ef.Resumed)
    assert {slot.restore for slot in desk.sent(ef.SendGrant)[-1].slots} == set(parked.values())


def test_what_had_arrived_of_an_undone_grant_is_ordered_out_at_once() -> None:
    desk = Desk()
    session, lease = away(desk)
    desk.resume(session, "w", deadline=Instant(300))
    desk.drop("arrive")
    first, *rest = (slot.slot for slot in desk.view(lease).slots)
    desk.do(ev.Arrived(session=session, lease=lease, slots=(first,), failure=None))
    desk.at(300)
    assert named(refusal(desk)) == [("frozen", "w", 3)]
    assert [slot.slot for slot in desk.sent(ef.SendRecall)[-1].slots] == [first]
    assert desk.free == 5
    desk.do(ev.ProcessEnded(session=session))
    assert desk.free == 8, "the fence brings back what never was"
    assert rest


def test_a_growth_that_is_not_mapped_in_time_is_undone() -> None:
    desk = Desk(held_back=("arrive",))
    session = desk.attach(peer(1), "frozen")
    desk.lend(session, "w", 4, deadline=Instant(300))
    desk.at(300)
    assert named(refusal(desk)) == [("frozen", "w", 4)]
    desk.let_go("arrive")
    seen = desk.broker.snapshot()
    assert (desk.free, [one.slots for one in seen.sessions[0].leases], seen.queue) == (8, [()], ())


def test_who_waits_behind_a_grant_that_does_not_arrive_is_told_of_it() -> None:
    desk = Desk()
    session, _ = away(desk)
    desk.resume(session, "w", deadline=Instant(300))
    desk.at(300)
    desk.resume(session, "w", deadline=Instant(600))
    assert [one.session for one in desk.queue()[-1].waits_for] == ["frozen"]
    desk.at(600)
    assert named(refusal(desk)) == [("frozen", "w", 4)]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_what_moves_is_not_cut_short(direction: str) -> None:
    desk = Desk(limits(patience=100))
    session = desk.attach(peer(1))
    lease = desk.lease(session, "w", 3)
    desk.held_back.update({"arrive", "leave"})
    if direction == "out":
        desk.pause(session, "w", release=True, deadline=Instant(50))
    else:
        desk.held_back.discard("leave")
        desk.pause(session, "w", release=True)
        desk.resume(session, "w", deadline=Instant(50))
    slots = [slot.slot for slot in desk.view(lease).slots]
    report = ev.Arrived if direction == "in" else ev.Left
    for now, slot in ((90, slots[0]), (180, slots[1])):
        desk.at(now)
        desk.do(report(session=session, lease=lease, slots=(slot,), failure=None))
    desk.at(270)
    assert desk.last_call not in desk.answers
    assert desk.broker.next_deadline() == 282
    desk.at(282)
    assert [one.size_bytes // MIB for one in refusal(desk).holders] == [1]


def test_a_claim_that_is_never_presented_gives_its_frames_back() -> None:
    desk = Desk(limits(claim=500))
    session = desk.attach(peer(1), "trainer")
    leased = desk.lend(session, "w", 4, claimed=False, deadline=FAR)
    assert isinstance(leased, ef.Leased)
    offered = desk.now
    desk.at(offered + 498)
    assert desk.free == 4
    desk.at(offered + 501)
    seen = desk.broker.snapshot()
    assert (desk.free, seen.held_bytes, seen.queue, seen.sessions[0].leases) == (8, 0, (), ())
    line = [one for one in desk.sent(ef.Publish) if one.kind is Kind.TICKET_REFUSED][-1]
    assert (line.session, line.tag, line.why) == ("trainer", "w", "trainer/w: its claim was not presented in time")
    late = desk.answer(ev.Claim(call=desk.call(peer(1)), session=session, claim=leased.claim))
    assert isinstance(late, UnknownLease)
    assert isinstance(desk.give(session, leased.lease), UnknownLease), "it was never there"
    assert isinstance(desk.lend(session, "w", 8), ef.Leased)


def test_a_claim_presented_has_as_long_again_for_its_frames() -> None:
    desk = Desk(limits(claim=500), held_back=("arrive",))
    session = desk.attach(peer(1), "frozen")
    leased = desk.lend(session, "w", 4, claimed=False, deadline=Instant(10))
    assert isinstance(leased, ef.Leased)
    desk.at(400)
    assert desk.answer(ev.Claim(call=desk.call(peer(1)), session=session, claim=leased.claim)) is None
    desk.at(899)
    assert desk.last_call not in desk.answers
    desk.at(902)
    assert named(refusal(desk)) == [("frozen", "w", 4)]


def test_deadlines_of_what_is_answered_are_forgotten() -> None:
    desk = Desk(limits(capacity=2))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "w", 2, DROP)
    desk.pause(one, "w", release=True)
    desk.lease(two, "x", 1, DROP)
    assert desk.resume(one, "w", deadline=Instant(FAR)) is None
    for _ in range(500):
        desk.resume(one, "w", deadline=Instant(2 * FAR))
        desk.do(ev.CallAbandoned(call=desk.last_call))
    assert len(desk.broker._book._deadlines) < 200  # pyright: ignore[reportPrivateUsage]
    assert desk.broker.next_deadline() == FAR


def test_the_queue_is_who_waits_and_not_who_has_got_what_it_asked_for() -> None:
    desk = Desk()
    session, lease = away(desk)
    desk.lend(session, "x", 2, claimed=False)
    desk.resume(session, "w")
    desk.resume(session, "w")
    seen = desk.broker.snapshot()
    assert [(one.tags, one.stage) for one in seen.queue] == [(("w",), Stage.QUEUED)]
    stages = [(one.tags, one.stage) for one in seen.granted]
    assert stages == [(("x",), Stage.CLAIMABLE), (("w",), Stage.GRANTED)]
    assert desk.view(lease).state is LeaseState.ARRIVING


def test_a_ticket_whose_session_ends_has_an_end_that_is_told() -> None:
    desk = Desk()
    one, two = desk.attach(peer(1), "dier"), desk.attach(peer(2))
    desk.lease(one, "w", 6)
    desk.pause(one, "w", release=True)
    desk.lease(two, "kv", 6)
    desk.resume(one, "w")
    (ticket,) = desk.queue()
    desk.do(ev.ProcessEnded(session=one))
    told = [line for line in desk.sent(ef.Publish) if line.ticket == ticket.ticket]
    assert [(line.kind, line.session, line.tag) for line in told] == [
        (Kind.TICKET_QUEUED, "dier", "w"),
        (Kind.TICKET_REFUSED, "dier", "w"),
    ]
