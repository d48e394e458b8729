"""systemd's watchdog: the service manager hears that the daemon lives, as often as it wants to, or ends it.

What is told is that the core has just handled an event. A core that is stuck, or has stopped, is silence.
"""

import asyncio
import os
from collections.abc import Callable, Mapping

from vrambroker.broker.adapters.notify import notify


def watchdog_period_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return how often this process must be heard of at least, in seconds; None if nobody minds (sd_watchdog_enabled(3))."""
    period_us, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period_us.isdecimal() or int(period_us) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(period_us) / 1_000_000


class Watchdog:
    """`pulse` tells whether the core works. Ownership: `close` ends it."""

    def __init__(self, *, period_s: float, pulse: Callable[[], bool]) -> None:
        self._interval_s = period_s / 2
        self._pulse = pulse
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Tell now, and then twice in each period, for one running loop."""
        if self._pulse():
            notify("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self.start)

    def close(self) -> None:
        """Tell nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
