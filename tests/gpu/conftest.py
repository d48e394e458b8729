"""A real daemon on the GPU, and worker processes beside the test's own; everywhere else these tests are skipped."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.conftest import RunningBroker, Worker
from vrambroker.client.discovery import RUN_DIR_VARIABLE, gpu_name

REQUIRED = "VRAMBROKER_GPU_REQUIRED"


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def gpu() -> str:
    """The first GPU's UUID. Where there must be one, its absence is a failure."""
    if not _has_gpu():
        if os.environ.get(REQUIRED):
            pytest.fail("torch sees no GPU on this machine")
        pytest.skip("SKIPPED: torch sees no GPU on this machine")
    return gpu_name(0)


StartGpuBroker = Callable[..., RunningBroker]


@pytest.fixture
def start_broker(gpu: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartGpuBroker]:
    """Start a GPU's daemon: `start_broker(capacity="8GiB")`, the first one's unless `device` says; this process finds it."""
    started: list[RunningBroker] = []
    run_dir = Path(tempfile.mkdtemp(prefix="vrb-"))
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(run_dir))

    def start(*, device: str = gpu, capacity: str = "8GiB", host_budget: str = "24GiB") -> RunningBroker:
        options = ["--capacity", capacity, "--host-budget", host_budget]
        started.append(RunningBroker(device=device, run_dir=run_dir, options=options))
        return started[-1]

    yield start
    codes = [broker.stop() for broker in started if broker.process.poll() is None]
    logs = [broker.log() for broker in started]
    shutil.rmtree(run_dir)
    assert not any(codes), logs


@pytest.fixture
def broker(start_broker: StartGpuBroker) -> RunningBroker:
    """A daemon that lends 8 GiB of the GPU."""
    return start_broker()


def _workers(environment: dict[str, str]) -> Iterator[Callable[[str], Worker]]:
    started: list[Worker] = []

    def start(source: str) -> Worker:
        started.append(Worker(source, environment=environment))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def start_worker(broker: RunningBroker) -> Iterator[Callable[[str], Worker]]:
    """Start Python processes that find `broker`."""
    yield from _workers(broker.environment)


@pytest.fixture
def start_outsider(gpu: str) -> Iterator[Callable[[str], Worker]]:
    """Start Python processes that use the GPU and no broker."""
    assert gpu
    yield from _workers(dict(os.environ))
