"""Room on a device for memory that is no lease, made by a process that need not be a session."""

from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vrambroker.broker.core.errors import UnknownTicket

if TYPE_CHECKING:
    from vrambroker.client.rpc import Control

TIMEOUT_S = 30.0
LASTS_S = 30.0


class Room:
    """Room that was made; see `make_room`. Ownership: `release` closes its connection, and gives the rest of it back."""

    def __init__(self, *, ticket: int, control: "Control", closing: ExitStack) -> None:
        """For `make_room` alone."""
        self.ticket = ticket
        self._control = control
        self._closing = closing

    def release(self) -> None:
        """Give back what nobody has used yet; once more is no error."""
        with self._closing, suppress(UnknownTicket):
            if self.ticket:
                self._control.cancel(self.ticket)
        self.ticket = 0

    def __enter__(self) -> Self:
        """Return itself; the end of the block releases it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def make_room(
    size_bytes: int, device: str | None = None, *, lasts: float = LASTS_S, timeout: float = TIMEOUT_S
) -> Room:
    """Have `size_bytes` of a device free for memory that is no lease: a context, NCCL, a process that is no session yet.

    Idle memory is taken for it; then it is kept for `lasts` seconds (at most 600), or until as much is used outside of
    leases. Waits for room up to `timeout` seconds; 0 waits only for what is certain. `device` as in `connect`, of which
    None means the only one there.
    Raises `OutOfDeviceMemory` or `WaitExpired`, with the holders; `InvalidArgument`; `QuotaExceeded` for too many by one
    user; `BrokerUnavailable`.
    """
    from vrambroker.broker.version import VERSION
    from vrambroker.client import discovery
    from vrambroker.client.rpc import Control, OperatorHandshake

    endpoint = discovery.find(device)
    with ExitStack() as undo:
        handshake = OperatorHandshake(endpoint, version=VERSION)
        undo.callback(handshake.close)
        control = Control(endpoint, token=lambda: handshake.token)
        undo.callback(control.close)
        ticket = control.make_room(size_bytes, lasts_s=lasts, timeout_s=timeout)
        return Room(ticket=ticket, control=control, closing=undo.pop_all())
