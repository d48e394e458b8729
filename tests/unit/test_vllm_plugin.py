"""The plugin in processes of vLLM that ask for it, that don't, and that can't have it. Each is a program of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SEAMS = Path(__file__).resolve().parents[1] / "process" / "engines" / "vllm_seams"

PRELUDE = """
import sys
from types import SimpleNamespace
def configuration(backend="cumem", enable_sleep_mode=True):
    model_config = SimpleNamespace(enable_sleep_mode=enable_sleep_mode, sleep_mode_backend=backend)
    return SimpleNamespace(model_config=model_config)
def make_worker(config):
    from vllm.v1.worker.worker_base import WorkerBase
    return WorkerBase(vllm_config=config, local_rank=0, rank=0, distributed_init_method="")
def instance():
    from vllm.device_allocator.cumem import CuMemAllocator
    return type(CuMemAllocator.instance).__name__
def refused(call, *arguments):
    from vrambroker.client import BrokerError
    try:
        call(*arguments)
    except BrokerError as error:
        print(f"{type(error).__name__}: {error}")
from vrambroker.client.vllm import plugin
"""


def told(program: str, tmp_path: Path, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VRAMBROKER_")}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        env={**clean, "PYTHONPATH": str(SEAMS), "VRAMBROKER_RUN_DIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_loading_it_costs_next_to_nothing(tmp_path: Path) -> None:
    program = """
plugin.register()
heavy = ("torch", "grpc", "vllm.v1.worker.worker_base", "vllm.device_allocator.cumem", "vrambroker.client.vllm.allocator")
print([name for name in heavy if name in sys.modules])
"""
    assert told(program, tmp_path) == ["[]"]


@pytest.mark.parametrize("early", [True, False])
def test_a_worker_leases_its_memory_only_if_it_says_so(tmp_path: Path, early: bool) -> None:
    program = f"""
if {early}:
    import vllm.v1.worker.worker_base
plugin.register()
plugin.register()
make_worker(configuration())
make_worker(configuration("another"))
make_worker(SimpleNamespace(model_config=None))
print(instance())
worker = make_worker(configuration("vrambroker"))
print(instance(), worker.rank, worker.is_driver_worker)
from vllm.v1.worker.worker_base import WorkerBase
from vllm.v1.worker import worker_base
print(hasattr(WorkerBase.__init__.__wrapped__, "__wrapped__"), worker_base.__loader__ is worker_base.__spec__.loader)
print(type(worker_base.__loader__).__module__)
"""
    lines = told(program, tmp_path)
    assert lines[:3] == ["NoneType", "LeasedAllocator 0 False", "False True"]
    assert "vrambroker" not in lines[3]


@pytest.mark.parametrize(
    ("switch", "enabled", "expected"),
    [("1", True, "LeasedAllocator"), ("1", False, "NoneType"), ("0", True, "NoneType")],
)
def test_the_environment_can_say_so_as_well(tmp_path: Path, switch: str, enabled: bool, expected: str) -> None:
    program = f"plugin.register(); make_worker(configuration(enable_sleep_mode={enabled})); print(instance())"
    assert told(program, tmp_path, VRAMBROKER_VLLM=switch) == [expected]


def test_an_older_vllm_has_no_names_for_backends(tmp_path: Path) -> None:
    program = """
sys.modules["vllm.device_allocator.sleep_mode_backend"] = None
plugin.register()
config = configuration()
del config.model_config.sleep_mode_backend
make_worker(config)
print(instance())
"""
    assert told(program, tmp_path, VRAMBROKER_VLLM="1") == ["LeasedAllocator"]


def test_without_a_daemon_the_first_allocation_says_how_to_start_one(tmp_path: Path) -> None:
    program = """
plugin.register()
make_worker(configuration("vrambroker"))
from vllm.device_allocator import cumem
cumem.cumem_available = True
allocator = cumem.CuMemAllocator.get_instance()
print(allocator.get_current_usage(), allocator.is_asleep)
allocator.sleep(("weights",))
allocator.wake_up()
allocator.release_pools()
def allocate():
    with allocator.use_memory_pool(tag="weights"):
        raise AssertionError("this block is not entered")
refused(allocate)
refused(allocator.sleep, ("kv_cache",))
"""
    usage, unavailable, refused = told(program, tmp_path)
    assert usage == "0 False"
    assert unavailable.startswith("BrokerUnavailable:")
    assert "broker serve" in unavailable
    assert refused.startswith("InvalidArgument: tag kv_cache")


def test_what_can_not_be_is_told_before_anything_is_allocated(tmp_path: Path) -> None:
    program = """
plugin.register()
from vllm.device_allocator.cumem import CuMemAllocator
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
config = configuration("vrambroker")
backend = SleepModeBackendFactory.create_backend(config.model_config)
refused(backend.suspend, 1)
CuMemAllocator.instance = object()
refused(make_worker, config)
CuMemAllocator.instance = None
make_worker(config)
refused(backend.suspend, 3)
print(backend.state())
"""
    lines = told(program, tmp_path)
    assert [line.partition(":")[0] for line in lines] == ["WrongState", "WrongState", "InvalidArgument", "RUNNING"]
    wrong = "plugin.register(); refused(make_worker, configuration())"
    assert told(wrong, tmp_path, VRAMBROKER_VLLM="maybe")[0].startswith("InvalidArgument: VRAMBROKER_VLLM='maybe'")
