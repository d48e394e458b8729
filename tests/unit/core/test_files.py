"""Arena files as they come and go: made when contents need them, and given up when others do."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import LeaseState
from vrambroker.broker.core.errors import OutOfHostMemory
from vrambroker.broker.core.ids import Domain, SessionId
from vrambroker.broker.core.snapshot import FileState

ONE, TWO = Domain("one"), Domain("two")


def two_domains(*held_back: str, budget: int = 8) -> tuple[Desk, SessionId, SessionId]:
    """Return a desk where the first domain has an empty file of 8 MiB, and each has 8 MiB on the device."""
    desk = Desk(limits(capacity=16, budget=budget, file=8))
    one, two = desk.attach(peer(1, domain=ONE)), desk.attach(peer(2, domain=TWO))
    desk.lease(one, "w", 8)
    desk.pause(one, "w", release=True)
    desk.resume(one, "w")
    desk.lease(two, "w", 8)
    desk.held_back.update(held_back)
    return desk, one, two


def files(desk: Desk) -> list[tuple[Domain, FileState]]:
    return [(file.domain, file.state) for file in desk.broker.snapshot().arena]


def fail(desk: Desk) -> None:
    for event in desk.drop("file"):
        assert isinstance(event, ev.ArenaFileReady)
        desk.do(ev.ArenaFileFailed(file=event.file, reason="ENOMEM"))


def test_the_empty_files_of_one_domain_make_room_for_the_contents_of_another() -> None:
    desk, one, two = two_domains()
    assert isinstance(desk.pause(two, "w", release=True), ef.Paused)
    (gone,) = desk.sent(ef.DestroyArenaFile)
    assert gone.file == desk.sent(ef.CreateArenaFile)[0].file
    assert files(desk) == [(TWO, FileState.READY)]
    refused = desk.pause(one, "w")
    assert isinstance(refused, OutOfHostMemory), "what is parked stays"
    assert refused.free_bytes == 0
    assert isinstance(desk.resume(two, "w"), ef.Resumed)
    assert isinstance(desk.pause(one, "w"), ef.Paused), "and back again"


def test_a_pause_is_answered_at_once_and_its_recall_waits_for_the_clients_to_let_go() -> None:
    desk, _, two = two_domains("file_gone")
    lease = desk.broker.snapshot().sessions[1].leases[0].lease
    assert isinstance(desk.pause(two, "w"), ef.Paused)
    assert files(desk) == [(ONE, FileState.DESTROYING), (TWO, FileState.PLANNED)]
    seen = desk.broker.snapshot()
    assert (seen.host_used_bytes, seen.host_file_bytes) == (8 * MIB, 8 * MIB)
    assert desk.pause(two, "w", release=True) is None
    assert desk.view(lease).state is LeaseState.LEAVING
    assert len(desk.sent(ef.SendRecall)) == 1, "only the first domain's, before"
    desk.let_go("file_gone")
    assert desk.answers[desk.last_call] == ef.Paused(leases=(lease,))
    assert desk.view(lease).state is LeaseState.PARKED


def test_a_resume_meanwhile_leaves_nothing_to_be_made() -> None:
    desk, _, two = two_domains("file_gone")
    desk.pause(two, "w")
    desk.resume(two, "w")
    assert files(desk) == [(ONE, FileState.DESTROYING)]
    desk.let_go("file_gone")
    assert files(desk) == []
    assert len(desk.sent(ef.CreateArenaFile)) == 1


@pytest.mark.parametrize("dies", [True, False])
def test_an_end_meanwhile_leaves_nothing_to_be_made(dies: bool) -> None:
    desk, _, two = two_domains("file_gone")
    desk.pause(two, "w", release=True)
    gone = ev.ProcessEnded(session=two) if dies else ev.Detach(call=desk.call(peer(2, domain=TWO)), session=two)
    desk.do(gone)
    assert not desk.sent(ef.PunchExtent)
    assert files(desk) == [(ONE, FileState.DESTROYING)]


def test_what_fits_now_is_made_now() -> None:
    desk, _, two = two_domains("file_gone", budget=12)
    desk.pause(two, "w")
    assert files(desk) == [(ONE, FileState.DESTROYING), (TWO, FileState.PLANNED)]
    three = desk.attach(peer(3, domain=Domain("three")))
    desk.give(two, desk.broker.snapshot().sessions[1].leases[0].lease, ())
    desk.lease(three, "w", 4)
    assert isinstance(desk.pause(three, "w", release=True), ef.Paused)
    assert files(desk)[0] == (ONE, FileState.DESTROYING)
    assert files(desk)[1][1] is FileState.READY


def test_a_file_still_being_made_is_given_up_too() -> None:
    desk, one, two = two_domains("file", budget=12)
    desk.give(two, desk.broker.snapshot().sessions[1].leases[0].lease, ())
    desk.lease(one, "x", 4)
    desk.pause(one, "w", "x")
    desk.resume(one, "w", "x")
    desk.lease(two, "y", 4)
    assert [state for _, state in files(desk)] == [FileState.READY, FileState.CREATING]
    desk.pause(one, "w")
    assert isinstance(desk.pause(two, "y"), ef.Paused)
    assert [state for _, state in files(desk)] == [FileState.READY, FileState.UNWANTED, FileState.PLANNED]
    desk.let_go("file")
    assert files(desk) == [(ONE, FileState.READY), (TWO, FileState.READY)]
    assert isinstance(desk.pause(two, "y", release=True), ef.Paused)


def test_a_file_that_fails_makes_room_for_a_planned_one() -> None:
    desk, one, two = two_domains("file", "file_gone")
    desk.pause(two, "w")
    desk.let_go("file_gone")
    assert files(desk) == [(TWO, FileState.CREATING)]
    desk.resume(two, "w")
    desk.pause(one, "w", release=True)
    assert files(desk) == [(TWO, FileState.UNWANTED), (ONE, FileState.PLANNED)]
    fail(desk)
    assert files(desk) == [(ONE, FileState.CREATING)]
    desk.let_go("file")
    assert isinstance(desk.answers[desk.last_call], ef.Paused)


def ahead(*, budget: int = 64, sizes: tuple[int, ...] = (1, 8)) -> tuple[Desk, SessionId]:
    desk = Desk(limits(capacity=32, budget=budget, file=8, sizes=sizes, ahead=True))
    return desk, desk.attach(peer(1, domain=ONE))


def offered(desk: Desk, session: SessionId) -> int:
    return len([offer for offer in desk.sent(ef.OfferArenaFile) if offer.session == session])


def test_files_are_made_and_offered_before_what_is_kept_must_be_parked() -> None:
    desk, session = ahead()
    desk.lease(session, "w", 8)
    assert files(desk) == [(ONE, FileState.READY)]
    assert offered(desk, session) == 1
    desk.lease(session, "x", 3)
    assert offered(desk, session) == len(files(desk)) == 2
    desk.lease(session, "w", 1)
    desk.lease(session, "d", 16, ev.Contents.DROP)
    assert isinstance(desk.pause(session, "w", "x", release=True), ef.Paused)
    assert len(desk.sent(ef.CreateArenaFile)) == 2, "neither the pause nor what is dropped has taken more"
    desk.resume(session, "w", "x")
    desk.lease(session, "w", 4)
    assert len(desk.sent(ef.CreateArenaFile)) == 2, "12 are kept, and there is room for 16"


def test_files_ahead_are_as_large_as_the_largest_session_may_need() -> None:
    desk, one = ahead()
    two, stranger = desk.attach(peer(2, domain=ONE)), desk.attach(peer(3, domain=TWO))
    desk.lease(one, "w", 8)
    desk.lease(two, "w", 8)
    assert files(desk) == [(ONE, FileState.READY)]
    assert (offered(desk, one), offered(desk, two), offered(desk, stranger)) == (1, 1, 0)
    desk.lease(two, "w", 1)
    assert files(desk) == [(ONE, FileState.READY)] * 2
    assert (offered(desk, one), offered(desk, two), offered(desk, stranger)) == (2, 2, 0)
    desk.lease(stranger, "w", 1)
    assert files(desk)[2:] == [(TWO, FileState.READY)]
    assert (offered(desk, one), offered(desk, two), offered(desk, stranger)) == (2, 2, 1)


def test_files_ahead_take_nothing_from_anybody() -> None:
    desk, one = ahead(budget=12)
    two = desk.attach(peer(2, domain=TWO))
    desk.lease(one, "w", 8)
    desk.lease(two, "w", 8)
    assert files(desk) == [(ONE, FileState.READY)], "4 are left, and a file has 8"
    assert isinstance(desk.pause(two, "w", release=True), ef.Paused)
    assert (ONE, FileState.READY) not in files(desk), "a pause may: the other's file is empty"


def test_a_file_ahead_that_could_not_be_made_is_not_tried_again_and_again() -> None:
    desk, session = ahead()
    desk.held_back.add("file")
    desk.lease(session, "w", 8)
    fail(desk)
    assert files(desk) == []
    desk.lease(session, "w", 8)
    assert len(desk.sent(ef.CreateArenaFile)) == 1
    desk.held_back.clear()
    assert isinstance(desk.pause(session, "w"), ef.Paused), "what is needed is tried all the same"
    assert len(desk.sent(ef.CreateArenaFile)) == 3


def test_a_file_ahead_is_no_larger_than_it_must_be() -> None:
    desk, session = ahead(sizes=(1, 2, 8))
    desk.lease(session, "w", 1)
    desk.lease(session, "w", 2)
    desk.lease(session, "w", 8)
    assert [file.size_bytes // MIB for file in desk.sent(ef.CreateArenaFile)] == [1, 2, 8]
