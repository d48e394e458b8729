"""How the demo talks to its workers: a question and its answer, each a line of JSON, over a socket pair.

A question is `{"verb": …, "given": {…}}`, its answer `{"answer": {…}}` or `{"error": …, "message": …}`. One at a time.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from vrambroker.broker.core.errors import BrokerError
from vrambroker.client.demo.failure import WorkerFailed

CHUNK_BYTES = 1 << 16
Verb = Callable[..., Mapping[str, object]]


class Silent(Exception):
    """The deadline passed."""


class Gone(Exception):
    """The other end is closed."""


class Lane:
    """One end of the pair, which it owns: whole lines in and out, each with a deadline."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._read = bytearray()

    def send(self, message: Mapping[str, object], timeout_s: float) -> None:
        """Send a line. Raises `Gone` or `Silent`."""
        self._end.settimeout(timeout_s)
        try:
            self._end.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise Silent from None
        except OSError:
            raise Gone from None

    def receive(self, timeout_s: float | None) -> dict[str, Any]:
        """Return the next line's message; None waits for as long as it takes. Raises `Gone` or `Silent`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._read:
            self._end.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                chunk = self._end.recv(CHUNK_BYTES)
            except TimeoutError:
                raise Silent from None
            except OSError:
                raise Gone from None
            if not chunk:
                raise Gone
            self._read += chunk
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close this end; the other one hears of it."""
        self._end.close()


def answer_questions(lane: Lane, verbs: Mapping[str, Verb], *, answer_timeout_s: float) -> None:
    """Answer until the other end is closed. What the broker refuses is an answer; any other error ends the worker."""
    while True:
        try:
            question = lane.receive(None)
        except Gone:
            return
        try:
            reply: Mapping[str, object] = {"answer": verbs[question["verb"]](**question["given"])}
        except BrokerError as error:
            reply = {"error": type(error).__name__, "message": error.message}
        lane.send(reply, answer_timeout_s)


def answer_of(name: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a worker answered. Raises `WorkerFailed` if the broker refused it something."""
    if "error" in reply:
        raise WorkerFailed(f"{name} was refused: {reply['error']}: {reply['message']}")
    answer: dict[str, Any] = reply["answer"]
    return answer
