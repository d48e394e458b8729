"""A device's folder in the run directory: where its two sockets are, and who may connect to them.

Sockets belong to the run directory's group and may be used by it (0660), which is how an administrator lets others in.
Whoever holds the device's lock owns the folder, so a socket that nobody listens on is a dead daemon's, and is replaced.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vrambroker.broker.adapters.device_lock import device_busy, holder_of
from vrambroker.broker.adapters.identity import groups_of
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import Peer

SOCKET_MODE = 0o660
FOLDER_MODE = 0o755
PATH_BYTES_MAX = 107
BACKLOG = 256
_FORBIDDEN = (errno.EACCES, errno.EPERM)


class DeviceFolder:
    """`RUN_DIR/<device id>/`. Raises `InvalidArgument` if it can't be made, `DeviceBusy` if a daemon listens in it."""

    def __init__(self, run_dir: Path, device: str) -> None:
        self._device = device
        self.path = run_dir / device
        self.handles = self.path / "handles.sock"
        self.rpc = self.path / "rpc.sock"
        if len(os.fsencode(self.handles)) > PATH_BYTES_MAX:
            raise InvalidArgument(
                message=f"{self.handles} is longer than the {PATH_BYTES_MAX} bytes that a socket's path may have",
                argument="run_dir",
            )
        try:
            run_dir.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._group = run_dir.stat().st_gid
            self.path.mkdir(mode=FOLDER_MODE, exist_ok=True)
            self._require_own()
            for path in (self.handles, self.rpc):
                self._remove_stale(path)
        except OSError as error:
            raise self._unusable(error) from error

    def listen(self) -> socket.socket:
        """Return the handle socket, listening; the caller owns it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            with private_umask():
                listener.bind(str(self.handles))
        except OSError as error:
            listener.close()
            raise self._unusable(error) from error
        self.admit(self.handles)
        listener.listen(BACKLOG)
        return listener

    def admit(self, path: Path) -> None:
        """Let the run directory's group use a socket; where we may not give it to them, it stays our own group's."""
        with suppress(PermissionError):
            os.chown(path, -1, self._group)
        path.chmod(SOCKET_MODE)

    def may_connect(self, peer: Peer) -> bool:
        """Tell whether a peer is the daemon's own user, root, or of the handle socket's group."""
        if peer.uid in (os.geteuid(), 0):
            return True
        return self.handles.stat().st_gid in groups_of(peer)

    def remove(self) -> None:
        """Remove the sockets, and the folder unless something else lies in it."""
        for path in (self.handles, self.rpc):
            path.unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, *_FORBIDDEN):
                raise

    def _unusable(self, error: OSError) -> InvalidArgument:
        whose = _whose(self.path) if error.errno in _FORBIDDEN else ""
        return InvalidArgument(
            message=f"the run directory {self.path.parent} can't be used: {error.strerror}{whose}", argument="run_dir"
        )

    def _require_own(self) -> None:
        """Refuse a folder of another user's, or a link to one: its owner could put other sockets in the place of ours."""
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            what = f"uid {found.st_uid}'s" if stat.S_ISDIR(found.st_mode) else "no folder"
            raise InvalidArgument(
                message=f"{self.path}, where the sockets are to be, is {what}: remove it, or name another run directory",
                argument="run_dir",
            )
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _remove_stale(self, path: Path) -> None:
        kind = socket.SOCK_SEQPACKET if path == self.handles else socket.SOCK_STREAM
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as other:
            other.setblocking(False)
            try:
                other.connect(str(path))
            except FileNotFoundError:
                return
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:
                # Its backlog is full: somebody listens.
                raise device_busy(self._device, None) from None
            raise device_busy(self._device, holder_of(other))


def _whose(path: Path) -> str:
    """Return whose a folder is, or the nearest above it that is there, and what mends that."""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            found = folder.stat()
            mode = stat.S_IMODE(found.st_mode)
            return (
                f": {folder} is uid {found.st_uid}'s, mode {mode:o}; give it to uid {os.geteuid()}, or name another one"
            )
    return ""


@contextmanager
def private_umask() -> Iterator[None]:
    """Make files that nobody else can use, until their rights are set."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
