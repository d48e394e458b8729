"""Everybody who takes part, started and ended together: the daemon, the trainer, the rollout, and who watches them."""

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from vrambroker.broker.core.errors import BrokerError
from vrambroker.client.demo.broker_process import start_broker
from vrambroker.client.demo.failure import DaemonFailed, WorkerFailed
from vrambroker.client.demo.plan import Plan
from vrambroker.client.demo.progress import Say
from vrambroker.client.demo.side import Side
from vrambroker.client.demo.sizes import Size
from vrambroker.client.demo.watcher import Watcher
from vrambroker.client.demo.worker import Settings
from vrambroker.client.discovery import Endpoint

ANSWER_SECONDS_MIN = 90.0
PARAMETERS_PER_SECOND = 1e6
HOST_BUDGET_SHARE = 1.5
HOST_BUDGET_SLACK_BYTES = 64 << 20
LAST_WORDS_S = 0.5
TEMPORARY_PATH_BYTES_MAX = 50


class Ensemble:
    """Everything started. As a context manager it ends all of it, whatever happens, and removes the run directory."""

    def __init__(self, device: str, size: Size, plan: Plan, *, seed: int, say: Say) -> None:
        """Start the daemon and both workers. Raises `DaemonFailed`; then nothing is left behind."""
        began = time.monotonic()
        with ExitStack() as stack:
            run_dir = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="vrambroker-demo-", dir=_short_dir()))
            )
            say("starting the daemon")
            daemon, self.device = start_broker(
                device,
                run_dir,
                capacity_bytes=plan.capacity_bytes,
                host_budget_bytes=int(plan.kept_bytes * HOST_BUDGET_SHARE) + HOST_BUDGET_SLACK_BYTES,
            )
            self._daemon = stack.enter_context(daemon)
            self.watcher = self._watch(stack, run_dir)
            mailbox_fd = _make_mailbox(plan.weights_bytes)
            stack.callback(os.close, mailbox_fd)
            say("starting the trainer and the rollout")
            self.trainer, self.rollout = (
                self._start(stack, role, _settings(self.device, size, role_seed), run_dir, mailbox_fd)
                # Other weights for the rollout: what it answers with must be what the trainer gave it.
                for role, role_seed in (("trainer", seed), ("rollout", seed + 1))
            )
            with self.blaming_the_daemon():
                self.addresses = self._prepare(say)
            self.setup_seconds = time.monotonic() - began
            self._stack = stack.pop_all()

    @contextmanager
    def blaming_the_daemon(self) -> Generator[None]:
        """Raise `DaemonFailed` instead of what the daemon's end made of the workers in the block."""
        try:
            yield
        except (WorkerFailed, BrokerError) as error:
            if self._daemon.ended(LAST_WORDS_S):
                raise DaemonFailed(self._daemon.epitaph()) from error
            raise

    def _watch(self, stack: ExitStack, run_dir: Path) -> Watcher:
        endpoint = Endpoint(device=self.device, directory=run_dir / self.device)
        watcher = Watcher(endpoint)
        stack.callback(watcher.close)
        return watcher

    def _start(self, stack: ExitStack, role: str, settings: Settings, run_dir: Path, mailbox_fd: int) -> Side:
        side = Side(role, settings, run_dir=run_dir, mailbox_fd=mailbox_fd)
        stack.callback(side.close)
        return side

    def _prepare(self, say: Say) -> int:
        """Have both sides make their tensors, one after the other; returns how many addresses are watched."""
        addresses = 0
        for side in (self.trainer, self.rollout):
            say(f"the {side.role} makes its tensors")
            addresses += int(side.ask("prepare")["addresses"])
        return addresses

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _short_dir() -> Path:
    """Return where temporary things go, unless a socket in a folder there had too long a path (unix(7))."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual)) <= TEMPORARY_PATH_BYTES_MAX else Path("/tmp")


def _settings(device: str, size: Size, seed: int) -> Settings:
    return Settings(
        device=device,
        size=size.name,
        seed=seed,
        threads=len(os.sched_getaffinity(0)),
        deadline_s=ANSWER_SECONDS_MIN + size.parameters / PARAMETERS_PER_SECOND,
        lane_fd=0,
        mailbox_fd=0,
    )


def _make_mailbox(size_bytes: int) -> int:
    """Return the fd of an empty mailbox (`mailbox.py`, which needs torch), owned by the caller."""
    fd = os.memfd_create("vrambroker-demo-weights", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, size_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd
