"""Timeouts as both planes carry them, in milliseconds from now, and what none given means."""

from vrambroker.broker.core.ids import Instant

NS_PER_MS = 1_000_000
DEFAULT_MS = 10_000
"""How long a call waits that named no time of its own, or asked only for what is certain."""


def deadline(now: Instant, timeout_ms: int) -> Instant:
    """Return the instant that bounds a call; a timeout of 0 is the default."""
    return Instant(now + (timeout_ms or DEFAULT_MS) * NS_PER_MS)
