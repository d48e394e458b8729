"""The demo's eye on the daemon: every event from the first, as it comes."""

import threading

from vrambroker.broker.core.errors import BrokerError
from vrambroker.client.discovery import Endpoint
from vrambroker.client.rpc import Control
from vrambroker.client.status import Status, StreamEvent

DEVICE_CHANGED = "device_changed"


class Watcher:
    """Follows the event stream on a thread of its own, and asks; it changes nothing, so it needs no token."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._control = Control(endpoint, token=bytes)
        self._events: dict[int, StreamEvent] = {}
        self._lent_bytes = 0
        self._thread = threading.Thread(target=self._follow, name="watcher", daemon=True)
        self._thread.start()

    @property
    def lent_bytes(self) -> int:
        """What is lent of the device now."""
        return self._lent_bytes

    def all_events(self) -> list[StreamEvent]:
        """Return every event up to now, also those that are still on their way here."""
        for event in self._control.watch(history=True, until_now=True):
            self._take(event)
        return [self._events[sequence] for sequence in sorted(self._events)]

    def status(self) -> Status:
        """Ask the daemon how things are."""
        return self._control.status()

    def close(self) -> None:
        """End the stream and the thread."""
        self._control.close()
        self._thread.join(5.0)

    def _follow(self) -> None:
        try:
            for event in self._control.watch(history=True):
                self._take(event)
                if event.kind == DEVICE_CHANGED:
                    self._lent_bytes = event.lent_bytes
        except BrokerError:
            # Closed, or the daemon is gone; whoever needs the daemon next is told.
            return

    def _take(self, event: StreamEvent) -> None:
        self._events[event.sequence] = event
