"""Watches what is in use on the device and is no frame, and tells the core when that has changed.

A reading is taken while frames come and go on another thread, so a single one may count a frame among what is outside:
only what two readings in a row agree on is told.
"""

import asyncio
from collections.abc import Callable

from vrambroker.broker.core.events import OutsideMeasured
from vrambroker.broker.ports import Deliver

PERIOD_S = 0.1


class OutsideMeter:
    """`read` returns bytes and takes microseconds; changes of less than `step_bytes` are not told.

    Ownership: `close` ends it. For one running loop.
    """

    def __init__(self, *, read: Callable[[], int], deliver: Deliver, step_bytes: int) -> None:
        self._read = read
        self._deliver = deliver
        self._step_bytes = step_bytes
        self._told_bytes = 0
        self._last_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, every tenth of a second."""
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._again)

    def _again(self) -> None:
        self.look()
        self.start()

    def look(self) -> None:
        """Take a reading; delivers `OutsideMeasured` if it and the one before both differ from what was told."""
        before_bytes, self._last_bytes = self._last_bytes, self._read()
        least, most = sorted((before_bytes, self._last_bytes))
        if least >= self._told_bytes + self._step_bytes:
            self._tell(least)
        elif most <= self._told_bytes - self._step_bytes or (most == 0 < self._told_bytes):
            self._tell(most)

    def _tell(self, used_bytes: int) -> None:
        self._told_bytes = used_bytes
        self._deliver(OutsideMeasured(used_bytes=used_bytes))

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
