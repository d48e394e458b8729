"""One daemon per device, whatever its run directory: the name of an abstract unix socket, held for the daemon's life.

The kernel frees an abstract name when its last holder ends, however it ends, so there is nothing stale to clean up,
and it tells whoever connects who the holder is (`SO_PEERCRED` of a listening socket are the credentials of `listen`).
Abstract names are those of one network namespace, and anybody in it can take one, daemon or not, so a holder of another
uid is named as what it is. `run_dir.py` also looks at the sockets in the directory itself.
"""

import errno
import os
import socket
from dataclasses import dataclass

from vrambroker.broker.adapters.identity import credentials_of
from vrambroker.broker.core.errors import BrokerError

BACKLOG = 64


@dataclass(kw_only=True, eq=False)
class DeviceBusy(BrokerError):
    """The device is taken; `pid` is who has it, or 0 if that can't be told. Never crosses the wire."""

    device: str
    pid: int


def device_busy(device: str, holder: tuple[int, int] | None) -> DeviceBusy:
    """Return the error with its line for a person; `holder` is a pid and its uid, if they can be told."""
    if holder is None:
        return DeviceBusy(
            message=f"device {device} is taken by a process that does not say who it is", device=device, pid=0
        )
    pid, uid = holder
    if uid in (0, os.geteuid()):
        return DeviceBusy(message=f"device {device} is served by process {pid} already", device=device, pid=pid)
    message = f"device {device} is taken by process {pid} of uid {uid}, which may be its daemon or not"
    return DeviceBusy(message=message, device=device, pid=pid)


def holder_of(peer: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the process that listens at the other end of a unix socket."""
    pid, uid, _ = credentials_of(peer)
    return pid, uid


class DeviceLock:
    """The right to serve a device, from construction to `close`. Raises `DeviceBusy`."""

    def __init__(self, device: str) -> None:
        name = f"\0vrambroker/{device}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(name)
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise device_busy(device, _ask(name)) from error
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the socket, which is readable when somebody has asked who holds the lock."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Make room for others to ask: the kernel has answered already. Raises OSError when there is no fd for that."""
        while True:
            try:
                asking, _ = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            asking.close()

    def close(self) -> None:
        """Let another daemon have the device."""
        self._socket.close()


def _ask(name: str) -> tuple[int, int] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as other:
        other.setblocking(False)
        try:
            other.connect(name)
        except (ConnectionRefusedError, BlockingIOError):
            return None
        return holder_of(other)
