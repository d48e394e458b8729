"""Each named invariant can fail: a book that was tampered with is told apart."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.core.desk import HOME, Desk, peer
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import CallId, Domain, LeaseId, TicketId
from vrambroker.broker.core.invariants import check
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame
from vrambroker.broker.core.phase import Order, Pattern, Phase, PhasePlan
from vrambroker.broker.core.slot import Slot
from vrambroker.broker.core.snapshot import FramePlace, SlotState
from vrambroker.broker.core.ticket import Stage, Ticket


def a_book() -> Book:
    """Return the book of a desk with something of everything: resident, idle, parked, admitted, queued, fenced."""
    desk = Desk(held_back=("leave", "fence"))
    one, two, three = (desk.attach(peer(pid)) for pid in (1, 2, 3))
    desk.lease(one, "parked", 5)
    desk.pause(one, "parked", release=True)
    desk.let_go("leave")
    desk.held_back.add("leave")
    desk.lease(three, "fenced", 1)
    desk.do(ev.ProcessEnded(session=three))
    desk.lease(two, "resident", 1)
    desk.lease(two, "leaving", 3)
    desk.pause(two, "leaving")
    desk.lease(two, "idle", 2)
    desk.pause(two, "idle")
    desk.lend(one, "admitted", 2)
    desk.resume(one, "parked")
    book = desk.broker._book  # pyright: ignore[reportPrivateUsage]
    assert {ticket.stage for ticket in book.tickets.values()} == {Stage.ADMITTED, Stage.QUEUED}
    check(book)
    return book


def lease(book: Book, tag: str) -> Lease:
    return next(one for one in book.leases.values() if one.tag == tag)


def slot(book: Book, tag: str) -> Slot:
    return next(iter(lease(book, tag).slots.values()))


def frame(book: Book, tag: str) -> Frame:
    return book.frame_of(slot(book, tag))


def ticket(book: Book, stage: Stage) -> Ticket:
    return next(one for one in book.tickets.values() if one.stage is stage)


def swap_states(book: Book) -> None:
    slot(book, "parked").state = SlotState.MAPPED


def lend_twice(book: Book) -> None:
    slot(book, "resident").frame = slot(book, "idle").frame


def misplace(book: Book) -> None:
    frame(book, "resident").place = FramePlace.POOLED


def miscount(book: Book) -> None:
    book.ledger.reserved_bytes += 1


def cross(book: Book) -> None:
    frame(book, "resident").domain = Domain("away")


def forget_fence(book: Book) -> None:
    next(iter(book.sessions.ended.values())).frames.clear()


def lose_place(book: Book) -> None:
    book.arena.give(lease(book, "idle").displace(slot(book, "idle")) or pytest.fail("it has a place"))


def forget_homeless(book: Book) -> None:
    lose_place(book)
    lease(book, "idle").takeable = False


def share_place(book: Book) -> None:
    one, other = list(lease(book, "idle").slots.values())
    one.extent = other.extent


def forget_use(book: Book) -> None:
    file = next(iter(book.arena.files.values()))
    file.uses.pop(next(iter(file.uses)))


def forget_copy(book: Book) -> None:
    slot(book, "parked").copied = False


def promise_in_the_air(book: Book) -> None:
    hold = ticket(book, Stage.ADMITTED).hold
    hold.exact.pop(next(iter(hold.exact)))


def promise_to_two(book: Book) -> None:
    hold = ticket(book, Stage.ADMITTED).hold
    book.frame(next(iter(hold.exact))).ticket = TicketId(999)


def forget_idle(book: Book) -> None:
    book.idle.forget(lease(book, "idle").lease)


def leave_queue(book: Book) -> None:
    book.queue.discard(next(iter(book.queue)))


def forget_to_admit(book: Book) -> None:
    number = lease(book, "idle").lease
    for one in list(lease(book, "idle").slots.values()):
        assert one.frame is not None
        held = book.frame(one.frame)
        book.ledger.come_back(held)
        book.ledger.destroy(held)
        book.ledger.vanish(held)
        one.frame = None
    del book.leases[number]
    book.idle.forget(number)


def lose_call(book: Book) -> None:
    waiting = ticket(book, Stage.QUEUED)
    del book.waits[waiting.call or CallId(0)]


def lose_lock(book: Book) -> None:
    ticket(book, Stage.ADMITTED).outstanding.update(dict.fromkeys(lease(book, "idle").slots, lease(book, "idle").lease))


def grow_paused(book: Book) -> None:
    lease(book, "idle").growing[TicketId(1)] = None


def keep_a_copy(book: Book) -> None:
    copied = slot(book, "resident")
    lease(book, "resident").place(copied, book.arena.take(HOME, copied.size_bytes, LeaseId(1), copied.slot))


def grow_sealed(book: Book) -> None:
    lease(book, "resident").sealed = True
    book.sealed[lease(book, "resident").lease] = None
    lease(book, "resident").growing[TicketId(1)] = None


def seal_the_dropped(book: Book) -> None:
    lease(book, "resident").sealed = True
    book.sealed[lease(book, "resident").lease] = None
    lease(book, "resident").contents = Contents.DROP


def forget_sealed(book: Book) -> None:
    lease(book, "resident").sealed = True


def miscount_session(book: Book) -> None:
    next(iter(book.sessions.live.values())).device_bytes += 1


def miscount_tag(book: Book) -> None:
    next(iter(book.sessions.live.values())).tag_bytes["elsewhere"] = 0


def miscount_lease(book: Book) -> None:
    lease(book, "resident").total_bytes += 1


def unlist(book: Book) -> None:
    pattern = Pattern(session="*", tag="*")
    book.plan = PhasePlan(order=Order.DEVICE, phases=(Phase(name="all", tags=(pattern,)),))


def outrank(book: Book) -> None:
    lease(book, "resident").priority = 1


def miscount_doubled(book: Book) -> None:
    lease(book, "resident").doubled_bytes += 1


def outgrow_budget(book: Book) -> None:
    book.arena.budget_bytes = 1


def overfill_pool(book: Book) -> None:
    book.limits = replace(book.limits, pool_bytes_max=-1)


TAMPERED: list[tuple[Callable[[Book], None], str]] = [
    (swap_states, "one owner|counters"),
    (lend_twice, "each frame has one owner"),
    (misplace, "lent \\+ held \\+ free = capacity"),
    (miscount, "lent \\+ held \\+ free = capacity"),
    (cross, "frames never cross domains"),
    (forget_fence, "ended sessions are fenced"),
    (lose_place, "kept contents have a place"),
    (forget_homeless, "what has lost its place is looked after"),
    (share_place, "arena extents"),
    (forget_use, "arena extents"),
    (forget_copy, "kept contents have a place"),
    (promise_in_the_air, "a hold names real frames|can't fail on bytes"),
    (promise_to_two, "a hold names real frames"),
    (forget_idle, "idle leases stand cheapest first"),
    (leave_queue, "the queue is what waits"),
    (forget_to_admit, "never kept waiting|arena|an extent"),
    (lose_call, "each call waits for something"),
    (lose_lock, "tickets and leases agree"),
    (grow_paused, "does not grow|idle leases"),
    (keep_a_copy, "kept contents have a place"),
    (grow_sealed, "a sealed lease does not grow"),
    (seal_the_dropped, "only kept contents are sealed|what a session may have to park"),
    (forget_sealed, "counters tell the truth: ..sealed"),
    (miscount_session, "counters tell the truth"),
    (miscount_tag, "counters tell the truth"),
    (miscount_lease, "counters tell the truth"),
    (unlist, "phases list leases"),
    (outrank, "priorities are what was set or planned"),
    (miscount_doubled, "counters tell the truth"),
    (outgrow_budget, "within its budget"),
    (overfill_pool, "the pool keeps to its size"),
]


@pytest.mark.parametrize(("tamper", "name"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_book_that_contradicts_itself_is_told_apart(tamper: Callable[[Book], None], name: str) -> None:
    book = a_book()
    tamper(book)
    with pytest.raises(InvariantViolation, match=name):
        check(book)
