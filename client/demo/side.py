"""One side of the demo as the coordinator sees it: a worker's process, and questions to it with a deadline."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrambroker.client.demo.child import Child
from vrambroker.client.demo.failure import WorkerFailed
from vrambroker.client.demo.lane import Gone, Lane, Silent, answer_of
from vrambroker.client.demo.worker import Settings

LAST_WORDS_S = 5.0


class Side:
    """The trainer or the rollout. Ownership: of its process and its end of the lane; `close` ends both."""

    def __init__(self, role: str, settings: Settings, *, run_dir: Path, mailbox_fd: int) -> None:
        """Start the worker. `settings` names no fds yet; `mailbox_fd` stays the caller's."""
        self.role = role
        self._deadline_s = settings.deadline_s
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), mailbox_fd)
            told = replace(settings, lane_fd=theirs.fileno(), mailbox_fd=mailbox_fd)
            try:
                self._child = Child(
                    role,
                    ["-m", "vrambroker.client.demo.worker", role, told.text()],
                    environment=_environment(run_dir),
                    log=run_dir / f"{role}.log",
                    pass_fds=fds,
                )
            except BaseException:
                ours.close()
                raise
        self._lane = Lane(ours)

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, verb: str, **given: object) -> dict[str, Any]:
        """Ask and wait for the answer. Raises `WorkerFailed`: refused, ended, or silent beyond its deadline."""
        deadline = time.monotonic() + self._deadline_s
        try:
            self._lane.send({"verb": verb, "given": given}, self._deadline_s)
            reply: Mapping[str, Any] = self._lane.receive(max(0.001, deadline - time.monotonic()))
        except Silent:
            raise WorkerFailed(f"{self.role} did not answer to {verb!r} within {self._deadline_s:.0f} s") from None
        except Gone:
            self._child.ended(LAST_WORDS_S)
            raise WorkerFailed(f"{self._child.epitaph()} (asked to {verb})") from None
        return answer_of(self.role, reply)

    def close(self) -> None:
        """End the worker: it goes when its lane closes, else it is made to."""
        self._lane.close()
        self._child.ended(LAST_WORDS_S)
        self._child.end()


def _environment(run_dir: Path) -> dict[str, str]:
    return {
        "VRAMBROKER_RUN_DIR": str(run_dir),
        # The model is made here, not loaded: nothing is to be asked of any network.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # The sides take turns, so an idle one must not spin on the other's cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
