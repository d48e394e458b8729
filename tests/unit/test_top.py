"""What `broker top` shows, worked out from a status and the event stream: no terminal, no daemon."""

from collections.abc import Sequence
from typing import Any

import pytest
from rich.text import Text

from vrambroker.broker.top import panels
from vrambroker.broker.top.bars import FREE, Colours, Piece, bar, sparkline
from vrambroker.broker.top.recent import SPAN_S, Recent
from vrambroker.broker.top.rows import BROAD, NARROW, WIDE, Row, cut_middle, heading, row_text, rows_of
from vrambroker.broker.top.words import Line, Teller, Tone, with_sizes
from vrambroker.client.status import (
    DeviceStatus,
    HolderStatus,
    HostStatus,
    ReaderStatus,
    SessionStatus,
    Status,
    StreamEvent,
    TagStatus,
    TicketStatus,
)

MIB = 1 << 20
SECOND_NS = 1_000_000_000
NOW_NS = 1_000 * SECOND_NS
WIDTHS = (20, 30, 40, NARROW - 1, NARROW, 80, BROAD, WIDE, 200)


def tag(
    name: str, *, state: str = "resident", device: int = 0, host: int = 0, lease: int = 1, spill: int = 0
) -> TagStatus:
    readers = (ReaderStatus(session="scorer", writable=False, size_bytes=MIB),) if state == "resident" else ()
    return TagStatus(
        tag=name,
        lease=lease,
        contents="keep",
        state=state,
        device_bytes=device * MIB,
        host_bytes=host * MIB,
        since_ns=NOW_NS - 3 * SECOND_NS,
        priority=0,
        sealed=False,
        spill_bytes=spill * MIB,
        readers=readers,
    )


def session(name: str, *tags: TagStatus, number: int = 1, ended: bool = False, connected: bool = True) -> SessionStatus:
    return SessionStatus(
        session=number, name=name, pid=4711, uid=0, connected=connected, ended=ended, tags=tags, budgets=()
    )


def ticket(*waits_for: HolderStatus, number: int = 7, tags: tuple[str, ...] = ("params",)) -> TicketStatus:
    return TicketStatus(
        ticket=number,
        session="trainer",
        tags=tags,
        size_bytes=12 * MIB,
        in_hand_bytes=4 * MIB,
        promised_bytes=0,
        admitted=False,
        since_ns=NOW_NS - 2 * SECOND_NS,
        deadline_ns=NOW_NS + 8 * SECOND_NS,
        waits_for=waits_for,
        priority=0,
    )


def status(*sessions: SessionStatus, queue: tuple[TicketStatus, ...] = (), phase: str = "", eager: str = "") -> Status:
    lent = sum(one.device_bytes for each in sessions for one in each.tags)
    host = sum(one.host_bytes for each in sessions for one in each.tags)
    return Status(
        device=DeviceStatus(
            id="GPU-8a2b5a3e-0000-1111-2222-333344445555",
            capacity_bytes=64 * MIB,
            lent_bytes=lent,
            free_bytes=60 * MIB - lent,
            held_bytes=4 * MIB,
            foreign_bytes=MIB,
            peak_lent_bytes=lent,
            withheld_bytes=2 * MIB,
            eager=eager,
        ),
        sessions=sessions,
        queue=queue,
        holds=(ticket(number=9),) if queue else (),
        host=HostStatus(budget_bytes=128 * MIB, used_bytes=host, file_bytes=host, spill_budget_bytes=MIB),
        draining=False,
        version="0.1.0",
        pid=4712,
        now_ns=NOW_NS,
        phase=phase,
    )


def busy() -> Status:
    """A status with something of everything, and names as long and as odd as they come."""
    long = "a-name." * 9
    holders = [HolderStatus(session="rollout", tag=f"[b]{n}", state="resident", size_bytes=MIB) for n in range(5)]
    return status(
        session("trainer", tag("params", device=16, lease=1), tag("[red]", state="parked", host=8, lease=2, spill=3)),
        session(long, tag(long, device=8, lease=3), number=2, connected=False),
        session("bare\x1b[31m", number=3, ended=True),
        queue=(ticket(*holders), ticket(number=8, tags=())),
        phase="generate [/]",
        eager="others use the GPU",
    )


def event(kind: str, sequence: int = 1, at: float = 0.0, **fields: Any) -> StreamEvent:
    told: dict[str, Any] = {
        "why": "", "session": "", "tag": "", "lease": 0, "ticket": 0, "state": "", "device_bytes": 0, "host_bytes": 0,
        "lent_bytes": 0, "free_bytes": 0, "held_bytes": 0, "host_file_bytes": 0,
    }  # fmt: skip
    return StreamEvent(sequence=sequence, time_ns=NOW_NS + int(at * SECOND_NS), kind=kind, **{**told, **fields})


def lease_event(state: str, why: str) -> StreamEvent:
    return event("lease_changed", session="trainer", tag="params", lease=4, state=state, why=why)


def words(events: Sequence[StreamEvent]) -> list[str]:
    teller = Teller()
    lines = [teller.line_of(one) for one in events]
    return [f"{line.about} {line.words}" for line in lines if line is not None]


@pytest.mark.parametrize("width", range(1, 50, 7))
def test_a_bar_is_as_wide_as_told_and_true_to_a_cell(width: int) -> None:
    pieces = [Piece(size_bytes=size, glyph=glyph, style="") for size, glyph in ((1, "a"), (1, "b"), (2, "c"), (0, "d"))]
    text = bar(pieces, 8, width).plain
    assert len(text) == width
    for glyph, size in (("a", 1), ("b", 1), ("c", 2), ("d", 0), (FREE, 4)):
        assert abs(text.count(glyph) - width * size / 8) <= 1
    assert text.count("a") + text.count("b") + text.count("c") == round(width / 2)


def test_a_bar_of_more_than_there_is_ends_where_it_should() -> None:
    assert bar([Piece(size_bytes=9, glyph="x", style="")], 3, 10).plain == "x" * 10
    assert bar([], 0, 4).plain == FREE * 4


def test_a_session_keeps_its_hue_and_a_tag_its_shade() -> None:
    colours = Colours()
    first, second = colours.of("a", "x"), colours.of("b", "x")
    other = colours.of("a", "y")
    assert len({first, second, other}) == 3
    assert (colours.of("a", "x"), colours.of("b", "x"), colours.of("a", "y")) == (first, second, other)
    assert all(colours.of(f"s{n}", f"t{m}").startswith("#") for n in range(9) for m in range(9))


def test_a_sparkline_shows_what_is_little_and_not_what_is_unknown() -> None:
    assert sparkline([None, 0, 1, 500, 1000, 2000], 1000, "").plain == " ▁▂▅██"


def test_a_lease_is_told_of_when_it_has_become_something() -> None:
    steps = [
        ("arriving", "granted"), ("resident", "arrived"), ("arriving", "granted"), ("resident", "its growth is over"),
        ("idle", "paused"), ("leaving", "recalled"), ("leaving", "left"), ("partial", "recall is over"),
        ("partial", "recall is over"), ("parked", "all of it has left"), ("arriving", "granted"),
        ("partial", "arrived"), ("resident", "resumed"), ("", "returned"), ("", "returned"),
    ]  # fmt: skip
    assert words([lease_event(state, why) for state, why in steps]) == [
        "trainer/params resident: arrived",
        "trainer/params idle: paused",
        "trainer/params partial: recall is over",
        "trainer/params parked: all of it has left",
        "trainer/params resident: resumed",
        "trainer/params given back",
    ]


def test_a_demand_is_told_of_if_it_took_its_time() -> None:
    about: dict[str, Any] = {"session": "trainer", "tag": "params", "ticket": 3}
    done = "trainer/params: all has arrived"
    quick = [event(kind, why=done, **about) for kind in ("ticket_queued", "ticket_admitted", "ticket_done")]
    assert words(quick) == []
    slow = [
        event("ticket_queued", **about),
        event("ticket_admitted", at=2, **about),
        event("ticket_done", at=3, why=done, **about),
    ]
    assert words(slow) == [
        "trainer/params its turn, after 2.0 s",
        "trainer/params all has arrived, 3.0 s after it was asked for",
    ]


def test_bytes_in_messages_are_sizes_and_numbers_of_processes_are_not() -> None:
    refused = event(
        "ticket_refused", session="a", tag="b", why="a/b needs 18874368 bytes and 0 are free; c 50331648 idle"
    )
    attached = event("session_attached", session="a", why="pid 4194303 of uid 1234567890 attached")
    assert words([refused, attached]) == [
        "a/b needs 18.0 MiB and 0 are free; c 48.0 MiB idle",
        "a pid 4194303 of uid 1234567890 attached",
    ]
    assert with_sizes("1000000 bytes, 1048576 bytes") == "1000000 bytes, 1.0 MiB"


def test_what_others_said_does_not_act_on_the_terminal() -> None:
    assert words([event("marked", why="\x1b[31mred\n")]) == [" \\x1b[31mred\\n"]
    for width in WIDTHS:
        for line in everything(busy(), width):
            assert line.plain.isprintable()


def test_a_stream_that_begins_again_is_not_told_twice() -> None:
    recent = Recent()
    first = [event("marked", sequence=n, at=n, why=str(n)) for n in (1, 2, 3)]
    for begun in (first, [*first, event("marked", sequence=4, at=4, why="4")]):
        recent.begin()
        for one in begun:
            recent.add(one)
    assert [line.words for line in recent.lines] == ["1", "2", "3", "4"]


def test_another_daemon_is_told_of_from_its_beginning() -> None:
    recent = Recent()
    recent.add(lease_event("idle", "paused"))
    recent.begin()
    recent.add(event("lease_changed", at=5, session="rollout", tag="kv", lease=4, state="idle", why="paused"))
    assert [line.about for line in recent.lines] == ["trainer/params", "rollout/kv"]


def test_missed_lines_are_counted_and_like_ones_too() -> None:
    recent = Recent()
    for sequence in (1, 2, 9):
        recent.add(event("marked", sequence=sequence, at=sequence, why="step"))
    told = [(line.words, line.times) for line in recent.lines]
    assert told == [("step", 2), ("6 lines came faster than they could be read here", 1), ("step", 1)]


def test_the_last_minutes_are_peaks_that_last_until_they_change() -> None:
    recent = Recent()
    for number, (at, lent) in enumerate(((-1000, 9), (-150, 1), (-149.9, 7), (-149.5, 2), (0, 3))):
        recent.add(event("device_changed", sequence=number + 1, at=at, lent_bytes=lent, host_bytes=10 * lent))
    assert recent.lent_bytes(10, NOW_NS) == [9, 9, 9, 9, 9, 9, 2, 2, 2, 3]
    assert recent.host_bytes(10, NOW_NS + SPAN_S * SECOND_NS // 2)[:2] == [90, 20]
    assert recent.lent_bytes(3, NOW_NS + 2 * SPAN_S * SECOND_NS) == [3, 3, 3]
    assert Recent().lent_bytes(2, NOW_NS) == [None, None]


def everything(shown: Status, width: int) -> list[Text]:
    colours, recent = Colours(), Recent()
    recent.measure(NOW_NS, shown)
    line = Line(time_ns=NOW_NS, about="a" * 90, words="[bold]" * 40, tone=Tone.BAD, times=3)
    remarks = panels.remarks(shown, width)
    assert remarks is not None
    return [
        panels.title(shown, width, "12:34:56"),
        panels.device_bar(shown, colours, width),
        panels.device_minutes(shown, recent, width, NOW_NS),
        panels.arena_bar(shown, colours, width),
        panels.arena_minutes(shown, recent, width, NOW_NS),
        remarks,
        heading(width),
        *(row_text(row, shown, colours, width) for row in rows_of(shown)),
        *panels.queue_lines(shown, 20, width),
        *panels.event_lines([line], 1, width),
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for line in everything(busy(), width):
        assert line.cell_len <= width, line.plain
        assert "\n" not in line.plain


@pytest.mark.parametrize("width", [80, 200])
def test_names_are_shown_as_they_are(width: int) -> None:
    text = "\n".join(line.plain for line in everything(busy(), width))
    assert "trainer/[red]" in text
    assert "phase generate [/]" in text
    assert "bare\\x1b[31m (ended)" in text


def test_rows_and_their_heading_stay_in_line() -> None:
    shown = busy()
    for width in (40, 80, 110, 150):
        title = heading(width).plain
        at = title.index("state")
        row = row_text(rows_of(shown)[0], shown, Colours(), width).plain
        assert row[at:].startswith("resident")
        assert row.startswith("■ trainer/params ")
    assert "read by scorer" in row_text(rows_of(shown)[0], shown, Colours(), WIDE).plain
    assert "8.0 MiB + 3.0 MiB spilled" in row_text(rows_of(shown)[1], shown, Colours(), WIDE).plain
    assert "11.0 MiB" in row_text(rows_of(shown)[1], shown, Colours(), 80).plain


def test_who_waits_is_told_with_whom_they_wait_for() -> None:
    first, second, third, fourth, last = panels.queue_lines(busy(), 5, 200)
    assert first.plain == "#7 trainer/params needs 12.0 MiB, has 4.0 MiB, for 2.0 s, 8.0 s left"
    assert second.plain.startswith("   waits for rollout/[b]0 (resident, 1.0 MiB), rollout/[b]1")
    assert second.plain.endswith("and 2 more")
    assert third.plain.startswith("#8 trainer needs")
    assert "on its way" in fourth.plain
    assert last.plain == "#9 trainer has 12.0 MiB set aside, for 2.0 s"
    assert panels.queue_lines(status(), 5, 80) == []


@pytest.mark.parametrize(
    ("count", "tickets", "more"), [(1, 1, 2), (2, 1, 2), (3, 1, 2), (4, 1, 2), (5, 3, 0), (9, 3, 0)]
)
def test_of_a_long_queue_the_first_are_shown_and_the_others_counted(count: int, tickets: int, more: int) -> None:
    lines = [line.plain for line in panels.queue_lines(busy(), count, 80)]
    assert len(lines) <= max(count, 3), lines
    assert sum(line.startswith("#") for line in lines) == tickets
    assert (lines[-1] == f"and {more} more") == bool(more)


def test_the_latest_events_are_those_that_are_shown() -> None:
    lines = [Line(time_ns=NOW_NS, about="", words=str(number), tone=Tone.PLAIN) for number in range(9)]
    assert [text.plain.split()[-1] for text in panels.event_lines(lines, 3, 80)] == ["6", "7", "8"]
    assert len(panels.event_lines(lines, 20, 80)) == 9


def test_bars_have_what_leases_have_and_what_is_held() -> None:
    shown = status(session("a", tag("x", device=16), tag("y", state="idle", device=16, lease=2)))
    text = panels.device_bar(shown, Colours(), 70).plain
    assert (text.count("█"), text.count("▓"), text.count("░"), text.count("·")) == (8, 8, 2, 14)
    assert text.endswith("32.0 MiB of 64.0 MiB, 50%")
    assert panels.device_bar(shown, Colours(), 40).plain.endswith(" 32.0 MiB 50%")


def test_a_name_is_cut_in_its_middle() -> None:
    assert cut_middle("abcdefghij", 10) == "abcdefghij"
    assert cut_middle("abcdefghij", 5) == "ab…ij"
    assert [len(cut_middle("x" * 50, width)) for width in range(1, 20)] == list(range(1, 20))


def test_a_row_says_what_all_leases_of_its_tag_are() -> None:
    leases = tag("x", device=4), tag("x", state="parked", lease=2), tag("y", device=9, lease=3)
    row = Row(session=session("a", *leases), tag=leases[1])
    assert row.residency == "resident and parked, 4.0 MiB on the device, in 2 leases"
