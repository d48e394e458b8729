"""What the service manager shows of the daemon (`STATUS=`): how much is lent, to how many, and who waits.

Added up from the event stream, since to draw a snapshot takes as long as there are leases.
"""

import asyncio

from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.adapters.notify import notify
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.sizes import size_text

PERIOD_S = 1.0
TELLING = frozenset(
    {
        Kind.DEVICE_CHANGED,
        Kind.SESSION_ATTACHED,
        Kind.SESSION_ENDED,
        Kind.TICKET_QUEUED,
        Kind.TICKET_ADMITTED,
        Kind.TICKET_REFUSED,
    }
)


class StatusLine:
    """An `Observer` that comes after its tally. Once started, it tells of a change after a second at most.

    Ownership: `close` ends it.
    """

    def __init__(self, tally: Tally, *, device: str, capacity_bytes: int) -> None:
        self._tally = tally
        self._device = device
        self._capacity_bytes = capacity_bytes
        self._told = ""
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    def published(self, line: Publish) -> None:
        if self._started and self._timer is None and line.kind in TELLING:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tell)

    def text(self) -> str:
        """Return the line."""
        lent = f"{size_text(self._tally.lent_bytes)} of {size_text(self._capacity_bytes)} lent"
        waiting = f", {self._tally.waiting} waiting" if self._tally.waiting else ""
        count = len(self._tally.sessions)
        sessions = f"{count} session{'' if count == 1 else 's'}"
        return f"{self._device}: {lent}, {sessions}{waiting}"

    def start(self) -> None:
        """Tell from now on."""
        self._started = True
        self._tell()

    def close(self) -> None:
        """Tell nothing any more."""
        self._started = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._timer = None
        if self.text() != self._told:
            self._told = self.text()
            notify(f"STATUS={self._told}")
