"""Two processes that exchange a full GPU, beside torch_memory_saver in two processes, and the bare copies.

A time is from one process's pause to the end of the other's resume, one round trip between them included. The incumbent's
order is made by hand: its resume begins when the other's pause has returned. Rounds after the first two count.

Without arguments this measures all and writes `results/gpu_swap.json`; `python gpu_swap.py SUBJECT FIGURE` prints one, and
`python gpu_swap.py breakdown` where the time of a handover goes, by a daemon that is traced and so somewhat slower.
The predictions were written after a first look: 0.37 s where the bare copies take 0.35, and 6.5 ms.
"""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call"

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu import machine, measure
from gpu_figures import ROUNDS, seconds
from harness import Result, daemon, write_results
from parties import GIB, MIB, ON_GPU, SETTLING_S, Peer, Tensors, device_id, leave, scaled, serve
from traced_daemon import Line

SIZES = {"swap16_kept": (64, 256 * MIB), "handover32_dropped": (32, GIB)}
# Room for one of the two, and two spare frames, or one.
CAPACITIES = {"swap16_kept": scaled(16_896), "handover32_dropped": scaled(33 * 1024)}
HOST_BUDGET = scaled(80 * 1024)
FIGURES = {
    "swap16_kept": ("16 GiB kept out of A and 16 GiB kept into B, on a full device", 0.37),
    "handover32_dropped": ("32 GiB dropped from A to B, on a full device", 0.0065),
}


def make(who: str, figure: str, name: str) -> Tensors:
    """Make one side's memory."""
    tensors = Tensors(who, name)
    tensors.add("tag", *SIZES[figure], keep=figure == "swap16_kept")
    return tensors


def be_peer(who: str, figure: str) -> None:
    """Make the memory, let go of it, and then do as told, a word a line."""
    side = make(who, figure, "b")
    side.give(["tag"], release=True)
    serve(
        {
            "give": lambda _: side.give(["tag"]),
            "take": lambda _: side.take(["tag"]),
            "check": lambda _: side.check(),
        }
    )


def exchange(who: str, figure: str) -> list[dict[str, float]]:
    """Have the device's memory go from one process to the other and back; returns, of each time that it changes hands,
    when what began and ended.
    """
    peer = Peer(Path(__file__), who, figure, "peer")
    side = make(who, figure, "a")
    time.sleep(SETTLING_S)
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        side.give(["tag"])
        given = time.perf_counter()
        taken = peer.ask("take")
        ended = time.perf_counter()
        rounds.append({"began": began, "given": given, "take": taken["began"], "taken": taken["ended"], "ended": ended})
        began = time.perf_counter()
        given = peer.ask("give")["ended"]
        take = time.perf_counter()
        side.take(["tag"])
        ended = time.perf_counter()
        rounds.append({"began": began, "given": given, "take": take, "taken": ended, "ended": ended})
    side.check()
    side.give(["tag"])
    peer.ask("take")
    peer.ask("check")
    peer.end()
    return rounds[4:]


def lasted(one: dict[str, float]) -> float:
    return one["ended"] - one["began"]


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


def breakdown() -> dict[str, object]:
    """Return where the time of a handover of dropped contents goes, of the one that takes the median time.

    `steps`: when the two processes' calls began and ended. `core`: each event of the daemon: when the core began with it,
    how long it decided, how long the orders took, what it was and what it ordered. All in ms from the pause's beginning.
    """
    figure = "handover32_dropped"
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        with daemon(device_id(), CAPACITIES[figure], HOST_BUDGET, trace=trace) as socket:
            os.environ["VRAMBROKER_RUN_DIR"] = str(socket.parents[1])
            rounds = sorted(exchange("broker", figure), key=lasted)
        lines: list[Line] = [json.loads(line) for line in trace.read_text().splitlines()]
    one = rounds[len(rounds) // 2]

    def ms(seconds_: float) -> float:
        return round(1e3 * seconds_, 3)

    core = [
        [ms(began - one["began"]), ms(decided - began), ms(performed - decided), event, effects]
        for began, decided, performed, event, effects in lines
        if one["began"] <= began <= one["ended"]
    ]
    return {"steps": {name: ms(at - one["began"]) for name, at in one.items()}, "core": core}


def measure_all() -> None:
    """Measure both figures, each with a daemon of its own, and write the results."""
    script, results, beside = Path(__file__), list[Result](), dict[str, object]()
    for figure, (what, prediction) in FIGURES.items():
        with daemon(device_id(), CAPACITIES[figure], HOST_BUDGET) as socket:
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
    beside["handover32_breakdown"] = breakdown()
    print(json.dumps(beside), flush=True)
    write_results("gpu_swap.json", *machine(), results, beside=beside)


def main() -> None:
    """Measure what the command line names, or be the peer of who does; or measure all."""
    match sys.argv[1:]:
        case []:
            measure_all()
        case ["breakdown"]:
            found = breakdown()
            print(json.dumps(found["steps"]))
            for line in found["core"] if isinstance(found["core"], list) else ():
                print(json.dumps(line))
        case [who, figure, _]:
            be_peer(who, figure)
            leave(who)
        case [who, figure]:
            assert ON_GPU or who == "broker", "on `host` there is the broker alone"
            median = duplex() if who == "plain" else statistics.median(map(lasted, exchange(who, figure)))
            print(json.dumps({figure: median}), flush=True)
            leave(who)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
