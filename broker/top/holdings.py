"""The rows on the screen. Only those that are seen are made; the cursor stays with its row while others come and go."""

from typing import ClassVar

from rich.console import Console
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from vrambroker.broker.top.bars import Colours
from vrambroker.broker.top.rows import Row, row_text, rows_of
from vrambroker.client.status import Status


class Holdings(ScrollView, can_focus=True):
    """A row for each lease, and a cursor."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"holdings--cursor"}
    DEFAULT_CSS = """
    Holdings { height: auto; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Holdings > .holdings--cursor { background: $primary-muted; text-style: bold; }
    Holdings:nocolor > .holdings--cursor { text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home,g", "move(-1000000)", "first", show=False),
        Binding("end,G", "move(1000000)", "last", show=False),
    ]

    def __init__(self, colours: Colours, *, id: str) -> None:
        super().__init__(id=id)
        self._colours = colours
        # Only for what styles are called: the strips are textual's to write.
        self._styles_of = Console()
        self._status: Status | None = None
        self._rows: tuple[Row, ...] = ()
        self._cursor = 0

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._rows else None

    def show(self, status: Status) -> None:
        """Show who holds what now."""
        before = self.chosen
        self._status, self._rows = status, rows_of(status)
        found = (number for number, row in enumerate(self._rows) if before and row.key == before.key)
        self._cursor = next(found, min(self._cursor, max(0, len(self._rows) - 1)))
        self.virtual_size = Size(self.scrollable_content_region.width, max(1, len(self._rows)))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a line of the screen."""
        width, number = self.scrollable_content_region.width, y + self.scroll_offset.y
        at_cursor = number == self._cursor and bool(self._rows)
        style = self.get_component_rich_style("holdings--cursor") if at_cursor else self.rich_style
        segments = self._text(number, width).render(self._styles_of)
        return Strip(segments).adjust_cell_length(width).apply_style(style)

    def action_move(self, by: int) -> None:
        """Move the cursor, and what is seen with it."""
        self._cursor = max(0, min(len(self._rows) - 1, self._cursor + by))
        self.scroll_to_region(Region(0, self._cursor, 1, 1), animate=False, force=True)
        self.refresh()

    def action_page(self, by: int) -> None:
        """Move the cursor by as many rows as are seen."""
        self.action_move(by * max(1, self.size.height - 1))

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse is."""
        self.action_move(event.y + self.scroll_offset.y - self._cursor)

    def _text(self, number: int, width: int) -> Text:
        if self._status is None or number >= len(self._rows):
            nobody = self._status is not None and number == 0
            return Text("nobody is attached" if nobody else "", style="dim", end="")
        text = row_text(self._rows[number], self._status, self._colours, width)
        text.end = ""
        return text
