"""Real daemons and real worker processes, each with a deadline, none left behind."""

import contextlib
import itertools
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vrambroker.client.discovery import RUN_DIR_VARIABLE, Endpoint
from vrambroker.client.rpc import Control, OperatorHandshake

# Long enough for a worker that imports torch on a machine with five times as much to do as it can.
DEADLINE_S = 60.0
_numbers = itertools.count()

PRELUDE = """
import os, sys, time
def tell(*words):
    print(*words, flush=True)
def told():
    return sys.stdin.readline().strip()
"""


class RunningBroker:
    """A `broker serve` of this test, on a device of its own."""

    def __init__(self, *, device: str, run_dir: Path, options: list[str], folder: Path | None = None) -> None:
        self.device = device
        self.run_dir = run_dir
        self.endpoint = Endpoint(device=device, directory=run_dir / device)
        self._log = run_dir / f"{device}.log"
        self._options = options
        self._folder = folder
        self.process = self._started()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, RUN_DIR_VARIABLE: str(self.run_dir)}

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """End it as systemd would; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End it as a bug would."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def add_options(self, *options: str) -> None:
        """Have it started with these as well, the next time."""
        self._options = [*self._options, *options]

    def start_again(self) -> None:
        self.process = self._started()

    def control(self, stack: ExitStack) -> Control:
        """Return an operator's control plane, closed with the stack."""
        handshake = OperatorHandshake(self.endpoint, version="test")
        stack.callback(handshake.close)
        control = Control(self.endpoint, token=lambda: handshake.token)
        stack.callback(control.close)
        return control

    def _started(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "vrambroker.broker.cli", "serve", "--device", self.device]
        # One for each daemon: another one of this test goes on telling its own how it is.
        address = str(self.run_dir / f"{self.device}.ready")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._log.open("ab") as log:
            ready.bind(address)
            process = subprocess.Popen(
                [*command, "--run-dir", str(self.run_dir), *self._options],
                cwd=self._folder,
                env={**os.environ, "NOTIFY_SOCKET": address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            ended = os.pidfd_open(process.pid)
            came_up = ready.fileno()
            try:
                readable, _, _ = select.select([came_up, ended], [], [], DEADLINE_S)
            finally:
                os.close(ended)
                Path(address).unlink()
        if came_up not in readable:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon did not come up: {self.log()}")
        return process


StartBroker = Callable[..., RunningBroker]


@contextlib.contextmanager
def _brokers() -> Iterator[StartBroker]:
    started: list[RunningBroker] = []
    run_dir = Path(tempfile.mkdtemp(prefix="vrb-"))

    def start(
        *,
        capacity: str = "64MiB",
        host_budget: str = "128MiB",
        under: str = "",
        options: tuple[str, ...] = (),
        folder: Path | None = None,
    ) -> RunningBroker:
        device = f"host:{os.getpid() % 1_000_000}{next(_numbers) % 1000:03}"
        sizes = ["--capacity", capacity, "--host-budget", host_budget]
        (run_dir / under).mkdir(exist_ok=True)
        placed = RunningBroker(device=device, run_dir=run_dir / under, options=[*sizes, *options], folder=folder)
        started.append(placed)
        return started[-1]

    yield start
    codes: list[int] = []
    for broker in started:
        if broker.process.poll() is None:
            codes.append(broker.stop())
    logs = [broker.log() for broker in started]
    shutil.rmtree(run_dir)
    assert not any(codes), logs


@pytest.fixture
def start_broker() -> Iterator[StartBroker]:
    """Start daemons: `start_broker(capacity="64MiB", host_budget="128MiB")`, each on its own `host:N`.

    `under` names a run directory in their common one, `folder` is the one that the daemon is started in.
    """
    with _brokers() as start:
        yield start


@pytest.fixture(scope="module")
def shared_broker() -> Iterator[RunningBroker]:
    """One daemon for all tests of a file that are to be refused and leave nothing behind."""
    with _brokers() as start:
        yield start()


@pytest.fixture
def broker(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> RunningBroker:
    """A daemon that lends 64 MiB, and is the one that this process finds."""
    running = start_broker()
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(running.run_dir))
    return running


@pytest.fixture
def control(broker: RunningBroker) -> Iterator[Control]:
    """An operator's control plane of `broker`."""
    with ExitStack() as stack:
        yield broker.control(stack)


class Worker:
    """A Python process that runs a piece of source; the two talk in lines."""

    def __init__(self, source: str, *, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + source],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> str:
        """Return the next line that the worker tells."""
        try:
            line = self._lines.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"the worker says nothing: {''.join(self._errors)}") from None
        assert line, f"the worker ended with {self._process.wait(DEADLINE_S)}: {self._stderr()}"
        return line.strip()

    def say(self, line: str = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str = "go") -> str:
        self.say(line)
        return self.hear()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Wait for the end; it must be a clean and silent one."""
        assert self.ended() == (0, "")

    def ended(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was said on stderr."""
        return self._process.wait(DEADLINE_S), self._stderr()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _stderr(self) -> str:
        self._readers[1].join(DEADLINE_S)
        return "".join(self._errors)

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)


StartWorker = Callable[[str], Worker]


@contextlib.contextmanager
def _workers(broker: RunningBroker) -> Iterator[StartWorker]:
    started: list[Worker] = []

    def start(source: str) -> Worker:
        started.append(Worker(source, environment=broker.environment))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def start_worker(broker: RunningBroker) -> Iterator[StartWorker]:
    """Start Python processes that find `broker`; `tell(...)` and `told()` are there for talking to the test."""
    with _workers(broker) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_worker(shared_broker: RunningBroker) -> Iterator[StartWorker]:
    """The same for `shared_broker`."""
    with _workers(shared_broker) as start:
        yield start


WaitFor = Callable[[Control, Callable[[], bool]], None]


@pytest.fixture
def wait_for() -> WaitFor:
    """Wait, on the broker's own events, until a claim holds: `wait_for(control, claim)`."""

    def wait(control: Control, claim: Callable[[], bool]) -> None:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            control.close()

        timer = threading.Timer(DEADLINE_S, give_up)
        timer.start()
        try:
            if any(claim() for _ in control.watch(history=True)):
                return
        finally:
            timer.cancel()
        assert not late.is_set(), f"never came true: {control.status()}"

    return wait
