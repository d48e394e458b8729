"""Memory that is no lease: it is left free, room is made for it, and while it grows nothing idle stays in its way."""

import pytest

from tests.unit.core.desk import MIB, Desk, limits, peer
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import (
    DriverFailed,
    InvalidArgument,
    InvariantViolation,
    NotOwner,
    OutOfDeviceMemory,
    QuotaExceeded,
    WaitExpired,
)
from vrambroker.broker.core.ids import CallId, Instant, TicketId
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.core.snapshot import Snapshot

DROP = ev.Contents.DROP


def shared(eager: Eager = Eager.NEVER, *, eager_time: int = 100, per_session: int = 4, pool_time: int = 0) -> Desk:
    """A device of 10 MiB of which 8 are lent and 2 are to stay free."""
    held_to = limits(
        device=10,
        keep_free=2,
        eager=eager,
        eager_time=eager_time,
        outside_per_session=per_session,
        pool_time=pool_time,
    )
    return Desk(held_to)


def measure(desk: Desk, used: int) -> Snapshot:
    desk.do(ev.OutsideMeasured(used_bytes=used * MIB))
    return desk.broker.snapshot()


def make_room(
    desk: Desk, size: int, *, uid: int = 1, lasts: int = 1000, wait: bool = True, deadline: int = 10_000
) -> object:
    return desk.answer(
        ev.MakeRoom(
            call=desk.call(peer(900 + uid, uid=uid)),
            size_bytes=size * MIB,
            lasts_ns=lasts,
            wait=wait,
            deadline=Instant(deadline),
        )
    )


def pass_deadline(desk: Desk) -> None:
    due = desk.broker.next_deadline()
    assert due is not None
    desk.at(due)


def refuse_one(desk: Desk) -> None:
    """Have the driver refuse the frame that was asked for first, for want of memory."""
    asked = desk.pending.pop(next(at for at, (kind, _) in enumerate(desk.pending) if kind == "create"))[1]
    assert isinstance(asked, ev.FrameCreated)
    result = "CUDA_ERROR_OUT_OF_MEMORY"
    desk.do(ev.FrameCreateFailed(frame=asked.frame, driver_call="create", driver_result=result, out_of_memory=True))


def resume_without_a_frame() -> tuple[Desk, CallId]:
    """Have the driver refuse one frame of a resume that waits for it."""
    desk = shared()
    one = desk.attach(peer(1))
    desk.lease(one, "a", 8, DROP)
    desk.pause(one, "a", release=True)
    desk.held_back.add("create")
    assert desk.resume(one, "a") is None
    call = desk.last_call
    refuse_one(desk)
    desk.let_go("create")
    return desk, call


def lines(desk: Desk, kind: ef.Kind) -> list[str]:
    return [one.why for one in desk.effects if isinstance(one, ef.Publish) and one.kind is kind]


def test_what_others_use_is_kept_free_as_far_as_it_is_not_in_use() -> None:
    desk = shared()
    one = desk.attach(peer(1))
    desk.lease(one, "w", 3)
    now = measure(desk, 2)
    assert (desk.free, now.withheld_bytes // MIB, now.outside_bytes // MIB) == (3, 2, 2)
    now = measure(desk, 9)
    assert (desk.free, now.withheld_bytes // MIB) == (0, 5), "the rest is in use"
    now = measure(desk, 1)
    assert (desk.free, now.withheld_bytes // MIB) == (4, 1)
    assert (measure(desk, 0).withheld_bytes, desk.free) == (0, 5)


def test_nothing_is_withheld_where_nobody_measures_or_the_device_is_ample() -> None:
    unmeasured = Desk(limits())
    assert measure(unmeasured, 5).withheld_bytes == 0
    ample = Desk(limits(device=100, keep_free=2))
    assert measure(ample, 5).withheld_bytes == 0


def test_idle_memory_is_taken_for_it_no_more_than_it_takes() -> None:
    desk = shared()
    one, two = desk.attach(peer(1), "one"), desk.attach(peer(2), "two")
    dropped, kept = desk.lease(one, "kv", 4, DROP), desk.lease(two, "w", 4)
    desk.pause(two, "w")
    desk.pause(one, "kv")
    assert measure(desk, 3).withheld_bytes == 3 * MIB
    assert (desk.view(dropped).device_bytes // MIB, desk.view(kept).device_bytes // MIB) == (1, 4)
    assert any("(outside of leases) needs the room" in why for why in lines(desk, ef.Kind.RECALLED))


def test_a_refusal_names_what_is_withheld() -> None:
    desk = shared()
    one = desk.attach(peer(1))
    measure(desk, 5)
    refused = desk.lend(one, "w", 4)
    assert isinstance(refused, OutOfDeviceMemory)
    assert [(one.state, one.size_bytes // MIB) for one in refused.holders] == [("withheld", 5)]
    desk.lease(one, "w", 3)


def test_what_comes_back_later_is_withheld_first() -> None:
    desk = shared()
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "w", 8, DROP)
    assert measure(desk, 4).withheld_bytes == 0
    call = desk.hold(two, 2)
    assert call is None
    desk.pause(one, "w")
    now = desk.broker.snapshot()
    assert (now.withheld_bytes // MIB, now.kept[0].size_bytes // MIB, desk.free) == (4, 2, 0)


def test_a_promise_to_it_that_is_broken_is_made_anew_by_others() -> None:
    desk = Desk(limits(device=10, keep_free=2), held_back=("leave",))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    desk.lease(one, "a", 4, DROP)
    other = desk.lease(two, "b", 4, DROP)
    desk.pause(one, "a")
    measure(desk, 2)
    (order,) = desk.drop("leave")
    assert isinstance(order, ev.Left)
    desk.do(ev.Left(session=order.session, lease=order.lease, slots=order.slots, failure="it can't"))
    assert desk.broker.snapshot().withheld_bytes == 0
    desk.pause(two, "b")
    desk.let_go("leave")
    assert desk.broker.snapshot().withheld_bytes == 2 * MIB
    assert desk.view(other).device_bytes == 2 * MIB, "no more is taken than it takes"


def test_room_is_made_of_what_is_idle_and_kept_until_its_time_is_over() -> None:
    desk = shared()
    one = desk.attach(peer(1))
    lease = desk.lease(one, "kv", 8, DROP)
    desk.pause(one, "kv")
    answer = make_room(desk, 3, lasts=50)
    assert isinstance(answer, ef.Held)
    assert (desk.view(lease).device_bytes // MIB, desk.free) == (5, 0)
    assert isinstance(desk.lend(one, "w", 6), OutOfDeviceMemory)
    assert desk.broker.next_deadline() == Instant(desk.now + 49)
    pass_deadline(desk)
    assert (desk.free, desk.broker.snapshot().kept) == (3, ())
    assert any("its time is over" in why for why in lines(desk, ef.Kind.OUTSIDE_CHANGED))


def test_room_waits_for_a_pause_until_its_deadline() -> None:
    desk = shared()
    one = desk.attach(peer(1))
    desk.lease(one, "kv", 8, DROP)
    assert isinstance(make_room(desk, 3, wait=False), OutOfDeviceMemory)
    assert make_room(desk, 3) is None
    first = desk.last_call
    desk.pause(one, "kv")
    assert isinstance(desk.answers[first], ef.Held)
    assert make_room(desk, 8, deadline=desk.now + 20) is None
    late = desk.last_call
    desk.at(desk.now + 30)
    assert isinstance(desk.answers[late], OutOfDeviceMemory | WaitExpired)


def test_what_grows_outside_uses_the_room_up_that_was_made_for_it() -> None:
    desk = shared()
    answer = make_room(desk, 3)
    assert isinstance(answer, ef.Held)
    now = measure(desk, 2)
    assert (now.withheld_bytes // MIB, now.kept[0].size_bytes // MIB, desk.free) == (2, 1, 5)
    now = measure(desk, 4)
    assert (now.withheld_bytes // MIB, now.kept, desk.free) == (4, (), 4)


def test_room_is_ended_by_who_asked_for_it_and_by_root() -> None:
    desk = shared()
    for ends in (1, 0):
        answer = make_room(desk, 3, uid=1)
        assert isinstance(answer, ef.Held)
        assert isinstance(desk.cancel(answer.ticket, peer(7, uid=2)), NotOwner)
        assert desk.cancel(answer.ticket, peer(8, uid=ends)) == ef.Done()
        assert desk.free == 8


def test_nobody_ends_a_refill() -> None:
    desk = Desk(limits(device=10, keep_free=2), held_back=("leave",))
    one = desk.attach(peer(1))
    desk.lease(one, "kv", 8, DROP)
    desk.pause(one, "kv")
    (refill,) = measure(desk, 2).queue
    assert isinstance(desk.cancel(TicketId(refill.ticket), peer(8, uid=0)), NotOwner)


@pytest.mark.parametrize(("size", "lasts"), [(0, 10), (9, 10), (1, 0), (1, -1), (1, 601 * 10**9)])
def test_a_request_for_room_that_makes_no_sense_is_refused(size: int, lasts: int) -> None:
    desk = shared()
    assert isinstance(make_room(desk, size, lasts=lasts), InvalidArgument)
    assert desk.free == 8


def test_there_is_a_limit_on_rooms_for_each_user() -> None:
    desk = Desk(limits(capacity=32, sizes=(1,)))
    for _ in range(16):
        assert isinstance(make_room(desk, 1), ef.Held)
    assert isinstance(make_room(desk, 1), QuotaExceeded)
    assert isinstance(make_room(desk, 1, uid=2), ef.Held)


def test_while_it_grows_what_is_idle_leaves_as_far_as_it_takes_and_not_after() -> None:
    desk = shared(Eager.AUTO, eager_time=100)
    one = desk.attach(peer(1))
    desk.lease(one, "used", 4)
    kept, dropped = desk.lease(one, "kept", 2), desk.lease(one, "dropped", 2, DROP)
    desk.pause(one, "kept")
    desk.pause(one, "dropped")
    now = measure(desk, 1)
    assert "growing" in now.eager
    assert desk.view(dropped).device_bytes == 0, "one is withheld, and one is free beside the two that always are"
    assert desk.view(kept).device_bytes == MIB
    assert (now.withheld_bytes // MIB, now.free_bytes // MIB) == (1, 2)
    pass_deadline(desk)
    assert desk.broker.snapshot().eager == ""
    assert measure(desk, 0).eager == "", "it shrinks"


def test_where_much_is_free_nothing_is_taken_though_it_grows() -> None:
    desk = Desk(limits(device=20, keep_free=2, eager=Eager.AUTO))
    one = desk.attach(peer(1))
    lease = desk.lease(one, "a", 8)
    desk.pause(one, "a")
    assert "growing" in measure(desk, 8).eager
    assert desk.view(lease).device_bytes == 8 * MIB
    measure(desk, 9)
    assert desk.view(lease).device_bytes == 7 * MIB


def test_what_is_paused_while_it_is_eager_leaves_as_well() -> None:
    desk = shared(Eager.AUTO, eager_time=100)
    one = desk.attach(peer(1))
    lease = desk.lease(one, "a", 7)
    measure(desk, 1)
    desk.pause(one, "a")
    assert desk.view(lease).device_bytes == 5 * MIB


def test_what_is_free_for_the_eager_is_free_for_whoever_asks() -> None:
    desk = shared(Eager.AUTO)
    one = desk.attach(peer(1))
    desk.lease(one, "a", 4, DROP)
    desk.pause(one, "a")
    assert (measure(desk, 3).withheld_bytes // MIB, desk.free) == (3, 2)
    desk.lease(one, "b", 5)


def test_a_process_that_is_no_session_makes_it_eager_by_its_bytes() -> None:
    desk = shared(Eager.AUTO, eager_time=1, per_session=2)
    one = desk.attach(peer(1))
    measure(desk, 2)
    desk.at(desk.now + 10)
    assert desk.broker.snapshot().eager == "", "as much as a session's own process may have"
    lease = desk.lease(one, "a", 5)
    measure(desk, 3)
    desk.at(desk.now + 10)
    assert "more than 1 sessions' processes account for" in desk.broker.snapshot().eager
    desk.pause(one, "a")
    assert desk.view(lease).device_bytes == 3 * MIB


def test_idle_memory_is_always_taken_where_that_is_configured() -> None:
    desk = Desk(limits(eager=Eager.ALWAYS))
    one = desk.attach(peer(1))
    lease = desk.lease(one, "a", 4)
    desk.pause(one, "a")
    assert (desk.view(lease).device_bytes, desk.view(lease).host_bytes // MIB) == (0, 4)


def test_what_its_owner_waits_for_is_not_taken_eagerly() -> None:
    desk = Desk(limits(device=10, keep_free=1, eager=Eager.AUTO))
    one, two = desk.attach(peer(1)), desk.attach(peer(2))
    lease = desk.lease(one, "a", 8, DROP)
    desk.pause(one, "a")
    desk.lease(two, "b", 2)
    assert desk.resume(one, "a") is None
    assert "growing" in measure(desk, 1).eager
    assert desk.view(lease).device_bytes == 6 * MIB
    desk.pause(two, "b")
    assert isinstance(desk.answers[CallId(desk.last_call - 1)], ef.Resumed)


def test_no_frames_are_kept_to_spare_while_it_is_eager() -> None:
    desk = shared(Eager.ALWAYS, pool_time=1000)
    one = desk.attach(peer(1))
    desk.lease(one, "a", 4, DROP)
    desk.pause(one, "a")
    assert not desk.broker.snapshot().frames


def test_a_resume_whose_frame_the_driver_has_not_waits_until_it_has() -> None:
    desk, call = resume_without_a_frame()
    now = desk.broker.snapshot()
    assert (call in desk.answers, now.withheld_bytes // MIB, desk.free) == (False, 1, 7)
    measure(desk, 0)
    assert isinstance(desk.answers[call], ef.Resumed)


@pytest.mark.parametrize("measured", [True, False])
def test_a_demand_that_does_not_wait_is_refused_what_the_driver_has_not(measured: bool) -> None:
    desk = Desk(limits(device=10 if measured else None, keep_free=2), held_back=("create",))
    one = desk.attach(peer(1))
    assert desk.lend(one, "a", 1) is None
    refuse_one(desk)
    assert isinstance(desk.answers[desk.last_call], DriverFailed)
    assert desk.free == 8


def test_what_the_driver_had_not_is_asked_for_again_though_nothing_is_measured() -> None:
    desk, call = resume_without_a_frame()
    assert call not in desk.answers
    pass_deadline(desk)
    assert isinstance(desk.answers[call], ef.Resumed)
    assert desk.broker.snapshot().withheld_bytes == 0


def test_what_is_to_stay_free_is_withheld_before_anything_is_measured() -> None:
    desk = Desk(limits(device=9, keep_free=2))
    one = desk.attach(peer(1))
    assert isinstance(desk.lend(one, "a", 8), OutOfDeviceMemory)
    desk.lease(one, "a", 7)


def reconfigure(
    desk: Desk, *, keep_free: int = 2, per_session: int = 4, eager: Eager = Eager.NEVER, copy_ahead: int | None = None
) -> Snapshot:
    desk.do(
        ev.Reconfigure(
            keep_free_bytes=keep_free * MIB,
            outside_per_session_bytes=per_session * MIB,
            eager=eager,
            copy_ahead_ns=copy_ahead,
        )
    )
    return desk.broker.snapshot()


def test_more_or_less_is_kept_free_as_soon_as_the_operator_says_so() -> None:
    desk = shared()
    one = desk.attach(peer(1))
    dropped = desk.lease(one, "kv", 8, DROP)
    desk.pause(one, "kv")
    assert measure(desk, 1).withheld_bytes == MIB
    assert reconfigure(desk, keep_free=5).withheld_bytes == 4 * MIB
    assert desk.view(dropped).device_bytes == 4 * MIB, "what is idle was taken for it"
    assert reconfigure(desk, keep_free=0).withheld_bytes == 0
    assert desk.free == 4


def test_the_broker_is_eager_or_not_as_soon_as_the_operator_says_so() -> None:
    desk = shared(Eager.NEVER)
    one = desk.attach(peer(1))
    dropped = desk.lease(one, "kv", 4, DROP)
    desk.pause(one, "kv")
    assert desk.view(dropped).device_bytes == 4 * MIB
    assert reconfigure(desk, eager=Eager.ALWAYS).eager == "as configured"
    assert desk.view(dropped).device_bytes == 0
    assert reconfigure(desk).eager == ""
    measure(desk, 6)
    assert reconfigure(desk, eager=Eager.AUTO, per_session=6).eager == "it is growing"
    desk.at(desk.now + 1_000)
    assert reconfigure(desk, eager=Eager.AUTO, per_session=6).eager == ""
    assert "more than 1 sessions" in reconfigure(desk, eager=Eager.AUTO, per_session=1).eager


def test_copies_are_made_ahead_as_soon_as_the_operator_says_so() -> None:
    desk = Desk(limits())
    one = desk.attach(peer(1))
    kept = desk.lease(one, "w", 4)
    desk.pause(one, "w")
    assert desk.view(kept).copied_bytes == 0
    reconfigure(desk, keep_free=0, copy_ahead=0)
    assert any(isinstance(effect, ef.SendCopy) for effect in desk.effects)


def test_nothing_is_kept_free_where_nobody_measures() -> None:
    with pytest.raises(InvariantViolation):
        reconfigure(Desk(limits()), keep_free=1)


def test_each_reading_is_told_in_bytes() -> None:
    desk = shared()
    measure(desk, 3)
    measure(desk, 0)
    told = [one for one in desk.effects if isinstance(one, ef.Publish) and one.kind is ef.Kind.OUTSIDE_CHANGED]
    assert [line.outside_bytes for line in told] == [3 * MIB, 0]
