"""A process that the demo starts: on a leash, with its words in a file, and ended for certain."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TERMINATE_GRACE_S = 8.0
KILL_GRACE_S = 5.0


class Child:
    """A child process in a session of its own, so that Ctrl-C reaches the demo alone, which then ends it in order.

    Ownership: `log` is written by the child and left behind; `pass_fds` stay the caller's.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start `python ARGUMENTS…`."""
        self.name = name
        self.log = log
        leash = [sys.executable, "-m", "vrambroker.client.demo.leash", str(os.getpid())]
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                [*leash, sys.executable, *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self, timeout_s: float) -> bool:
        """Tell whether it has ended, waiting for that up to a while."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def epitaph(self) -> str:
        """Say how an ended child ended: its status, and the last line that it wrote."""
        code = self._process.poll()
        how = "still runs" if code is None else _how(code)
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{self.name} {how}" + (f": {lines[-1].strip()}" if lines else "")

    def end(self) -> None:
        """End it if it has not ended: kindly first, then not."""
        if self._process.poll() is None:
            self._process.terminate()
            if not self.ended(TERMINATE_GRACE_S):
                self._process.kill()
                self._process.wait(KILL_GRACE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
