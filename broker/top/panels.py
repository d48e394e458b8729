"""What is shown around the rows: the title, the bars of device and arena, who waits for whom, and what has happened."""

import datetime
from collections.abc import Sequence

from rich.text import Text

from vrambroker.broker.reporting import one_line
from vrambroker.broker.sizes import size_text
from vrambroker.broker.status_view import age_text
from vrambroker.broker.top.bars import HELD, Colours, Piece, bar, sparkline
from vrambroker.broker.top.recent import SPAN_S, Recent
from vrambroker.broker.top.rows import NARROW, cut_middle, device_piece
from vrambroker.broker.top.words import Line, Tone
from vrambroker.client.status import HolderStatus, Status, TicketStatus

_LABEL_CELLS = 7
_CAPTION_CELLS = 30
_NARROW_CAPTION_CELLS = 13
_HOLDERS_SHOWN = 3
_STYLES = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.WAITING: "yellow", Tone.BAD: "bold red"}


def title(status: Status, width: int, clock: str) -> Text:
    """Return the first line: which device, which phase, which daemon; and the time, at the right."""
    device = cut_middle(one_line(status.device.id), max(8, width - len(clock) - 3))
    line = Text(no_wrap=True).append(device, style="bold")
    parts = [f"phase {status.phase}"] if status.phase else []
    parts += [f"entering {status.entering}"] if status.entering else []
    parts += ["shutting down"] if status.draining else []
    parts += [f"vrambroker {status.version}, pid {status.pid}"]
    for part in parts:
        line.append(f" · {one_line(part)}")
    line.truncate(width - len(clock) - 1, overflow="ellipsis")
    return line.append(" " * (width - line.cell_len - len(clock))).append(clock)


def device_bar(status: Status, colours: Colours, width: int) -> Text:
    """Return the device's line: what each lease has of it, what is held for others, what is free."""
    device = status.device
    pieces = [device_piece(session, tag, colours) for session in status.sessions for tag in session.tags]
    # Frames that were given up, and may still be mapped somewhere, are lent and no lease's.
    rest_bytes = device.lent_bytes - sum(piece.size_bytes for piece in pieces)
    pieces.append(Piece(size_bytes=max(0, rest_bytes), glyph="█", style="dim"))
    pieces.append(Piece(size_bytes=device.held_bytes, glyph=HELD, style="yellow"))
    return _gauge("device", pieces, device.lent_bytes, device.capacity_bytes, width)


def arena_bar(status: Status, colours: Colours, width: int) -> Text:
    """Return the arena's line: what is set aside for each lease's contents, and the empty rest of the arena's files."""
    host = status.host
    pieces = [
        Piece(size_bytes=tag.host_bytes, glyph="█", style=colours.of(session.name, tag.tag))
        for session in status.sessions
        for tag in session.tags
    ]
    empty_bytes = host.file_bytes - sum(piece.size_bytes for piece in pieces)
    pieces.append(Piece(size_bytes=max(0, empty_bytes), glyph=HELD, style="dim"))
    return _gauge("arena", pieces, host.used_bytes, host.budget_bytes, width)


def device_minutes(status: Status, recent: Recent, width: int, now_ns: int) -> Text:
    """Return how much of the device was lent in the last minutes."""
    values = recent.lent_bytes(_bar_cells(width), now_ns)
    return _minutes(values, status.device.capacity_bytes, width)


def arena_minutes(status: Status, recent: Recent, width: int, now_ns: int) -> Text:
    """Return how much of the arena was set aside in the last minutes."""
    values = recent.host_bytes(_bar_cells(width), now_ns)
    return _minutes(values, status.host.budget_bytes, width)


def remarks(status: Status, width: int) -> Text | None:
    """Return a line of what bars can't show, if there is any of it."""
    device, host = status.device, status.host
    words = [f"{size_text(device.held_bytes)} held"] if device.held_bytes else []
    words += [f"{size_text(device.withheld_bytes)} of that kept free for others"] if device.withheld_bytes else []
    words += [f"{size_text(device.foreign_bytes)} in use outside of leases"] if device.foreign_bytes else []
    words += [f"{size_text(host.spill_used_bytes)} of {size_text(host.spill_budget_bytes)} spilled"] * bool(
        host.spill_budget_bytes
    )
    words += [f"idle memory is taken at once: {device.eager}"] if device.eager else []
    return _cut(Text(one_line(", ".join(words)), style="dim"), width) if words else None


def queue_lines(status: Status, count: int, width: int) -> list[Text]:
    """Return who waits, for what and for whom, in the order of their turns; then what is set aside for later.

    Of what does not fit into `count` lines, the last one tells how much it is.
    """
    entries = [_waiting(ticket, status.now_ns, width) for ticket in status.queue[:count]]
    entries += [_set_aside(ticket, status.now_ns, width) for ticket in status.holds[:count]]
    lines = [line for entry in entries for line in entry]
    many = len(status.queue) + len(status.holds)
    if len(lines) <= count and many == len(entries):
        return lines
    kept, shown = list[Text](), 0
    for entry in entries:
        if len(kept) + len(entry) >= count and kept:
            break
        kept += entry
        shown += 1
    return [*kept, _cut(Text(f"and {many - shown} more", style="dim"), width)] if many > shown else kept


def event_lines(lines: Sequence[Line], count: int, width: int) -> list[Text]:
    """Return the last lines of the stream, the latest at the end."""
    return [_event(line, width) for line in list(lines)[max(0, len(lines) - count) :]]


def _event(line: Line, width: int) -> Text:
    at = datetime.datetime.fromtimestamp(line.time_ns / 1e9).strftime("%H:%M:%S")
    about = cut_middle(line.about, max(8, width // 3))
    text = Text.assemble((at, "dim"), " ", (about, "bold"), " " if about else "", (line.words, _STYLES[line.tone]))
    if line.times > 1:
        text.append(f" (×{line.times})", style="dim")
    return _cut(text, width)


def _set_aside(ticket: TicketStatus, now_ns: int, width: int) -> list[Text]:
    age = age_text((now_ns - ticket.since_ns) / 1e9)
    words = f"#{ticket.ticket} {one_line(ticket.session)} has {size_text(ticket.size_bytes)} set aside, for {age}"
    return [_cut(Text(words, style="dim"), width)]


def _waiting(ticket: TicketStatus, now_ns: int, width: int) -> list[Text]:
    who = one_line(f"{ticket.session}/{', '.join(ticket.tags)}" if ticket.tags else ticket.session)
    left_s = max(0.0, (ticket.deadline_ns - now_ns) / 1e9)
    line = Text.assemble((f"#{ticket.ticket} ", "dim"), (cut_middle(who, max(8, width // 2)), "bold yellow"))
    line.append(f" needs {size_text(ticket.size_bytes)}")
    if ticket.in_hand_bytes:
        line.append(f", has {size_text(ticket.in_hand_bytes)}")
    line.append(f", for {age_text((now_ns - ticket.since_ns) / 1e9)}, {age_text(left_s)} left")
    if ticket.priority:
        line.append(f", priority {ticket.priority}")
    return [_cut(line, width), _cut(Text.assemble("   ", _holders(ticket.waits_for)), width)]


def _holders(holders: Sequence[HolderStatus]) -> Text:
    if not holders:
        return Text("waits for memory that is on its way", style="dim")
    names = ", ".join(
        f"{one.session}/{one.tag} ({one.state}, {size_text(one.size_bytes)})" for one in holders[:_HOLDERS_SHOWN]
    )
    more = f" and {len(holders) - _HOLDERS_SHOWN} more" if len(holders) > _HOLDERS_SHOWN else ""
    return Text(one_line(f"waits for {names}{more}"))


def _gauge(label: str, pieces: Sequence[Piece], used_bytes: int, total_bytes: int, width: int) -> Text:
    share = f"{100 * used_bytes / total_bytes:.0f}%" if total_bytes else ""
    of = f" of {size_text(total_bytes)}," if width >= NARROW else ""
    return _captioned(label, bar(pieces, total_bytes, _bar_cells(width)), f"{size_text(used_bytes)}{of} {share}", width)


def _minutes(values: Sequence[int | None], top_bytes: int, width: int) -> Text:
    peak_bytes = max((value for value in values if value is not None), default=0)
    caption = f"most {size_text(peak_bytes)}"
    return _captioned(f"{SPAN_S // 60} min", sparkline(values, top_bytes, "cyan"), caption, width)


def _captioned(label: str, cells: Text, caption: str, width: int) -> Text:
    line = Text.assemble((f"{label:>{_LABEL_CELLS - 1}} ", "dim"), cells, " ", caption)
    return _cut(line, width)


def _bar_cells(width: int) -> int:
    caption = _CAPTION_CELLS if width >= NARROW else _NARROW_CAPTION_CELLS
    return max(4, width - _LABEL_CELLS - 1 - caption)


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line
