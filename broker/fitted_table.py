"""A table for terminals of any width: where it does not fit, each row is an entry of its own, since half a name is none."""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# No terminal is that wide: what a program or a file is to get is not fitted into anything.
UNBOUNDED_CELLS = 10_000
_GAP = "  "


def output_console(columns: str | None) -> Console:
    """Return where a command prints: as wide as the terminal or as COLUMNS says; else nothing is broken into lines."""
    console = Console()
    return console if console.is_terminal or columns else Console(width=UNBOUNDED_CELLS)


class FittedTable:
    """Rows under named columns. A cell that is empty says nothing in an entry."""

    def __init__(self, *columns: str, right: Sequence[str] = ()) -> None:
        self._columns = columns
        self._right = right
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, which may have fewer cells than there are columns."""
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table if it fits, else its entries."""
        table = self._table()
        unbounded = options.update(width=UNBOUNDED_CELLS)
        if Measurement.get(console, unbounded, table).maximum <= options.max_width:
            yield table
        else:
            yield from self._entries(options.max_width)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold dim")
        for name in self._columns:
            table.add_column(name, justify="right" if name in self._right else "left")
        for row in self._rows:
            table.add_row(*row)
        return table

    def _entries(self, width: int) -> Iterator[Text]:
        for row in self._rows:
            line = Text("" if row[0].plain else _GAP)
            for name, cell in zip(self._columns, row, strict=False):
                if not cell.plain:
                    continue
                said = Text(f"{name} ", style="dim") + cell
                if line.plain.strip() and line.cell_len + len(_GAP) + said.cell_len > width:
                    yield line
                    line = Text(_GAP)
                elif line.plain.strip():
                    line.append(_GAP)
                line.append_text(said)
            line.overflow = "fold"
            yield line
