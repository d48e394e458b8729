"""A side of a scenario: a program of its own that is asked in lines, and answers in lines."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

DEADLINE_S = 60.0
ENGINES = Path(__file__).parent


class Program:
    """`script` is one of this folder; `options` are those of `broker run`, which is not in front of it if there are none."""

    def __init__(
        self, name: str, script: str, *arguments: str, environment: dict[str, str], options: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        start = [sys.executable, "-m", "vrambroker.broker.entry", "run", *options, "--"] if options else []
        self.process = subprocess.Popen(
            [*start, sys.executable, str(ENGINES / script), *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def hear(self) -> str:
        line = self._lines.get(timeout=DEADLINE_S)
        assert line, f"{self.name} ended with {self.process.wait(DEADLINE_S)}"
        return line.strip()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.poll() is None, f"{self.name} has ended"
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def end(self) -> None:
        """Hang up; the program ends by itself, without an error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(DEADLINE_S) == 0

    def kill(self) -> None:
        """End it however it is; once more is no error."""
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")
