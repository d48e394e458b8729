"""CUDA's runtime, interposed, in real processes of a real daemon: what they allocate, what they are told is free, and what
happens where there is no daemon. The runtime itself is a stand-in here (`preload/fake_cudart.c`); on a GPU see tests/gpu.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.conftest import RunningBroker, StartBroker, Worker
from vrambroker.broker.core.errors import NotQuiescent
from vrambroker.client.native import preload_path
from vrambroker.client.rpc import Control

MIB = 1 << 20
DEADLINE_S = 60.0

PRELUDE = """
import ctypes
from ctypes import byref, c_size_t, c_void_p
MIB = 1 << 20
fake = ctypes.CDLL(os.environ["FAKE_CUDART"], ctypes.RTLD_GLOBAL)
# As a program that is linked to the runtime finds it: the preloaded library first.
cuda = ctypes.CDLL(None)
fake.fakeTotal.argtypes = (c_size_t,)
fake.fakeUsed.restype = c_size_t
def malloc(size):
    pointer = c_void_p()
    result = cuda.cudaMalloc(byref(pointer), c_size_t(size))
    return pointer.value if result == 0 else -result
def free(address):
    return cuda.cudaFree(c_void_p(address))
def mem_get_info():
    free, total = c_size_t(), c_size_t()
    assert cuda.cudaMemGetInfo(byref(free), byref(total)) == 0
    return free.value, total.value
def fill(address, size, byte):
    ctypes.memset(address, byte, size)
def holds(address, size, byte):
    return ctypes.string_at(address, size) == bytes([byte]) * size
"""

StartProgram = Callable[..., Worker]


@pytest.fixture(scope="module")
def fake_cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for the runtime, built."""
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so.13"
    source = Path(__file__).parent / "preload" / "fake_cudart.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=DEADLINE_S)
    return library


@pytest.fixture
def start_program(broker: RunningBroker, fake_cudart: Path) -> Iterator[StartProgram]:
    """Start programs as `broker run` does, with a runtime to call."""
    started: list[Worker] = []

    def start(source: str, **environment: str) -> Worker:
        preloaded = {"LD_PRELOAD": preload_path(), "FAKE_CUDART": str(fake_cudart), "VRAMBROKER_DEVICE": broker.device}
        merged = {**broker.environment, **preloaded, **environment}
        started.append(Worker(PRELUDE + source, environment=merged))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def tags_of(control: Control) -> dict[str, int]:
    """What each tag of each session has on the device, in MiB."""
    sessions = control.status().sessions
    return {f"{one.name}/{tag.tag}": tag.device_bytes // MIB for one in sessions for tag in one.tags}


def test_what_a_program_allocates_is_leased_and_given_back(start_program: StartProgram, control: Control) -> None:
    source = """
one, two, none = malloc(8 * MIB), malloc(3 * MIB), malloc(0)
fill(one, 8 * MIB, 7)
tell(one % 256, none, fake.fakeUsed())
told()
tell(free(two), free(one), free(None), free(one))
told()
"""
    worker = start_program(source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "0 None 0"
    leased = tags_of(control)
    assert list(leased) == ["trainer/all"]
    assert leased["trainer/all"] >= 11
    assert worker.ask() == "0 0 0 1"
    worker.say()
    worker.end()


def test_a_program_is_paused_and_what_it_allocates_then_has_other_frames(
    start_program: StartProgram, control: Control
) -> None:
    source = """
from vrambroker.client import connect
one = malloc(8 * MIB)
fill(one, 8 * MIB, 7)
memory = connect("whatever it was called")
tell(memory.name, *memory.process_tags, *memory.tags)
memory.pause(release=True)
two = malloc(4 * MIB)
fill(two, 4 * MIB, 9)
tell(*memory.process_tags, memory.is_paused("all"))
told()
memory.resume()
tell(holds(one, 8 * MIB, 7), holds(two, 4 * MIB, 9))
memory.pause("all")
three = malloc(MIB)
memory.pause()
four = malloc(MIB)
tell(*memory.process_tags)
memory.resume()
free(two), free(three), free(four)
memory.pause()
five = malloc(MIB)
tell(*memory.process_tags)
"""
    worker = start_program(source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "trainer all all"
    assert worker.hear() == "all all+p2 True"
    assert tags_of(control)["trainer/all"] == 0
    assert worker.ask() == "True True"
    assert worker.hear() == "all all+p2 all+p3 all+p4"
    assert worker.hear() == "all all+p2 all+p3 all+p4", "what is empty is taken again"
    worker.end()


def test_what_is_free_is_what_can_be_allocated(start_program: StartProgram, control: Control) -> None:
    """The arithmetic of SGLang (a share of what was free at first) and of vLLM (a share of the total, less what is used)."""
    neighbour = start_program(
        """
from vrambroker.client import connect
memory = connect("neighbour")
own = malloc(16 * MIB)
with memory.region("kv_cache", "drop"):
    import torch
    kept = torch.ones(8 * MIB, dtype=torch.uint8)
memory.pause("kv_cache")
tell("there")
told()
""",
        VRAMBROKER_TAG="own",
        VRAMBROKER_NAME="neighbour",
    )
    assert neighbour.hear() == "there"
    engine = start_program(
        """
fake.fakeTotal(64 * MIB)
before, total = mem_get_info()
tell(before // MIB, total // MIB)
weights = malloc(8 * MIB)
after, _ = mem_get_info()
sglang = after - int(before * (1 - 0.75))
vllm = int(total * 0.5) - (total - after - 16 * MIB)
tell((before - after) // MIB, sglang // MIB, vllm // MIB)
kv_cache = malloc(sglang)
rest, _ = mem_get_info()
tell(kv_cache > 0, rest // MIB, malloc(rest + 2 * MIB), malloc(rest) > 0, mem_get_info()[0])
told()
""",
        VRAMBROKER_TAG="all",
        VRAMBROKER_NAME="engine",
    )
    # Of 64 MiB the neighbour has 16 in use; its other 8 are idle, and can be had.
    assert engine.hear() == "48 64"
    assert engine.hear() == "8 28 24"
    assert engine.hear() == "True 12 -2 True 0"
    assert tags_of(control)["neighbour/kv_cache"] == 0


def test_room_is_made_for_what_is_not_leased_and_it_is_asked_for_once_more(
    start_program: StartProgram, control: Control
) -> None:
    neighbour = start_program(
        """
from vrambroker.client import connect
memory = connect("neighbour")
own = malloc(56 * MIB)
memory.pause()
tell("idle")
told()
""",
        VRAMBROKER_TAG="own",
        VRAMBROKER_CONTENTS="drop",
        VRAMBROKER_NAME="neighbour",
    )
    assert neighbour.hear() == "idle"
    plain = start_program(
        """
fake.fakeRefuse(1)
one = malloc(16 * MIB)
tell(one > 0, cuda.cudaGetLastError(), fake.fakeUsed() // MIB)
fake.fakeRefuse(2)
tell(malloc(16 * MIB), cuda.cudaGetLastError())
tell(free(one), fake.fakeUsed())
""",
        VRAMBROKER_NAME="plain",
    )
    assert plain.hear() == "True 0 16"
    assert tags_of(control)["neighbour/own"] <= 48
    assert plain.hear() == "-2 2", "the runtime has its say"
    assert plain.hear() == "0 0"
    plain.end()


def test_a_thread_can_be_left_out(start_program: StartProgram) -> None:
    source = """
import threading
from vrambroker.client import native
with_us = malloc(MIB)
before = native.thread_leases(False)
without = malloc(MIB)
others = []
thread = threading.Thread(target=lambda: others.append(malloc(MIB)))
thread.start()
thread.join()
tell(before, fake.fakeUsed() // MIB, free(without), fake.fakeUsed(), native.thread_leases(True))
tell(free(with_us), free(others[0]), fake.fakeUsed(), free(0x1000))
"""
    worker = start_program(source, VRAMBROKER_TAG="all")
    assert worker.hear() == "True 1 0 0 False"
    assert worker.hear() == "0 0 0 1"
    worker.end()


def test_nobody_else_pauses_a_process_s_own_memory(start_program: StartProgram, control: Control) -> None:
    """torch would hand out what it caches of it."""
    source = """
from vrambroker.client import connect
one = malloc(4 * MIB)
memory = connect("trainer")
called = []
memory.on_pause(called.append)
with memory.use():
    pass
tell("there")
told()
tell(len(called), memory.is_paused("all"))
"""
    worker = start_program(source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "there"
    with pytest.raises(NotQuiescent):
        control.pause("trainer", ("all",), release=False, timeout_s=DEADLINE_S)
    assert worker.ask() == "0 False"


def test_each_device_has_its_own_broker(start_broker: StartBroker, start_program: StartProgram) -> None:
    brokers = sorted((start_broker(under="two"), start_broker(under="two")), key=lambda one: int(one.device[5:]))
    source = """
cuda.cudaSetDevice(1)
second = malloc(8 * MIB)
tell(second > 0)
told()
cuda.cudaSetDevice(0)
first = malloc(4 * MIB)
cuda.cudaSetDevice(2)
third = malloc(MIB)
tell(first > 0, fake.fakeUsed() // MIB)
told()
tell(free(second), free(first), free(third))
"""
    run_dir = str(brokers[0].run_dir)
    worker = start_program(
        source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="both", VRAMBROKER_RUN_DIR=run_dir, VRAMBROKER_DEVICE=""
    )
    assert worker.hear() == "True"
    with contextlib.ExitStack() as stack:
        first, second = (broker.control(stack) for broker in brokers)
        assert (list(tags_of(first)), list(tags_of(second))) == ([], ["both/all"])
        assert worker.ask() == "True 1"
        assert list(tags_of(first)) == ["both/all"]
    assert worker.ask() == "0 0 0"


@pytest.mark.parametrize("there", ["no daemon", "a daemon of another device", "no tag"])
def test_without_a_broker_the_runtime_is_asked(there: str, start_program: StartProgram, tmp_path: Path) -> None:
    source = """
fake.fakeTotal(64 * MIB)
one = malloc(4 * MIB)
tell(one > 0, fake.fakeUsed() // MIB, mem_get_info()[0] // MIB, free(one), fake.fakeUsed())
fake.fakeRefuse(1)
tell(malloc(MIB))
"""
    environment = {
        "no daemon": {"VRAMBROKER_RUN_DIR": str(tmp_path), "VRAMBROKER_TAG": "all"},
        "a daemon of another device": {"VRAMBROKER_DEVICE": "host:7", "VRAMBROKER_TAG": "all"},
        "no tag": {},
    }[there]
    worker = start_program(source, **environment)
    if there == "no tag":
        assert worker.hear() == "True 4 64 0 0", "it is told what a lease could have"
        assert int(worker.hear()) > 0
        worker.end()
        return
    assert worker.hear() == "True 4 60 0 0"
    assert worker.hear() == "-2"
    code, said = worker.ended()
    assert code == 0
    assert said.count("\n") == 1
    assert said.startswith("vrambroker: BrokerUnavailable: no broker for CUDA device 0: start one with `broker serve`")


def test_a_socket_that_nobody_answers_is_named(start_program: StartProgram, broker: RunningBroker) -> None:
    broker.kill()
    worker = start_program("one = malloc(4 * MIB)\ntell(one > 0, fake.fakeUsed() // MIB)", VRAMBROKER_TAG="all")
    assert worker.hear() == "True 4"
    code, said = worker.ended()
    assert code == 0
    assert said.startswith(f"vrambroker: BrokerUnavailable: no daemon answers at {broker.endpoint.handle_socket}")
    assert "`broker serve`" in said
    assert said.count("\n") == 1
    broker.start_again()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program as another user")
def test_another_user_is_told_and_runs_as_ever(start_program: StartProgram, broker: RunningBroker) -> None:
    source = """
os.setuid(65534)
one = malloc(4 * MIB)
tell(one > 0, fake.fakeUsed() // MIB)
"""
    worker = start_program(source, VRAMBROKER_TAG="all")
    assert worker.hear() == "True 4"
    code, said = worker.ended()
    assert code == 0
    assert said.startswith("vrambroker: BrokerUnavailable: ")
    assert said.count("\n") == 1


def test_a_daemon_that_goes_away_is_no_end(start_program: StartProgram, broker: RunningBroker) -> None:
    source = """
from vrambroker.client import connect
one = malloc(4 * MIB)
fill(one, 4 * MIB, 5)
memory = connect("trainer")
tell("there")
told()
two = malloc(40 * MIB)
tell(two > 0, fake.fakeUsed() // MIB, holds(one, 4 * MIB, 5))
asked = memory.stats().requests
more = [malloc(MIB) for _ in range(20)]
tell(fake.fakeUsed() // MIB, mem_get_info()[0] > 0, memory.stats().requests - asked, free(one), free(two))
"""
    worker = start_program(source, VRAMBROKER_TAG="all")
    assert worker.hear() == "there"
    broker.kill()
    assert worker.ask() == "True 40 True"
    assert worker.hear() == "60 True 0 0 0", "nobody waits a second time for a daemon that is gone"
    code, said = worker.ended()
    assert code == 0
    assert said.endswith("what is allocated now is not leased\n")
    assert said.count("\n") == 1
    broker.start_again()


def test_a_forked_child_has_the_runtimes_memory(start_program: StartProgram, control: Control) -> None:
    source = """
one = malloc(4 * MIB)
child = os.fork()
if child == 0:
    two = malloc(MIB)
    ok = two > 0 and fake.fakeUsed() == MIB and free(two) == 0 and free(one) == 0
    os._exit(0 if ok else 1)
tell(os.waitpid(child, 0)[1], fake.fakeUsed())
told()
"""
    worker = start_program(source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="parent")
    assert worker.hear() == "0 0"
    assert list(tags_of(control)) == ["parent/all"]
    worker.say()
    assert worker.ended() == (0, "vrambroker: nothing is leased in a forked process: start it by spawn\n")


def test_a_program_that_ends_in_the_middle_leaves_nothing(
    start_program: StartProgram, control: Control, wait_for: Callable[[Control, Callable[[], bool]], None]
) -> None:
    worker = start_program("tell(malloc(4 * MIB) > 0)\nos._exit(3)", VRAMBROKER_TAG="all")
    assert worker.hear() == "True"
    wait_for(control, lambda: not control.status().sessions and control.status().device.free_bytes == 64 * MIB)


def test_of_two_preloads_the_first_does_the_work(start_program: StartProgram, control: Control) -> None:
    source = """
one = malloc(4 * MIB)
tell(one > 0, fake.fakeUsed(), mem_get_info()[0] // MIB)
told()
tell(free(one))
"""
    ours = Path(preload_path())
    other = ours.parent.parent / "client" / "compat" / "torch_memory_saver_hook_mode_preload.abi3.so"
    assert other.exists()
    for preload in (f"{ours}:{other}", f"{other} {ours}", str(other)):
        worker = start_program(source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="both", LD_PRELOAD=preload)
        assert worker.hear() == "True 0 60"
        assert list(tags_of(control)) == ["both/all"]
        assert worker.ask() == "0"
        worker.end()


def test_a_program_without_the_runtime_knows_nothing_of_it(broker: RunningBroker) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/maps').read())"],
        env={**os.environ, "LD_PRELOAD": preload_path(), "VRAMBROKER_TAG": "all"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert (done.stderr, "libvrambroker_preload.so" in done.stdout) == ("", True)
    assert not any(one in done.stdout for one in ("libvrambroker.so", "libstdc++", "libcuda"))
