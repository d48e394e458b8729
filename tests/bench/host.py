"""The figures of the `host` device: growth and ratios, measured side by side in one run. `make bench` runs it.

Run directly: `python tests/bench/host.py`; `--client SOCKET N` makes it one of the load's own processes.
"""

import ctypes
import mmap
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from core_growth import decision_seconds
from harness import DEADLINE_S, MIB, Result, attach, cpu_name, daemon, median_seconds, write_results

from vrambroker.client.native import Client

FRAME = 2 * MIB
GROWTHS = 64
CYCLES = 50
MOVED = 256 * MIB
BLOCK = 20 * MIB


def cycle(client: Client, tag: str, *, release: bool = False) -> None:
    """Pause and resume a tag."""
    client.pause((tag,), release=release, timeout_s=DEADLINE_S)
    client.resume((tag,), timeout_s=DEADLINE_S)


def be_client(socket: Path, number: int) -> None:
    """Be one of n processes: grow a lease frame by frame, then pause and resume it; print the times as JSON."""
    client = attach(socket, f"load-{number}")
    lease = client.open_lease("load", "drop")
    lease.malloc(FRAME, timeout_s=DEADLINE_S)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for _ in range(GROWTHS):
        lease.malloc(FRAME, timeout_s=DEADLINE_S)
    print(time.perf_counter() - began, flush=True)
    sys.stdin.readline()
    print(median_seconds(lambda: cycle(client, "load"), CYCLES), flush=True)
    sys.stdin.readline()


def load(socket: Path, clients: int) -> tuple[float, float]:
    """Return leases a second of all clients together, and the median of their pause and resume, in seconds."""
    command = [sys.executable, __file__, "--client", str(socket)]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(clients)
    ]
    try:
        if any(_line(process) != "ready" for process in processes):
            raise RuntimeError("a client did not come up")
        growths = _all_at_once(processes)
        cycles = _all_at_once(processes)
    finally:
        for process in processes:
            process.communicate("end\n", timeout=DEADLINE_S)
    return clients * GROWTHS / max(growths), statistics.median(cycles)


def _all_at_once(processes: "list[subprocess.Popen[str]]") -> list[float]:
    """Let every client do its next part, all beginning together; return what each says."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [float(_line(process)) for process in processes]


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def many_clients() -> list[Result]:
    """Measure leases a second and pause latency with 1, 8 and 64 clients on one daemon."""
    results: list[Result] = []
    with daemon("host:901", "16GiB", "1GiB") as socket:
        figures = {clients: load(socket, clients) for clients in (1, 8, 64)}
    for clients, (leases, _) in figures.items():
        results.append(
            Result(
                name=f"leases_per_second_{clients}",
                what=f"leases of one frame a second, {clients} client(s)",
                value=leases,
                unit="1/s",
                prediction={1: 2500, 8: 4000, 64: 4000}[clients],
            )
        )
    for clients in (8, 64):
        results.append(
            Result(
                name=f"cycle_growth_{clients}",
                what=f"pause and resume beside {clients} busy clients against alone",
                value=figures[clients][1] / figures[1][1],
                unit="ratio",
                prediction={8: 8, 64: 64}[clients],
            )
        )
    return results


def malloc_against_mmap() -> list[Result]:
    """Measure malloc and free of 20 MiB through a range that has room, against mmap and munmap."""
    with daemon("host:902", "1GiB", "64MiB") as socket:
        client = attach(socket, "malloc")
        lease = client.open_lease("blocks", "drop")
        through_range = median_seconds(lambda: client.free(lease.malloc(BLOCK, timeout_s=DEADLINE_S)), 300)
    plain = median_seconds(lambda: mmap.mmap(-1, BLOCK).close(), 300)
    return [
        Result(
            name="malloc_20mib",
            what="malloc and free of 20 MiB through the range, against mmap and munmap",
            value=through_range / plain,
            unit="ratio",
            prediction=1.0,
        )
    ]


def idle_against_moved() -> list[Result]:
    """Measure a pause and resume with nobody in need against one that parks the bytes and brings them back."""
    with daemon("host:903", "512MiB", "512MiB") as socket:
        client = attach(socket, "cycle")
        address = client.open_lease("weights", "keep").malloc(MOVED, timeout_s=DEADLINE_S)
        ctypes.memset(address, 7, MOVED)
        cycle(client, "weights", release=True)
        idle = median_seconds(lambda: cycle(client, "weights"), CYCLES)
        moved = median_seconds(lambda: cycle(client, "weights", release=True), 5)
    source, target = bytearray(MOVED), bytearray(MOVED)
    source_at = (ctypes.c_char * MOVED).from_buffer(source)
    target_at = (ctypes.c_char * MOVED).from_buffer(target)
    copy = median_seconds(lambda: ctypes.memmove(target_at, source_at, MOVED), 5)
    return [
        Result(
            name="idle_against_moved",
            what="pause + resume of 256 MiB, nobody in need, against the same with the bytes moved",
            value=idle / moved,
            unit="ratio",
            prediction=0.002,
        ),
        Result(
            name="moved_against_copy",
            what="pause + resume of 256 MiB with the bytes moved, against two plain copies",
            value=moved / (2 * copy),
            unit="ratio",
            prediction=2.0,
        ),
    ]


def core_growth() -> list[Result]:
    """Measure the core's decision on a pause and a resume with 100 to 10,000 leases."""
    times = {leases: decision_seconds(leases) for leases in (100, 1000, 10_000)}
    return [
        Result(
            name=f"decision_growth_{leases}",
            what=f"the core's decision on a pause and a resume with {leases} leases against 100",
            value=times[leases] / times[100],
            unit="ratio",
            prediction=1.2,
        )
        for leases in (1000, 10_000)
    ]


def main() -> None:
    """Measure everything and write the results."""
    results = [*core_growth(), *malloc_against_mmap(), *idle_against_moved(), *many_clients()]
    write_results("host.json", cpu_name(), "memfd", results)
    for result in results:
        print(f"{result.name:28} {result.value:10.4g} {result.unit:6} (predicted {result.prediction:g})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        be_client(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
