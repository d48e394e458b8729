"""Who connected, by the kernel's word, with or without its own pidfd; an ended process is never taken for it."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vrambroker.broker.adapters import identity
from vrambroker.broker.adapters.device_lock import DeviceBusy, DeviceLock
from vrambroker.broker.adapters.identity import groups_of, identify
from vrambroker.broker.core.errors import PeerUnidentified

NO_SUCH_OPTION = 9_999
DEADLINE_S = 20


@pytest.fixture(params=["kernel's pidfd", "pidfd by number"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as the kernel is, and as one before 6.5 would be."""
    if request.param == "pidfd by number":
        monkeypatch.setattr(identity, "SO_PEERPIDFD", NO_SUCH_OPTION)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(4)
        listening.settimeout(DEADLINE_S)
        yield listening


def _connecting(listener: socket.socket, then: str, first: str = "") -> "subprocess.Popen[bytes]":
    script = f"import socket, sys\n{first}\ns = socket.socket(1, 5)\ns.connect({listener.getsockname()!r})\n{then}"
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)


@pytest.mark.usefixtures("way")
def test_the_peer_is_told_with_a_pidfd_that_fires_at_its_end(listener: socket.socket) -> None:
    with _connecting(listener, "sys.stdin.read()") as child:
        connection, _ = listener.accept()
        process = identify(connection)
        assert (process.peer.pid, process.peer.uid, process.peer.gid) == (child.pid, os.geteuid(), os.getegid())
        assert not process.ended()
        assert not os.get_inheritable(process.pidfd)
        twin = process.duplicate()
        process.close()
        assert child.stdin is not None
        child.stdin.close()
        assert select.select([twin.pidfd], [], [], DEADLINE_S)[0]
        assert twin.ended()
        twin.close()
        connection.close()


@pytest.mark.usefixtures("way")
def test_a_peer_that_has_ended_is_not_identified(listener: socket.socket) -> None:
    with _connecting(listener, "") as child:
        child.communicate(timeout=DEADLINE_S)
    connection, _ = listener.accept()
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PeerUnidentified):
        identify(connection)
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    connection.close()


def test_a_pid_given_to_somebody_else_is_not_taken_for_the_peer(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer has ended, and its number now means a process that is older than our look at it: this one."""
    with _connecting(listener, "") as child:
        child.communicate(timeout=DEADLINE_S)
    connection, _ = listener.accept()
    found = os.pidfd_open(os.getpid())

    def started_long_ago(pid: int) -> int:
        return 0

    def reused(pid: int) -> int:
        return found

    monkeypatch.setattr(identity, "SO_PEERPIDFD", NO_SUCH_OPTION)
    monkeypatch.setattr(identity, "_started_at_ns", started_long_ago)
    monkeypatch.setattr(os, "pidfd_open", reused)
    with pytest.raises(PeerUnidentified):
        identify(connection)
    connection.close()


def test_processes_of_one_user_in_one_namespace_share_a_domain(listener: socket.socket) -> None:
    with _connecting(listener, "sys.stdin.read()") as one, _connecting(listener, "sys.stdin.read()") as two:
        connections = [listener.accept()[0] for _ in range(2)]
        found = [identify(connection) for connection in connections]
        assert found[0].peer.domain == found[1].peer.domain
        assert {process.peer.pid for process in found} == {one.pid, two.pid}
        for process, connection in zip(found, connections, strict=True):
            process.close()
            connection.close()
        for child in (one, two):
            child.communicate(timeout=DEADLINE_S)


ANOTHER_USER = "import os; os.setgid(65534); os.setuid(65534)"
ANOTHER_NAMESPACE = "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0"


def _works(first: str) -> bool:
    return (
        subprocess.run([sys.executable, "-c", first], capture_output=True, timeout=DEADLINE_S, check=False).returncode
        == 0
    )


@pytest.mark.parametrize("first", [ANOTHER_USER, ANOTHER_NAMESPACE])
def test_another_user_or_namespace_is_another_domain(first: str) -> None:
    if not _works(first):
        pytest.skip("this needs the right to become another user, or to enter a namespace")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0vrambroker-test-{os.getpid()}")
        listener.listen(4)
        listener.settimeout(DEADLINE_S)
        with (
            _connecting(listener, "sys.stdin.read()", first=first) as other,
            _connecting(listener, "sys.stdin.read()") as ordinary,
        ):
            connections = [listener.accept()[0] for _ in range(2)]
            found = {process.peer.pid: process for process in map(identify, connections)}
            assert found[other.pid].peer.domain != found[ordinary.pid].peer.domain
            for process, connection in zip(found.values(), connections, strict=True):
                process.close()
                connection.close()
            for child in (other, ordinary):
                child.communicate(timeout=DEADLINE_S)


def test_an_unreadable_process_is_in_a_domain_of_its_own(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "readlink", unreadable)
    with _connecting(listener, "sys.stdin.read()") as one, _connecting(listener, "sys.stdin.read()") as two:
        connections = [listener.accept()[0] for _ in range(2)]
        found = [identify(connection) for connection in connections]
        assert found[0].peer.domain != found[1].peer.domain
        for process, connection in zip(found, connections, strict=True):
            process.close()
            connection.close()
        for child in (one, two):
            child.communicate(timeout=DEADLINE_S)


NESTED_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
IDENTIFIED = """
import socket, sys
from vrambroker.broker.adapters.identity import identify
from vrambroker.broker.core.errors import PeerUnidentified
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen(1)
print("listening", flush=True)
try:
    print(identify(listener.accept()[0]).peer, flush=True)
except PeerUnidentified as error:
    print(error.message, flush=True)
"""


def _may_nest() -> bool:
    return not subprocess.run([*NESTED_PIDS, "true"], capture_output=True, timeout=DEADLINE_S, check=False).returncode


def test_a_peer_in_a_pid_namespace_below_is_seen_and_is_a_domain_of_its_own(listener: socket.socket) -> None:
    """As a worker in a container is by a daemon outside of containers."""
    if not _may_nest():
        pytest.skip("this needs the right to make a pid namespace")
    script = f"import socket, sys; s = socket.socket(1, 5); s.connect({listener.getsockname()!r}); sys.stdin.read()"
    command = [*NESTED_PIDS, sys.executable, "-c", script]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as nested,
        _connecting(listener, "sys.stdin.read()") as ordinary,
    ):
        connections = [listener.accept()[0] for _ in range(2)]
        found = {process.peer.pid: process for process in map(identify, connections)}
        here = found.pop(ordinary.pid)
        (below,) = found.values()
        assert below.peer.pid > 1
        assert below.peer.domain != here.peer.domain
        assert below.peer.domain.startswith(f"uid:{os.geteuid()} user:")
        for child in (nested, ordinary):
            child.communicate(timeout=DEADLINE_S)
        assert select.select([below.pidfd], [], [], DEADLINE_S)[0]
        for process, connection in zip((here, below), connections, strict=True):
            process.close()
            connection.close()


def test_a_peer_outside_of_the_pid_namespace_is_told_what_mends_it(tmp_path: Path) -> None:
    """As a worker is by a daemon in a container whose pid namespace it does not share."""
    if not _may_nest():
        pytest.skip("this needs the right to make a pid namespace")
    path = str(tmp_path / "s")
    command = [*NESTED_PIDS, sys.executable, "-c", IDENTIFIED, path]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as nested,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as outside,
    ):
        assert nested.stdout is not None
        assert nested.stdout.readline() == "listening\n"
        outside.connect(path)
        assert "shareProcessNamespace" in nested.communicate(timeout=DEADLINE_S)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can set its groups")
def test_supplementary_groups_count() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.getgroups()
    os.setgroups([*before, 4_242])
    try:
        process = identify(ours)
        assert {os.getegid(), 4_242} <= groups_of(process.peer)
        process.close()
    finally:
        os.setgroups(before)
        ours.close()
        theirs.close()


def test_a_device_has_one_holder_who_can_be_named() -> None:
    lock = DeviceLock("host:999999999")
    with pytest.raises(DeviceBusy) as caught:
        DeviceLock("host:999999999")
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in caught.value.message
    DeviceLock("host:999999998").close()
    lock.close()
    DeviceLock("host:999999999").close()
