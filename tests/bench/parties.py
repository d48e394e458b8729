"""What benches of several processes share: the device they run on, tensors by tag, and the other process.

`VRAMBROKER_BENCH_DEVICE=host` runs them without a GPU and with a 128th of the memory: that shows that they work, not
how long anything takes.
"""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from gpu_figures import Broker, Subject, TorchMemorySaver

DEVICE = os.environ.get("VRAMBROKER_BENCH_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
SCALE = 1 if ON_GPU else 128
MIB, GIB = (1 << 20) // SCALE, (1 << 30) // SCALE
DEADLINE_S = 60.0
# How long the host memory of what is kept takes to be made ahead; an engine loads its weights meanwhile.
SETTLING_S = 6.0 if ON_GPU else 0.2


def scaled(mib: int) -> str:
    """Return a size, as `broker serve` is told it."""
    return f"{max(mib // SCALE, 1)}MiB"


def device_id() -> str:
    """Return which device the daemon is to serve."""
    from vrambroker.client.discovery import gpu_name

    return gpu_name(0) if ON_GPU else "host:905"


class Named(Broker):
    """The broker's client under a name of its own."""

    def __init__(self, name: str) -> None:
        from vrambroker.client import connect

        self.memory = connect(name, timeout=DEADLINE_S)


def subject(who: str, name: str) -> Subject:
    """Return who manages this process's memory: `broker` or `tms`."""
    return Named(name) if who == "broker" else TorchMemorySaver()


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


class Tensors:
    """This process's memory by tag: how it is let go of, comes back, and whether it is what it was."""

    def __init__(self, who: str, name: str) -> None:
        self.subject = subject(who, name)
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._dropped: dict[str, list[torch.Tensor]] = {}

    def add(self, tag: str, count: int, size_bytes: int, *, keep: bool) -> None:
        with self.subject.region(tag, keep=keep):
            place = "cuda" if ON_GPU else "cpu"
            made = [torch.full((size_bytes,), number % 251, dtype=torch.uint8, device=place) for number in range(count)]
        synchronize()
        (self._kept if keep else self._dropped)[tag] = made

    def give(self, tags: Iterable[str], *, release: bool = False) -> None:
        for tag in tags:
            self.subject.pause(tag, release=release)

    def take(self, tags: Iterable[str]) -> None:
        tags = tuple(tags)
        for tag in tags:
            self.subject.resume(tag)
        if isinstance(self.subject, TorchMemorySaver) and any(tag in self._kept for tag in tags):
            # Its host copies are kept from now on, as ours are.
            self.subject.retain()

    def check(self) -> None:
        """Raise if kept contents are not what they were. All of them must be resident."""
        for tag, made in self._kept.items():
            if any(int((one != number % 251).count_nonzero()) for number, one in enumerate(made)):
                raise AssertionError(f"contents of {tag} have changed")


class Peer:
    """Another process of the same script, which does what it is told."""

    def __init__(self, script: Path, *arguments: str) -> None:
        command = [sys.executable, str(script), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear()

    def ask(self, what: str) -> dict[str, float]:
        """Have it do something; returns what it tells, and when it `began` and `ended`."""
        self.say(what)
        return self.hear()

    def say(self, what: str) -> None:
        """Have it do something, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def has_answered(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def hear(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise AssertionError(f"the peer ended with {self._process.wait(DEADLINE_S)}")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)


def serve(acts: dict[str, Callable[[list[str]], dict[str, float] | None]]) -> None:
    """Be a peer that is ready: do as told, a line each."""
    print("{}", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        began = time.perf_counter()
        found = acts[word](rest) or {}
        print(json.dumps({**found, "began": began, "ended": time.perf_counter()}), flush=True)


def leave(who: str) -> None:
    """End this process."""
    if who == "tms":
        # What it frees at the end it takes for a mistake, and ends the process with 1.
        sys.stdout.flush()
        os._exit(0)
