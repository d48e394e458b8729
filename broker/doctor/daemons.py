"""Run directories, sockets, and the daemons behind them."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from vrambroker.broker.core.errors import BrokerError, BrokerUnavailable, VersionMismatch
from vrambroker.broker.doctor import bounds
from vrambroker.broker.doctor.finding import Finding, fail, ok, unseen, warn
from vrambroker.broker.sizes import size_text
from vrambroker.broker.version import VERSION
from vrambroker.client.discovery import Endpoint, endpoints, run_dirs
from vrambroker.client.rpc import Control, OperatorHandshake
from vrambroker.client.status import Status

TIMEOUT_S = 3.0
ONE_VERSION = "install the daemon's package and the workers' from one tree"


def run_directories() -> Iterator[Finding]:
    """Look at where a daemon's sockets would be."""
    for directory in run_dirs():
        try:
            yield _run_dir(directory)
        except OSError as error:
            yield unseen("run-dir", f"uid {os.geteuid()} can't look at {directory}: {error.strerror}")


def daemons(device: str | None) -> tuple[list[Finding], list[Status]]:
    """Look at every daemon that has a socket, or at that of one device; returns what those that answer say as well."""
    found = [endpoint for endpoint in endpoints() if device in (None, endpoint.device)]
    if not found:
        which = "any device" if device is None else device
        return [unseen("daemon", f"no daemon of {which} has a socket: sessions and versions are not looked at")], []
    findings: list[Finding] = []
    statuses: list[Status] = []
    for endpoint in found:
        try:
            findings.append(_socket(endpoint))
        except OSError as error:
            findings.append(unseen("socket-rights", f"{endpoint.handle_socket} is gone again: {error.strerror}"))
        answer = _ask(endpoint)
        if isinstance(answer, Finding):
            findings.append(answer)
        else:
            findings += [_version(answer), *_state(answer)]
            statuses.append(answer)
    return findings, statuses


def _run_dir(directory: Path) -> Finding:
    """Judge whether a daemon of this user could put its sockets there, and whether others could put theirs."""
    nearest = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not nearest.is_dir():
        return fail("run-dir", f"{directory} can't be a run directory: {nearest} is no directory", f"rm {nearest}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        text = f"uid {os.geteuid()} can't put sockets in {directory}: {nearest} is uid {nearest.stat().st_uid}'s"
        return warn("run-dir", text, "# run the daemon as its owner, or name another with --run-dir")
    if directory.exists() and directory.stat().st_mode & stat.S_IWOTH and not directory.stat().st_mode & stat.S_ISVTX:
        text = f"anybody may put sockets in {directory}, and workers would take them for a daemon's"
        return fail("run-dir", text, f"chmod o-w {directory}")
    what = "is there" if directory.exists() else "is not there yet, and can be made"
    return ok("run-dir", f"{directory} {what}")


def _ask(endpoint: Endpoint) -> Status | Finding:
    """Return what a daemon says of itself, or that it does not."""
    try:
        with (
            closing(OperatorHandshake(endpoint, version=VERSION, timeout_s=TIMEOUT_S)) as handshake,
            closing(Control(endpoint, token=lambda: handshake.token)) as control,
        ):
            return control.status(timeout_s=TIMEOUT_S)
    except VersionMismatch as error:
        return fail("version", f"{endpoint.device}: {error.message}", f"# {ONE_VERSION}")
    except (BrokerError, OSError) as error:
        return _silent(endpoint, error)


def _silent(endpoint: Endpoint, error: Exception) -> Finding:
    """Judge a daemon that has not answered; only one that is gone is to be started, since an end loses what is parked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as peer:
        peer.setblocking(False)
        try:
            peer.connect(str(endpoint.handle_socket))
        except PermissionError:
            return unseen("daemon", f"{endpoint.device}: uid {os.geteuid()} may not ask it: see socket-rights")
        except (ConnectionRefusedError, FileNotFoundError):
            mend = f"broker serve --device {endpoint.device}    # it clears dead sockets away"
            return fail("daemon", f"{endpoint.device}: {error}", mend)
        except OSError as full:
            error = full
    # The error's own advice is to start one.
    why = f"no answer in {TIMEOUT_S:g} s" if isinstance(error, BrokerUnavailable) else str(error)
    text = f"{endpoint.device}: it runs, and serves nobody or not this process: {why}"
    return fail("daemon", text, "journalctl -u 'vrambroker@*'    # what keeps it; a restart loses all that is parked")


def _socket(endpoint: Endpoint) -> Finding:
    """Judge the rights on a daemon's sockets, for this user."""
    path = endpoint.handle_socket
    about = path.stat()
    owner = f"uid {about.st_uid}, group {about.st_gid}, mode {about.st_mode & 0o777:o}"
    if not all(os.access(one, os.W_OK) for one in (path, endpoint.rpc_socket)):
        text = f"uid {os.geteuid()} may not connect to {path} ({owner})"
        return fail("socket-rights", text, _group_mend(endpoint, about.st_gid))
    if about.st_mode & stat.S_IWOTH:
        return warn("socket-rights", f"everybody may connect to {path} ({owner})", f"chmod 660 {path}")
    return ok("socket-rights", f"{path} may be connected to ({owner})")


def _group_mend(endpoint: Endpoint, group: int) -> str:
    """Return how a user comes to the sockets; never by root's own group. They belong to the run directory's."""
    if group:
        return f"usermod -aG {group} USER    # and log in anew"
    return f"chgrp GROUP {endpoint.directory.parent}    # of those who share the device; then start the daemon again"


def _version(status: Status) -> Finding:
    told = f"{status.device.id}: daemon {status.version}, process {status.pid}; this command {VERSION}"
    if status.version != VERSION:
        return warn("version", told, f"# {ONE_VERSION}, then start the daemon again")
    return ok("version", told)


def _state(status: Status) -> Iterator[Finding]:
    device, host = status.device, status.host
    if status.draining:
        yield warn("daemon", f"{device.id}: it is shutting down and takes no new work", "# wait, then start it again")
    lent = f"{device.id}: {size_text(device.lent_bytes)} of {size_text(device.capacity_bytes)} lent"
    yield ok("daemon", f"{lent}, {len(status.sessions)} sessions, {len(status.queue)} waiting")
    for session in status.sessions:
        held_bytes = sum(tag.device_bytes for tag in session.tags)
        text = f"{device.id}: {session.name} (process {session.pid}, uid {session.uid}) has {size_text(held_bytes)}"
        if session.ended:
            yield warn("fence", f"{text}; it has ended, and its memory is still reachable", "# end its children")
        else:
            yield ok("holder", text)
    if device.foreign_bytes:
        text = f"{device.id}: {size_text(device.foreign_bytes)} are in use outside of leases"
        mend = "nvidia-smi    # who; and broker serve --keep-free"
        yield (
            warn("foreign", f"{text}; idle memory leaves: {device.eager}", mend)
            if device.eager
            else ok("foreign", text)
        )
    yield _fds_of(status.pid)
    yield bounds.memory_of(status.pid, host.budget_bytes)


def _fds_of(pid: int) -> Finding:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError as error:
        return unseen("fds", f"the limits of process {pid} can't be read: {error.strerror}")
    (line,) = (line for line in lines if line.startswith("Max open files"))
    soft = line.split()[3]
    most = int(soft) if soft.isdecimal() else bounds.FDS_AMPLE
    return bounds.fds(most, f"the daemon, process {pid},", "# LimitNOFILE= of the unit, then start it again")
