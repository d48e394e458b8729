"""Real daemons for the tests of the daemon; whatever a test leaves behind fails it."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.process.daemon.harness import Daemon

StartDaemon = Callable[..., Daemon]


def _children() -> set[str]:
    """Return the pids of this process's children, zombies included; a thread may end while it is being looked at."""
    children: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            children.update((task / "children").read_text().split())
    return children


def _abstract_names() -> set[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {line.rpartition("@")[2] for line in lines if "@vrambroker/" in line}


def _worker_threads() -> int:
    return sum(thread.name.startswith("agent ") for thread in threading.enumerate())


@contextmanager
def _fresh_run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vrb-"))
    path.chmod(0o755)
    yield path
    left = [found for found in path.iterdir() if found.suffix != ".log"]
    logs = "".join(found.read_text() for found in path.glob("*.log"))
    shutil.rmtree(path)
    assert not left, f"left behind: {left}\n{logs}"


@contextmanager
def _daemons(run_dir: Path) -> Iterator[StartDaemon]:
    children = _children()
    started: list[Daemon] = []

    def start(
        *,
        capacity: str = "64MiB",
        host_budget: str = "64MiB",
        device: str | None = None,
        options: tuple[str, ...] = (),
    ) -> Daemon:
        options = ("--capacity", capacity, "--host-budget", host_budget, *options)
        started.append(Daemon(run_dir, device=device, options=options))
        return started[-1]

    yield start
    codes = [daemon.stop() for daemon in started]
    assert not any(codes), [daemon.log() for daemon in started]
    devices = {f"vrambroker/{daemon.device}" for daemon in started}
    assert not devices & _abstract_names()
    assert _children() == children
    assert _worker_threads() == 0
    assert not list(Path("/dev/shm").glob("vrambroker*"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory with a short path, that other users can look into; empty again at the end but for logs."""
    with _fresh_run_dir() as path:
        yield path


@pytest.fixture
def start_daemon(run_dir: Path) -> Iterator[StartDaemon]:
    """Start daemons: `start_daemon(capacity="64MiB", host_budget="64MiB")`, each on its own `host:N`."""
    with _daemons(run_dir) as start:
        yield start


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """A daemon of the test's own, that lends 64 MiB and parks 64 MiB."""
    return start_daemon()


@pytest.fixture(scope="module")
def module_daemon() -> Iterator[Daemon]:
    with _fresh_run_dir() as path, _daemons(path) as start:
        yield start()


@pytest.fixture
def shared(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon, for tests that leave it as they found it; all returned must mean all free."""
    yield module_daemon
    module_daemon.dismiss_clients()
