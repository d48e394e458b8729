"""The screen of `broker top`: asks the feed for news four times a second, draws what has changed, and has the keys."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, assert_never

from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static

from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.reporting import one_line
from vrambroker.broker.top import feed, panels
from vrambroker.broker.top.bars import Colours
from vrambroker.broker.top.dialogs import Help, Question
from vrambroker.broker.top.feed import Feed, News
from vrambroker.broker.top.holdings import Holdings
from vrambroker.broker.top.recent import Recent
from vrambroker.broker.top.rows import Row, heading
from vrambroker.broker.top.words import Tone, with_sizes
from vrambroker.client.status import Status

DRAW_EVERY_S = 0.25


class Top(App[None]):
    """One daemon, live. Ownership: the feed is started and closed with it."""

    CSS_PATH = Path(__file__).with_name("top.tcss")
    ENABLE_COMMAND_PALETTE = False
    # textual types these two as an instance's.
    HORIZONTAL_BREAKPOINTS = [(0, "-usual"), (150, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (10, "-low"), (20, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "pause"),
        Binding("r", "resume", "resume"),
        Binding("question_mark,h", "help", "help"),
        Binding("q,ctrl+c", "quit", "quit"),
        Binding("escape", "silence", "take the message away", show=False),
    ]

    def __init__(self, following: Feed) -> None:
        # Without this, textual takes NO_COLOR for shades of grey.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self._feed = following
        self._recent = Recent()
        self._colours = Colours()
        self._status: Status | None = None
        self._away: feed.Away | None = None
        self._shown: dict[str, tuple[Text, str | Style] | None] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="away", classes="-empty")
        yield Static(id="device")
        yield Static(id="device-minutes", classes="minutes")
        yield Static(id="arena")
        yield Static(id="arena-minutes", classes="minutes")
        yield Static(id="remarks", classes="-empty")
        with Container(id="body"):
            with Vertical(id="holders"):
                yield Static(id="heading", classes="heading")
                yield Holdings(self._colours, id="holdings")
            with Vertical(id="news"):
                yield Static("waiting", id="queue-heading", classes="heading")
                yield Static(id="queue")
                yield Static("events", id="events-heading", classes="heading")
                yield Static(id="events")
        yield Static(id="message", classes="-empty")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow the daemon."""
        # The default would end it at once, with the terminal still raw.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit, None, 128 + signal.SIGTERM)
        self._main.query_one(Holdings).focus()
        self._feed.start()
        self.set_interval(DRAW_EVERY_S, self._follow)

    def on_unmount(self) -> None:
        """Let go of the daemon."""
        self._feed.close()

    def on_resize(self) -> None:
        """Draw anew for another size, once everything has its place."""
        self.call_after_refresh(self.draw)

    def draw(self) -> None:
        """Put what is known onto the screen."""
        self._draw_away()
        if self._status is None:
            return
        self._draw_bars(self._status)
        holdings = self._main.query_one(Holdings)
        holdings.show(self._status)
        self._put("heading", heading(holdings.scrollable_content_region.width))
        self._draw_queue(self._status)
        self._draw_events()

    def action_pause(self) -> None:
        """Pause the tag under the cursor, after a question."""
        self._ask("Pause", self._pause)

    def action_resume(self) -> None:
        """Resume the tag under the cursor, after a question."""
        self._ask("Resume", self._resume)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_silence(self) -> None:
        """Take the message away."""
        self._put("message", None)

    def _follow(self) -> None:
        news = self._feed.take()
        for one in news:
            self._take(one)
        if news:
            self.draw()

    def _take(self, news: News) -> None:
        match news:
            case feed.Told(time_ns=time_ns, status=status):
                self._recent.measure(time_ns, status)
                self._status, was_away, self._away = status, self._away, None
                if was_away is not None:
                    self._recent.note(time_ns, f"{status.device.id} answers again", Tone.GOOD)
            case feed.Begun():
                self._recent.begin()
            case feed.Happened(event=event):
                self._recent.add(event)
            case feed.Away(time_ns=time_ns):
                if self._away is None:
                    self._away = news
                    self._recent.note(time_ns, "the daemon does not answer", Tone.BAD)
            case feed.Acted(done=done, refusal=refusal):
                self._say(done if refusal is None else _refused(refusal), bad=refusal is not None)
            case feed.Broken(error=error):
                raise error
            case _:
                assert_never(news)

    def _ask(self, verb: str, act: Callable[[Row], None]) -> None:
        row = self._main.query_one(Holdings).chosen
        if row is None or row.tag is None:
            self._say("there is no tag under the cursor", bad=True)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                act(row)

        self.push_screen(Question(f"{verb} {row.name}?", f"It is {row.residency}."), answered)

    def _pause(self, row: Row) -> None:
        self._say(f"pausing {row.name}, once it is out of use: {feed.ACTION_S:.0f} s at most")
        self._feed.pause(*_target(row))

    def _resume(self, row: Row) -> None:
        self._say(f"resuming {row.name}, once there is room: {feed.ACTION_S:.0f} s at most")
        self._feed.resume(*_target(row))

    def _say(self, words: str, *, bad: bool = False) -> None:
        self._put("message", Text(one_line(words), style="bold red" if bad else "bold"))

    def _draw_away(self) -> None:
        self._main.set_class(self._away is not None, "-away")
        if self._away is None:
            self._put("away", None)
            return
        since = time.strftime("%H:%M:%S", time.localtime(self._away.time_ns / 1e9))
        words = f"no answer since {since}; asked again each second\n{one_line(self._away.message)}"
        self._put("away", Text(words, no_wrap=True, overflow="ellipsis"))

    def _draw_bars(self, status: Status) -> None:
        width, now_ns = self.size.width - 2, time.time_ns()
        self._put("title", panels.title(status, width, time.strftime("%H:%M:%S")))
        self._put("device", panels.device_bar(status, self._colours, width))
        self._put("device-minutes", panels.device_minutes(status, self._recent, width, now_ns))
        self._put("arena", panels.arena_bar(status, self._colours, width))
        self._put("arena-minutes", panels.arena_minutes(status, self._recent, width, now_ns))
        self._put("remarks", panels.remarks(status, width))

    def _draw_queue(self, status: Status) -> None:
        wide = self._main.has_class("-wide")
        count = max(1, self.size.height // (2 if wide else 4) - 1)
        width = self._main.query_one("#queue", Static).content_size.width or self.size.width
        lines = panels.queue_lines(status, count, width)
        self._put("queue", Text("\n").join(lines) if lines else Text("nobody", style="dim"))

    def _draw_events(self) -> None:
        events = self._main.query_one("#events", Static)
        size = events.content_size
        lines = panels.event_lines(self._recent.lines, max(1, size.height), size.width or self.size.width)
        self._put("events", Text("\n").join(lines))

    @property
    def _main(self) -> Screen[Any]:
        """The screen itself, also while a question stands in front of it."""
        return self.screen_stack[0]

    def _put(self, id: str, text: Text | None) -> None:
        """Put a text into its place, unless it is there; None takes the place away."""
        # Texts are equal whatever style they have as a whole.
        shown = None if text is None else (text, text.style)
        if id in self._shown and self._shown[id] == shown:
            return
        self._shown[id] = shown
        place = self._main.query_one(f"#{id}", Static)
        place.set_class(text is None, "-empty")
        place.update(text or "")


def _target(row: Row) -> tuple[str, str]:
    assert row.tag is not None, "asked only for rows that have one"
    return row.session.name, row.tag.tag


def _refused(error: BrokerError) -> str:
    return f"{type(error).__name__}: {with_sizes(error.message)}"
