"""The stand-in for torch_memory_saver on a GPU: tags, graphs, what is read while paused, a process that sleeps as a whole."""

from collections.abc import Callable, Iterator

import pytest

from tests.process.conftest import RunningBroker, Worker
from vrambroker.client.saver import SHIM_FOLDER, STARTUP_FOLDER

pytestmark = pytest.mark.gpu

StartProgram = Callable[..., Worker]

BY_TAG = """
import torch
from torch_memory_saver import torch_memory_saver as saver
from vrambroker.client import connect
MIB = 1 << 20
memory = connect("trainer")
def mapped():
    return memory.stats().mapped_bytes // MIB
with saver.region("weights", enable_cpu_backup=True):
    weights = torch.arange(64 * MIB, dtype=torch.int32, device="cuda")
with saver.region("kv_cache"):
    kv = torch.full((128 * MIB,), 1.0, device="cuda")
addresses = [weights.data_ptr(), kv.data_ptr()]
full = mapped()
saver.pause("kv_cache")
saver.pause("kv_cache")
half = mapped()
saver.pause()
tell("left", full >= 768, full - half >= 512, mapped())
backup = saver.get_cpu_backup(weights[5 * MIB:])
view = saver.get_cpu_backup(weights, zero_copy=True)
expected = torch.arange(64 * MIB, dtype=torch.int32)
tell("read", backup.equal(expected[5 * MIB:]), view.equal(expected))
del view
with saver.region("kv_cache"):
    more = torch.full((MIB,), 2.0, device="cuda")
tell("more", int(more.sum()) // MIB)
saver.resume()
tell("back", torch.equal(weights.cpu(), expected), int(kv.abs().sum()), int(more.sum()) // MIB)
tell("same", addresses == [weights.data_ptr(), kv.data_ptr()], saver.get_cpu_backup(weights))
"""

GRAPHS = """
import torch
from torch_memory_saver import torch_memory_saver as saver
MIB = 1 << 20
with saver.region("kv_cache"):
    kv = torch.zeros(MIB, device="cuda")
def step():
    scratch = torch.full((64 * MIB,), 1.0, device="cuda")
    kv.add_(scratch[:MIB])
step()
graphs = []
pool = None
for _ in range(2):
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with saver.cuda_graph(graph, pool=pool, stream=stream, tag="cuda_graph", enable_cpu_backup=True):
        step()
    pool = graph.pool()
    graphs.append(graph)
for graph in graphs:
    graph.replay()
torch.cuda.synchronize()
tell("captured", kv[0].item())
saver.pause("cuda_graph")
saver.pause("kv_cache")
filler = torch.ones(64 * MIB, device="cuda")
saver.resume("cuda_graph")
saver.resume("kv_cache")
for graph in graphs:
    graph.replay()
torch.cuda.synchronize()
tell("replayed", kv[0].item(), kv[-1].item())
"""

ASLEEP = """
import torch
early = torch.cuda.is_initialized()
from torch_memory_saver import torch_memory_saver as saver
from vrambroker.client import connect
MIB = 1 << 20
state = torch.full((64 * MIB,), 3.0, device="cuda")
memory = connect("trainer")
def leased():
    return memory.stats().allocated_bytes // MIB
tell("leased", early, leased() >= 256, *memory.tags)
cdll = saver._impl._binary_wrapper.cdll
cdll.tms_set_interesting_region(False)
apart = torch.full((64 * MIB,), 4.0, device="cuda")
cdll.tms_set_interesting_region(True)
tell("apart", leased() < 512)
for turn in range(3):
    saver.pause()
    mapped = memory.stats().mapped_bytes
    with saver.disable():
        sent = torch.full((MIB,), 5.0, device="cuda").sum().item()
    asleep = torch.full((MIB,), float(turn), device="cuda")
    saver.resume()
    tell("turn", mapped, int(sent) // MIB, state.mean().item(), apart.mean().item(), asleep.mean().item() == turn)
    del asleep
tell(*memory.tags)
"""


@pytest.fixture
def start_program(broker: RunningBroker) -> Iterator[StartProgram]:
    """Start Python processes as `broker run --name trainer --torch-memory-saver` does."""
    started: list[Worker] = []

    def start(source: str, **environment: str) -> Worker:
        folders = {"PYTHONPATH": f"{STARTUP_FOLDER}:{SHIM_FOLDER}", "VRAMBROKER_NAME": "trainer"}
        started.append(Worker(source, environment={**broker.environment, **folders, **environment}))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_tags_are_paused_read_and_resumed(start_program: StartProgram) -> None:
    worker = start_program(BY_TAG, VRAMBROKER_PAUSE="release")
    assert worker.hear() == "left True True 0"
    assert worker.hear() == "read True True"
    assert worker.hear() == "more 2"
    assert worker.hear() == "back True 0 2"
    assert worker.hear() == "same True None"


def test_graphs_replay_after_their_memory_was_away(start_program: StartProgram) -> None:
    worker = start_program(GRAPHS, VRAMBROKER_PAUSE="release")
    assert worker.hear() == "captured 3.0"
    assert worker.hear() == "replayed 2.0 2.0"


def test_a_process_sleeps_and_wakes_as_a_whole(start_program: StartProgram) -> None:
    asleep = {"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "1"}
    worker = start_program(ASLEEP, VRAMBROKER_PAUSE="release", **asleep)
    assert worker.hear() == "leased False True default"
    assert worker.hear() == "apart True"
    for _ in range(3):
        assert worker.hear() == "turn 0 5 3.0 4.0 True"
    assert worker.hear() == "default default+2"
