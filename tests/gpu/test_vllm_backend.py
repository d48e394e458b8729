"""vLLM's backend and allocator on a GPU: levels, tags, graphs and what loading leaves behind. vLLM itself is not needed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.conftest import RunningBroker, Worker

pytestmark = pytest.mark.gpu

SEAMS = Path(__file__).resolve().parents[1] / "process" / "engines" / "vllm_seams"
ENGINES = SEAMS.parent

StartWorker = Callable[..., Worker]

# A worker that was made as vLLM makes one, and what it is asked by name.
ENGINE = """
import gc
import torch
from vllm_worker import configuration
from vllm.device_allocator import cumem
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.v1.worker.worker_base import WorkerBase
from vrambroker.client import connect
MIB = 1 << 20
config = configuration("vrambroker", enable_sleep_mode=True)
WorkerBase(vllm_config=config, local_rank=0, rank=0, distributed_init_method="")
backend = SleepModeBackendFactory.create_backend(config.model_config)
cumem.cumem_available = True
allocator = cumem.CuMemAllocator.get_instance()
pool = allocator.use_memory_pool
torch.cuda.set_device(0)
memory = connect("rollout")
def mapped():
    return memory.stats().mapped_bytes // MIB
def others_use_the_same_frames():
    if "other" in memory.tags:
        memory.resume("other", timeout=60)
    with memory.region("other", contents="drop"):
        filler = torch.full((1536 * MIB,), 9.0, device="cuda")
    torch.cuda.synchronize()
    del filler
    gc.collect()
    memory.pause("other", release=True)
"""

LEVELS = """
with pool(tag="weights"):
    weights = torch.arange(64 * MIB, dtype=torch.int32, device="cuda")
with pool(tag="runtime"):
    pages = torch.full((MIB,), 3.0, device="cuda")
    with pool(tag="kv_cache"):
        kv = torch.full((128 * MIB,), 1.0, device="cuda")
    adapter = torch.full((MIB,), 4.0, device="cuda")
expected = torch.arange(64 * MIB, dtype=torch.int32)
addresses = [one.data_ptr() for one in (weights, pages, kv, adapter)]
tell("leased", allocator.get_current_usage() // MIB >= 776, *memory.tags)
backend.suspend(1)
tell("asleep", mapped(), backend.state())
backend.resume(["weights"])
tell("weights", torch.equal(weights.cpu(), expected), 264 <= mapped() < 776, backend.state())
backend.resume(["kv_cache"])
tell("awake", int(kv.abs().sum()), backend.state())
kv.fill_(1.0)
backend.suspend(2)
tell("asleep", mapped())
others_use_the_same_frames()
backend.resume(["weights"])
tell("discarded", int(weights.abs().sum()), pages.mean().item(), adapter.mean().item())
weights.copy_(expected.cuda())
backend.resume(["kv_cache"])
tell("awake", torch.equal(weights.cpu(), expected), int(kv.abs().sum()))
backend.suspend(1)
backend.resume()
tell("kept", torch.equal(weights.cpu(), expected))
backend.discard(("kv_cache",))
tell("cache", memory.is_paused("kv_cache"), memory.is_paused("weights"))
backend.resume(["kv_cache"])
tell("same", addresses == [one.data_ptr() for one in (weights, pages, kv, adapter)])
allocator.release_pools()
tell("usage", allocator.get_current_usage() // MIB >= 776)
"""

LOADING = """
with pool(tag="weights"):
    # As a quantisation does it: the large one is gone at the end of the block.
    large = torch.full((256 * MIB,), 1.0, device="cuda")
    small = large[: 16 * MIB].to(torch.float16)
    del large
tell("left", allocator.get_current_usage() // MIB < 200, small.sum(dtype=torch.float64).item() == 16 * MIB)
with pool(tag="weights"):
    more = torch.full((16 * MIB,), 2.0, device="cuda")
backend.suspend(1)
backend.resume()
tell("back", small.sum(dtype=torch.float64).item() == 16 * MIB, more.sum(dtype=torch.float64).item() == 32 * MIB)
"""

GRAPHS = """
with pool(tag="kv_cache"):
    kv = torch.zeros(MIB, device="cuda")
def step():
    scratch = torch.full((64 * MIB,), 1.0, device="cuda")
    kv.add_(scratch[:MIB])
step()
graphs = []
for _ in range(2):
    graph = torch.cuda.CUDAGraph()
    with allocator.cudagraph_pool() as graphs_pool, torch.cuda.graph(graph, pool=graphs_pool):
        step()
    graphs.append(graph)
for graph in graphs:
    graph.replay()
torch.cuda.synchronize()
tell("captured", kv[0].item())
for level in (1, 2):
    backend.suspend(level)
    others_use_the_same_frames()
    backend.resume(["weights"])
    backend.resume(["kv_cache"])
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    tell("replayed", kv[0].item(), kv[-1].item())
"""

EXPANDABLE = """
configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
configure("expandable_segments:True")
with pool(tag="weights"):
    weights = torch.full((64 * MIB,), 2.0, device="cuda")
tell("leased", memory.allocated_bytes("weights") // MIB >= 256)
backend.suspend(1)
configure("expandable_segments:False")
backend.resume()
tell("back", weights.sum(dtype=torch.float64).item() == 128 * MIB)
"""


@pytest.fixture
def start_engine(broker: RunningBroker) -> Iterator[StartWorker]:
    """Start a process that finds the seams of vLLM, and goes on as `source` says."""
    started: list[Worker] = []

    def start(source: str) -> Worker:
        more = {"PYTHONPATH": f"{SEAMS}:{ENGINES}", "VRAMBROKER_NAME": "rollout", "VRAMBROKER_PAUSE": "release"}
        started.append(Worker(ENGINE + source, environment={**broker.environment, **more}))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_levels_and_tags(start_engine: StartWorker) -> None:
    engine = start_engine(LEVELS)
    assert engine.hear() == "leased True weights runtime kv_cache"
    assert engine.hear() == "asleep 0 SUSPENDED"
    assert engine.hear() == "weights True True SUSPENDED"
    assert engine.hear() == "awake 0 RUNNING"
    assert engine.hear() == "asleep 0"
    assert engine.hear() == "discarded 0 3.0 4.0"
    assert engine.hear() == "awake True 0"
    assert engine.hear() == "kept True"
    assert engine.hear() == "cache True False"
    assert engine.hear() == "same True"
    assert engine.hear() == "usage True"


def test_what_loading_has_freed_is_leased_no_longer(start_engine: StartWorker) -> None:
    engine = start_engine(LOADING)
    assert engine.hear() == "left True True"
    assert engine.hear() == "back True True"


def test_graphs_replay_after_either_level(start_engine: StartWorker) -> None:
    engine = start_engine(GRAPHS)
    assert engine.hear() == "captured 3.0"
    assert engine.hear() == "replayed 2.0 2.0"
    assert engine.hear() == "replayed 2.0 2.0"


def test_expandable_segments_are_no_matter(start_engine: StartWorker) -> None:
    engine = start_engine(EXPANDABLE)
    assert engine.hear() == "leased True"
    assert engine.hear() == "back True"
