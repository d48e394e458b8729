"""What the benchmarks share: a daemon for the time of a run, medians, and where results go."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vrambroker.client.native import Client

RESULTS = Path(__file__).parent / "results"
DEADLINE_S = 60.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. `prediction` was written before the run; `floor` is the physical limit, `incumbent` the other library."""

    name: str
    what: str
    value: float
    unit: str
    prediction: float
    floor: float | None = None
    incumbent: float | None = None


def write_results(
    file: str, device: str, driver: str, results: list[Result], *, beside: Mapping[str, object] | None = None
) -> None:
    """Write one file under `results/`, from which docs/figures.md is made; `beside` is for readers of the file alone."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "device": device,
        "driver": driver,
        "date": datetime.now(UTC).date().isoformat(),
        "results": [asdict(result) for result in results],
        **(beside or {}),
    }
    (RESULTS / file).write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def daemon(
    device: str, capacity: str, host_budget: str, *, plan: Path | None = None, trace: Path | None = None
) -> Iterator[Path]:
    """Run a daemon and yield the handle socket's path; ends it and waits. With `trace`, it writes there what its core did."""
    traced = [str(Path(__file__).with_name("traced_daemon.py")), str(trace)]
    command = [sys.executable, *(["-m", "vrambroker.broker.cli"] if trace is None else traced), "serve"]
    planned = [] if plan is None else ["--plan", str(plan)]
    with tempfile.TemporaryDirectory(prefix="vrb-bench-") as run_dir:
        place = ["--device", device, "--run-dir", run_dir]
        process = subprocess.Popen([*command, *place, "--capacity", capacity, "--host-budget", host_budget, *planned])
        try:
            socket = Path(run_dir) / device / "handles.sock"
            wait_until(socket.exists)
            yield socket
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)


def wait_until(claim: Callable[[], bool]) -> None:
    """Wait until the claim holds; raises TimeoutError at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError("the daemon did not come up")
        time.sleep(0.005)


def attach(socket: Path, name: str) -> Client:
    """Attach this process to the daemon at the socket."""
    return Client(socket_path=str(socket), name=name, device="host", version="bench", timeout_s=DEADLINE_S)


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of one round."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def cpu_name() -> str:
    """Return what the machine is, without naming it."""
    return f"host, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}"
