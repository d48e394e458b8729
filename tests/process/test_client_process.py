"""Worker processes: two that don't fit together, the GIL, the end of a process, fork, and a daemon that goes away."""

import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vrambroker.client import BrokerError, NotQuiescent, connect
from vrambroker.client.rpc import Control

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker, WaitFor

# 40 MiB each of 64 MiB: they don't fit together. Commands: pause, resume, check, quit.
SWAPPING = """
import torch
from vrambroker.client import connect
name = told()
memory = connect(name)
with memory.region("model"):
    tensors = [torch.full((1 << 20,), float(number + len(name))) for number in range(10)]
addresses = [tensor.data_ptr() for tensor in tensors]
tell("ready")
while (command := told()) != "quit":
    if command == "pause":
        memory.pause("model")
        tell("paused")
    elif command == "resume":
        tell(memory.resume("model", timeout=20)["model"])
    else:
        right = all(tensor.eq(number + len(name)).all() for number, tensor in enumerate(tensors))
        still = [tensor.data_ptr() for tensor in tensors] == addresses
        tell(right and still)
memory.close()
"""


def test_two_processes_that_do_not_fit_together_take_turns(start_worker: "StartWorker", control: Control) -> None:
    trainer, rollout = start_worker(SWAPPING), start_worker(SWAPPING)
    assert trainer.ask("trainer") == "ready"
    assert trainer.ask("pause") == "paused"
    assert rollout.ask("a-rollout") == "ready"
    for turn in range(3):
        for awake, asleep in ((trainer, rollout), (rollout, trainer)):
            assert asleep.ask("pause") == "paused", turn
            assert awake.ask("resume") == "False"
            assert awake.ask("check") == "True"
    device = control.status().device
    assert device.peak_lent_bytes <= device.capacity_bytes
    for worker in (trainer, rollout):
        worker.say("quit")
        worker.end()


def test_nobody_in_need_means_the_same_pages(start_worker: "StartWorker") -> None:
    worker = start_worker(SWAPPING)
    assert worker.ask("trainer") == "ready"
    assert worker.ask("pause") == "paused"
    assert worker.ask("resume") == "True"
    assert worker.ask("check") == "True"
    worker.say("quit")
    worker.end()


# Keeps the GIL until the test writes another line: what the taker is given meanwhile left without Python's help. The
# ticking thread shows that nobody else had the GIL.
HOLDER = """
import ctypes, threading, torch
from vrambroker.client import connect
memory = connect("holder")
held = memory.empty(10 << 20, tag="held")
held.fill_(8)
memory.pause("held")
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
read = ctypes.{binding}(None).read
read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
buffer = ctypes.create_string_buffer(1)
sys.setswitchinterval(1000)
threading.Thread(target=tick, daemon=True).start()
tell("paused")
before = ticks
assert read(0, buffer, 1) == 1
tell(ticks == before)
told()
assert memory.resume("held") == {{"held": False}}
assert held.eq(8).all()
"""

TAKER = """
import torch
from vrambroker.client import connect
memory = connect("taker")
tell("attached")
told()
taken = memory.empty(10 << 20, tag="taken", contents="drop")
tell("taken")
"""


@pytest.mark.parametrize(("binding", "held"), [("PyDLL", "True"), ("CDLL", "False")])
def test_a_recall_finishes_while_python_holds_the_gil(binding: str, held: str, start_worker: "StartWorker") -> None:
    taker = start_worker(TAKER)
    assert taker.hear() == "attached"
    holder = start_worker(HOLDER.format(binding=binding))
    assert holder.hear() == "paused"
    assert taker.ask() == "taken"
    taker.end()
    assert holder.ask("x") == held
    holder.say()
    holder.end()


# The thread that calls keeps the GIL, so that whoever else needed it for the answer would never get it.
MALLOC_UNDER_THE_GIL = """
import ctypes, faulthandler
from vrambroker.client import connect, native
faulthandler.dump_traceback_later(20, exit=True)
memory = connect("worker")
lease = memory._client.open_lease("a", "keep")
path = native.library()._name
holding = ctypes.PyDLL(path)
pointer = ctypes.c_void_p()
holding.vrb_malloc.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p,
)
holding.vrb_free.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
for size in (100, 20 << 20):
    assert holding.vrb_malloc(lease._handle, size, 10_000, ctypes.byref(pointer), None) == 0
    ctypes.memset(pointer.value, 7, size)
    assert holding.vrb_free(memory._client._handle, pointer, None) == 0
tell("done")
"""


def test_malloc_gets_its_answer_while_the_gil_is_held(start_worker: "StartWorker") -> None:
    worker = start_worker(MALLOC_UNDER_THE_GIL)
    assert worker.hear() == "done"
    worker.end()


def test_the_library_knows_neither_python_nor_cuda() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    library = resources.files("vrambroker") / "_native" / "libvrambroker.so"
    done = subprocess.run([nm, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    wanted = [line.split()[-1] for line in done.stdout.splitlines()]
    assert len(wanted) > 20
    assert not [name for name in wanted if name.startswith(("Py", "_Py", "cu", "cuda"))]


ENDINGS = {
    "alive": "",
    "paused": "memory.pause()",
    "parked": "memory.pause(release=True)",
    "closed": "memory.close()",
    "in a scope": "scope = memory.use('a'); scope.__enter__()",
    "in a region": "region = memory.region('a'); region.__enter__(); more = torch.ones(5)",
    "in a cycle": "cycle = [tensor]; cycle.append(cycle)",
    "with a thread": (
        # Not `memory.empty`: torch itself aborts, in any process, when Python ends under a thread that is inside it.
        "import threading\n"
        "lease = memory._client.open_lease('a', 'keep')\n"
        "def work():\n"
        "    while True: memory._client.free(lease.malloc(9, timeout_s=5))\n"
        "threading.excepthook = lambda _: None\n"
        "threading.Thread(target=work, daemon=True).start()"
    ),
    "by exit": "raise SystemExit(0)",
}

ENDING = """
import torch
from vrambroker.client import connect
memory = connect("worker")
tensor = memory.empty(1 << 20, tag="a")
tensor.fill_(1)
module = memory.place(torch.nn.Linear(8, 8), "a")
memory.status()
{ending}
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_cleanly_with_tensors_alive(
    ending: str, start_worker: "StartWorker", control: Control, wait_for: "WaitFor"
) -> None:
    worker = start_worker(ENDING.format(ending=ENDINGS[ending]))
    worker.end()
    wait_for(control, lambda: control.status().sessions == ())
    assert control.status().device.free_bytes == control.status().device.capacity_bytes


def test_a_killed_process_gives_everything_back(
    start_worker: "StartWorker", control: Control, wait_for: "WaitFor"
) -> None:
    worker = start_worker(ENDING.format(ending="memory.pause('a', release=True); tell('parked'); told()"))
    assert worker.hear() == "parked"
    worker.signal(signal.SIGKILL)
    wait_for(control, lambda: control.status().sessions == ())
    assert control.status().device.lent_bytes == 0


FORKING = """
import gc, torch
from vrambroker.client import WrongState, connect
memory = connect("parent")
tensor = memory.empty(1 << 20, tag="a")
tensor.fill_(6)
scope = memory.use("a")
around = memory.use("a", name="around_the_fork")
around.__enter__()
child = os.fork()
if child == 0:
    calls = [
        lambda: memory.empty(4, tag="a"), lambda: memory.pause("a"), lambda: memory.resume("a"), memory.status,
        lambda: memory.mark("x"), scope.__enter__, memory.region("a").__enter__, memory.stats,
        lambda: memory.place(torch.ones(2), "a"),
    ]
    for call in calls:
        try:
            call()
        except WrongState as error:
            assert error.state == "forked" and "connect" in error.message
        else:
            raise AssertionError(call)
    memory.close()
    {child}
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
assert tensor.eq(6).all()
around.__exit__(None, None, None)
memory.pause("a", release=True)
assert memory.resume("a") == {{"a": False}}
assert tensor.eq(6).all()
tell(len(memory.status().sessions))
memory.close()
"""

CHILDREN = {
    "leaves the scope": "around.__exit__(None, None, None)",
    "frees": "del tensor; gc.collect()",
    "keeps": "pass",
    "exits": "os._exit(0)",
    "connects": (
        "again = connect('child'); own = again.empty(4, tag='b'); own.fill_(1); again.pause('b', release=True); "
        "again.resume('b'); assert own.eq(1).all(); assert again.name == 'child'; del own; again.close()"
    ),
}


@pytest.mark.parametrize("child", CHILDREN)
def test_a_forked_child_owns_nothing_and_harms_nothing(child: str, start_worker: "StartWorker") -> None:
    worker = start_worker(FORKING.format(child=CHILDREN[child]))
    assert worker.hear() == "1"
    worker.end()


LOADING = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from vrambroker.client import connect
memory = connect("trainer")
model = memory.place(torch.nn.Linear(4, 2), "params")
memory.status()
data = TensorDataset(torch.arange(64.0).reshape(16, 4))
with memory.region("activations"):
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        total = sum(model(batch).sum() for (batch,) in loader)
        torch.autograd.backward(total)
        memory.pause("params")
        memory.resume("params")
tell("done")
"""


def test_a_data_loader_with_forked_workers(start_worker: "StartWorker") -> None:
    worker = start_worker(LOADING)
    assert worker.hear() == "done"
    worker.end()


LOSING = """
import torch
from vrambroker.client import BrokerError, BrokerLost, connect
memory = connect("worker")
tensor = memory.empty(1 << 20, tag="a")
tensor.fill_(3)
memory.status()
tell("ready")
told()
for call in (lambda: memory.pause("a"), lambda: memory.empty(10 << 20, tag="b"), memory.status):
    try:
        call()
    except BrokerLost as error:
        tell(type(error).__name__)
    else:
        raise AssertionError(call)
assert tensor.eq(3).all()
del tensor
"""


def test_a_daemon_that_goes_away_is_an_error_and_the_process_lives(
    broker: "RunningBroker", start_worker: "StartWorker"
) -> None:
    worker = start_worker(LOSING)
    assert worker.hear() == "ready"
    broker.kill()
    assert [worker.ask(), worker.hear(), worker.hear()] == ["BrokerLost"] * 3
    worker.end()


REATTACHING = """
import torch
from vrambroker.client import connect
memory = connect("worker")
assert connect("worker") is memory
tensor = memory.empty(1 << 20, tag="a").fill_(3)
assert not memory.is_lost()
tell("ready")
told()
assert memory.is_lost(timeout=20)
anew = connect("other")
assert anew is not memory and connect("other") is anew
other = anew.empty(1 << 20, tag="a").fill_(4)
anew.pause("a", release=True)
anew.resume("a")
assert tensor.eq(3).all() and other.eq(4).all()
del tensor
memory.close()
memory.close()
assert not anew.is_lost()
tell(*(session.name for session in anew.status().sessions if not session.ended))
del other
anew.close()
anew.close()
"""


def test_who_lost_the_daemon_connects_anew_before_closing(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    worker = start_worker(REATTACHING)
    assert worker.hear() == "ready"
    broker.kill()
    broker.start_again()
    assert worker.ask() == "other"
    worker.end()


LOST_IN_A_SCOPE = """
import os
from pathlib import Path
from vrambroker.client import BrokerLost, connect

def agents():
    names = [Path("/proc/self/task", thread, "comm").read_text() for thread in os.listdir("/proc/self/task")]
    return sum(name.startswith("vrb-") for name in names)

memory = connect("worker")
tensor = memory.empty(10 << 20, tag="a").fill_(3)
with memory.use("a", name="step"):
    tell("inside")
    told()
try:
    memory.resume("a")
except BrokerLost as error:
    tell(str(error))
with memory.use("a"):
    assert tensor.eq(3).all()
assert agents() > 0
del tensor
memory.close()
import threading
while agents():
    threading.Event().wait(0.01)
tell("alone")
"""


def test_what_a_lost_daemon_had_asked_for_is_forgotten_and_closing_ends_the_agent(
    broker: "RunningBroker", start_worker: "StartWorker", control: Control
) -> None:
    worker = start_worker(LOST_IN_A_SCOPE)
    assert worker.hear() == "inside"
    with ThreadPoolExecutor(1) as operator:
        asked = operator.submit(control.pause, "worker", ["a"])
        with pytest.raises(NotQuiescent, match="step"):
            control.pause("worker", ["a"], timeout_s=0.3)
        broker.kill()
        assert isinstance(asked.exception(), BrokerError)
    assert "connect anew" in worker.ask()
    assert worker.hear() == "alone"
    worker.end()


OUTSIDE = """
import torch
from vrambroker.client import connect
memory = connect("rollout")
tensor = memory.empty(10 << 20, tag="kv", contents="drop")
with memory.use("kv", name="generate"):
    tell("inside")
    told()
tell("left")
told()
assert memory.resume("kv") == {"kv": False}
"""


def test_an_operator_pauses_a_session_between_its_scopes(
    broker: "RunningBroker", start_worker: "StartWorker", control: Control
) -> None:
    worker = start_worker(OUTSIDE)
    assert worker.hear() == "inside"
    assert worker.ask() == "left"
    control.pause("rollout", ["kv"], release=True)
    session = control.status().session("rollout")
    assert session is not None
    assert [tag.state for tag in session.tags] == ["parked"]
    worker.say()
    worker.end()


STOPPING = """
import torch
from vrambroker.client import connect
memory = connect("stopped")
tensor = memory.empty(10 << 20, tag="a", contents="drop")
memory.pause("a")
tell("paused")
told()
memory.resume("a", timeout=20)
"""

WAITING = """
import torch
from vrambroker.client import WaitExpired, OutOfDeviceMemory, connect
memory = connect("waiting")
try:
    memory.empty(10 << 20, tag="b", timeout=1)
except (WaitExpired, OutOfDeviceMemory) as error:
    tell(error.holders[0].session)
told()
memory.empty(10 << 20, tag="b", timeout=20)
tell("has it")
told()
"""


def test_a_stopped_peer_is_named_when_the_wait_is_over(start_worker: "StartWorker") -> None:
    stopped = start_worker(STOPPING)
    assert stopped.hear() == "paused"
    stopped.signal(signal.SIGSTOP)
    waiting = start_worker(WAITING)
    assert waiting.hear() == "stopped"
    stopped.signal(signal.SIGCONT)
    assert waiting.ask() == "has it"
    waiting.say()
    waiting.end()
    stopped.say()
    stopped.end()


def test_sockets_and_memory_files_are_as_before(broker: "RunningBroker") -> None:
    def use() -> None:
        with ExitStack() as stack:
            memory = stack.enter_context(connect("worker", broker.device))
            tensor = memory.empty(1 << 20, tag="a")
            memory.pause("a", release=True)
            memory.resume("a")
            memory.status()
            del tensor

    def open_things() -> dict[str, int]:
        links = [link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return {
            "sockets": sum(name.startswith("socket:") for name in links),
            "memory": sum("memfd:" in name for name in links),
        }

    use()
    with ExitStack() as stack:
        control = broker.control(stack)
        assert control.status().sessions == ()
    before = open_things()
    for _ in range(4):
        use()
    now = open_things()
    assert all(now[what] <= before[what] for what in before), (before, now)
