"""Tensors that travel on a GPU: received memory is the sender's own, through torch's pickling and as engines call it."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.process.conftest import DEADLINE_S, RunningBroker, Worker
from tests.process.traveller import TRAVELLER, pack, unpack
from vrambroker.client import Memory, NotQuiescent, connect

pytestmark = pytest.mark.gpu

StartWorker = Callable[[str], Worker]
MIB = 1 << 20

RECEIVER = f"""
{TRAVELLER}
import torch
from vrambroker.client import connect
torch.cuda.init()
memory = connect("rollout")
tell("ready")
serve()
memory.close()
"""

# As SGLang's `monkey_patch_torch_reductions`: a GPU is named by its UUID, and nothing is unpickled but torch's own functions.
SGLANG = """
import io
import torch
from torch.multiprocessing import reductions
class Picky(pickle.Unpickler):
    def find_class(self, module, name):
        if not (module + ".").startswith(("builtins.", "collections.", "torch.", "__main__.")):
            raise RuntimeError(f"blocked: {module}.{name}")
        return super().find_class(module, name)
def unpack(blob):
    return Picky(io.BytesIO(base64.b64decode(blob))).load()
reduce_original, rebuild_original = reductions.reduce_tensor, reductions.rebuild_cuda_tensor
def reduce_by_uuid(*arguments):
    rebuild, reduced = reduce_original(*arguments)
    reduced = list(reduced)
    reduced[6] = str(torch.cuda.get_device_properties(reduced[6]).uuid)
    return rebuild, tuple(reduced)
def rebuild_by_uuid(*arguments):
    named = list(arguments)
    known = {str(torch.cuda.get_device_properties(one).uuid): one for one in range(torch.cuda.device_count())}
    named[6] = known[named[6]]
    return rebuild_original(*named)
def patch():
    reductions.reduce_tensor, reductions.rebuild_cuda_tensor = reduce_by_uuid, rebuild_by_uuid
    reductions.init_reductions()
"""


@pytest.fixture
def memory(broker: RunningBroker) -> Iterator[Memory]:
    with connect("trainer", broker.device) as attached:
        yield attached


@pytest.fixture
def rollout(memory: Memory, start_worker: StartWorker) -> Worker:
    worker = start_worker(RECEIVER)
    assert worker.hear() == "ready"
    return worker


def end(worker: Worker) -> None:
    worker.say("quit")
    worker.end()


def test_what_is_sent_is_the_same_memory(memory: Memory, rollout: Worker) -> None:
    import torch

    tensor = memory.empty(64 * MIB, dtype=torch.float32, tag="weights")
    tensor.fill_(2)
    assert rollout.ask(f"take a {pack(tensor)}") == "taken"
    assert float(rollout.ask("sum a")) == 2 * 64 * MIB
    assert rollout.ask("fill a 3") == "filled"
    assert float(rollout.ask("sum a")) == 3 * 64 * MIB
    assert tensor.eq(3).all()
    back = unpack(rollout.ask("send a"))
    assert back.data_ptr() == tensor.data_ptr()
    rollout.ask("drop a")
    end(rollout)


def test_a_module_made_in_a_region_travels_with_its_views(memory: Memory, rollout: Worker) -> None:
    import torch

    with memory.region("weights"):
        model = torch.nn.Linear(1000, 1000, device="cuda")
    whole = model.weight.detach()
    views = [whole[start : start + 10] for start in range(0, 1000, 10)]
    assert rollout.ask(f"take v {pack(views)}") == "taken"
    assert rollout.ask("same v") == "1"
    assert float(rollout.ask("sum v")) == pytest.approx(whole.double().sum().item())
    rollout.ask(f"take p {pack(model.weight)}")
    assert rollout.ask("about p") == str(["Parameter", [1000, 1000], (1000, 1), 0, True])
    rollout.ask("drop v")
    rollout.ask("drop p")
    end(rollout)


def test_a_pause_waits_and_what_was_sent_is_received_after_it(memory: Memory, rollout: Worker) -> None:
    import torch

    tensor = memory.empty(1024 * MIB, dtype=torch.uint8, tag="weights")
    tensor.fill_(7)
    blob = pack(tensor)
    rollout.ask(f"take a {blob}")
    with pytest.raises(NotQuiescent, match="in use by rollout"):
        memory.pause("weights", timeout=0.2)
    assert tensor[-1].item() == 7
    rollout.ask("drop a")
    again = pack(tensor)
    memory.pause("weights", release=True, timeout=DEADLINE_S)
    refused = rollout.ask(f"take a {again}")
    assert "WrongState" in refused and "trainer/weights is paused" in refused
    busy = memory.empty(7 * 1024 * MIB, dtype=torch.uint8, tag="busy", contents="drop")
    busy.fill_(1)
    del busy
    memory.pause("busy", release=True)
    memory.resume("weights")
    assert rollout.ask(f"take b {again}") == "taken"
    assert float(rollout.ask("sum b")) == 7 * 1024 * MIB
    tensor.fill_(1)
    torch.cuda.synchronize()
    assert float(rollout.ask("sum b")) == 1024 * MIB
    rollout.ask("drop b")
    end(rollout)


def test_who_writes_to_what_is_only_to_be_read_harms_itself(memory: Memory, start_worker: StartWorker) -> None:
    import torch

    tensor = memory.empty(MIB, dtype=torch.float32, tag="weights")
    tensor.fill_(5)
    memory.share_read_only("weights")
    worker = start_worker(f"""
{TRAVELLER}
import torch
received = unpack(told())
tell(received.mean().item())
try:
    received.fill_(1)
    torch.cuda.synchronize()
    tell("written")
except RuntimeError:
    tell("fault")
told()
""")
    worker.say(pack(tensor))
    assert worker.hear() == "5.0"
    worker.say()
    assert worker.hear() == "fault"
    worker.signal(signal.SIGKILL)
    assert tensor.eq(5).all()


def test_a_receiver_that_dies_is_no_reader_any_more(memory: Memory, rollout: Worker) -> None:
    import torch

    tensor = memory.empty(512 * MIB, dtype=torch.uint8, tag="weights")
    tensor.fill_(1)
    rollout.ask(f"take a {pack(tensor)}")
    rollout.signal(signal.SIGKILL)
    memory.pause("weights", release=True, timeout=DEADLINE_S)
    memory.resume("weights", timeout=DEADLINE_S)
    assert tensor.eq(1).all()
    torch.cuda.synchronize()


@pytest.mark.parametrize("first", [True, False])
def test_sglangs_sequence(start_worker: StartWorker, first: bool) -> None:
    before, after = ("patch()", "") if first else ("", "patch()")
    source = f"""
{TRAVELLER}
{SGLANG}
from vrambroker.client import connect
torch.cuda.init()
{before}
memory = connect(told())
memory.torch_device
{after}
"""
    sender = start_worker(f"""{source}
with memory.region("weights"):
    named = [(str(number), torch.full((1 << 20,), float(number), device="cuda")) for number in range(20)]
plain = torch.ones(1000, device="cuda")
tell(pack([*named, ("plain", plain)]))
told()
del named
memory.pause("weights", release=True, timeout=50)
memory.resume("weights", timeout=50)
tell("slept")
told()
""")
    receiver = start_worker(f"""{source}
named = unpack(told())
tell(sum(one.mean().item() for _, one in named))
del named
told()
memory.close()
""")
    sender.say("trainer")
    receiver.say("rollout")
    receiver.say(sender.hear())
    assert receiver.hear() == f"{sum(range(20)) + 1.0}"
    sender.say()
    assert sender.hear() == "slept"
    for worker in (receiver, sender):
        worker.say()
        code, said = worker.ended()
        # torch's own word about the plain one, which its receiver may drop later than its sender ends.
        assert (code, [line for line in said.splitlines() if "CudaIPCTypes" not in line]) == (0, [])


def test_verls_and_vllms_sequence(start_worker: StartWorker) -> None:
    """A bucket is sent once, by a function that was imported before anything was attached, and filled again and again."""
    sender = start_worker(f"""
{TRAVELLER}
import torch
from torch.multiprocessing.reductions import reduce_tensor
from vrambroker.client import connect
memory = connect("trainer")
bucket = memory.empty(256 << 20, dtype=torch.uint8, tag="bucket", contents="drop")
tell(base64.b64encode(pickle.dumps(reduce_tensor(bucket))).decode())
for turn in range(1, 4):
    bucket.fill_(turn)
    torch.cuda.synchronize()
    tell(turn)
    told()
told()
memory.pause("bucket", timeout=50)
memory.close()
""")
    receiver = start_worker(f"""
{TRAVELLER}
import torch
from torch.multiprocessing.reductions import reduce_tensor
from vrambroker.client import connect
memory = connect("rollout")
rebuild, arguments = pickle.loads(base64.b64decode(told()))
arguments = list(arguments)
arguments[6] = torch.cuda.current_device()
bucket = rebuild(*arguments)
while told() == "look":
    tell(bucket.double().mean().item())
del bucket
tell("dropped")
told()
memory.close()
""")
    receiver.say(sender.hear())
    for turn in range(1, 4):
        assert sender.hear() == str(turn)
        assert receiver.ask("look") == f"{turn}.0"
        sender.say()
    assert receiver.ask("quit") == "dropped"
    for worker in (sender, receiver):
        worker.say()
        worker.end()


def test_a_queue_of_torch_multiprocessing_carries_leased_and_plain_tensors(start_worker: StartWorker) -> None:
    worker = start_worker("""
import torch
import torch.multiprocessing as mp
import tests.process.queue_child as child
from vrambroker.client import connect
memory = connect("trainer")
context = mp.get_context("spawn")
for weights in (memory.empty(1 << 20, tag="weights"), torch.empty(1 << 20, device="cuda")):
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=child.add_one, args=(there, back))
    process.start()
    weights.fill_(1)
    torch.cuda.synchronize()
    there.put({"weights": weights})
    tell(back.get(timeout=50), weights.mean().item())
    there.put(None)
    process.join(50)
    tell(process.exitcode)
memory.pause("weights", release=True, timeout=50)
memory.close()
""")
    for _ in range(2):
        assert worker.hear() == "1.0 2.0"
        assert worker.hear() == "0"


def test_many_sends_leave_nothing_behind(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(64 * MIB, tag="weights")
    rollout.ask(f"take 0 {pack(tensor)}")
    rollout.ask("drop 0")
    fds = rollout.ask("fds")
    for start in range(0, 500, 50):
        blobs = ",".join(pack(tensor[number:]) for number in range(start, start + 50))
        assert rollout.ask(f"pass {blobs}") == "passed"
    assert rollout.ask("fds") == fds
    memory.pause("weights", release=True, timeout=DEADLINE_S)
    with ExitStack() as stack:
        stack.callback(end, rollout)
        memory.resume("weights")
