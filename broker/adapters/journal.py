"""The log of a running daemon: who came, who went, who was refused; each once, and nobody can flood it.

Of each kind so many lines are written in a while; the next line after that says how many were left out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.ids import Instant

log = logging.getLogger(__name__)

LINES_MAX = 32
SPAN_NS = 10_000_000_000
TOLD = frozenset(
    {
        Kind.SESSION_ATTACHED,
        Kind.SESSION_ENDED,
        Kind.FENCE_PASSED,
        Kind.TICKET_REFUSED,
        Kind.PLAN_SET,
        Kind.PHASE_ENTERED,
        Kind.PHASE_REFUSED,
        Kind.DRAINING,
    }
)


@dataclass(slots=True)
class _Span:
    began: Instant
    lines: int = 0


class Journal:
    """An `Observer` that writes the log; `note` is for what is no event of the core's."""

    def __init__(self, now: Callable[[], Instant]) -> None:
        self._now = now
        self._spans: dict[str, _Span] = {}

    def published(self, line: Publish) -> None:
        """Write down what matters to whoever runs the daemon."""
        if line.kind in TOLD:
            self.note(line.kind.value, f"{line.session}: {line.why}" if line.session else line.why)

    def note(self, kind: str, text: str) -> None:
        """Write a line, unless there were too many of its kind just now."""
        now = self._now()
        span = self._spans.get(kind)
        if span is None or now - span.began >= SPAN_NS:
            left_out = 0 if span is None else max(0, span.lines - LINES_MAX)
            if left_out:
                log.info("%s: %d more lines like these were left out", kind, left_out)
            span = self._spans[kind] = _Span(now)
        span.lines += 1
        if span.lines <= LINES_MAX:
            log.info("%s: %s", kind, text)
