"""The demo's own daemon: on a device of its own, in a run directory of its own, ended with the demo."""

import os
import random
import select
import socket
import time
from pathlib import Path

from vrambroker.client.demo.child import Child
from vrambroker.client.demo.failure import DaemonFailed
from vrambroker.client.demo.plan import MIB

READY_TIMEOUT_S = 30.0
ATTEMPTS = 20
BUSY = "DeviceBusy"


def start_broker(device: str, run_dir: Path, *, capacity_bytes: int, host_budget_bytes: int) -> tuple[Child, str]:
    """Start `broker serve` and wait until it is ready; returns it, and the id of its device.

    `host` means any `host:N` that nobody serves. Ownership: the caller ends the child. Raises `DaemonFailed`.
    """
    numbers = random.SystemRandom()
    for _ in range(ATTEMPTS if device == "host" else 1):
        chosen = f"host:{numbers.randrange(10, 100)}" if device == "host" else device
        child = _serve(chosen, run_dir, capacity_bytes=capacity_bytes, host_budget_bytes=host_budget_bytes)
        if child is not None:
            return child, chosen
    raise DaemonFailed(f"device {device} is served by another daemon")


def _serve(device: str, run_dir: Path, *, capacity_bytes: int, host_budget_bytes: int) -> Child | None:
    """Start a daemon and wait for its word; None if the device is another daemon's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        address = run_dir / "notify.sock"
        address.unlink(missing_ok=True)
        manager.bind(str(address))
        options = ["--capacity", f"{capacity_bytes // MIB}MiB", "--host-budget", f"{host_budget_bytes // MIB}MiB"]
        child = Child(
            "the daemon",
            ["-m", "vrambroker.broker.cli", "serve", "--device", device, "--run-dir", str(run_dir), *options],
            environment={"NOTIFY_SOCKET": str(address)},
            log=run_dir / "broker.log",
        )
        try:
            ready = _wait_ready(manager, child)
        except BaseException:
            child.end()
            raise
    return child if ready else None


def _wait_ready(manager: socket.socket, child: Child) -> bool:
    """Wait until the daemon says that it is ready; returns False if it ended because the device is taken."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    pidfd = os.pidfd_open(child.pid)
    try:
        while True:
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([manager.fileno(), pidfd], [], [], max(0.0, left_s))
            if manager.fileno() in readable and b"READY=1" in manager.recv(4096):
                return True
            if pidfd in readable:
                child.ended(1.0)
                if BUSY in child.log.read_text(errors="replace"):
                    return False
                raise DaemonFailed(child.epitaph())
            if left_s <= 0:
                raise DaemonFailed(f"the daemon is not ready after {READY_TIMEOUT_S:.0f} s")
    finally:
        os.close(pidfd)
