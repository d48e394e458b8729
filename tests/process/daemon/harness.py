"""A real daemon for a test: started with readiness over `NOTIFY_SOCKET`, asked over gRPC, and ended by signal."""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc

from tests.process.daemon.raw_client import RawClient, connect, say_hello
from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.error_detail import from_detail
from vrambroker.broker.core.errors import BrokerError
from vrambroker.v1 import broker_pb2 as v1
from vrambroker.v1.broker_pb2_grpc import BrokerStub

DEADLINE_S = 20.0
MIB = 1 << 20
ROOT = Path(__file__).parents[3]
_numbers = itertools.count(os.getpid() % 1_000_000 * 1_000)


def unused_device() -> str:
    """Return a `host:N` that no other test uses, in this process or another."""
    return f"host:{next(_numbers)}"


PROGRAM = ("-m", "vrambroker.broker.cli")


def serve_command(device: str, run_dir: Path, *options: str, program: tuple[str, ...] = PROGRAM) -> list[str]:
    return [sys.executable, *program, "serve", "--device", device, "--run-dir", str(run_dir), *options]


class Operator:
    """A connection of role operator, and gRPC calls with its token (or with that of a session)."""

    def __init__(self, folder: Path, token: bytes | None = None) -> None:
        self.connection = connect(folder / "handles.sock")
        self.token = token or say_hello(self.connection, "operator", role=records.ROLE_OPERATOR).token
        self.channel = grpc.insecure_channel(f"unix:{folder / 'rpc.sock'}")
        self.stub = BrokerStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("vrambroker-token-bin", self.token),)

    def status(self) -> v1.Status:
        return self.stub.GetStatus(v1.GetStatusRequest(), timeout=DEADLINE_S)

    def pause(self, session: str, *tags: str, release: bool = False, timeout_ms: int = 0) -> v1.PauseResponse:
        request = v1.PauseRequest(
            request_id=uuid.uuid4().hex, session=session, tags=tags, release=release, timeout_ms=timeout_ms
        )
        with typed_errors():
            return self.stub.Pause(request, timeout=DEADLINE_S, metadata=self.metadata)

    def resume(self, session: str, *tags: str, timeout_ms: int = 0) -> v1.ResumeResponse:
        request = v1.ResumeRequest(request_id=uuid.uuid4().hex, session=session, tags=tags, timeout_ms=timeout_ms)
        with typed_errors():
            return self.stub.Resume(request, timeout=DEADLINE_S, metadata=self.metadata)

    def mark(self, label: str) -> None:
        with typed_errors():
            self.stub.Mark(
                v1.MarkRequest(request_id=uuid.uuid4().hex, label=label), timeout=DEADLINE_S, metadata=self.metadata
            )

    def wait_until(self, claim: Callable[[v1.Status], bool]) -> v1.Status:
        """Return the first status, looked at now and after each event, of which the claim holds."""
        status = self.status()
        if claim(status):
            return status
        watch = self.stub.Watch(v1.WatchRequest(history=True), timeout=DEADLINE_S)
        try:
            for _ in watch:
                status = self.status()
                if claim(status):
                    return status
        except grpc.RpcError as error:
            raise AssertionError(f"never came true: {self.status()}") from error
        finally:
            watch.cancel()
        raise AssertionError("the daemon ended the stream")

    def close(self) -> None:
        self.channel.close()
        self.connection.close()


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise the `BrokerError` that a call was refused with."""
    try:
        yield
    except grpc.RpcError as error:
        raise typed(error) from error


def typed(error: grpc.RpcError) -> BrokerError:
    assert isinstance(error, grpc.Call)
    trailing = {one[0]: one[1] for one in cast(tuple[tuple[str, bytes], ...], error.trailing_metadata() or ())}
    assert "vrambroker-error-bin" in trailing, f"no detail: {error}"
    return from_detail(v1.ErrorDetail.FromString(trailing["vrambroker-error-bin"]))


class Daemon:
    """A running `broker serve`."""

    def __init__(
        self,
        run_dir: Path,
        *,
        device: str | None = None,
        options: tuple[str, ...] = (),
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        self.device = device or unused_device()
        self.run_dir = run_dir
        self.folder = run_dir / self.device
        self.handles = self.folder / "handles.sock"
        self.log_path = run_dir / f"{self.device}.log"
        self._operator: Operator | None = None
        self._clients: list[RawClient] = []
        self.notified: list[bytes] = []
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._manager.bind(f"\0{uuid.uuid4().hex}")
        self._manager.settimeout(DEADLINE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": "@" + self._manager.getsockname()[1:].decode()}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                serve_command(self.device, run_dir, *options, program=program),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_ready()

    @property
    def operator(self) -> Operator:
        if self._operator is None:
            self._operator = Operator(self.folder)
        return self._operator

    def client(self, name: str = "worker") -> RawClient:
        """Return a session of this process, ended with the daemon."""
        self._clients.append(RawClient(self.handles, name))
        return self._clients[-1]

    def client_with(self, token: bytes) -> RawClient:
        """Return a client of the session that has this token."""
        self._clients.append(RawClient(self.handles, "returning", token=token))
        return self._clients[-1]

    def fds(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def wait_for_status(self, claim: Callable[[v1.Status], bool]) -> None:
        """Wait for something that no event tells of; each look is a round trip through the daemon's loop."""
        end = time.monotonic() + DEADLINE_S
        while not claim(status := self.operator.status()):
            assert time.monotonic() < end, f"never came true: {status}"

    def wait_for_fds(self, count: int) -> None:
        """Wait until the daemon has no more than so many fds; each look is a round trip through its loop."""
        end = time.monotonic() + DEADLINE_S
        while self.fds() > count:
            assert time.monotonic() < end, f"{self.fds()} fds, not {count}"
            self.operator.status()

    def stop(self) -> int:
        """End it as systemd would; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DEADLINE_S)
            raise AssertionError(f"the daemon does not end: {self.log()}") from None
        finally:
            self._let_go()

    def notification(self) -> bytes:
        return self._manager.recv(4096)

    def await_notifications(self, seconds: float) -> None:
        """Have `notification` raise `TimeoutError` after so long."""
        self._manager.settimeout(seconds)

    def log(self) -> str:
        return self.log_path.read_text()

    def dismiss_clients(self) -> None:
        """Have every client say goodbye, and wait until the daemon has got everything back."""
        for client in self._clients:
            if not client.closed:
                client.bye()
        self._clients.clear()
        self.wait_for_status(
            lambda status: status.device.free_bytes == status.device.capacity_bytes and not status.host.file_bytes
        )

    def _let_go(self) -> None:
        if self._operator is not None:
            self._operator.close()
            self._operator = None
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._manager.close()

    def _wait_ready(self) -> None:
        ended, manager = os.pidfd_open(self.process.pid), self._manager.fileno()
        try:
            readable, _, _ = select.select([manager, ended], [], [], DEADLINE_S)
        finally:
            os.close(ended)
        if manager not in readable:
            self.process.kill()
            self.process.wait(DEADLINE_S)
            self._let_go()
            raise AssertionError(f"the daemon did not come up: {self.log()}")
        self.notified.append(self.notification())
