"""One figure on a GPU, measured in a process of its own: `python gpu_figures.py SUBJECT FIGURE` prints a JSON object.

SUBJECT is who manages the memory: `broker` (the daemon that VRAMBROKER_RUN_DIR names), `tms` (torch_memory_saver) or
`plain` (torch or the driver alone). Times are medians in seconds; a first time is the first in a new process.
"""

# torch leaves many of its signatures half typed, and the incumbent has no types at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call, import-not-found, import-untyped"

import importlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

MIB, GIB = 1 << 20, 1 << 30
ROUNDS = 5
KEPT, KEPT_BYTES = 64, 256 * MIB
DROPPED, DROPPED_BYTES = 16, GIB


class Subject(Protocol):
    """Whoever lets memory go and brings it back, by tag."""

    def region(self, tag: str, *, keep: bool) -> AbstractContextManager[None]: ...
    def pause(self, tag: str, *, release: bool) -> None: ...
    def resume(self, tag: str) -> None: ...


class Broker:
    def __init__(self) -> None:
        from vrambroker.client import connect

        self.memory = connect("bench")

    def region(self, tag: str, *, keep: bool) -> AbstractContextManager[None]:
        return self.memory.region(tag, contents="keep" if keep else "drop")

    def pause(self, tag: str, *, release: bool) -> None:
        self.memory.pause(tag, release=release, timeout=60.0)

    def resume(self, tag: str) -> None:
        self.memory.resume(tag, timeout=60.0)


class TorchMemorySaver:
    """The incumbent, in the mode that needs no preload, its host copies kept from one pause to the next."""

    def __init__(self) -> None:
        self._saver: Any = importlib.import_module("torch_memory_saver").torch_memory_saver
        self._saver.hook_mode = "torch"

    def retain(self) -> None:
        self._saver.retain_cpu_backup = True

    def region(self, tag: str, *, keep: bool) -> AbstractContextManager[None]:
        region: AbstractContextManager[None] = self._saver.region(tag=tag, enable_cpu_backup=keep)
        return region

    def pause(self, tag: str, *, release: bool) -> None:
        del release
        torch.cuda.synchronize()
        self._saver.pause(tag)

    def resume(self, tag: str) -> None:
        self._saver.resume(tag)
        torch.cuda.synchronize()


class Plain:
    """Torch as it is: a region changes nothing."""

    def region(self, tag: str, *, keep: bool) -> AbstractContextManager[None]:
        del tag, keep
        from contextlib import nullcontext

        return nullcontext()

    def pause(self, tag: str, *, release: bool) -> None:
        raise NotImplementedError

    def resume(self, tag: str) -> None:
        raise NotImplementedError


def seconds(work: Callable[[], object]) -> float:
    """Return how long it took, the device's work included."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _tensors(subject: Subject, count: int, size_bytes: int, *, keep: bool) -> list[torch.Tensor]:
    with subject.region("tag", keep=keep):
        return [torch.full((size_bytes,), n % 251, dtype=torch.uint8, device="cuda") for n in range(count)]


def _check(tensors: list[torch.Tensor]) -> None:
    for number, tensor in enumerate(tensors):
        wrong = int((tensor != number % 251).count_nonzero())
        if wrong:
            raise AssertionError(f"{wrong} bytes of tensor {number} have changed")


def first16(subject: Subject) -> dict[str, float]:
    """16 GiB whose contents are kept: the first pause with release and the first resume of a new process.

    The broker's come four seconds after the tensors: as long as an engine needs to load its weights, and less. Host memory
    is made and registered ahead meanwhile; the incumbent does nothing ahead, so it does not wait.
    """
    tensors = _tensors(subject, KEPT, KEPT_BYTES, keep=True)
    _kept_alive.append(tensors)
    if isinstance(subject, Broker):
        time.sleep(4.0)
    firsts = (seconds(lambda: subject.pause("tag", release=True)), seconds(lambda: subject.resume("tag")))
    _check(tensors)
    return {"kept16_first_pause": firsts[0], "kept16_first_resume": firsts[1]}


def kept16(subject: Subject) -> dict[str, float]:
    """16 GiB whose contents are kept: the median of later pauses with release, and of later resumes."""
    tensors = _tensors(subject, KEPT, KEPT_BYTES, keep=True)
    _kept_alive.append(tensors)
    for _ in range(3):
        subject.pause("tag", release=True)
        subject.resume("tag")
        if isinstance(subject, TorchMemorySaver):
            subject.retain()
    pauses: list[float] = []
    resumes: list[float] = []
    for _ in range(ROUNDS):
        pauses.append(seconds(lambda: subject.pause("tag", release=True)))
        resumes.append(seconds(lambda: subject.resume("tag")))
    _check(tensors)
    return {"kept16_pause": statistics.median(pauses), "kept16_resume": statistics.median(resumes)}


def bare16(_: Subject) -> dict[str, float]:
    """Return the copies alone: 16 GiB between the device and pinned host memory that is there already."""
    device = torch.full((KEPT * KEPT_BYTES,), 1, dtype=torch.uint8, device="cuda")
    host = torch.empty(KEPT * KEPT_BYTES, dtype=torch.uint8, pin_memory=True)
    host.copy_(device, non_blocking=True)
    outs = [seconds(lambda: host.copy_(device, non_blocking=True)) for _ in range(ROUNDS)]
    ins = [seconds(lambda: device.copy_(host, non_blocking=True)) for _ in range(ROUNDS)]
    return {"kept16_pause": statistics.median(outs), "kept16_resume": statistics.median(ins)}


def dropped16(subject: Subject) -> dict[str, float]:
    """Return 16 GiB that are dropped, paused with release and resumed."""
    tensors = _tensors(subject, DROPPED, DROPPED_BYTES, keep=False)
    _kept_alive.append(tensors)

    def cycle() -> None:
        subject.pause("tag", release=True)
        subject.resume("tag")

    first = seconds(cycle)
    for tensor in tensors:
        tensor.fill_(1)
    return {"dropped16_first_cycle": first, "dropped16_cycle": statistics.median(seconds(cycle) for _ in range(ROUNDS))}


def bare_dropped16(_: Subject) -> dict[str, float]:
    """Return the same by the driver alone: 16 frames of 1 GiB unmapped, which gives them back, made anew and mapped."""
    driver: Any = importlib.import_module("cuda.bindings.driver")

    def ask(call: str, *arguments: Any) -> Any:
        result, *values = getattr(driver, call)(*arguments)
        if result != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{call}: {result.name}")
        return values[0] if values else None

    torch.ones(1, device="cuda")
    frame, access = driver.CUmemAllocationProp(), driver.CUmemAccessDesc()
    frame.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    frame.location.type = access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    frame.location.id = access.location.id = 0
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    size_bytes = DROPPED * DROPPED_BYTES
    begin = int(ask("cuMemAddressReserve", size_bytes, 0, 0, 0))
    places = range(begin, begin + size_bytes, DROPPED_BYTES)

    def resume() -> None:
        for place in places:
            handle = ask("cuMemCreate", DROPPED_BYTES, frame, 0)
            ask("cuMemMap", place, DROPPED_BYTES, 0, handle, 0)
            ask("cuMemRelease", handle)
        ask("cuMemSetAccess", begin, size_bytes, [access], 1)

    def cycle() -> None:
        for place in places:
            ask("cuMemUnmap", place, DROPPED_BYTES)
        resume()

    resume()
    cycle()
    return {"dropped16_cycle": statistics.median(seconds(cycle) for _ in range(ROUNDS))}


def idle16(subject: Subject) -> dict[str, float]:
    """Return a pause and a resume of 16 GiB that nobody needs meanwhile."""
    tensors = _tensors(subject, KEPT, KEPT_BYTES, keep=True)

    def cycle() -> None:
        subject.pause("tag", release=False)
        subject.resume("tag")

    cycle()
    times = [seconds(cycle) for _ in range(ROUNDS)]
    _check(tensors)
    return {"idle16_cycle": statistics.median(times)}


def alloc(subject: Subject) -> dict[str, float]:
    """Return 200 allocations of 20 MiB and 2000 of 1 MiB: of memory that nothing has cached, the first time and later.

    Later is two seconds later and more, when what a new session has made for it (its arena) is there.
    """

    def times(count: int, size_bytes: int) -> list[float]:
        found: list[float] = []
        for number in range(ROUNDS + 2):
            if number == 1:
                time.sleep(2.0)
            held: list[torch.Tensor] = []

            def work(held: list[torch.Tensor] = held, number: int = number) -> None:
                with subject.region(f"tag{size_bytes}.{number}", keep=True):
                    held.extend(torch.empty(size_bytes, dtype=torch.uint8, device="cuda") for _ in range(count))

            found.append(seconds(work))
            if isinstance(subject, TorchMemorySaver):
                # It ends the process when memory is freed outside of a region, so all of it stays, 42 GiB in the end.
                _kept_alive.append(held)
                continue
            held.clear()
            if isinstance(subject, Broker):
                subject.memory.pause(f"tag{size_bytes}.{number}", release=True)
            torch.cuda.empty_cache()
        return found

    torch.empty(1, device="cuda")
    large, small = times(200, 20 * MIB), times(2000, MIB)
    return {
        "torch_alloc_20mib_first": large[0],
        "torch_alloc_20mib": statistics.median(large[2:]),
        "torch_alloc_1mib_first": small[0],
        "torch_alloc_1mib": statistics.median(small[2:]),
    }


_kept_alive: list[list[torch.Tensor]] = []


def launch(subject: Subject) -> dict[str, float]:
    """Return launch and wait, the 99th percentile and the worst: at rest, and while the agent works.

    At rest there is nothing leased yet. Then 4 GiB come that are kept, and another thread lets go of them and resumes
    them from the first moment on: the agent maps, registers host memory for the first time, copies out, unmaps, copies in.
    """
    small = torch.ones(1000, device="cuda")
    stream = torch.cuda.Stream()
    stop = threading.Event()

    def sample() -> list[float]:
        times: list[float] = []
        with torch.cuda.stream(stream):
            until = time.perf_counter() + 3.0
            while time.perf_counter() < until:
                began = time.perf_counter()
                small.add_(1)
                stream.synchronize()
                times.append(time.perf_counter() - began)
        return sorted(times)

    idle = sample()
    tensors = _tensors(subject, 16, 256 * MIB, keep=True)

    def move() -> None:
        while not stop.is_set():
            subject.pause("tag", release=True)
            subject.resume("tag")

    mover = threading.Thread(target=move)
    mover.start()
    busy = sample()
    stop.set()
    mover.join()
    _check(tensors)
    return {
        "agent_launch_p99": busy[len(busy) * 99 // 100],
        "agent_launch_worst": busy[-1],
        "idle_launch_p99": idle[len(idle) * 99 // 100],
        "idle_launch_worst": idle[-1],
    }


def attach(_: Subject) -> dict[str, float]:
    """Return the time from here to the first tensor that has been written to, torch being imported."""
    if sys.argv[1] == "plain":
        began = time.perf_counter()
        torch.ones(1000, device="cuda")
        torch.cuda.synchronize()
        return {"client_attach": time.perf_counter() - began}
    began = time.perf_counter()
    from vrambroker.client import connect

    with connect("bench").region("tag"):
        torch.ones(1000, device="cuda")
    torch.cuda.synchronize()
    return {"client_attach": time.perf_counter() - began}


def init(_: Subject) -> dict[str, float]:
    """Return what the driver takes of the device when a process initialises it, and no more."""
    from vrambroker.broker.adapters.nvml import Nvml

    nvml = Nvml()
    uuid, before_bytes = next(iter(nvml.used_everywhere_bytes().items()))
    driver: Any = importlib.import_module("cuda.bindings.driver")
    driver.cuInit(0)
    return {"daemon_device_bytes": nvml.used_everywhere_bytes()[uuid] - before_bytes}


FIGURES: dict[str, Callable[[Subject], dict[str, float]]] = {
    "first16": first16,
    "kept16": kept16,
    "bare16": bare16,
    "init": init,
    "dropped16": dropped16,
    "bare_dropped16": bare_dropped16,
    "idle16": idle16,
    "alloc": alloc,
    "launch": launch,
    "attach": attach,
}


def main() -> None:
    """Measure what the command line names."""
    who, what = sys.argv[1:]
    kinds: dict[str, Callable[[], Subject]] = {"broker": Broker, "tms": TorchMemorySaver, "plain": Plain}
    # Attaching is what is measured there.
    subject = kinds["plain" if what == "attach" else who]()
    print(json.dumps(FIGURES[what](subject)), flush=True)
    if who == "tms":
        # What it frees at the end it takes for a mistake, and ends the process with 1.
        os._exit(0)


if __name__ == "__main__":
    main()
