"""From values to places on the page, and which values deserve a line and a label."""

import math
from dataclasses import dataclass

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A linear scale: `first` is drawn at `at_first`, `last` at `at_last`."""

    first: float
    last: float
    at_first: float
    at_last: float

    def __call__(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first)
        return self.at_first + share * (self.at_last - self.at_first)


def bytes_text(size_bytes: float) -> str:
    """Return a size for people: three figures and a unit."""
    for unit, unit_bytes in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{_figures(size_bytes / unit_bytes)} {unit}"
    return "0"


def _figures(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}"


def byte_ticks(top_bytes: float, count: int) -> list[int]:
    """Return round numbers of bytes from 0 up to the top, about `count` of them, in steps of 1, 2 or 5 · 2^(10k)."""
    wanted = max(1.0, top_bytes / count)
    unit_bytes = next(unit_bytes for _, unit_bytes in _UNITS if wanted >= unit_bytes)
    step = int(_round_up(wanted / unit_bytes)) * unit_bytes
    return list(range(0, int(top_bytes) + 1, step))


def second_ticks(begin_s: float, end_s: float, count: int) -> list[float]:
    """Return round instants between two, about `count` of them."""
    step = _round_up((end_s - begin_s) / count)
    first, last = math.ceil(begin_s / step - 1e-9), math.floor(end_s / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def seconds_text(seconds: float, step_s: float) -> str:
    """Return an instant with as many decimals as its neighbours need to differ from it."""
    decimals = max(0, -math.floor(math.log10(step_s) + 1e-9)) if step_s > 0 else 0
    return f"{seconds:.{decimals}f} s"


def _round_up(value: float) -> float:
    """Return the next of …, 0.5, 1, 2, 5, 10, 20, …"""
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= value * (1 - 1e-9)), 10 * power)
