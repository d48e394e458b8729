"""What a daemon tells, gathered by threads, and what it is asked to do; none of it makes whoever draws the screen wait.

One thread asks for the status each second, one reads the event stream, and each request of the operator's has its own until
it is answered. All of them go on asking while no daemon answers.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vrambroker.broker.core.errors import BrokerError
from vrambroker.client.rpc import Control
from vrambroker.client.status import Status, StreamEvent

ASK_EVERY_S = 1.0
# A daemon that needs longer than this to tell its status is not well.
ANSWER_S = 3.0
ACTION_S = 10.0
END_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A status, at an instant of the wall clock."""

    time_ns: int
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The event stream begins, at the oldest line that the daemon remembers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """A line of the event stream."""

    event: StreamEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """The daemon does not answer."""

    time_ns: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What came of a request of the operator's; `refusal` is None if it was done."""

    done: str
    refusal: BrokerError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A bug has ended a thread."""

    error: Exception


News = Told | Begun | Happened | Away | Acted | Broken


class Feed:
    """Follows one daemon from `start` to `close`. All methods at once, from one thread.

    Ownership: `control` is closed with it.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._wanted = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to ask."""
        self._run(self._ask_status)
        self._run(self._read_events)

    def take(self) -> list[News]:
        """Return what has come since the last call, in order."""
        return [self._news.get_nowait() for _ in range(self._news.qsize())]

    def pause(self, session: str, tag: str) -> None:
        """Ask for a pause; `Acted` tells what came of it."""
        self._act(f"{session}/{tag} is paused", lambda: self._control.pause(session, (tag,), timeout_s=ACTION_S))

    def resume(self, session: str, tag: str) -> None:
        """Ask for a resume; `Acted` tells what came of it."""
        self._act(f"{session}/{tag} is resumed", lambda: self._control.resume(session, (tag,), timeout_s=ACTION_S))

    def close(self) -> None:
        """End every thread; what was asked for and is not answered goes on without us."""
        self._ended.set()
        self._wanted.set()
        deadline = time.monotonic() + END_S
        for thread in self._threads:
            # Once more for each: a thread that was about to call when the channel was closed has opened another.
            while thread.is_alive() and time.monotonic() < deadline:
                self._control.close()
                thread.join(0.1)
        self._control.close()

    def _run(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=self._watched, args=(work,), daemon=True))
        self._threads[-1].start()

    def _watched(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (the outermost frame of the thread: whoever draws ends with it)
            # gRPC raises ValueError where a channel is closed under a call.
            if not self._ended.is_set():
                self._news.put(Broken(error=error))

    def _ask_status(self) -> None:
        while not self._ended.is_set():
            try:
                status = self._control.status(timeout_s=ANSWER_S)
                self._news.put(Told(time_ns=time.time_ns(), status=status))
            except BrokerError as error:
                self._news.put(Away(time_ns=time.time_ns(), message=error.message))
            self._wanted.wait(ASK_EVERY_S)
            self._wanted.clear()

    def _read_events(self) -> None:
        while not self._ended.is_set():
            self._news.put(Begun())
            try:
                for event in self._control.watch(history=True):
                    self._news.put(Happened(event=event))
                away = "it has ended the event stream"
            except BrokerError as error:
                away = error.message
            self._news.put(Away(time_ns=time.time_ns(), message=away))
            self._ended.wait(ASK_EVERY_S)

    def _act(self, done: str, call: Callable[[], object]) -> None:
        def work() -> None:
            try:
                call()
                refusal = None
            except BrokerError as error:
                refusal = error
            self._news.put(Acted(done=done, refusal=refusal))
            self._wanted.set()

        self._run(work)
