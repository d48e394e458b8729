"""Tracks on top of each other over a span of time, exactly or as means; and which span is worth a close look."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vrambroker.client.timeline.history import History, Step

CYCLES_SHOWN = 3
STAGES_SHOWN_MAX = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of time, in nanoseconds since the epoch."""

    begin_ns: int
    end_ns: int

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.begin_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layer k has `layers[k][i]` bytes, and is in `states[k][i]`, from `edges_ns[i]` to `edges_ns[i + 1]`.

    The layers are the history's tracks, in order, the first at the bottom.
    """

    edges_ns: tuple[int, ...]
    layers: tuple[tuple[float, ...], ...]
    states: tuple[tuple[str, ...], ...]

    @property
    def heights(self) -> tuple[float, ...]:
        """How high the stack is in each piece of time."""
        return tuple(sum(column) for column in zip(*self.layers, strict=True))


def stack(history: History, span: Span, measure: Callable[[Step], int]) -> Stack:
    """Cut the span wherever a track's step begins; every track has one value in each piece."""
    starts = {step.at_ns for track in history.tracks for step in track.steps}
    inner = sorted(at_ns for at_ns in starts if span.begin_ns < at_ns < span.end_ns)
    edges_ns = (span.begin_ns, *inner, span.end_ns)
    layers: list[tuple[float, ...]] = []
    states: list[tuple[str, ...]] = []
    for track in history.tracks:
        held = [_step_at(track.steps, at_ns) for at_ns in edges_ns[:-1]]
        layers.append(tuple(float(measure(step)) if step else 0.0 for step in held))
        states.append(tuple(step.state if step else "" for step in held))
    return Stack(edges_ns=edges_ns, layers=tuple(layers), states=tuple(states))


def _step_at(steps: tuple[Step, ...], at_ns: int) -> Step | None:
    index = bisect_right(steps, at_ns, key=lambda step: step.at_ns)
    return steps[index - 1] if index else None


def even(span: Span, pieces: int) -> tuple[int, ...]:
    """Return the edges of equal pieces of a span."""
    return tuple(span.begin_ns + span.length_ns * index // pieces for index in range(pieces + 1))


def mean(exact: Stack, edges_ns: tuple[int, ...]) -> Stack:
    """Return the stack's means between these edges, the outer ones its own: the same area, and no states."""
    layers = tuple(tuple(_means(exact.edges_ns, layer, edges_ns)) for layer in exact.layers)
    return Stack(edges_ns=edges_ns, layers=layers, states=tuple(("",) * (len(edges_ns) - 1) for _ in layers))


def highest(exact: Stack, edges_ns: tuple[int, ...]) -> list[float]:
    """Return the most that the stack reaches between each two edges."""
    heights = exact.heights
    return [max(heights[first:last], default=0.0) for first, last in _overlaps(exact.edges_ns, edges_ns)]


def _means(fine_ns: tuple[int, ...], values: tuple[float, ...], coarse_ns: tuple[int, ...]) -> list[float]:
    means: list[float] = []
    for piece, (first, last) in enumerate(_overlaps(fine_ns, coarse_ns)):
        begin_ns, end_ns = coarse_ns[piece], coarse_ns[piece + 1]
        area = sum(
            values[index] * (min(end_ns, fine_ns[index + 1]) - max(begin_ns, fine_ns[index]))
            for index in range(first, last)
        )
        means.append(area / max(1, end_ns - begin_ns))
    return means


def _overlaps(fine_ns: tuple[int, ...], coarse_ns: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield, for each coarse piece, which fine pieces have a part in it: the first, and the one after the last."""
    for begin_ns, end_ns in pairwise(coarse_ns):
        yield bisect_right(fine_ns, begin_ns) - 1, bisect_left(fine_ns, end_ns)


def whole(history: History) -> Span:
    """Return all the time there is."""
    return Span(begin_ns=history.begin_ns, end_ns=history.end_ns)


def focus(history: History) -> Span:
    """Return the last few whole cycles of stages, or everything if that is few enough to be legible.

    The last one is left out: it goes on until the end, whatever happened then.
    """
    stages = history.stages
    if len(stages) <= STAGES_SHOWN_MAX:
        return whole(history)
    starts = _cycle_starts(history)
    shown = min(CYCLES_SHOWN, len(starts) - 1, max(1, STAGES_SHOWN_MAX * len(starts) // len(stages)))
    if shown < 1:
        return Span(begin_ns=stages[-STAGES_SHOWN_MAX].begin_ns, end_ns=history.end_ns)
    return Span(begin_ns=starts[-1 - shown], end_ns=starts[-1])


def cycles(history: History, pieces_max: int) -> tuple[int, ...]:
    """Return edges that cut all the time into whole cycles of stages, or into even pieces if there are none."""
    span = whole(history)
    starts = [at_ns for at_ns in _cycle_starts(history) if span.begin_ns < at_ns < span.end_ns]
    if not starts:
        return even(span, pieces_max)
    return (span.begin_ns, *starts[:: len(starts) // pieces_max + 1], span.end_ns)


def _cycle_starts(history: History) -> list[int]:
    """Return where cycles begin: at every occurrence of the first stage that comes back."""
    names = [stage.name for stage in history.stages]
    recurring = next((name for name in names if names.count(name) > 1), None)
    return [stage.begin_ns for stage in history.stages if stage.name == recurring]
