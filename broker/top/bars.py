"""Bars and sparklines, in cells of a terminal, and the colours of sessions and tags in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from vrambroker.client.timeline.picture import HUES

LEVELS = "▁▂▃▄▅▆▇█"
# What a state looks like where there are no colours.
GLYPHS = {"resident": "█", "idle": "▓", "partial": "▓", "leaving": "▒", "arriving": "▒"}
HELD = "░"
FREE = "·"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a bar."""

    size_bytes: int
    glyph: str
    style: str


@dataclass(slots=True)
class Colours:
    """The colours of the timeline's picture, for a dark ground: a hue for each session, a shade for each of its tags.

    Whoever has been seen keeps its colour, whatever comes and goes beside it.
    """

    _hues: dict[str, int] = field(default_factory=dict[str, int])
    _shades: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def of(self, session: str, tag: str) -> str:
        hue = HUES[self._hues.setdefault(session, len(self._hues)) % len(HUES)]
        tags = self._shades.setdefault(session, {})
        # The first shade of each is too dark for a dark ground.
        return hue[1 + tags.setdefault(tag, len(tags)) % (len(hue) - 1)]


def bar(pieces: Iterable[Piece], total_bytes: int, width: int) -> Text:
    """Return the pieces side by side, in proportion to the total; an edge is rounded to a cell, so no rest adds up."""
    shown = list(pieces)
    total = max(1, total_bytes, sum(piece.size_bytes for piece in shown))
    text, told_bytes, cells = Text(), 0, 0
    for piece in shown:
        told_bytes += piece.size_bytes
        edge = round(width * told_bytes / total)
        if edge > cells:
            text.append(piece.glyph * (edge - cells), style=piece.style)
        cells = edge
    text.append(FREE * (width - cells), style="dim")
    return text


def sparkline(values: Sequence[int | None], top_bytes: int, style: str) -> Text:
    """Return a cell for each value, nothing where none is known; what is more than nothing is never shown as nothing."""
    highest = len(LEVELS) - 1
    cells = (
        " " if value is None else LEVELS[min(highest, -(-value * highest // max(1, top_bytes)))] for value in values
    )
    return Text("".join(cells), style=style)
