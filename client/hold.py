"""Capacity that a process has set aside for what it leases and resumes later."""

from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vrambroker.broker.core.errors import UnknownTicket

if TYPE_CHECKING:
    from vrambroker.client.rpc import Control


class Hold:
    """Capacity that is set aside for later; see `Memory.hold`."""

    def __init__(self, control: "Control", ticket: int) -> None:
        """For `Memory.hold` alone."""
        self._control = control
        self.ticket = ticket

    def release(self) -> None:
        """Give back what is not used up; once more is no error."""
        with suppress(UnknownTicket):
            self._control.cancel(self.ticket)

    def __enter__(self) -> Self:
        """Return itself; the end of the block releases it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
