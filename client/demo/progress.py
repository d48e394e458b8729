"""What a person sees while it runs: a status line on a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vrambroker.client.demo.loop import Course
from vrambroker.client.timeline.scale import bytes_text

PLAIN_EVERY_S = 5.0
BAR_CELLS = 24
REFRESH_HZ = 8


Say = Callable[[str], None]
"""Tell a person what is being done."""


class Progress:
    """Tells how far the run is."""

    def __init__(self, console: Console, *, capacity_bytes: int) -> None:
        self._console = console
        self._capacity_bytes = capacity_bytes
        self._lent_bytes: Callable[[], int] = lambda: 0
        self._told_at = 0.0
        self._live = (
            Live(console=console, get_renderable=self._draw, refresh_per_second=REFRESH_HZ, transient=True)
            if console.is_terminal
            else None
        )
        self._step, self._reward, self._seconds, self._stage = 0, 0.0, 0.0, "setting up"

    def say(self, words: str) -> None:
        """Tell of the set-up."""
        self._stage = words
        if self._live is None:
            self._console.print(words, highlight=False)

    def follow(self, lent_bytes: Callable[[], int]) -> None:
        """Ask this, whenever a line is drawn, how much of the device is lent."""
        self._lent_bytes = lent_bytes

    def stage(self, course: Course, stage: str) -> None:
        """Tell that a stage begins."""
        self._step, self._reward, self._seconds = len(course.rewards), course.recent, course.seconds
        self._stage = stage
        now = time.monotonic()
        if self._live is None and stage == "train" and now - self._told_at >= PLAIN_EVERY_S:
            self._told_at = now
            self._console.print(self._draw().plain, highlight=False, soft_wrap=True)

    def _draw(self) -> Text:
        share = min(1.0, self._lent_bytes() / max(1, self._capacity_bytes))
        full = round(BAR_CELLS * share)
        line = Text()
        line.append(f"{self._seconds:5.0f} s  step {self._step:4d}  reward {self._reward:.2f}  ", style="bold")
        line.append("█" * full, style="green")
        line.append("·" * (BAR_CELLS - full), style="dim")
        line.append(f" {bytes_text(self._lent_bytes())} of {bytes_text(self._capacity_bytes)}  ")
        line.append(self._stage, style="cyan")
        return line

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
