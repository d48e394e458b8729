"""Fds kept open for nothing, so that the daemon can still refuse somebody, and write down what it knew, when none is left."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SPARE_FDS = 8


class FdReserve:
    """The spare fds, from construction to `close`."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._fill()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block have the spare fds; afterwards, take as many as there are."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Have no spare fds any more."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _fill(self) -> None:
        with suppress(OSError):
            while len(self._fds) < SPARE_FDS:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
