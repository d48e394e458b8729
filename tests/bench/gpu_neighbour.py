"""A neighbour that computes while two other processes exchange the device: how long its steps take, at rest and then.

A step is a CUDA graph, as engines launch them: a chain of six products, 256 tokens by weights of 8192 × 8192, some
300 µs that are bound by the device's memory, as decoding is. Each is timed by events around it and waited for before
the next, as a token is. The neighbour's own memory is torch's, outside the broker. The two others run no kernels: they
exchange 16 GiB for 16 GiB, both kept, by copies and maps alone, as in `gpu_swap.py`, one exchange after the other.

`python gpu_neighbour.py SUBJECT` prints the 99th percentiles: at rest, pooled from before and after, and meanwhile.
"""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# mypy: disable-error-code="no-untyped-call"

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from parties import MIB, ON_GPU, SETTLING_S, Peer, Tensors, leave, scaled, serve, synchronize

COUNT, SIZE_BYTES = 64, 256 * MIB
# Room for one of the two, and two spare frames.
CAPACITY = scaled(16_896)
WARM_UP, AT_REST, MEANWHILE = (1000, 3000, 8000) if ON_GPU else (10, 100, 300_000)
LAYERS, TOKENS, WIDTH = 6, 256, 8192


def be_neighbour() -> None:
    """Do so many steps as told; tell their percentiles in seconds."""
    step = graph_step() if ON_GPU else plain_step()

    def sample(words: list[str]) -> dict[str, float]:
        times = sorted(step() for _ in range(int(words[0])))
        return {
            "p50": times[len(times) // 2],
            "p99": times[len(times) * 99 // 100],
            "worst": times[-1],
        }

    sample([str(WARM_UP)])
    serve({"sample": sample})


def graph_step() -> Callable[[], float]:
    layers = [torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16, device="cuda") / WIDTH for _ in range(LAYERS)]
    states = [torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, device="cuda") for _ in range(2)]

    def chain() -> None:
        for number, layer in enumerate(layers):
            torch.mm(states[number % 2], layer, out=states[1 - number % 2])

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chain()
        synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        chain()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step() -> float:
        with torch.cuda.stream(stream):
            begin.record()
            graph.replay()
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return step


def plain_step() -> Callable[[], float]:
    matrix = torch.randn(64, 64)

    def step() -> float:
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        return time.perf_counter() - began

    return step


def be_other(who: str) -> None:
    """Have 16 GiB that are kept, and let go of them; then do as told."""
    tensors = Tensors(who, "b")
    tensors.add("weights", COUNT, SIZE_BYTES, keep=True)
    tensors.give(["weights"], release=True)
    serve({"take": tensors.take, "give": tensors.give, "check": lambda _: tensors.check()})


def beside(who: str) -> dict[str, float]:
    """Return the neighbour's percentiles at rest and meanwhile, and how many exchanges there were."""
    other = Peer(Path(__file__), who, "other")
    mine = Tensors(who, "a")
    mine.add("weights", COUNT, SIZE_BYTES, keep=True)
    neighbour = Peer(Path(__file__), who, "neighbour")
    time.sleep(SETTLING_S)

    def exchange() -> None:
        mine.give(["weights"])
        other.ask("take weights")
        other.ask("give weights")
        mine.take(["weights"])

    # What is paid once is paid before.
    for _ in range(3):
        exchange()
    before = neighbour.ask(f"sample {AT_REST}")
    neighbour.say(f"sample {MEANWHILE}")
    began, exchanges = time.perf_counter(), 0
    while not neighbour.has_answered():
        exchange()
        exchanges += 2
    meanwhile, took_s = neighbour.hear(), time.perf_counter() - began
    after = neighbour.ask(f"sample {AT_REST}")
    mine.check()
    mine.give(["weights"])
    other.ask("take weights")
    other.ask("check")
    other.end()
    neighbour.end()
    at_rest = statistics.mean((before["p99"], after["p99"]))
    return {
        "neighbour_p99": meanwhile["p99"] / at_rest,
        "neighbour_step_p99": meanwhile["p99"],
        "neighbour_step_p99_at_rest": at_rest,
        "neighbour_step_p50": meanwhile["p50"],
        "neighbour_step_p50_at_rest": statistics.mean((before["p50"], after["p50"])),
        "neighbour_step_worst": meanwhile["worst"],
        "neighbour_step_worst_at_rest": max(before["worst"], after["worst"]),
        "exchanges": exchanges,
        "exchange_seconds": took_s / max(exchanges, 1),
    }


def main() -> None:
    """Measure beside the subject that the command line names, or be one of the others."""
    who, *role = sys.argv[1:]
    match role:
        case ["neighbour"]:
            be_neighbour()
        case ["other"]:
            be_other(who)
        case _:
            print(json.dumps(beside(who)), flush=True)
    leave(who)


if __name__ == "__main__":
    main()
