"""A pause under pressure: 16 GiB of sealed weights, parked once before, make room for a neighbour that waits for 16 GiB.

`python gpu_sealed.py SUBJECT` prints the figures: `sealed16_pause`, from the call to its return, when all frames have
left, and `sealed16_neighbour`, from the same call until the neighbour has its memory, which it had asked for before
(the incumbent's neighbour asks when the pause has returned). Of the incumbent it is the pause of weights with a copy on
the host, since it knows nothing of sealing; `plain` is the driver alone: 64 frames unmapped and let go of.
"""

# mypy: disable-error-code="no-untyped-call"

import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from gpu_figures import ROUNDS
from parties import DEADLINE_S, MIB, ON_GPU, SETTLING_S, Named, Peer, Tensors, leave, scaled, serve

COUNT, SIZE_BYTES = 64, 256 * MIB
# Room for one of the two, and two spare frames.
CAPACITY = scaled(16_896)


def be_neighbour(who: str) -> None:
    """Have 16 GiB whose contents are worth nothing, all of them somewhere else."""
    tensors = Tensors(who, "neighbour")
    tensors.add("kv_cache", COUNT, SIZE_BYTES, keep=False)
    tensors.give(["kv_cache"], release=True)
    serve({"take": lambda _: tensors.take(["kv_cache"]), "give": lambda _: tensors.give(["kv_cache"])})


def pressed(who: str) -> dict[str, float]:
    """Return the medians, the first two rounds aside: in them the contents are copied out for the first time."""
    neighbour = Peer(Path(__file__), who, "neighbour")
    weights = Tensors(who, "engine")
    weights.add("weights", COUNT, SIZE_BYTES, keep=True)
    if isinstance(weights.subject, Named):
        weights.subject.memory.seal("weights", timeout=DEADLINE_S)
    time.sleep(SETTLING_S)
    pauses: list[float] = []
    neighbours: list[float] = []
    for _ in range(ROUNDS + 2):
        if isinstance(weights.subject, Named):
            neighbour.say("take")
            wait_for_a_ticket(weights.subject)
        began = time.perf_counter()
        weights.give(["weights"], release=True)
        pauses.append(time.perf_counter() - began)
        if not isinstance(weights.subject, Named):
            neighbour.say("take")
        neighbours.append(neighbour.hear()["ended"] - began)
        neighbour.ask("give")
        weights.take(["weights"])
    weights.check()
    neighbour.end()
    figures = {"sealed16_pause": pauses, "sealed16_neighbour": neighbours}
    return {name: statistics.median(times[2:]) for name, times in figures.items()}


def wait_for_a_ticket(subject: Named) -> None:
    """Return when somebody waits for room."""
    deadline = time.monotonic() + DEADLINE_S
    while not subject.memory.status().queue:
        if time.monotonic() > deadline:
            raise TimeoutError("the neighbour did not ask for its memory")
        time.sleep(0.002)


def driver_alone() -> dict[str, float]:
    """Return the driver's part: 64 frames that somebody else has fds of are unmapped and let go of."""
    import torch

    driver: Any = importlib.import_module("cuda.bindings.driver")

    def ask(call: str, *arguments: Any) -> Any:
        result, *values = getattr(driver, call)(*arguments)
        if result != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{call}: {result.name}")
        return values[0] if values else None

    torch.ones(1, device="cuda")
    kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    frame, access = driver.CUmemAllocationProp(), driver.CUmemAccessDesc()
    frame.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    frame.location.type = access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    frame.location.id = access.location.id = 0
    frame.requestedHandleTypes = kind
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    size_bytes = COUNT * SIZE_BYTES
    begin = int(ask("cuMemAddressReserve", size_bytes, 0, 0, 0))
    places = range(begin, begin + size_bytes, SIZE_BYTES)
    times: list[float] = []
    for _ in range(ROUNDS + 2):
        handles = [ask("cuMemCreate", SIZE_BYTES, frame, 0) for _ in places]
        fds = [int(ask("cuMemExportToShareableHandle", handle, kind, 0)) for handle in handles]
        for place, handle in zip(places, handles, strict=True):
            ask("cuMemMap", place, SIZE_BYTES, 0, handle, 0)
        ask("cuMemSetAccess", begin, size_bytes, [access], 1)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for place in places:
            ask("cuMemUnmap", place, SIZE_BYTES)
        for handle in handles:
            ask("cuMemRelease", handle)
        times.append(time.perf_counter() - began)
        for fd in fds:
            os.close(fd)
    return {"sealed16_pause": statistics.median(times[2:])}


def main() -> None:
    """Measure for the subject that the command line names, or be its neighbour."""
    who, *role = sys.argv[1:]
    if role:
        be_neighbour(who)
    else:
        assert ON_GPU or who == "broker", "on `host` there is the broker alone"
        print(json.dumps(driver_alone() if who == "plain" else pressed(who)), flush=True)
    leave(who)


if __name__ == "__main__":
    main()
