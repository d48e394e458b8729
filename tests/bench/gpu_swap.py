"""Two processes that exchange a full GPU, beside torch_memory_saver in two processes, and the bare copies.

A time is from one process's pause to the end of the other's resume, one round trip between them included. The incumbent's
order is made by hand: its resume begins when the other's pause has returned. Rounds after the first two count.

Without arguments this measures all and writes `results/gpu_swap.json`; `python gpu_swap.py SUBJECT FIGURE` prints one.
The predictions were written after a first look: 0.37 s where the bare copies take 0.35, and 6.5 ms.
"""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call"

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu import machine, measure
from gpu_figures import GIB, MIB, ROUNDS, Broker, Subject, TorchMemorySaver, seconds
from harness import Result, daemon, write_results

DEADLINE_S = 60.0
# How long the host memory of what is kept takes to be made ahead; an engine loads its weights meanwhile.
SETTLING_S = 6.0
SIZES = {"swap16_kept": (64, 256 * MIB), "handover32_dropped": (32, GIB)}
# Room for one of the two, and two spare frames, or one.
CAPACITIES = {"swap16_kept": "16896MiB", "handover32_dropped": "33GiB"}
HOST_BUDGET = "80GiB"
FIGURES = {
    "swap16_kept": ("16 GiB kept out of A and 16 GiB kept into B, on a full device", 0.37),
    "handover32_dropped": ("32 GiB dropped from A to B, on a full device", 0.0065),
}


class Side:
    """One of the two processes: what it has, and how it lets go of it and gets it back."""

    def __init__(self, who: str, figure: str) -> None:
        self.subject: Subject = Broker() if who == "broker" else TorchMemorySaver()
        self.keeps = figure == "swap16_kept"
        count, size_bytes = SIZES[figure]
        with self.subject.region("tag", keep=self.keeps):
            self.tensors = [
                torch.full((size_bytes,), number % 251, dtype=torch.uint8, device="cuda") for number in range(count)
            ]
        torch.cuda.synchronize()

    def give(self, *, release: bool = False) -> None:
        self.subject.pause("tag", release=release)

    def take(self) -> None:
        self.subject.resume("tag")
        if isinstance(self.subject, TorchMemorySaver) and self.keeps:
            # Its host copies are kept from now on, as ours are.
            self.subject.retain()

    def check(self) -> None:
        if self.keeps and any(int((one != number % 251).count_nonzero()) for number, one in enumerate(self.tensors)):
            raise AssertionError("kept contents have changed")


class Peer:
    """The other process."""

    def __init__(self, who: str, figure: str) -> None:
        command = [sys.executable, __file__, who, figure, "peer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear()

    def ask(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        self._hear()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise AssertionError(f"the peer ended with {self._process.wait(DEADLINE_S)}")


def be_peer(who: str, figure: str) -> None:
    """Make the memory, let go of it, and then do as told, a word a line."""
    side = Side(who, figure)
    side.give(release=True)
    print("done", flush=True)
    acts = {"give": side.give, "take": side.take, "check": side.check}
    for line in sys.stdin:
        acts[line.strip()]()
        print("done", flush=True)


def exchange(who: str, figure: str) -> float:
    """Return the median time in which the device's memory goes from one process to the other."""
    peer = Peer(who, figure)
    side = Side(who, figure)
    time.sleep(SETTLING_S)
    times: list[float] = []
    for _ in range(ROUNDS + 2):
        for give, take in ((side.give, lambda: peer.ask("take")), (lambda: peer.ask("give"), side.take)):
            began = time.perf_counter()
            give()
            take()
            times.append(time.perf_counter() - began)
    side.check()
    side.give()
    peer.ask("take")
    peer.ask("check")
    peer.end()
    return statistics.median(times[4:])


def duplex() -> float:
    """Return the copies alone: 16 GiB out and 16 GiB in at once, between the device and pinned host memory."""
    count, size_bytes = SIZES["swap16_kept"]
    leaving, coming = (torch.empty(size_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    out, source = (torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2))
    streams = torch.cuda.Stream(), torch.cuda.Stream()

    def copies() -> None:
        for _ in range(count):
            with torch.cuda.stream(streams[0]):
                out.copy_(leaving, non_blocking=True)
            with torch.cuda.stream(streams[1]):
                coming.copy_(source, non_blocking=True)

    copies()
    return statistics.median(seconds(copies) for _ in range(ROUNDS))


def measure_all() -> None:
    """Measure both figures, each with a daemon of its own, and write the results."""
    from vrambroker.client.discovery import gpu_name

    script, uuid, results = Path(__file__), gpu_name(0), list[Result]()
    for figure, (what, prediction) in FIGURES.items():
        with daemon(uuid, CAPACITIES[figure], HOST_BUDGET) as socket:
            ours = measure("broker", figure, socket.parents[1], script=script)
        incumbent = measure("tms", figure, Path(os.devnull), script=script)
        floor = measure("plain", figure, Path(os.devnull), script=script) if figure == "swap16_kept" else {}
        result = Result(
            name=figure,
            what=what,
            value=ours[figure],
            unit="s",
            prediction=prediction,
            floor=floor.get(figure),
            incumbent=incumbent.get(figure),
        )
        results.append(result)
    write_results("gpu_swap.json", *machine(), results)


def main() -> None:
    """Measure what the command line names, or be the peer of who does; or measure all."""
    if len(sys.argv) == 1:
        measure_all()
        return
    who, figure, *role = sys.argv[1:]
    if role:
        be_peer(who, figure)
    else:
        print(json.dumps({figure: duplex() if who == "plain" else exchange(who, figure)}), flush=True)
    if who == "tms":
        # What it frees at the end it takes for a mistake, and ends the process with 1.
        os._exit(0)


if __name__ == "__main__":
    main()
