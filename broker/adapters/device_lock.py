"""One daemon per device, whatever its run directory: the name of an abstract unix socket, held for the daemon's life.

The kernel frees an abstract name when its last holder ends, however it ends, so there is nothing stale to clean up,
and it tells whoever connects who the holder is (`SO_PEERCRED` of a listening socket are the credentials of `listen`).
Abstract names are those of one network namespace; `run_dir.py` also looks at the sockets in the directory itself.
"""

import errno
import socket
import struct
from dataclasses import dataclass

from vrambroker.broker.core.errors import BrokerError

CREDENTIALS = struct.Struct("iII")


@dataclass(kw_only=True, eq=False)
class DeviceBusy(BrokerError):
    """Another daemon serves this device; `pid` is its process, or 0 if that can't be told. Never crosses the wire."""

    device: str
    pid: int


def device_busy(device: str, pid: int) -> DeviceBusy:
    """Return the error with its line for a person."""
    holder = f"process {pid}" if pid else "another daemon"
    return DeviceBusy(message=f"device {device} is served by {holder} already", device=device, pid=pid)


def holder_of(peer: socket.socket) -> int:
    """Return the pid of the process at the other end of a unix socket."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, _, _ = CREDENTIALS.unpack(raw)
    return int(pid)


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
        self._socket.listen(1)

    def close(self) -> None:
        """Let another daemon have the device."""
        self._socket.close()


def _ask(name: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as other:
        other.setblocking(False)
        try:
            other.connect(name)
        except (ConnectionRefusedError, BlockingIOError):
            return 0
        return holder_of(other)
