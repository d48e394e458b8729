"""Where metrics are told: a unix socket, or a port of the loopback; of another address only if the operator insists.

Whoever reads them learns who has how much memory under which names, and nothing asks who that is.
"""

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from vrambroker.broker.adapters.run_dir import PATH_BYTES_MAX, private_umask
from vrambroker.broker.core.errors import InvalidArgument

UNIX_PREFIX = "unix:"
SOCKET_MODE = 0o660
BACKLOG = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


MetricsAddress = UnixAddress | TcpAddress


def parse_metrics_address(text: str) -> MetricsAddress:
    """Return what `unix:PATH`, `127.0.0.1:9464`, `[::1]:9464` or `localhost:9464` means; raises `InvalidArgument`."""
    if text.startswith(UNIX_PREFIX):
        path = Path(text.removeprefix(UNIX_PREFIX))
        if not path.is_absolute() or len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise _no_address(text)
        return UnixAddress(path=path)
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _no_address(text)
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError as error:
        raise _no_address(text) from error
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise _no_address(text)
    return TcpAddress(host=host, port=int(port))


def require_allowed(address: MetricsAddress, *, anywhere: bool) -> None:
    """Raise `InvalidArgument` for an address that others can reach, unless that is wanted."""
    if isinstance(address, TcpAddress) and not address.is_loopback and not anywhere:
        raise InvalidArgument(
            message=f"metrics at {address} could be read by other machines: say so with --metrics-anywhere, or use 127.0.0.1",
            argument="metrics",
        )


def listener(address: MetricsAddress) -> socket.socket:
    """Return a listening socket, which the caller owns; raises `InvalidArgument` if it can't be had."""
    try:
        return _unix(address.path) if isinstance(address, UnixAddress) else _tcp(address)
    except OSError as error:
        raise InvalidArgument(message=f"metrics at {address}: {error.strerror}", argument="metrics") from error


def remove(address: MetricsAddress) -> None:
    """Remove what a listener has left in the file system."""
    if isinstance(address, UnixAddress):
        address.path.unlink(missing_ok=True)


def _tcp(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _unix(path: Path) -> socket.socket:
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with private_umask():
            made.bind(str(path))
        path.chmod(SOCKET_MODE)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; what is none, or is in use, is left for `bind` to refuse."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as other:
        other.setblocking(False)
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            return


def _no_address(text: str) -> InvalidArgument:
    return InvalidArgument(
        message=f"metrics {text!r} is no place: unix:/PATH, 127.0.0.1:PORT or [::1]:PORT", argument="metrics"
    )
