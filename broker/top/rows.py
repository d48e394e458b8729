"""Who holds what, a row for each lease, in as many columns as there is room for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import set_cell_size
from rich.text import Text

from vrambroker.broker.reporting import one_line
from vrambroker.broker.sizes import size_text
from vrambroker.broker.status_view import STATE_STYLES, age_text, host_text, state_text
from vrambroker.broker.top.bars import FREE, GLYPHS, Colours, Piece, bar
from vrambroker.client.status import SessionStatus, Status, TagStatus

NARROW = 64
BROAD = 104
WIDE = 140
_BAR_CELLS = 16
_NO_LEASE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A lease, or a session that has none (`tag` is None then)."""

    session: SessionStatus
    tag: TagStatus | None

    @property
    def key(self) -> tuple[int, int]:
        """What stays the same of a row while everything else of it changes."""
        return self.session.session, self.tag.lease if self.tag else 0

    @property
    def residency(self) -> str:
        """What is to be said of the row's tag before it is paused or resumed: all its leases will be."""
        tags = [tag for tag in self.session.tags if self.tag and tag.tag == self.tag.tag]
        states = " and ".join(dict.fromkeys(tag.state for tag in tags))
        leases = f", in {len(tags)} leases" if len(tags) > 1 else ""
        return f"{states}, {size_text(sum(tag.device_bytes for tag in tags))} on the device{leases}"

    @property
    def name(self) -> str:
        return one_line(f"{self.session.name}/{self.tag.tag}" if self.tag else self.session.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`width` is in cells; 0 is what the others leave."""

    title: str
    width: int
    right: bool = False


_NARROW = (
    Column(title="session/tag", width=0),
    Column(title="state", width=8),
    Column(title="device", width=9, right=True),
)
_USUAL = (
    Column(title="session/tag", width=0),
    Column(title="state", width=8),
    Column(title="device", width=10, right=True),
    Column(title="host", width=10, right=True),
    Column(title="since", width=11, right=True),
)
_BROAD = (
    Column(title="session/tag", width=0),
    Column(title="contents", width=12),
    Column(title="state", width=8),
    Column(title="device", width=10, right=True),
    Column(title="share", width=_BAR_CELLS),
    Column(title="host", width=10, right=True),
    Column(title="since", width=11, right=True),
)
_WIDE = (
    Column(title="session/tag", width=0),
    Column(title="contents", width=12),
    Column(title="state", width=26),
    Column(title="device", width=10, right=True),
    Column(title="share", width=_BAR_CELLS),
    Column(title="host", width=26, right=True),
    Column(title="since", width=11, right=True),
)


def rows_of(status: Status) -> tuple[Row, ...]:
    """Return a row for each lease, in the daemon's order, and one for each session without any."""
    return tuple(_rows_of(status.sessions))


def _rows_of(sessions: Sequence[SessionStatus]) -> Iterator[Row]:
    for session in sessions:
        for tag in session.tags or (None,):
            yield Row(session=session, tag=tag)


def heading(width: int) -> Text:
    """Return the columns' titles."""
    return _joined([Text(column.title) for column in _columns(width)], width)


def row_text(row: Row, status: Status, colours: Colours, width: int) -> Text:
    """Return one row, as wide as told."""
    cells = {
        "session/tag": _name(row, colours),
        "contents": Text(_contents(row.tag)),
        "state": _state(row, width),
        "device": Text(size_text(row.tag.device_bytes) if row.tag else _NO_LEASE),
        "share": _share(row, status, colours),
        "host": _host(row.tag, width),
        "since": Text(age_text((status.now_ns - row.tag.since_ns) / 1e9) if row.tag else ""),
    }
    return _joined([cells[column.title] for column in _columns(width)], width)


def cut_middle(text: str, width: int) -> str:
    """Return the text with as much of its middle left out as doesn't fit: names differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _columns(width: int) -> tuple[Column, ...]:
    if width < NARROW:
        return _NARROW
    if width < BROAD:
        return _USUAL
    return _BROAD if width < WIDE else _WIDE


def _joined(cells: Sequence[Text], width: int) -> Text:
    """Return the cells in their columns, a space between each two."""
    columns = _columns(width)
    left = width - sum(column.width for column in columns) - len(columns) + 1
    line = Text(no_wrap=True)
    for column, cell in zip(columns, cells, strict=True):
        fitted = _fitted(cell, column.width or max(1, left), right=column.right)
        line = line.append(" ").append_text(fitted) if line else fitted
    return line


def _fitted(cell: Text, width: int, *, right: bool) -> Text:
    text = cell.plain
    if right and len(text) < width:
        return Text(" " * (width - len(text))).append_text(cell)
    if cell.cell_len > width:
        cell = cell.copy()
        cell.truncate(width, overflow="ellipsis")
    return cell.append(set_cell_size("", width - cell.cell_len))


def _name(row: Row, colours: Colours) -> Text:
    swatch = ("■ ", colours.of(row.session.name, row.tag.tag)) if row.tag else ("  ", "")
    away = {True: " (ended)", False: "" if row.session.connected else " (away)"}[row.session.ended]
    return Text.assemble(swatch, row.name, (away, "dim"))


def _contents(tag: TagStatus | None) -> str:
    if tag is None:
        return ""
    return f"{tag.contents}, sealed" if tag.sealed else tag.contents


def _state(row: Row, width: int) -> Text:
    if row.tag is None:
        return Text("no lease", style="dim")
    text = one_line(state_text(row.tag)) if width >= WIDE else row.tag.state
    return Text(text, style=STATE_STYLES.get(row.tag.state, ""))


def _host(tag: TagStatus | None, width: int) -> Text:
    if tag is None or not tag.host_bytes + tag.spill_bytes:
        return Text(_NO_LEASE, style="dim")
    return Text(host_text(tag) if width >= WIDE else size_text(tag.host_bytes + tag.spill_bytes))


def _share(row: Row, status: Status, colours: Colours) -> Text:
    if row.tag is None:
        return Text(FREE * _BAR_CELLS, style="dim")
    return bar([device_piece(row.session, row.tag, colours)], status.device.capacity_bytes, _BAR_CELLS)


def device_piece(session: SessionStatus, tag: TagStatus, colours: Colours) -> Piece:
    """Return what a lease has of the device, as a piece of a bar."""
    glyph = GLYPHS.get(tag.state, "█")
    return Piece(size_bytes=tag.device_bytes, glyph=glyph, style=colours.of(session.name, tag.tag))
