"""`Memory` on a real GPU: regions, pauses, recalls by another process, CUDA graphs, and what torch says when it is full."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false
# mypy: disable-error-code="no-untyped-call, arg-type"

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import torch

from vrambroker.client import InvalidArgument, Memory, NotQuiescent, WrongState, connect

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, Worker

pytestmark = pytest.mark.gpu

MIB, GIB = 1 << 20, 1 << 30
TIMEOUT_S = 60.0

# Takes so many GiB when told, fills them, and gives them back when told again.
NEIGHBOUR = """
import torch
from vrambroker.client import connect
memory = connect("neighbour")
tell("attached")
while (line := told()):
    try:
        with memory.region("cache", contents="drop"):
            taken = [torch.full((1 << 28,), 7, dtype=torch.uint8, device="cuda") for _ in range(int(float(line) * 4))]
        torch.cuda.synchronize()
        tell("taken", sum(int(one[::1 << 20].sum()) for one in taken))
    except torch.OutOfMemoryError as error:
        tell("refused", " ".join(getattr(error, "__notes__", [])))
        continue
    told()
    del taken
    memory.pause("cache", release=True)
    tell("released")
    memory.resume("cache")
memory.close()
"""


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("test") as attached:
        yield attached
        # What a caught error's traceback keeps alive goes now.
        gc.collect()


@pytest.fixture
def neighbour(start_worker: "Callable[[str], Worker]") -> "Worker":
    worker = start_worker(NEIGHBOUR)
    assert worker.hear() == "attached"
    return worker


def device_bytes(memory: Memory, tag: str) -> int:
    session = memory.status().session(memory.name)
    assert session is not None
    return sum(entry.device_bytes for entry in session.tags if entry.tag == tag)


def state(memory: Memory, tag: str) -> str:
    session = memory.status().session(memory.name)
    assert session is not None
    return next(entry.state for entry in session.tags if entry.tag == tag)


def pattern(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda", generator=generator)


def test_what_a_region_allocates_is_leased(memory: Memory) -> None:
    before = torch.ones(1000, device="cuda")
    with memory.region("weights"):
        model = torch.nn.Linear(4096, 4096, device="cuda")
        made = model(torch.ones(8, 4096, device="cuda"))
    assert device_bytes(memory, "weights") >= 64 * MIB
    assert memory.stats().allocated_bytes >= 64 * MIB
    leased = memory.stats().allocated_bytes
    after = torch.ones(64 * MIB, device="cuda")
    assert memory.stats().allocated_bytes == leased
    del before, after, made


def test_an_idle_pause_moves_nothing(memory: Memory) -> None:
    with memory.region("weights"):
        tensor = pattern(GIB, 1).clone()
    address, kept = tensor.data_ptr(), tensor.cpu()
    memory.pause("weights")
    assert state(memory, "weights") == "idle"
    assert memory.resume("weights") == {"weights": True}
    assert tensor.data_ptr() == address
    assert torch.equal(tensor.cpu(), kept)
    assert memory.stats().copied_out_bytes == 0


def test_kept_contents_survive_a_neighbour_in_their_place(memory: Memory, neighbour: "Worker") -> None:
    with memory.region("weights"):
        tensors = [pattern(300 * MIB, seed) for seed in range(10)]
        small = [torch.full((1000,), float(seed), device="cuda") for seed in range(100)]
    sums = [tensor.cpu() for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in (*tensors, *small)]
    memory.pause("weights")
    assert neighbour.ask("7").startswith("taken")
    assert state(memory, "weights") in ("parked", "partial")
    assert neighbour.ask() == "released"
    assert memory.resume("weights", timeout=TIMEOUT_S) == {"weights": False}
    assert [tensor.data_ptr() for tensor in (*tensors, *small)] == addresses
    assert all(torch.equal(tensor.cpu(), kept) for tensor, kept in zip(tensors, sums, strict=True))
    assert [float(one[0]) for one in small] == [float(seed) for seed in range(100)]
    assert memory.stats().copied_in_bytes >= 3000 * MIB


def test_what_is_idle_is_copied_ahead_beside_kernels_and_taken_by_an_unmap(
    memory: Memory, neighbour: "Worker", broker: "RunningBroker"
) -> None:
    with memory.region("weights"):
        tensors = [pattern(300 * MIB, seed) for seed in range(10)]
    sums = [tensor.cpu() for tensor in tensors]
    memory.pause("weights")

    def copied() -> bool:
        # Work of this process goes on meanwhile, and a resume in mid-copy would be one, too.
        torch.ones(64 * MIB, device="cuda").sum().item()
        session = memory.status().session(memory.name)
        assert session is not None
        return all(entry.copied_bytes == entry.device_bytes for entry in session.tags)

    with ExitStack() as stack:
        assert any(copied() for _ in broker.control(stack).watch(history=True))
    assert state(memory, "weights") == "idle"
    out_bytes = memory.stats().copied_out_bytes
    assert out_bytes >= 3000 * MIB
    assert neighbour.ask("7").startswith("taken")
    assert memory.stats().copied_out_bytes == out_bytes, "it only had to be unmapped"
    assert neighbour.ask() == "released"
    memory.resume("weights", timeout=TIMEOUT_S)
    assert all(torch.equal(tensor.cpu(), kept) for tensor, kept in zip(tensors, sums, strict=True))
    for tensor in tensors:
        tensor.fill_(9)
    memory.pause("weights", release=True)
    memory.resume("weights", timeout=TIMEOUT_S)
    assert all(tensor.eq(9).all() for tensor in tensors), "what is written after a resume is what counts"


def test_sealed_weights_are_copied_out_once_while_kernels_read_them(memory: Memory, neighbour: "Worker") -> None:
    with memory.region("weights"):
        weights = [pattern(300 * MIB, seed) for seed in range(10)]
        scale = torch.full((1000,), 2.0, device="cuda")
    sums = [int(weight.sum()) for weight in weights]
    addresses = [weight.data_ptr() for weight in weights]
    torch.cuda.synchronize()
    memory.seal("weights")
    copied: list[int] = []
    for _ in range(3):
        memory.pause("weights", release=True)
        assert neighbour.ask("7").startswith("taken")
        assert state(memory, "weights") in ("parked", "partial")
        assert neighbour.ask() == "released"
        assert memory.resume("weights", timeout=TIMEOUT_S) == {"weights": False}
        assert [weight.data_ptr() for weight in weights] == addresses
        assert [int(weight.sum()) for weight in weights] == sums
        assert float((scale * 3).sum()) == 6000.0
        copied.append(memory.stats().copied_out_bytes)
    assert copied[0] > 0
    assert len(set(copied)) == 1, copied
    memory.unseal("weights")
    weights[0].fill_(1)
    memory.pause("weights")
    assert neighbour.ask("7").startswith("taken")
    assert neighbour.ask() == "released"
    memory.resume("weights", timeout=TIMEOUT_S)
    assert int(weights[0].sum()) == 300 * MIB
    assert [int(weight.sum()) for weight in weights[1:]] == sums[1:]
    assert memory.stats().copied_out_bytes > copied[0]


def test_what_a_region_or_a_graph_may_write_to_is_not_sealed(memory: Memory) -> None:
    with memory.region("weights"):
        kept = torch.ones(1000, device="cuda")
        with pytest.raises(WrongState, match="region"):
            memory.seal("weights")
    memory.seal("weights")
    for call in (
        lambda: memory.empty((1000,), tag="weights"),
        lambda: memory.graph_pool("weights"),
        lambda: memory.region("weights").__enter__(),
        lambda: memory.place(torch.ones(4, device="cuda"), "weights"),
    ):
        with pytest.raises(WrongState, match="sealed"):
            call()
    assert float(kept.sum()) == 1000.0
    memory.unseal("weights")
    memory.graph_pool("weights")
    with pytest.raises(WrongState, match="graphs"):
        memory.seal("weights")


# On a context of its own, which a write to sealed memory ends.
WRITES_TO_SEALED = """
import torch
from vrambroker.client import connect
memory = connect("writer")
with memory.region("weights"):
    weights = torch.ones(1 << 20, device="cuda")
memory.seal("weights")
tell(float(weights.sum()))
weights.add_(1)
try:
    torch.cuda.synchronize()
    tell("written")
except Exception as error:
    tell(type(error).__name__)
os._exit(0)
"""


def test_a_kernel_that_writes_to_sealed_memory_fails(start_worker: "Callable[[str], Worker]") -> None:
    worker = start_worker(WRITES_TO_SEALED)
    assert worker.hear() == str(float(1 << 20))
    assert worker.hear() != "written"


def test_dropped_and_zeroed_contents(memory: Memory, neighbour: "Worker") -> None:
    dropped = memory.empty((GIB,), dtype=torch.uint8, tag="cache", contents="drop")
    zeroed = memory.empty((GIB,), dtype=torch.uint8, tag="scratch", contents="zero")
    assert int(zeroed.count_nonzero()) == 0
    dropped.fill_(1)
    zeroed.fill_(1)
    memory.pause()
    assert memory.resume() == {"cache": True, "scratch": True}
    assert int(zeroed.count_nonzero()) == 0
    assert int(dropped.sum()) == GIB
    zeroed.fill_(1)
    memory.pause()
    assert neighbour.ask("7.5").startswith("taken")
    assert neighbour.ask() == "released"
    assert memory.resume(timeout=TIMEOUT_S) == {"cache": False, "scratch": False}
    assert int(zeroed.count_nonzero()) == 0
    dropped.fill_(2)
    assert memory.stats().copied_out_bytes == 0


def test_what_is_freed_goes_back_at_the_next_pause(memory: Memory) -> None:
    with memory.region("weights"):
        kept = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
        gone = torch.ones(GIB, dtype=torch.uint8, device="cuda")
    del gone
    memory.pause("weights")
    assert memory.stats().allocated_bytes < 100 * MIB
    memory.resume("weights")
    assert int(kept.sum()) == 64 * MIB
    del kept
    memory.pause("weights", release=True)
    assert memory.stats().allocated_bytes == 0


def test_what_is_freed_after_a_pause_goes_back_with_the_end(broker: "RunningBroker") -> None:
    before, _ = torch.cuda.mem_get_info()
    with connect("test", broker.device) as memory:
        with memory.region("weights"):
            weights = torch.ones(GIB, dtype=torch.uint8, device="cuda")
        memory.pause("weights")
        memory.resume("weights")
        del weights
        reserved = torch.cuda.memory_reserved()
    assert torch.cuda.memory_reserved() == reserved - GIB
    assert broker.stop() == 0
    assert torch.cuda.mem_get_info()[0] > before - GIB // 2


def test_a_pool_is_taken_over_by_the_next_region(memory: Memory) -> None:
    with memory.region("weights"):
        first = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    address = first.data_ptr()
    del first
    with memory.region("weights"):
        second = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    assert second.data_ptr() == address
    assert memory.stats().allocated_bytes == 64 * MIB


def test_a_region_entered_ten_thousand_times_takes_no_more(memory: Memory) -> None:
    for _ in range(10_000):
        with memory.region("weights"):
            torch.empty(MIB, dtype=torch.uint8, device="cuda")
    assert memory.stats().allocated_bytes <= 20 * MIB


def test_a_cache_that_is_made_anew_fits_where_the_old_one_was(memory: Memory) -> None:
    for _ in range(3):
        with memory.region("cache", contents="drop"):
            cache = torch.ones(5 * GIB, dtype=torch.uint8, device="cuda")
        memory.pause("cache")
        memory.resume("cache")
        assert cache.data_ptr()
        del cache


# torch ends the process when a pool dies while another one is in use, or a graph is captured, on the same GPU.
PAUSES_MEANWHILE = """
import threading
import torch
from vrambroker.client import NotQuiescent, connect
memory = connect("busy")
def cache():
    with memory.region("cache", contents="drop"):
        torch.ones(1 << 26, device="cuda")
cache()
with memory.region("weights"):
    memory.pause("cache")
memory.resume("cache")
tell("nested")
entered, done = threading.Event(), threading.Event()
def load():
    with memory.region("weights"):
        entered.set()
        done.wait(60)
thread = threading.Thread(target=load)
cache()
thread.start()
entered.wait(60)
memory.pause("cache", release=True)
memory.resume("cache")
done.set()
thread.join(60)
tell("beside")
def capture():
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            entered.set()
            done.wait(60)
    except RuntimeError:
        pass
cache()
entered.clear(), done.clear()
thread = threading.Thread(target=capture)
thread.start()
entered.wait(60)
try:
    memory.pause("cache")
except NotQuiescent:
    tell("refused")
done.set()
thread.join(60)
memory.pause("cache")
tell("paused", memory.stats().allocated_bytes)
memory.resume("cache")
memory.close()
tell("closed")
"""


def test_a_pause_while_others_allocate_or_capture_ends_no_process(start_worker: "Callable[[str], Worker]") -> None:
    worker = start_worker(PAUSES_MEANWHILE)
    assert worker.hear() == "nested"
    assert worker.hear() == "beside"
    assert worker.hear() == "refused"
    assert worker.hear() == "paused 0"
    assert worker.hear() == "closed"  # torch may have said something of its broken capture on stderr


def test_a_region_leases_with_expandable_segments_too(start_worker: "Callable[[str], Worker]") -> None:
    worker = start_worker("""
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
import torch
from vrambroker.client import connect
memory = connect("expandable")
plain = torch.ones(1 << 26, device="cuda")
with memory.region("weights"):
    weights = torch.ones(1 << 26, device="cuda")
leased = memory.stats().allocated_bytes
memory.pause("weights", release=True)
memory.resume("weights")
tell(leased >> 20, int(weights.sum()) == int(plain.sum()) == 1 << 26)
""")
    assert worker.hear() == "256 True"  # torch warns of the variable's old name on stderr


def test_nested_regions_and_threads(memory: Memory) -> None:
    inside, outside = threading.Barrier(2), threading.Barrier(2)
    made: dict[str, int] = {}

    def other() -> None:
        with memory.region("weights"):
            inside.wait(TIMEOUT_S)
            tensor = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
            made["thread"] = tensor.data_ptr()
            outside.wait(TIMEOUT_S)

    thread = threading.Thread(target=other)
    thread.start()
    with memory.region("weights"), memory.region("weights"):
        inside.wait(TIMEOUT_S)
        with memory.region("cache", contents="drop"):
            inner = torch.empty(200 * MIB, dtype=torch.uint8, device="cuda")
        outer = torch.empty(50 * MIB, dtype=torch.uint8, device="cuda")
        outside.wait(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    memory.pause("cache")  # what it was lent to spare goes back
    assert device_bytes(memory, "cache") >= inner.numel()
    assert device_bytes(memory, "cache") < inner.numel() + 100 * MIB
    assert device_bytes(memory, "weights") >= 150 * MIB
    assert made["thread"] != outer.data_ptr()


def test_a_paused_tag_is_refused_before_and_in_the_block(memory: Memory) -> None:
    with memory.region("weights"):
        kept = torch.ones(1000, device="cuda")
    memory.pause("weights")
    with pytest.raises(WrongState, match="weights is paused"), memory.region("weights"):
        pass
    with pytest.raises(WrongState):
        memory.graph_pool("weights")
    memory.resume("weights")
    with pytest.raises(WrongState, match="weights is paused"), memory.region("weights"):
        memory.pause("weights")
        torch.empty(GIB, dtype=torch.uint8, device="cuda")
    memory.resume("weights")
    assert float(kept.sum()) == 1000.0


def test_out_of_memory_is_torchs_own_error_and_names_the_holders(memory: Memory, neighbour: "Worker") -> None:
    with memory.region("weights"):
        kept = torch.ones(2 * GIB, dtype=torch.uint8, device="cuda")
    assert neighbour.ask("4").startswith("taken")
    with pytest.raises(torch.OutOfMemoryError) as caught, memory.region("weights"):
        torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")
    (note,) = caught.value.__notes__
    assert "OutOfDeviceMemory" in note
    assert "neighbour" in note
    with pytest.raises(torch.OutOfMemoryError), memory.region("weights"):
        torch.empty(100 * GIB, dtype=torch.uint8, device="cuda")
    with memory.region("weights"):
        fits = torch.ones(GIB, dtype=torch.uint8, device="cuda")
    assert int(fits.sum()) + int(kept.sum()) == 3 * GIB
    assert neighbour.ask() == "released"


def test_a_full_cache_of_torch_is_emptied_on_entry(memory: Memory) -> None:
    free, _ = torch.cuda.mem_get_info()
    alive = torch.cuda.memory_allocated()
    hog = torch.empty(free - 4 * GIB, dtype=torch.uint8, device="cuda")
    del hog
    assert torch.cuda.memory_reserved() > free - 5 * GIB
    with memory.region("weights"):
        big = torch.ones(6 * GIB, dtype=torch.uint8, device="cuda")
        reserved = torch.cuda.memory_reserved()
        with memory.region("cache", contents="drop"):
            small = torch.ones(GIB, dtype=torch.uint8, device="cuda")
    assert reserved - alive < 8 * GIB
    assert int(big[:: 1 << 20].sum()) + int(small[:: 1 << 20].sum()) == 7 * 1024


def test_place_moves_a_module_and_keeps_its_identity(memory: Memory) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 8)).cuda()
    given = torch.ones(4, 512, device="cuda")
    before, parameters = model(given), list(model.parameters())
    memory.place(model, "weights")
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(given), before)
    memory.pause("weights", release=True)
    assert state(memory, "weights") == "parked"
    memory.resume("weights")
    assert torch.equal(model(given), before)
    with pytest.raises(InvalidArgument, match="cuda"):
        memory.place(torch.ones(4), "weights")


def test_a_graph_replays_after_its_memory_was_lent_to_somebody_else(memory: Memory, neighbour: "Worker") -> None:
    with memory.region("weights"):
        weight = torch.randn(2048, 2048, device="cuda")
        static = torch.zeros(64, 2048, device="cuda")
    pool = memory.graph_pool("graphs", contents="drop")
    graph = torch.cuda.CUDAGraph()
    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        _ = torch.tanh(static @ weight) @ weight
    torch.cuda.current_stream().wait_stream(warm)
    with torch.cuda.graph(graph, pool=pool):
        out = torch.tanh(static @ weight) @ weight
    assert device_bytes(memory, "graphs") > 0
    for seed in range(3):
        given = torch.randn(64, 2048, device="cuda", generator=torch.Generator(device="cuda").manual_seed(seed))
        expected = torch.tanh(given @ weight) @ weight
        torch.cuda.synchronize()
        memory.pause("weights", "graphs")
        assert neighbour.ask("8").startswith("taken")
        assert neighbour.ask() == "released"
        assert memory.resume("weights", "graphs", timeout=TIMEOUT_S) == {"weights": False, "graphs": False}
        static.copy_(given)
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_a_capture_succeeds_while_the_agent_registers_recalls_and_restores(
    memory: Memory, neighbour: "Worker", mode: str
) -> None:
    with memory.region("weights"):
        weight = pattern(4 * GIB, 3)
    kept = weight.cpu()
    memory.pause("weights")
    static, pool = torch.ones(1000, device="cuda"), memory.graph_pool("graphs")
    stop, failures, captures = threading.Event(), list[BaseException](), list[torch.cuda.CUDAGraph]()

    def capture() -> None:
        try:
            while not stop.is_set() or len(captures) < 3:
                graph = torch.cuda.CUDAGraph()
                stream = torch.cuda.Stream()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
                    out = static
                    for _ in range(200):
                        out = out + 1
                graph.replay()
                stream.synchronize()
                assert float(out[0]) == 201.0
                captures.append(graph)
                del captures[:-3]
        except BaseException as error:  # noqa: BLE001  it is the test's
            failures.append(error)

    thread = threading.Thread(target=capture)
    thread.start()
    copied = memory.stats().copied_out_bytes
    assert neighbour.ask("6").startswith("taken")
    assert memory.stats().copied_out_bytes > copied
    assert neighbour.ask() == "released"
    assert memory.resume("weights", timeout=TIMEOUT_S) == {"weights": False}
    stop.set()
    thread.join(TIMEOUT_S)
    assert not failures, failures
    assert captures
    assert torch.equal(weight.cpu(), kept)


def test_a_pause_in_a_capture_is_refused_and_the_capture_goes_on(memory: Memory) -> None:
    with memory.region("weights"):
        weight = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = weight * 3
        with pytest.raises(NotQuiescent, match="captured"):
            memory.pause("weights")
    graph.replay()
    assert float(out.sum()) == 3000.0
    memory.pause("weights")


def test_a_scope_ends_when_its_work_has(memory: Memory) -> None:
    with memory.region("weights"):
        weight = torch.zeros(1000, device="cuda")
    done, large = torch.cuda.Event(), torch.ones(8192, 8192, device="cuda")
    with memory.use("weights"):
        for _ in range(20):
            _ = large @ large
        weight.add_(1)
        done.record()
        assert not done.query()
    assert done.query()


def test_memory_of_a_killed_process_comes_back(memory: Memory, start_worker: "Callable[[str], Worker]") -> None:
    worker = start_worker(NEIGHBOUR)
    assert worker.hear() == "attached"
    assert worker.ask("7").startswith("taken")
    with pytest.raises(torch.OutOfMemoryError), memory.region("weights"):
        torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
    worker.signal(9)
    worker.close()
    device = memory.status().device
    while device.lent_bytes + device.held_bytes > 0:
        device = memory.status().device
    with memory.region("weights"):
        taken = torch.ones(7 * GIB, dtype=torch.uint8, device="cuda")
    assert int(taken[:: 1 << 20].sum()) == 7 * 1024


def test_a_process_ends_well_with_its_tensors_alive(start_worker: "Callable[[str], Worker]") -> None:
    worker = start_worker("""
import torch
from vrambroker.client import connect
memory = connect("short")
with memory.region("weights"):
    weights = torch.ones(1 << 28, device="cuda")
pool = memory.graph_pool("graphs")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, pool=pool):
    out = weights * 2
memory.pause("weights", release=True)
tell("done")
""")
    assert worker.hear() == "done"
    worker.end()
