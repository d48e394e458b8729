"""A whole torch process on a GPU, leased by `broker run --tag`: every thread's memory, the caching allocator's cached blocks,
graphs, what is told to be free, and what is left out.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.process.conftest import RunningBroker, Worker
from vrambroker.broker.launch import Wishes, environment_for

pytestmark = pytest.mark.gpu

StartProgram = Callable[..., Worker]

PRELUDE = """
import threading
import torch
from vrambroker.client import connect
MIB = 1 << 20
GIB = 1 << 30
def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]
"""

# Autograd's threads allocate the gradients; a leased process keeps them as well.
TRAINER = """
linear = torch.nn.Linear(8192, 8192, device="cuda")
x = torch.ones(64, 8192, device="cuda")
linear(x).sum().backward()
other = in_thread(lambda: torch.full((64 * MIB,), 2.0, device="cuda"))
memory = connect("trainer")
grad = linear.weight.grad
before = (grad.clone(), grad.data_ptr(), other.data_ptr())
total = memory.stats().mapped_bytes // MIB
holes = [torch.full((MIB,), float(i), device="cuda") for i in range(64)]
del holes[::2]
for turn in range(3):
    memory.pause(release=True)
    away = memory.stats().mapped_bytes
    # Cached blocks lie between tensors that are asleep; none of them is handed out.
    asleep = [torch.full((MIB,), 7.0, device="cuda") for _ in range(16)]
    asleep.append(in_thread(lambda: torch.full((MIB,), 7.0, device="cuda")))
    fresh = all(bool((one == 7.0).all()) for one in asleep)
    del holes[-1]
    more = in_thread(lambda: torch.full((MIB,), 8.0, device="cuda"))
    fresh = fresh and bool((more == 8.0).all())
    memory.resume()
    kept = bool((other == 2.0).all()) and bool((grad == before[0]).all())
    kept = kept and all(bool((one == 7.0).all()) for one in asleep) and holes[3].mean().item() == 7.0
    del asleep, more
    tell("turn", total >= 768, away, fresh, kept)
tell("same", before[1:] == (grad.data_ptr(), other.data_ptr()), *sorted(set(memory.process_tags)))
linear(x).sum().backward()
tell("trains", grad.equal(2 * before[0]))
"""

# A graph's private pool is memory of the process like any other.
GRAPH = """
memory = connect("trainer")
kv = torch.zeros(MIB, device="cuda")
def step():
    scratch = torch.full((64 * MIB,), 1.0, device="cuda")
    kv.add_(scratch[:MIB])
step()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    step()
graph.replay()
torch.cuda.synchronize()
tell("captured", kv[0].item())
memory.pause(release=True)
filler = torch.ones(64 * MIB, device="cuda")
memory.resume()
graph.replay()
torch.cuda.synchronize()
tell("replayed", kv[0].item(), kv[-1].item())
"""

# torch maps its segments itself; some of it was made before, and some is made after, as verl switches.
EXPANDABLE = """
memory = connect("trainer")
switch = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
if told() == "switched":
    early = torch.full((32 * MIB,), 4.0, device="cuda")
    switch("expandable_segments:True")
def sizes():
    return sum(segment["total_size"] for segment in torch.cuda.memory_snapshot() if segment["is_expandable"]) // MIB
big = torch.full((256 * MIB,), 1.0, device="cuda")
small = [torch.full((1024,), float(i), device="cuda") for i in range(100)]
growing = [torch.full((8 * MIB,), float(i), device="cuda") for i in range(24)]
del growing[::2]
linear = torch.nn.Linear(4096, 4096, device="cuda")
x = torch.ones(64, 4096, device="cuda")
linear(x).sum().backward()
before = [one.data_ptr() for one in (big, *small, *growing, linear.weight.grad)]
grad = linear.weight.grad.clone()
tell("leased", sizes() >= 1024, memory.stats().mapped_bytes // MIB >= sizes())
for turn in range(3):
    memory.pause(release=True)
    away = memory.stats().mapped_bytes
    asleep = torch.full((64 * MIB,), 9.0, device="cuda")
    memory.resume()
    kept = bool((big == 1.0).all()) and all(one.mean().item() == i for i, one in enumerate(small))
    kept = kept and all(one.mean().item() == 2 * i + 1 for i, one in enumerate(growing)) and grad.equal(linear.weight.grad)
    tell("turn", away, kept, asleep.mean().item())
    del asleep
tell("same", before == [one.data_ptr() for one in (big, *small, *growing, linear.weight.grad)])
switch("expandable_segments:False")
late = torch.full((300 * MIB,), 5.0, device="cuda")
memory.pause(release=True)
memory.resume()
tell("late", late.mean().item(), big.mean().item())
switch("expandable_segments:True")
del big, late
torch.cuda.empty_cache()
left = memory.stats().allocated_bytes // MIB
free, _ = torch.cuda.mem_get_info()
try:
    torch.empty(free + GIB, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    tell("full", left < 1200)
tell("fits", torch.full((free - GIB,), 1, dtype=torch.uint8, device="cuda")[-1].item())
"""

FREE = """
free, total = torch.cuda.mem_get_info()
real = torch.cuda.get_device_properties(0).total_memory
tell("at first", abs(total - real) < 2 * GIB)
one = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
after, _ = torch.cuda.mem_get_info()
tell("taken", (free - after) // GIB)
memory = connect("trainer")
kv = torch.empty(after - 64 * MIB, dtype=torch.uint8, device="cuda")
rest, _ = torch.cuda.mem_get_info()
tell("sized", rest < GIB)
try:
    torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    tell("full")
del kv
torch.cuda.empty_cache()
tell("again", (free - torch.cuda.mem_get_info()[0]) // GIB)
"""

LEFT_OUT = """
from torch_memory_saver import torch_memory_saver as saver
memory = connect("trainer")
one = torch.full((256 * MIB,), 1.0, device="cuda")
leased = memory.stats().mapped_bytes
with saver.disable():
    plain = torch.full((64 * MIB,), 5.0, device="cuda")
tell("plain", memory.stats().mapped_bytes - leased < 256 * MIB)
with saver.region("kv_cache"):
    kv = torch.full((64 * MIB,), 3.0, device="cuda")
tell("tags", *sorted({tag.partition("+")[0] for tag in memory.tags}))
saver.pause()
tell("away", memory.stats().mapped_bytes, plain.mean().item())
with saver.disable():
    sent = torch.full((MIB,), 4.0, device="cuda")
saver.resume("default")
tell("back", one.mean().item(), sent.mean().item())
saver.resume()
tell("all", kv.abs().sum().item())
"""


# Neither side has ever connected by itself.
SENDER = """
import io
from multiprocessing.reduction import ForkingPickler
weights = torch.nn.Linear(1024, 1024, device="cuda").requires_grad_(False)
weights.weight.fill_(1.0)
into = io.BytesIO()
ForkingPickler(into).dump(dict(weights.named_parameters()))
tell(into.getvalue().hex())
told()
torch.cuda.synchronize()
tell(weights.weight[0, 0].item())
memory = connect("trainer")
memory.pause(release=True)
memory.resume()
tell("slept", weights.weight[-1, -1].item())
"""
RECEIVER = """
import pickle
named = pickle.loads(bytes.fromhex(told()))
tell(named["weight"].mean().item(), tuple(named["bias"].shape))
named["weight"].fill_(2.0)
torch.cuda.synchronize()
del named
tell("done")
told()
"""


@pytest.fixture
def start_program(broker: RunningBroker) -> Iterator[StartProgram]:
    """Start Python processes as `broker run --name trainer --torch-memory-saver` does, with more in the environment."""
    started: list[Worker] = []

    def start(source: str, *, tag: str | None = "all", **environment: str) -> Worker:
        wishes = Wishes(name="trainer", tag=tag, contents=None, torch_memory_saver=True)
        merged = environment_for(wishes, (broker.endpoint,), {**broker.environment, **environment})
        started.append(Worker(PRELUDE + source, environment=merged))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_every_thread_s_memory_sleeps_and_no_cached_block_is_handed_out(start_program: StartProgram) -> None:
    worker = start_program(TRAINER)
    for _ in range(3):
        assert worker.hear() == "turn True 0 True True"
    assert worker.hear() == "same True all all+p2"
    assert worker.hear() == "trains True"
    worker.end()


def test_a_graph_replays_after_its_private_pool_was_away(start_program: StartProgram) -> None:
    worker = start_program(GRAPH)
    assert worker.hear() == "captured 2.0"
    assert worker.hear() == "replayed 3.0 3.0"
    worker.end()


@pytest.mark.parametrize("how", ["from the start", "switched"])
def test_expandable_segments_are_leased_and_paused(how: str, start_program: StartProgram) -> None:
    setting = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if how == "from the start" else {}
    worker = start_program(EXPANDABLE, **setting)
    worker.say(how)
    assert worker.hear() == "leased True True"
    for _ in range(3):
        assert worker.hear() == "turn 0 True 9.0"
    assert worker.hear() == "same True"
    assert worker.hear() == "late 5.0 1.0"
    assert worker.hear() == "full True"
    assert worker.hear() == "fits 1"
    worker.end()


def test_a_whole_process_sends_what_it_has_and_sleeps_afterwards(start_program: StartProgram) -> None:
    sender, receiver = start_program(SENDER), start_program(RECEIVER, tag=None)
    receiver.say(sender.hear())
    assert receiver.hear() == "1.0 (1024,)"
    assert receiver.hear() == "done"
    assert sender.ask() == "2.0"
    assert sender.hear() == "slept 2.0"
    receiver.say()
    for worker in (sender, receiver):
        worker.end()


def test_an_engine_can_size_its_cache_by_what_is_free(start_program: StartProgram) -> None:
    worker = start_program(FREE)
    assert worker.hear() == "at first True"
    assert worker.hear() == "taken 4"
    assert worker.hear() == "sized True"
    assert worker.hear() == "full"
    assert worker.hear() == "again 4"
    worker.end()


@pytest.mark.parametrize("expandable", [False, True])
def test_regions_and_what_is_left_out_beside_a_whole_process(expandable: bool, start_program: StartProgram) -> None:
    asleep = {"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "1", "VRAMBROKER_PAUSE": "release"}
    if expandable:
        asleep["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    worker = start_program(LEFT_OUT, tag=None, **asleep)
    assert worker.hear() == "plain True"
    assert worker.hear() == "tags default kv_cache"
    assert worker.hear() == "away 0 5.0"
    assert worker.hear() == "back 1.0 4.0"
    assert worker.hear() == "all 0.0"
    worker.end()


def test_a_program_without_a_daemon_trains_as_ever(gpu: str, tmp_path: "os.PathLike[str]") -> None:
    wishes = Wishes(name="trainer", tag="all", contents=None, torch_memory_saver=False)
    environment = environment_for(wishes, (), {**os.environ, "VRAMBROKER_RUN_DIR": str(tmp_path)})
    worker = Worker("import torch\ntell(torch.ones(3, device='cuda').sum().item())", environment=environment)
    try:
        assert worker.hear() == "3.0"
        code, said = worker.ended()
        assert code == 0
        assert "BrokerUnavailable" in said
    finally:
        worker.close()
