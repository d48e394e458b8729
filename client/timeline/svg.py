"""The few elements of SVG that the picture needs, as text. Coordinates are pixels with two decimals."""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """Return an element; `fill_opacity` becomes `fill-opacity`, `class_` becomes `class`. `content` is markup."""
    told = "".join(f" {_attribute(key)}={quoteattr(_value(value))}" for key, value in attributes.items())
    return f"<{name}{told}>{content}</{name}>" if content else f"<{name}{told}/>"


def text(words: str, x: float, y: float, **attributes: str | float) -> str:
    """Return a line of text; `y` is its baseline."""
    return element("text", escape(words), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: str | float) -> str:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def rectangle(x: float, y: float, width: float, height: float, **attributes: str | float) -> str:
    """Return a rectangle by its upper left corner."""
    return element("rect", x=x, y=y, width=width, height=height, **attributes)


def stairs(edges: Sequence[float], tops: Sequence[float], bottoms: Sequence[float]) -> str:
    """Return the path data of an area between two step functions: piece i spans from edge i to edge i + 1.

    Pieces without height at either end of a run are left out, so that nothing is drawn where there is nothing.
    """
    pieces: list[str] = []
    begin: int | None = None
    for index in range(len(tops) + 1):
        filled = index < len(tops) and abs(tops[index] - bottoms[index]) > 1e-9
        if filled and begin is None:
            begin = index
        elif not filled and begin is not None:
            pieces.append(_run(edges[begin : index + 1], tops[begin:index], bottoms[begin:index]))
            begin = None
    return "".join(pieces)


def _run(edges: Sequence[float], tops: Sequence[float], bottoms: Sequence[float]) -> str:
    path = [f"M{number(edges[0])} {number(bottoms[0])}"]
    for index, top in enumerate(tops):
        path.append(f"V{number(top)}H{number(edges[index + 1])}")
    for index in range(len(bottoms) - 1, -1, -1):
        path.append(f"V{number(bottoms[index])}H{number(edges[index])}")
    return "".join(path) + "Z"


def steps(edges: Sequence[float], heights: Sequence[float]) -> str:
    """Return the path data of a line that has `heights[i]` from edge i to edge i + 1."""
    begin = f"M{number(edges[0])} {number(heights[0])}"
    return begin + "".join(f"V{number(height)}H{number(edge)}" for height, edge in zip(heights, edges[1:], strict=True))


def number(value: float) -> str:
    """Return a coordinate, without digits that nobody sees."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else number(value)
