"""The history as a picture: a self-contained SVG, dark on light, made by hand so that nothing has to be installed.

From top to bottom: the stages; the device's bytes by session and tag under the capacity line; the host's bytes; and, if
those show only a few cycles of a longer run, the whole run with the place where they are from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from vrambroker.client.timeline import svg
from vrambroker.client.timeline.history import PAUSED, History, Stage
from vrambroker.client.timeline.scale import Scale, byte_ticks, bytes_text, second_ticks, seconds_text
from vrambroker.client.timeline.stack import Span, Stack, cycles, even, focus, highest, mean, stack, whole

WIDTH = 1200
LEFT = 84
RIGHT = 964
LEGEND = RIGHT + 28
STAGES_TOP = 84
STAGES_HEIGHT = 22
DEVICE_TOP = STAGES_TOP + STAGES_HEIGHT
DEVICE_HEIGHT = 260
HOST_HEIGHT = 120
GAP = 44
RUN_HEIGHT = 80
RUN_PIECES_MAX = 440
# Beyond this many pieces a picture of this width can't show them, and a browser labours.
PIECES_MAX = 4000

INK = "#1f2430"
FAINT = "#6b7280"
GRID = "#e5e7eb"
LIMIT = "#b42318"
# One hue a session, one shade a tag, from dark to light; neighbours in the stack must differ in print as well.
HUES = (
    ("#1d4e89", "#3f7cbf", "#8fb8e0", "#c3daf0"),
    ("#b8500a", "#f0a04b", "#f7cf9b", "#8a3b06"),
    ("#1f6f54", "#4fae8b", "#a3d9c3", "#0f4a37"),
    ("#5b3a8e", "#8d6cc4", "#c5b3e6", "#3c2266"),
    ("#8a1c4a", "#cf5b8a", "#eeb0c9", "#5c0f30"),
)
TINTS = ("#e8eef6", "#fdf0e1", "#e6f4ee", "#f1ecf8", "#fbe9f0", "#f3f4f6")
STYLE = (
    f"text{{font-family:{svg.FONT};fill:{INK};font-size:13px}}"
    f".title{{font-size:19px;font-weight:600}}.faint{{fill:{FAINT}}}.small{{font-size:12px}}"
    ".strong{font-weight:600}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A plot: where it is on the page, and the scales of its time and its bytes."""

    top: float
    height: float
    time: Scale
    size: Scale

    @property
    def bottom(self) -> float:
        return self.top + self.height


def draw(history: History) -> str:
    """Return the picture as the text of a `.svg` file."""
    span, run = focus(history), whole(history)
    device = _panel(span, DEVICE_TOP, DEVICE_HEIGHT, _device_top_bytes(history))
    device_stack = _legible(stack(history, span, lambda step: step.device_bytes))
    host_stack = _legible(stack(history, span, lambda step: step.host_bytes))
    host_top_bytes = max(host_stack.heights, default=0.0) * 1.12 or 1.0
    host = _panel(span, device.bottom + GAP, HOST_HEIGHT, host_top_bytes)
    parts = [*_heading(history), *_stages(history, span, (device, host))]
    parts += _byte_axis(device, "device")
    parts += _areas(history, device, device_stack, "device")
    parts += _capacity(history, device)
    parts += _byte_axis(host, "host")
    parts += _areas(history, host, host_stack, "host")
    parts += _time_axis(history, host, span)
    parts += _legend(history, span)
    height = host.bottom + 40
    if span != run:
        overview = _panel(run, host.bottom + 84, RUN_HEIGHT, _device_top_bytes(history))
        parts += _overview(history, overview, span)
        height = overview.bottom + 40
    return _document("".join(parts), height)


def _document(body: str, height: float) -> str:
    hatch = svg.element("path", d="M-2 2L2 -2M0 8L8 0M6 10L10 6", stroke="#ffffff", stroke_width=2.2)
    pattern = svg.element("pattern", hatch, id="idle", width=8, height=8, patternUnits="userSpaceOnUse")
    content = (
        svg.element("style", STYLE)
        + svg.element("defs", pattern)
        + svg.rectangle(0, 0, WIDTH, height, fill="#ffffff")
        + body
    )
    return (
        svg.element(
            "svg",
            content,
            xmlns="http://www.w3.org/2000/svg",
            width=WIDTH,
            height=height,
            viewBox=f"0 0 {WIDTH} {svg.number(height)}",
        )
        + "\n"
    )


def _panel(span: Span, top: float, height: float, top_bytes: float) -> Panel:
    return Panel(
        top=top,
        height=height,
        time=Scale(first=span.begin_ns, last=span.end_ns, at_first=LEFT, at_last=RIGHT),
        size=Scale(first=0, last=top_bytes, at_first=top + height, at_last=top),
    )


def _device_top_bytes(history: History) -> float:
    return max(history.capacity_bytes, history.peak_lent_bytes) * 1.1


def _legible(exact: Stack) -> Stack:
    return (
        exact
        if len(exact.edges_ns) <= PIECES_MAX
        else mean(exact, even(Span(begin_ns=exact.edges_ns[0], end_ns=exact.edges_ns[-1]), PIECES_MAX // 4))
    )


def _heading(history: History) -> Iterator[str]:
    seconds = (history.end_ns - history.begin_ns) / 1e9
    facts = [
        f"{seconds:.1f} s",
        f"peak {bytes_text(history.peak_lent_bytes)} lent of {bytes_text(history.capacity_bytes)}",
    ]
    if not history.complete:
        facts.append("some of what happened is not in it")
    yield svg.text(f"Who had the memory of {history.device}", LEFT, 36, class_="title")
    yield svg.text(" · ".join(facts), LEFT, 58, class_="faint")


def _colours(history: History) -> list[str]:
    sessions: dict[str, int] = {}
    colours: list[str] = []
    for track in history.tracks:
        tags_before = sessions.get(track.session, 0)
        hue = HUES[(list(sessions).index(track.session) if tags_before else len(sessions)) % len(HUES)]
        sessions[track.session] = tags_before + 1
        colours.append(hue[tags_before % len(hue)])
    return colours


def _tints(stages: Sequence[Stage]) -> dict[str, str]:
    names = dict.fromkeys(stage.name for stage in stages)
    return {name: TINTS[index % len(TINTS)] for index, name in enumerate(names)}


def _stages(history: History, span: Span, panels: Sequence[Panel]) -> Iterator[str]:
    """Draw each stage as a band behind the plots, with its name above them where there is room for it."""
    tints = _tints(history.stages)
    time = panels[0].time
    for stage in history.stages:
        begin_ns, end_ns = max(stage.begin_ns, span.begin_ns), min(stage.end_ns, span.end_ns)
        if begin_ns >= end_ns:
            continue
        left, right = time(begin_ns), time(end_ns)
        for panel in panels:
            yield svg.rectangle(left, panel.top, right - left, panel.height, fill=tints[stage.name], fill_opacity=0.7)
        yield svg.rectangle(left, STAGES_TOP, right - left, STAGES_HEIGHT, fill=tints[stage.name])
        yield svg.line(left, STAGES_TOP, left, STAGES_TOP + STAGES_HEIGHT, stroke="#ffffff", stroke_width=1.5)
        label = next((label for label in (stage.label, stage.name) if _text_width(label) < right - left - 6), None)
        if label is not None:
            middle = (left + right) / 2
            yield svg.text(label, middle, STAGES_TOP + 15, text_anchor="middle", class_="small")


def _text_width(words: str) -> float:
    """Return about how wide small text is: there is no font to ask, so rather too much."""
    return 7.0 * len(words)


def _byte_axis(panel: Panel, what: str) -> Iterator[str]:
    for tick in byte_ticks(panel.size.last, max(2, int(panel.height // 45))):
        y = panel.size(tick)
        yield svg.line(LEFT, y, RIGHT, y, stroke=GRID if tick else FAINT, stroke_width=1)
        yield svg.text(bytes_text(tick), LEFT - 10, y + 4, text_anchor="end", class_="faint small")
    middle = panel.top + panel.height / 2
    yield svg.text(
        what, 20, middle, text_anchor="middle", class_="strong", transform=f"rotate(-90 20 {svg.number(middle)})"
    )


def _areas(history: History, panel: Panel, shown: Stack, what: str) -> Iterator[str]:
    """Draw the stack, the first track at the bottom; what is paused and still in place is hatched."""
    edges = [panel.time(at_ns) for at_ns in shown.edges_ns]
    below = [0.0] * (len(edges) - 1)
    for track, colour, layer, states in zip(history.tracks, _colours(history), shown.layers, shown.states, strict=True):
        above = [low + value for low, value in zip(below, layer, strict=True)]
        tops, bottoms = [panel.size(value) for value in above], [panel.size(value) for value in below]
        name = f"{track.session}/{track.tag}"
        area = svg.stairs(edges, tops, bottoms)
        if area:
            title = svg.element("title", f"{escape(name)} on the {what}")
            yield svg.element("path", title, class_=f"{what} area", id=f"{what}:{name}", d=area, fill=colour)
        idle = [top if state in PAUSED else low for top, low, state in zip(tops, bottoms, states, strict=True)]
        hatched = svg.stairs(edges, idle, bottoms) if what == "device" else ""
        if hatched:
            yield svg.element("path", d=hatched, fill="url(#idle)", fill_opacity=0.75)
        below = above


def _capacity(history: History, panel: Panel) -> Iterator[str]:
    y = panel.size(history.capacity_bytes)
    yield svg.line(LEFT, y, RIGHT, y, stroke=LIMIT, stroke_width=1.5, stroke_dasharray="6 4", class_="capacity")
    label = f"capacity {bytes_text(history.capacity_bytes)}"
    yield svg.text(label, RIGHT - 6, y - 6, text_anchor="end", class_="small strong", style=f"fill:{LIMIT}")


def _time_axis(history: History, panel: Panel, span: Span) -> Iterator[str]:
    begin_s, end_s = ((at_ns - history.begin_ns) / 1e9 for at_ns in (span.begin_ns, span.end_ns))
    ticks = second_ticks(begin_s, end_s, 8)
    step_s = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    for tick in ticks:
        x = panel.time(history.begin_ns + tick * 1e9)
        yield svg.line(x, panel.bottom, x, panel.bottom + 5, stroke=FAINT, stroke_width=1)
        words = seconds_text(tick, step_s)
        yield svg.text(words, x, panel.bottom + 20, text_anchor="middle", class_="faint small")


def _legend(history: History, span: Span) -> Iterator[str]:
    """Name sessions and tags as they are stacked, the topmost first, with the most that each had on the device."""
    y = STAGES_TOP + 12.0
    colours = dict(zip(history.tracks, _colours(history), strict=True))
    for session in reversed(list(dict.fromkeys(track.session for track in history.tracks))):
        yield svg.text(session, LEGEND, y, class_="strong")
        for track in reversed([track for track in history.tracks if track.session == session]):
            y += 22
            yield svg.rectangle(LEGEND, y - 11, 14, 14, rx=2, fill=colours[track])
            yield svg.text(track.tag, LEGEND + 22, y, class_="small")
            most = bytes_text(max(step.device_bytes for step in track.steps))
            yield svg.text(most, WIDTH - 24, y, text_anchor="end", class_="faint small")
        y += 34
    yield svg.rectangle(LEGEND, y - 11, 14, 14, rx=2, fill="#8a93a3")
    yield svg.rectangle(LEGEND, y - 11, 14, 14, rx=2, fill="url(#idle)", fill_opacity=0.75)
    yield svg.text("paused, still in place", LEGEND + 22, y, class_="small")
    seen = {stage.name for stage in history.stages if stage.begin_ns < span.end_ns and stage.end_ns > span.begin_ns}
    for name, tint in _tints(history.stages).items():
        if name not in seen:
            continue
        y += 22
        yield svg.rectangle(LEGEND, y - 11, 14, 14, rx=2, fill=tint, stroke="#c9ced6", stroke_width=0.8)
        yield svg.text(f"stage: {name}", LEGEND + 22, y, class_="small")


def _overview(history: History, panel: Panel, span: Span) -> Iterator[str]:
    """Draw the whole run as means, with the place of the picture above marked in it."""
    exact = stack(history, whole(history), lambda step: step.device_bytes)
    edges_ns = cycles(history, RUN_PIECES_MAX)
    title = "the whole run: the mean of each cycle of stages, and above it the most; framed: what is shown above"
    yield svg.text(title, LEFT, panel.top - 12, class_="faint small")
    yield from _byte_axis(panel, "run")
    yield from _areas(history, panel, mean(exact, edges_ns), "run")
    edges = [panel.time(at_ns) for at_ns in edges_ns]
    tops = [panel.size(value) for value in highest(exact, edges_ns)]
    yield svg.element("path", d=svg.steps(edges, tops), fill="none", stroke=INK, stroke_width=1)
    y = panel.size(history.capacity_bytes)
    yield svg.line(LEFT, y, RIGHT, y, stroke=LIMIT, stroke_width=1, stroke_dasharray="6 4")
    left, right = panel.time(span.begin_ns), panel.time(span.end_ns)
    yield svg.rectangle(
        left, panel.top, max(2.0, right - left), panel.height, fill="none", stroke=INK, stroke_width=1.5
    )
    yield from _time_axis(history, panel, whole(history))
