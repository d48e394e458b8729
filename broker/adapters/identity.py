"""Who is at the other end of a unix socket, as the kernel vouches for it, and whether that process still lives.

`SO_PEERCRED` are the credentials at the time of `connect`; a pidfd names the process itself, so that a pid which was
given to somebody else in the meantime is never taken for the peer.
"""

import errno
import os
import resource
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from vrambroker.broker.core.errors import PeerUnidentified, QuotaExceeded
from vrambroker.broker.core.events import Peer
from vrambroker.broker.core.ids import Domain

SO_PEERPIDFD = 77
_CREDENTIALS = struct.Struct("iII")
_PIDFD = struct.Struct("i")
_NO_FD_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A peer and its pidfd, which whoever holds this owns and closes."""

    peer: Peer
    pidfd: int

    def ended(self) -> bool:
        """Tell whether the process is over: its pidfd is readable then."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def duplicate(self) -> "Process":
        """Return the same process with a pidfd of its own; raises `QuotaExceeded` if there is no fd to be had."""
        try:
            return Process(peer=self.peer, pidfd=os.dup(self.pidfd))
        except OSError as error:
            raise no_fd_left() from error

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


def no_fd_left() -> QuotaExceeded:
    """Return the error for who comes when the daemon has no fd left for them."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return QuotaExceeded(message="the daemon has no fds left", limit="fds", limit_value=most)


def credentials_of(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of whoever connected, or of whoever listens if it was we who did (`SO_PEERCRED`)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return int(pid), int(uid), int(gid)


def identify(connection: socket.socket) -> Process:
    """Return the process that connected.

    Raises `PeerUnidentified` if it is gone or can't be told, `QuotaExceeded` if there is no fd for its pidfd.
    """
    pid, uid, gid = credentials_of(connection)
    if pid <= 0:
        raise PeerUnidentified(
            message="the daemon can't see this process: its pid namespace is not the daemon's, nor one inside that"
            " (have them share one: shareProcessNamespace of a pod; or give the daemon the node's: hostPID)"
        )
    pidfd = _peer_pidfd(connection, pid)
    process = Process(peer=Peer(pid=pid, uid=uid, gid=gid, domain=_domain(pid, uid)), pidfd=pidfd)
    if process.ended():
        process.close()
        raise PeerUnidentified(message=f"process {pid} ended before it could be identified")
    return process


def groups_of(peer: Peer) -> frozenset[int]:
    """Return the peer's groups: the one it connected with and, where they can be read, its supplementary ones."""
    try:
        status = Path(f"/proc/{peer.pid}/status").read_text()
    except OSError:
        return frozenset({peer.gid})
    lines = [line for line in status.splitlines() if line.startswith("Groups:")]
    return frozenset({peer.gid, *(int(group) for line in lines for group in line.split()[1:])})


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """Return a pidfd of the peer: the kernel's own (6.5 and later), or one opened by number and checked."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _PIDFD.size)
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EINVAL):
            return _open_checked(connection, pid)
        raise _unidentified(pid, error) from error
    return int(_PIDFD.unpack(raw)[0])


def _open_checked(connection: socket.socket, pid: int) -> int:
    """Open a pidfd by number, and make sure that the number still means the process that connected.

    It can't be one that began after this moment; and if the peer had ended, its end of the connection would be closed.
    """
    asked_at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _unidentified(pid, error) from error
    started_at_ns = _started_at_ns(pid)
    if started_at_ns is None or started_at_ns > asked_at_ns or _hung_up(connection):
        os.close(pidfd)
        raise PeerUnidentified(message=f"process {pid} is not the one that connected")
    return pidfd


def _unidentified(pid: int, error: OSError) -> PeerUnidentified | QuotaExceeded:
    return no_fd_left() if error.errno in _NO_FD_LEFT else PeerUnidentified(message=f"process {pid} is gone")


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _started_at_ns(pid: int) -> int | None:
    """Return when a process began, on the boot clock (proc(5), stat, field 22), or None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold spaces and parentheses itself.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _domain(pid: int, uid: int) -> Domain:
    """Return the domain's key; a process whose namespaces can't be read is in one of its own."""
    try:
        user = Path(f"/proc/{pid}/ns/user").readlink()
        pids = Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return Domain(f"uid:{uid} pid:{pid} started:{_started_at_ns(pid)}")
    return Domain(f"uid:{uid} {user} {pids}")
