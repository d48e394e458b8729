"""Numbers for Prometheus: what lines and effects add up to, how many series there may be, and where they may be told."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vrambroker.broker.adapters.metrics.address import (
    TcpAddress,
    UnixAddress,
    parse_metrics_address,
    require_allowed,
)
from vrambroker.broker.adapters.metrics.copies import Copies, Direction
from vrambroker.broker.adapters.metrics.histogram import Histogram
from vrambroker.broker.adapters.metrics.metered_core import MeteredCore
from vrambroker.broker.adapters.metrics.page import OTHER, PAIRS_MAX, Given, Page
from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.ids import (
    ArenaFileId,
    FrameId,
    Instant,
    LeaseId,
    OrderId,
    SessionId,
    SlotId,
    TicketId,
    TransferId,
)
from vrambroker.broker.core.limits import Limits

S = 1_000_000_000
MIB = 1 << 20
A, B = SessionId(1), SessionId(2)
LEASE = LeaseId(5)
LIMITS = Limits(capacity_bytes=64 * MIB, frame_sizes_bytes=(MIB,), host_budget_bytes=0, arena_file_bytes=MIB)


def extent(number: int) -> ef.Extent:
    return ef.Extent(file=ArenaFileId(1), offset_bytes=number * MIB, size_bytes=MIB)


def recall(session: SessionId, *slots: int, keep: bool = True) -> ef.SendRecall:
    recalled = tuple(ef.RecalledSlot(slot=SlotId(one), park=extent(one) if keep else None) for one in slots)
    return ef.SendRecall(session=session, lease=LEASE, slots=recalled)


def left(session: SessionId, *slots: int, failure: str | None = None) -> ev.Left:
    return ev.Left(session=session, lease=LEASE, slots=tuple(map(SlotId, slots)), failure=failure)


def granted(session: SessionId, *slots: int, restore: bool = True) -> ef.SendGrant:
    found = tuple(
        ef.GrantedSlot(
            slot=SlotId(one),
            frame=FrameId(one),
            size_bytes=MIB,
            dirty=False,
            restore=extent(one) if restore else None,
        )
        for one in slots
    )
    return ef.SendGrant(session=session, lease=LEASE, tag="w", contents=ev.Contents.KEEP, slots=found)


def line(kind: ef.Kind, at: int = 0, **fields: object) -> ef.Publish:
    return ef.Publish(kind=kind, at=Instant(at), why="", **fields)  # type: ignore[arg-type]


def lease_line(
    number: int, tag: str, size_bytes: int, *, state: ef.LeaseState | None = ef.LeaseState.IDLE
) -> ef.Publish:
    return line(
        ef.Kind.LEASE_CHANGED,
        session="one",
        tag=tag,
        lease=LeaseId(number),
        state=state,
        device_bytes=size_bytes,
        host_bytes=size_bytes,
    )


def test_a_histogram_counts_up_to_each_bound_and_all() -> None:
    found = Histogram((0.1, 1.0))
    for value in (0.1, 0.2, 5.0, 1.0):
        found.add(value)
    assert found.cumulative() == [("0.1", 1), ("1.0", 3), ("+Inf", 4)]
    assert found.sum == pytest.approx(6.3)


def test_bytes_are_counted_when_they_are_there_and_time_only_once() -> None:
    copies = Copies()
    out = copies.ways[Direction.OUT]
    copies.ordered(recall(A, 1, 2), Instant(10))
    copies.ordered(recall(B, 3), Instant(20))
    assert (out.done_bytes, out.busy_until(Instant(25))) == (0, 15)
    copies.told(left(A, 1), Instant(30))
    copies.told(left(B, 3), Instant(40))
    copies.told(left(A, 2), Instant(50))
    assert (out.done_bytes, out.busy_until(Instant(99))) == (3 * MIB, 40)
    assert not out.under_way


def test_what_is_dropped_fails_or_is_said_again_is_no_copy_more() -> None:
    copies = Copies()
    out = copies.ways[Direction.OUT]
    copies.ordered(recall(A, 1, keep=False), Instant(0))
    assert out.since is None
    copies.ordered(recall(A, 2), Instant(1))
    copies.ordered(recall(A, 2), Instant(2))
    copies.told(left(A, 2, failure="no room"), Instant(3))
    assert (out.done_bytes, out.busy_ns) == (0, 2)
    copies.told(left(A, 2), Instant(4))
    assert out.done_bytes == 0


@pytest.mark.parametrize(
    "end",
    [
        lambda: ev.ProcessEnded(session=A),
        lambda: ev.Detach(call=_call(), session=A),
        lambda: ev.Return(call=_call(), session=A, lease=LEASE, slots=()),
        lambda: ev.Return(call=_call(), session=A, lease=LEASE, slots=(SlotId(1), SlotId(2))),
    ],
    ids=["died", "detached", "returned", "slots returned"],
)
def test_nobody_is_waited_for_who_will_not_report(end: Callable[[], ev.Event]) -> None:
    copies = Copies()
    copies.ordered(recall(A, 1), Instant(0))
    copies.ordered(granted(A, 2), Instant(0))
    copies.told(end(), Instant(7))
    for direction in (Direction.OUT, Direction.IN):
        assert (copies.ways[direction].busy_ns, copies.ways[direction].under_way) == (7, {})


def _call() -> ev.Call:
    return None  # type: ignore[return-value]  # nobody looks at it here


def test_what_comes_back_is_counted_unless_it_is_called_off() -> None:
    copies = Copies()
    coming = copies.ways[Direction.IN]
    copies.ordered(granted(A, 1, 2), Instant(0))
    copies.ordered(granted(B, 3, restore=False), Instant(0))
    copies.told(ev.Arrived(session=A, lease=LEASE, slots=(SlotId(1),), failure=None), Instant(5))
    copies.told(left(A, 2), Instant(9))
    assert (coming.done_bytes, coming.busy_ns, copies.ways[Direction.OUT].done_bytes) == (MIB, 9, 0)


def test_what_was_copied_ahead_is_what_the_order_brought() -> None:
    copies = Copies()
    slots = tuple(ef.CopiedSlot(slot=SlotId(one), to=extent(one)) for one in (1, 2))
    copies.ordered(ef.SendCopy(session=A, order=OrderId(9), lease=LEASE, slots=slots), Instant(0))
    copies.told(ev.Copied(session=A, order=OrderId(9), slots=(SlotId(2),), failure="stopped"), Instant(3))
    ahead = copies.ways[Direction.AHEAD]
    assert (ahead.done_bytes, ahead.busy_ns, ahead.under_way) == (MIB, 3, {})


def test_what_is_spilled_and_read_back() -> None:
    copies = Copies()
    place = ef.SpillPlace(offset_bytes=0, size_bytes=MIB)
    for number in (0, 1):
        copies.ordered(ef.SpillOut(transfer=TransferId(number), extent=extent(1), place=place), Instant(0))
    copies.ordered(ef.SpillIn(transfer=TransferId(2), extent=extent(1), place=place), Instant(0))
    copies.told(ev.Transferred(transfer=TransferId(0)), Instant(1))
    copies.told(ev.TransferFailed(transfer=TransferId(1), driver_call="write", reason="full"), Instant(1))
    copies.told(ev.Transferred(transfer=TransferId(2)), Instant(1))
    assert (copies.written_bytes, copies.read_bytes) == (MIB, MIB)


def test_who_waits_and_for_how_long() -> None:
    tally = Tally(capacity_bytes=0)
    for number in (1, 2, 3):
        tally.published(line(ef.Kind.TICKET_QUEUED, number * S, ticket=TicketId(number)))
    assert (tally.waiting, tally.oldest_wait_s(Instant(4 * S))) == (3, 3.0)
    tally.published(line(ef.Kind.TICKET_ADMITTED, 5 * S, ticket=TicketId(1)))
    assert (tally.waiting, tally.oldest_wait_s(Instant(5 * S))) == (2, 3.0)
    tally.published(line(ef.Kind.TICKET_DONE, 6 * S, ticket=TicketId(1)))
    tally.published(line(ef.Kind.TICKET_REFUSED, 6 * S, ticket=TicketId(2)))
    tally.published(line(ef.Kind.TICKET_REFUSED, 6 * S))
    assert (tally.waiting, tally.waits.sum, tally.waits.cumulative()[-1][1]) == (1, 5.0, 1)
    assert tally.counts[ef.Kind.TICKET_REFUSED] == 2


def page(tally: Tally) -> Page:
    given = Given(
        device='host:"0"\n',
        version="1",
        capacity_bytes=64 * MIB,
        host_budget_bytes=0,
        spill_budget_bytes=0,
        outside_bytes=lambda: 0,
        history_missing_lines=lambda: 7,
        now=lambda: Instant(0),
    )
    return Page(given, tally, MeteredCore(Broker(LIMITS)))


def samples(told: Page, name: str) -> dict[tuple[str, ...], float]:
    text, _ = told.text("")
    return {
        tuple(value for label, value in one.labels.items() if label != "device"): one.value
        for family in text_string_to_metric_families(text.decode())
        for one in family.samples
        if one.name == name
    }


def test_lines_that_a_history_lacks_are_counted() -> None:
    told = page(Tally(capacity_bytes=64 * MIB))
    assert samples(told, "vrambroker_history_missing_lines_total") == {(): 7}


def test_there_are_no_more_series_than_there_may_be_and_no_byte_is_lost() -> None:
    tally = Tally(capacity_bytes=0)
    told = page(tally)
    for number in range(PAIRS_MAX + 50):
        tally.published(lease_line(number, f"tag{number}", MIB))
    found = samples(told, "vrambroker_lease_host_bytes")
    assert len(found) == PAIRS_MAX + 1
    assert found[OTHER, OTHER] == 50 * MIB
    assert sum(found.values()) == (PAIRS_MAX + 50) * MIB
    assert found["one", "tag0"] == MIB


def test_who_has_series_keeps_them_and_who_comes_later_gets_those_that_are_free() -> None:
    tally = Tally(capacity_bytes=0)
    told = page(tally)
    for number in range(PAIRS_MAX + 1):
        tally.published(lease_line(number, f"tag{number:03}", MIB))
    last = ("one", f"tag{PAIRS_MAX:03}")
    assert last not in samples(told, "vrambroker_lease_host_bytes")
    tally.published(lease_line(0, "tag000", 0, state=None))
    found = samples(told, "vrambroker_lease_host_bytes")
    assert found[last] == MIB
    assert ("one", "tag001") in found
    assert (OTHER, OTHER) not in found


def test_leases_of_one_tag_are_summed_and_odd_names_are_escaped() -> None:
    tally = Tally(capacity_bytes=0)
    told = page(tally)
    tally.published(lease_line(1, 'k"v\\', MIB))
    tally.published(lease_line(2, 'k"v\\', MIB))
    tally.published(lease_line(3, 'k"v\\', MIB, state=ef.LeaseState.RESIDENT))
    found = samples(told, "vrambroker_lease_device_bytes")
    assert found == {("one", "idle", 'k"v\\'): 2 * MIB, ("one", "resident", 'k"v\\'): MIB}


def test_every_error_is_told_before_it_happens() -> None:
    found = samples(page(Tally(capacity_bytes=0)), "vrambroker_refusals_total")
    assert found["OutOfDeviceMemory",] == found["WaitExpired",] == 0.0
    assert ("BrokerLost",) not in found


def test_a_metered_core_says_what_the_core_says_and_how_long_that_took() -> None:
    plain, metered = Broker(LIMITS), MeteredCore(Broker(LIMITS))
    events: tuple[ev.Event, ...] = (ev.Drain(), ev.DeadlineReached(), ev.ProcessEnded(session=A))
    for now, event in enumerate(events):
        assert metered.handle(event, Instant(now)) == plain.handle(event, Instant(now))
    assert metered.snapshot() == plain.snapshot()
    assert metered.next_deadline() == plain.next_deadline()
    counts = [count for _, count in metered.decisions.cumulative()]
    assert counts[-1] == 3
    assert all(less <= more for less, more in pairwise(counts))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/x.sock", UnixAddress(path=Path("/run/x.sock"))),
        ("127.0.0.1:9464", TcpAddress(host="127.0.0.1", port=9464)),
        ("localhost:0", TcpAddress(host="127.0.0.1", port=0)),
        ("[::1]:65535", TcpAddress(host="::1", port=65535)),
    ],
)
def test_places_where_metrics_are_told(text: str, address: object) -> None:
    found = parse_metrics_address(text)
    assert found == address
    require_allowed(found, anywhere=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9464",
        ":9464",
        "unix:",
        "unix:x.sock",
        "unix:/" + 110 * "x",
        "example.org:1",
        "127.0.0.1",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "::1:9464",
        "127.0.0.1:\u0661",
        "[127.0.0.1:1",
    ],
)
def test_no_places(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_metrics_address(text)
    assert caught.value.argument == "metrics"


@pytest.mark.parametrize("text", ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464"])
def test_what_others_can_reach_must_be_wanted(text: str) -> None:
    address = parse_metrics_address(text)
    with pytest.raises(InvalidArgument, match="--metrics-anywhere"):
        require_allowed(address, anywhere=False)
    require_allowed(address, anywhere=True)
