"""What the service manager shows of the daemon (`STATUS=`): how much is lent, to how many, and who waits.

Added up from the event stream, since to draw a snapshot takes as long as there are leases.
"""

import asyncio

from vrambroker.broker.adapters.notify import notify
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.sizes import size_text

PERIOD_S = 1.0


class StatusLine:
    """An `Observer`. Once started, it tells of a change after a second at most. Ownership: `close` ends it."""

    def __init__(self, *, device: str, capacity_bytes: int) -> None:
        self._device = device
        self._capacity_bytes = capacity_bytes
        self._lent_bytes = 0
        self._sessions: set[str] = set()
        self._waiting: set[int] = set()
        self._told = ""
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    def published(self, line: Publish) -> None:
        match line.kind:
            case Kind.DEVICE_CHANGED:
                self._lent_bytes = line.lent_bytes
            case Kind.SESSION_ATTACHED:
                self._sessions.add(line.session)
            case Kind.SESSION_ENDED:
                self._sessions.discard(line.session)
            case Kind.TICKET_QUEUED:
                self._waiting.add(line.ticket)
            case Kind.TICKET_ADMITTED | Kind.TICKET_REFUSED | Kind.TICKET_DONE:
                self._waiting.discard(line.ticket)
            case _:
                return
        if self._started and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tell)

    def text(self) -> str:
        """Return the line."""
        lent = f"{size_text(self._lent_bytes)} of {size_text(self._capacity_bytes)} lent"
        waiting = f", {len(self._waiting)} waiting" if self._waiting else ""
        sessions = f"{len(self._sessions)} session{'' if len(self._sessions) == 1 else 's'}"
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
