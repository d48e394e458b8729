"""The stand-in for torch_memory_saver on `host`, against a real daemon: what its callers do, and what the original dies of."""

# torch leaves many of its signatures half typed; callers of the original use its private parts.
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from vrambroker.client import InvalidArgument, OutOfDeviceMemory, WrongState, connect, native
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.saver import SHIM_FOLDER
from vrambroker.client.saver.compatible import change_env, get_binary_path_from_package
from vrambroker.client.saver.saver import TorchMemorySaver, configure_subprocess

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker

MIB = 1 << 20

FORKED = """
import torch
from vrambroker.client.saver.saver import torch_memory_saver as saver
with saver.region("weights", enable_cpu_backup=True):
    weights = torch.full((1000,), 1.0)
    child = os.fork()
    if child == 0:
        tell("child", saver._impl is None)
        with saver.region("weights", enable_cpu_backup=True):
            own = torch.full((1000,), 2.0)
        saver.pause()
        saver.resume()
        tell("child", own.mean().item())
        del own
        os._exit(0)
    tell("child ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
saver.pause()
saver.resume()
tell("parent", weights.mean().item())
"""


@pytest.fixture
def environment(shared_broker: "RunningBroker", monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where the daemon of this file is found. What is paused leaves at once, so that contents have to be brought back."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(shared_broker.run_dir))
    monkeypatch.setenv("VRAMBROKER_PAUSE", "release")
    return monkeypatch


@pytest.fixture
def saver(environment: pytest.MonkeyPatch) -> Iterator[TorchMemorySaver]:
    del environment
    made = TorchMemorySaver()
    yield made
    if made._impl is not None:
        made._impl.regions.close()


def filled(size: int, value: float) -> torch.Tensor:
    return torch.full((size,), value)


def device_bytes(saver: TorchMemorySaver) -> dict[str, int]:
    (memory,) = saver._ensure_initialized().regions.memories
    session = memory.status().session(memory.name)
    assert session is not None
    return {tag.tag: tag.device_bytes for tag in session.tags}


def cdll(saver: TorchMemorySaver) -> Any:
    return saver._ensure_initialized()._binary_wrapper.cdll


def test_nothing_happens_until_the_first_use(saver: TorchMemorySaver) -> None:
    assert saver._impl is None
    assert saver.enabled
    assert saver._impl_ctor_kwargs["hook_mode"] == "preload"
    saver.hook_mode = "torch"
    with pytest.raises(ValueError, match="expected preload or torch"):
        saver.hook_mode = "both"
    with pytest.raises(NotImplementedError):
        _ = saver.memory_margin_bytes
    with pytest.raises(AttributeError):
        _ = saver.hook_mode
    assert saver._impl is None
    saver.memory_margin_bytes = 1 << 30
    assert saver._impl is not None
    # A program that is in a region from the start has used it before it says so.
    saver.hook_mode = "preload"


def test_a_backup_keeps_contents_and_without_one_they_are_zero(saver: TorchMemorySaver) -> None:
    with saver.region("weights", enable_cpu_backup=True):
        weights = filled(3 * MIB // 4, 2.5)
    with saver.region("weights", enable_disk_backup=True):
        more = filled(1000, 3.5)
    with saver.region("kv_cache"):
        kv = filled(MIB, 1.0)
    addresses = [tensor.data_ptr() for tensor in (weights, more, kv)]
    for _ in range(2):
        saver.pause("kv_cache")
        saver.pause("weights")
        assert set(device_bytes(saver).values()) == {0}
        saver.resume("weights")
        assert device_bytes(saver)["kv_cache"] == 0
        assert weights.eq(2.5).all()
        assert more.eq(3.5).all()
        saver.resume()
        assert kv.eq(0).all()
        kv.fill_(1)
    assert [tensor.data_ptr() for tensor in (weights, more, kv)] == addresses


def test_what_the_original_dies_of(saver: TorchMemorySaver) -> None:
    saver.pause("nobody")
    saver.resume("nobody")
    saver.pause()
    with saver.region("a", enable_cpu_backup=True):
        a = filled(1000, 1.0)
    with saver.region("b", enable_cpu_backup=True):
        b = filled(1000, 2.0)
    saver.resume("a")
    saver.pause("a")
    saver.pause("a")
    saver.pause("")
    assert not any(device_bytes(saver).values())
    del b
    saver.resume()
    saver.resume()
    assert a.eq(1).all()


def test_what_is_allocated_under_a_paused_tag_is_there_and_goes_with_it_from_then_on(saver: TorchMemorySaver) -> None:
    with saver.region("all", enable_cpu_backup=True):
        first = filled(1000, 1.0)
        saver.pause("all")
        second = filled(1000, 2.0)
        assert second.eq(2).all()
        saver.resume("all")
        assert first.eq(1).all()
        third = filled(1000, 3.0)
    saver.pause("all")
    assert not any(device_bytes(saver).values())
    saver.resume("all")
    assert [int(tensor[-1]) for tensor in (first, second, third)] == [1, 2, 3]


def test_a_whole_process_sleeps_and_wakes(saver: TorchMemorySaver, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TMS_INIT_ENABLE", "1")
    environment.setenv("TMS_INIT_ENABLE_CPU_BACKUP", "1")
    functions = cdll(saver)
    assert functions.tms_get_interesting_region()
    state = filled(1000, 1.0)
    functions.tms_set_interesting_region(False)
    apart = filled(1000, 2.0)
    functions.tms_set_interesting_region(True)
    with saver.region("grad_buffer"):
        grads = filled(1000, 3.0)
    for round_ in range(4):
        saver.pause()
        with saver.disable():
            assert not functions.tms_get_interesting_region()
            sent = filled(1000, 4.0)
        assert apart.eq(2).all()
        assert sent.eq(4).all()
        asleep = filled(1000, round_)
        saver.resume()
        assert state.eq(1).all()
        assert grads.eq(0).all()
        assert asleep.eq(round_).all()
        del asleep
    assert device_bytes(saver).keys() == {"default", "default+2", "grad_buffer"}
    with saver.region("grad_buffer"), saver.disable():
        assert not functions.tms_get_interesting_region()
    functions.tms_set_interesting_region(False)
    with pytest.raises(AssertionError), saver.disable():
        pass


def test_the_innermost_region_counts_and_leaving_it_restores_the_outer_one(saver: TorchMemorySaver) -> None:
    with saver.region("outer", enable_cpu_backup=True, cpu_backup_backend="mmap"):
        with saver.region("inner", enable_cpu_backup=True):
            assert saver._ensure_initialized().regions.settings.backend == "mmap"
            inner = filled(1000, 1.0)
        outer = filled(1000, 2.0)
        with pytest.raises(KeyError), saver.region("inner"):
            raise KeyError
        again = filled(1000, 3.0)
    assert not cdll(saver).tms_get_interesting_region()
    saver.pause("outer")
    assert inner.eq(1).all()
    assert saver.get_cpu_backup(inner) is None
    for tensor in (outer, again):
        assert saver.get_cpu_backup(tensor) is not None


def test_no_room_at_a_resume_is_an_error_that_changes_nothing(
    saver: TorchMemorySaver, environment: pytest.MonkeyPatch, shared_broker: "RunningBroker"
) -> None:
    environment.setenv("VRAMBROKER_TIMEOUT", "0.1")
    with saver.region("a", enable_cpu_backup=True):
        a = filled(MIB, 1.0)
    with saver.region("b", enable_cpu_backup=True):
        b = filled(MIB, 2.0)
    saver.pause()
    neighbour = native.Client(
        socket_path=str(shared_broker.endpoint.handle_socket),
        name="neighbour",
        device="host",
        version="test",
        timeout_s=10,
    )
    taken = neighbour.open_lease("kv", "drop").malloc(60 * MIB, timeout_s=10)
    with pytest.raises(OutOfDeviceMemory) as error:
        saver.resume()
    assert [holder.session for holder in error.value.holders] == ["neighbour"]
    assert not any(device_bytes(saver).values())
    neighbour.free(taken)
    neighbour.close()
    saver.resume()
    assert a.eq(1).all()
    assert b.eq(2).all()


def test_the_backup_is_read_while_it_is_away(saver: TorchMemorySaver, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("VRAMBROKER_PAUSE", "idle")
    with saver.region("weights", enable_cpu_backup=True):
        # Over several frames, which lie anywhere in the arena.
        weights = torch.arange(5 * MIB, dtype=torch.int32).view(5, MIB)
        small = torch.tensor([True, False])
        saver.pause("weights")
        read = saver.get_cpu_backup(weights)
        part = saver.get_cpu_backup(weights[3], zero_copy=True)
        few = saver.get_cpu_backup(small)
        # What is read is no lease, though a region is open.
        (memory,) = saver._ensure_initialized().regions.memories
        assert memory.allocated_bytes("weights+2") == 0
    with saver.region("kv_cache"):
        kv = filled(1000, 1.0)
    assert saver.get_cpu_backup(kv) is None
    expected = torch.arange(5 * MIB, dtype=torch.int32).view(5, MIB)
    assert read is not None
    assert part is not None
    assert few is not None
    assert read.equal(expected)
    assert part.equal(expected[3])
    assert few.tolist() == [True, False]
    saver.pause("kv_cache")
    with pytest.raises(WrongState, match="keeps no contents"):
        saver.get_cpu_backup(kv)
    with pytest.raises(InvalidArgument):
        saver.get_cpu_backup(torch.zeros(4))
    with pytest.raises(AssertionError):
        saver.get_cpu_backup(weights.t())
    saver.resume()
    # Its pages stayed, and what they held did not.
    assert kv.eq(0).all()
    assert saver.get_cpu_backup(weights) is None
    # The copy is its own; the view is readable still, whatever it shows.
    weights.zero_()
    assert read.equal(expected)
    assert part.shape == (MIB,)
    del part
    saver.pause("weights")
    again = saver.get_cpu_backup(weights)
    assert again is not None
    assert not again.any()


def test_a_backup_on_a_disk_is_read_as_well(
    start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--spill-dir", str(tmp_path), "--spill-budget", "64MiB")
    broker = start_broker(host_budget="64MiB", options=options)
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(broker.run_dir))
    with connect("reader", broker.device) as memory:
        model = memory.empty((48, MIB // 4), dtype=torch.int32, tag="model")
        model.copy_(torch.arange(12 * MIB, dtype=torch.int32).view(model.shape))
        memory.pause("model")
        read = memory.read_paused(model)
        held, paused = memory.status().session("reader"), memory.is_paused("model")
        # What is told of a failure may show the tensor.
        memory.resume("model")
        assert paused
        assert read is not None
        assert held is not None
        assert held.tags[0].spill_bytes > 0
        assert read.equal(torch.arange(12 * MIB, dtype=torch.int32).view(model.shape))


def test_memory_is_freed_anywhere_and_at_any_time(saver: TorchMemorySaver) -> None:
    with saver.region("a", enable_cpu_backup=True):
        tensors = [filled(1000, n) for n in range(4)]
    del tensors[0]
    saver.pause()
    del tensors[0]
    kept = saver.get_cpu_backup(tensors[0])
    assert kept is not None
    assert kept.eq(2).all()
    saver.resume()
    assert tensors[1].eq(3).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"cpu_backup_backend": "pinned"},
        {"enable_cpu_backup": True, "cpu_backup_backend": "tape"},
    ],
)
def test_backends_are_checked_before_anything_is_attached(saver: TorchMemorySaver, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cpu_backup_backend"), saver.region("a", **arguments):
        pass
    assert saver._impl is None
    with pytest.raises(AssertionError), saver.region("a", enable_cpu_backup=True, enable_disk_backup=True):
        pass


def test_a_variable_that_says_nothing_is_an_error_and_no_end(
    saver: TorchMemorySaver, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("TMS_INIT_ENABLE", "maybe")
    with pytest.raises(InvalidArgument, match="TMS_INIT_ENABLE='maybe'"):
        saver.pause()
    environment.setenv("TMS_INIT_ENABLE", "0")
    environment.setenv("TMS_RETAIN_CPU_BACKUP", "1")
    saver.pause()
    assert saver.retain_cpu_backup
    saver.retain_cpu_backup = False
    assert not saver.retain_cpu_backup


def test_graphs_are_for_a_gpu(saver: TorchMemorySaver) -> None:
    graph = cast("torch.cuda.CUDAGraph", object())
    with pytest.raises(InvalidArgument, match="no CUDA graphs"), saver.cuda_graph(graph, tag="cuda_graph"):
        pass


def test_a_forked_child_has_memory_of_its_own(start_shared_worker: "StartWorker") -> None:
    worker = start_shared_worker(FORKED)
    assert [worker.hear() for _ in range(4)] == ["child True", "child 2.0", "child ended 0", "parent 1.0"]
    worker.end()


def test_children_find_it_too(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PYTHONPATH", "/mine")
    with configure_subprocess():
        assert os.environ["PYTHONPATH"] == f"{SHIM_FOLDER}:/mine"
        with configure_subprocess():
            assert os.environ["PYTHONPATH"] == f"{SHIM_FOLDER}:/mine"
    assert os.environ["PYTHONPATH"] == "/mine"
    environment.delenv("PYTHONPATH")
    with configure_subprocess():
        assert os.environ["PYTHONPATH"] == str(SHIM_FOLDER)
    assert "PYTHONPATH" not in os.environ


def test_what_callers_use_of_utils() -> None:
    path = get_binary_path_from_package("torch_memory_saver_hook_mode_preload")
    assert "torch_memory_saver" in str(path)
    assert b"TMS_INIT_ENABLE_DISK_BACKUP" in path.read_bytes()
    with pytest.raises(RuntimeError):
        get_binary_path_from_package("nothing")
    with change_env("VRB_TEST", "1"):
        assert os.environ["VRB_TEST"] == "1"
    assert "VRB_TEST" not in os.environ
