"""Time, as the runtime reads it: the kernel's monotonic clock, whose zero means nothing."""

import time

from vrambroker.broker.core.ids import Instant

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class MonotonicClock:
    """The `Clock` of a real daemon."""

    def now(self) -> Instant:
        """Return the monotonic time in nanoseconds."""
        return Instant(time.monotonic_ns())
