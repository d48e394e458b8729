"""Tensors that travel between real processes: leased memory sent by torch's own pickling, received, and let go of."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.process.conftest import DEADLINE_S, Worker
from tests.process.traveller import TRAVELLER, pack, unpack
from vrambroker.client import Memory, NotQuiescent, connect
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.rpc import Control
from vrambroker.client.status import ReaderStatus

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker, WaitFor

MIB = 1 << 20

ATTACHED = f"""
{TRAVELLER}
from vrambroker.client import connect
import torch
memory = connect("rollout")
tell("ready")
serve()
memory.close()
"""
# It has never heard of a broker.
UNATTACHED = f"""
{TRAVELLER}
import torch
tell("ready")
serve()
"""


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("trainer", broker.device) as attached:
        yield attached


@pytest.fixture
def rollout(memory: Memory, start_worker: "StartWorker") -> Worker:
    worker = start_worker(ATTACHED)
    assert worker.hear() == "ready"
    return worker


def end(worker: Worker) -> None:
    worker.say("quit")
    worker.end()


def readers_of(memory: Memory, tag: str) -> tuple[ReaderStatus, ...]:
    session = memory.status().session(memory.name)
    assert session is not None
    return next(one.readers for one in session.tags if one.tag == tag)


def kept_alive(memory: Memory) -> int:
    """Return how many storages are kept for who receives them, once what is settled is let go of."""
    from vrambroker.client import sharing

    # The answer comes after what the broker has told before.
    memory.resume(*memory.tags)
    sharing.collect(memory)
    travel: Any = getattr(sharing, "_travel")  # noqa: B009
    return len(travel.sent)


def test_what_is_sent_is_the_same_memory(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, dtype=torch.float32, tag="weights")
    tensor.fill_(2)
    assert rollout.ask(f"take a {pack(tensor)}") == "taken"
    assert float(rollout.ask("sum a")) == 2 * MIB
    assert rollout.ask("fill a 3") == "filled"
    assert tensor.eq(3).all()
    tensor.fill_(4)
    assert float(rollout.ask("sum a")) == 4 * MIB
    (reader,) = readers_of(memory, "weights")
    assert (reader.session, reader.writable) == ("rollout", True)
    end(rollout)


def test_tensors_keep_what_they_are(memory: Memory, rollout: Worker) -> None:
    whole = memory.empty((8, 6), dtype=torch.float64, tag="weights")
    whole.copy_(torch.arange(48.0).view(8, 6))
    for number, one in enumerate((whole[2:6, ::2], whole.t(), whole[3])):
        rollout.ask(f"take {number} {pack(one)}")
        about = ["Tensor", list(one.shape), one.stride(), one.storage_offset(), False]
        assert rollout.ask(f"about {number}") == str(about)
        assert float(rollout.ask(f"sum {number}")) == one.sum().item()
    parameter = memory.place(torch.nn.Parameter(torch.ones(3, 4)), "weights")
    rollout.ask(f"take p {pack(parameter)}")
    assert rollout.ask("about p") == str(["Parameter", [3, 4], (4, 1), 0, True])
    rollout.ask(f"take none {pack(memory.empty(0, tag='weights'))}")
    end(rollout)


def test_views_share_one_storage_there_as_well(memory: Memory, rollout: Worker) -> None:
    bucket = memory.empty(1000, tag="weights")
    bucket.fill_(1)
    views = [bucket[start : start + 10] for start in range(0, 1000, 10)]
    assert rollout.ask(f"take v {pack(views)}") == "taken"
    assert rollout.ask("same v") == "1"
    assert float(rollout.ask("sum v")) == 1000
    # Sent in pieces, they are received as one, too.
    rollout.ask(f"take w {pack([bucket[:5]])}")
    rollout.ask("drop v")
    assert kept_alive(memory) == 1
    rollout.ask("drop w")
    assert kept_alive(memory) == 0
    end(rollout)


def test_what_is_no_lease_travels_as_ever(memory: Memory, start_worker: "StartWorker") -> None:
    assert memory.empty(10, tag="weights").fill_(1).numel() == 10
    worker = start_worker("""
import torch
import torch.multiprocessing as mp
import tests.process.queue_child as child
from vrambroker.client import connect
memory = connect("rollout")
leased = memory.empty(10, tag="weights")
plain = torch.ones(1000)
context = mp.get_context("spawn")
there, back = context.Queue(), context.Queue()
process = context.Process(target=child.add_one, args=(there, back))
process.start()
there.put({"weights": plain})
tell(back.get(timeout=50), plain.mean().item(), plain.is_shared())
there.put(None)
process.join(50)
del leased
memory.close()
""")
    assert worker.hear() == "1.0 2.0 True"
    worker.end()


def test_read_only_memory_is_a_fault_to_write_to(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, dtype=torch.uint8, tag="weights")
    tensor.fill_(5)
    memory.share_read_only("weights")
    rollout.ask(f"take a {pack(tensor)}")
    assert float(rollout.ask("sum a")) == 5 * MIB
    assert [reader.writable for reader in readers_of(memory, "weights")] == [False]
    tensor.fill_(6)
    assert float(rollout.ask("sum a")) == 6 * MIB
    rollout.say("fill a 1")
    with pytest.raises(AssertionError, match=f"ended with {-signal.SIGSEGV}"):
        rollout.hear()


def test_what_is_sealed_is_sent_to_be_read(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, dtype=torch.uint8, tag="weights")
    tensor.fill_(5)
    writable = pack(tensor)
    memory.seal("weights")
    rollout.ask(f"take a {pack(tensor)}")
    assert [reader.writable for reader in readers_of(memory, "weights")] == [False]
    assert "is sealed, and was sent to be written to" in rollout.ask(f"take b {writable}")
    memory.unseal("weights")
    assert rollout.ask(f"take b {writable}") == "taken"
    with ThreadPoolExecutor() as pool:
        sealing = pool.submit(memory.seal, "weights", timeout=DEADLINE_S)
        assert rollout.ask("drop b") == "dropped"
        sealing.result(DEADLINE_S)
    assert [reader.writable for reader in readers_of(memory, "weights")] == [False]
    end(rollout)


def test_a_pause_waits_for_what_is_in_use_elsewhere(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(1)
    rollout.ask(f"take a {pack(tensor)}")
    with pytest.raises(NotQuiescent, match="trainer/weights is in use by rollout") as refused:
        memory.pause("weights", timeout=0.2)
    assert (refused.value.session, refused.value.tag) == ("trainer", "weights")
    assert not memory.is_paused("weights")
    tensor.fill_(2)
    assert float(rollout.ask("sum a")) == 2 * MIB
    with memory.use("weights"):
        pass
    with ThreadPoolExecutor() as pool:
        pausing = pool.submit(lambda: memory.pause("weights", release=True, timeout=DEADLINE_S))
        # Sent to the daemon on one connection each, so whoever is refused to receive it has been overtaken by the pause.
        while rollout.ask(f"take b {pack(tensor)}") == "taken":
            rollout.ask("drop b")
        assert not pausing.done()
        rollout.ask("drop a")
        pausing.result(DEADLINE_S)
    assert readers_of(memory, "weights") == ()
    memory.resume("weights")
    assert tensor.eq(2).all()
    end(rollout)


def test_what_is_not_in_use_is_let_go_of_for_a_pause(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, tag="weights")
    rollout.ask(f"take a {pack(tensor)}")
    rollout.ask("drop a")
    assert len(readers_of(memory, "weights")) == 1
    memory.pause("weights", release=True, timeout=DEADLINE_S)
    assert readers_of(memory, "weights") == ()
    memory.resume("weights")
    end(rollout)


def test_a_pause_from_outside_waits_for_readers_too(memory: Memory, rollout: Worker, control: Control) -> None:
    tensor = memory.empty(MIB, tag="weights")
    with memory.use("weights"):
        rollout.ask(f"take a {pack(tensor)}")
    with pytest.raises(NotQuiescent, match="in use by rollout"):
        control.pause("trainer", ["weights"], timeout_s=0.2)
    with memory.use("weights"):
        tensor.fill_(1)
    rollout.ask("drop a")
    control.pause("trainer", ["weights"], timeout_s=DEADLINE_S)
    assert memory.is_paused("weights")
    end(rollout)


def test_what_was_sent_before_a_pause_is_received_after_it(
    memory: Memory, rollout: Worker, start_worker: "StartWorker"
) -> None:
    tensor = memory.empty(8 * MIB, dtype=torch.uint8, tag="weights")
    tensor.fill_(7)
    blob = pack(tensor)
    memory.pause("weights", release=True)
    refused = rollout.ask(f"take a {blob}")
    assert "WrongState" in refused and "trainer/weights is paused" in refused
    busy = memory.empty(60 * MIB, dtype=torch.uint8, tag="busy", contents="drop")
    busy.fill_(1)
    del busy
    memory.pause("busy", release=True)
    memory.resume("weights")
    assert rollout.ask(f"take a {blob}") == "taken"
    assert float(rollout.ask("sum a")) == 7 * 8 * MIB
    rollout.ask("drop a")
    memory.pause("weights", release=True)
    memory.resume("weights")
    rollout.ask(f"take b {pack(tensor)}")
    tensor.fill_(1)
    assert float(rollout.ask("sum b")) == 8 * MIB
    end(rollout)


def test_a_receiver_that_dies_is_no_reader_any_more(
    memory: Memory, rollout: Worker, control: Control, wait_for: "WaitFor"
) -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(1)
    rollout.ask(f"take a {pack(tensor)}")
    rollout.signal(signal.SIGKILL)
    wait_for(control, lambda: control.status().session("rollout") is None)
    assert readers_of(memory, "weights") == ()
    assert kept_alive(memory) == 0
    memory.pause("weights", release=True, timeout=DEADLINE_S)
    memory.resume("weights")
    assert tensor.eq(1).all()


def test_a_sender_that_dies_leaves_its_receivers_what_they_have(
    start_worker: "StartWorker", control: Control, wait_for: "WaitFor"
) -> None:
    sender = start_worker(f"""
{TRAVELLER}
import torch
from vrambroker.client import connect
memory = connect("trainer")
tensor = memory.empty(1 << 20, tag="weights")
tensor.fill_(3)
tell(pack(tensor))
told()
""")
    blob = sender.hear()
    receiver = start_worker(ATTACHED)
    assert receiver.hear() == "ready"
    assert receiver.ask(f"take a {blob}") == "taken"
    sender.signal(signal.SIGKILL)
    wait_for(control, lambda: all(one.name != "trainer" or one.ended for one in control.status().sessions))
    assert float(receiver.ask("sum a")) == 3 * MIB
    assert control.status().device.free_bytes < control.status().device.capacity_bytes
    assert receiver.ask("drop a") == "dropped"
    assert "UnknownLease" in receiver.ask(f"take b {blob}")
    wait_for(control, lambda: control.status().device.free_bytes == control.status().device.capacity_bytes)
    end(receiver)


def test_a_sender_that_closes_leaves_its_receivers_what_they_have(
    broker: "RunningBroker", start_worker: "StartWorker", control: Control, wait_for: "WaitFor"
) -> None:
    memory = connect("trainer", broker.device)
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(3)
    receiver = start_worker(ATTACHED)
    receiver.hear()
    receiver.ask(f"take a {pack(tensor)}")
    del tensor
    memory.close()
    wait_for(control, lambda: control.status().session("trainer") is None)
    assert float(receiver.ask("sum a")) == 3 * MIB
    receiver.ask("drop a")
    wait_for(control, lambda: control.status().device.free_bytes == control.status().device.capacity_bytes)
    end(receiver)


def test_who_is_not_attached_attaches_itself(memory: Memory, start_worker: "StartWorker") -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(2)
    stranger = start_worker(UNATTACHED)
    stranger.hear()
    assert stranger.ask(f"take a {pack(tensor)}") == "taken"
    assert float(stranger.ask("sum a")) == 2 * MIB
    end(stranger)


def test_who_finds_no_broker_is_told_what_to_do(
    memory: Memory, broker: "RunningBroker", start_broker: "StartBroker"
) -> None:
    tensor = memory.empty(MIB, tag="weights")
    elsewhere = start_broker(under="elsewhere")
    elsewhere.stop()
    with ExitStack() as stack:
        worker = Worker(UNATTACHED, environment={**os.environ, RUN_DIR_VARIABLE: str(elsewhere.run_dir)})
        stack.callback(worker.close)
        worker.hear()
        refused = worker.ask(f"take a {pack(tensor)}")
        assert "BrokerUnavailable" in refused
        assert f"leased from the broker of {broker.device}" in refused and "broker run" in refused
        end(worker)


def test_a_forked_child_receives_what_it_has_no_mapping_of(memory: Memory, start_worker: "StartWorker") -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(2)
    worker = start_worker(f"""
{TRAVELLER}
import torch
from vrambroker.client import connect
memory = connect("rollout")
first = unpack(told())
child = os.fork()
if child == 0:
    second = unpack(told())
    os._exit(0 if second.sum().item() == 2 << 20 else 1)
tell("forked")
tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
tell(first.sum().item())
""")
    worker.say(pack(tensor))
    assert worker.hear() == "forked"
    worker.say(pack(tensor))
    assert worker.hear() == "0"
    assert float(worker.hear()) == 2 * MIB
    worker.end()


def test_a_thousand_sends_leave_nothing_behind(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, tag="weights")
    rollout.ask(f"take 0 {pack(tensor)}")
    rollout.ask("drop 0")
    own, others = len(os.listdir("/proc/self/fd")), rollout.ask("fds")
    for start in range(0, 1000, 50):
        blobs = ",".join(pack(tensor[number:]) for number in range(start, start + 50))
        assert rollout.ask(f"pass {blobs}") == "passed"
    assert kept_alive(memory) == 0
    assert len(os.listdir("/proc/self/fd")) == own
    assert rollout.ask("fds") == others
    assert len(readers_of(memory, "weights")) == 1
    end(rollout)


def test_what_comes_back_is_its_owners_own(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty((4, 5), tag="weights")
    rollout.ask(f"take a {pack(tensor)}")
    back = unpack(rollout.ask("send a"))
    assert back.data_ptr() == tensor.data_ptr() and back.shape == tensor.shape
    assert back.untyped_storage()._cdata == tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    # What this process unpickles itself is its own as well.
    again = unpack(pack(tensor))
    assert again.data_ptr() == tensor.data_ptr()
    rollout.ask("drop a")
    end(rollout)


def test_what_was_received_can_be_passed_on(memory: Memory, rollout: Worker, start_worker: "StartWorker") -> None:
    tensor = memory.empty(MIB, tag="weights")
    tensor.fill_(2)
    third = start_worker(ATTACHED.replace('"rollout"', '"third"'))
    third.hear()
    rollout.ask(f"take a {pack(tensor)}")
    blob = rollout.ask("send a")
    rollout.ask("drop a")
    # Whoever passes it on keeps it, until it has arrived.
    assert third.ask(f"take a {blob}") == "taken"
    assert float(third.ask("sum a")) == 2 * MIB
    with pytest.raises(NotQuiescent, match="third"):
        memory.pause("weights", timeout=0.2)
    third.ask("drop a")
    end(third)
    rollout.ask(f"take b {pack(memory.empty(1, tag='other'))}")
    end(rollout)


def test_what_nobody_has_received_is_kept_until_it_is_forgotten(memory: Memory, rollout: Worker) -> None:
    tensor = memory.empty(MIB, tag="weights")
    blob = pack(tensor)
    del tensor
    assert kept_alive(memory) == 1
    assert memory.allocated_bytes("weights") >= 4 * MIB
    memory.forget_sent()
    assert kept_alive(memory) == 0
    assert memory.allocated_bytes("weights") == 0
    refused = rollout.ask(f"take a {blob}")
    assert "UnknownLease" in refused and "not there any more" in refused
    end(rollout)


# As SGLang's: what torch sends names a GPU by its UUID, and nothing is unpickled but torch's own functions.
PATCHED = """
import io
import torch
from torch.multiprocessing import reductions
class Picky(pickle.Unpickler):
    def find_class(self, module, name):
        if not (module + ".").startswith(("builtins.", "collections.", "torch.", "multiprocessing.reduction.")):
            raise RuntimeError(f"blocked: {module}.{name}")
        return super().find_class(module, name)
def unpack(blob):
    return Picky(io.BytesIO(base64.b64decode(blob))).load()
original = reductions.reduce_tensor
def reduce_tensor(tensor):
    rebuild, arguments = original(tensor)
    if tensor.is_cuda:
        arguments = (*arguments[:6], str(arguments[6]), *arguments[7:])
    return rebuild, arguments
def patch():
    reductions.reduce_tensor = reduce_tensor
    reductions.init_reductions()
"""


@pytest.mark.parametrize("first", [True, False])
def test_others_that_replace_torchs_functions_still_send_and_receive(start_worker: "StartWorker", first: bool) -> None:
    before, after = ("patch()", "") if first else ("", "patch()")
    source = f"""
{TRAVELLER}
{PATCHED}
from vrambroker.client import connect
{before}
memory = connect(told())
{after}
"""
    sender = start_worker(f"""{source}
tensor = memory.empty((1000, 1000), tag="weights")
tensor.fill_(2)
tell(pack([("first", tensor[:10]), ("second", tensor[10:])]))
told()
""")
    receiver = start_worker(f"""{source}
named = unpack(told())
tell([name for name, _ in named], sum(one.sum().item() for _, one in named))
del named
memory.close()
""")
    sender.say("trainer")
    receiver.say("rollout")
    receiver.say(sender.hear())
    assert receiver.hear() == "['first', 'second'] 2000000.0"
    receiver.end()
    sender.say()
    sender.end()


def test_a_queue_of_torch_multiprocessing_carries_leased_tensors(start_worker: "StartWorker") -> None:
    worker = start_worker("""
import torch
import torch.multiprocessing as mp
import tests.process.queue_child as child
from vrambroker.client import connect
memory = connect("trainer")
context = mp.get_context("spawn")
there, back = context.Queue(), context.Queue()
process = context.Process(target=child.add_one, args=(there, back))
process.start()
tensor = memory.empty(1 << 20, tag="weights")
tensor.fill_(1)
there.put({"weights": tensor})
tell(back.get(timeout=50), tensor.mean().item())
there.put(None)
process.join(50)
memory.pause("weights", release=True, timeout=50)
memory.resume("weights")
tell(process.exitcode, tensor.mean().item())
memory.close()
""")
    assert worker.hear() == "1.0 2.0"
    assert worker.hear() == "0 2.0"
    worker.end()


def test_the_status_shows_who_reads(memory: Memory, rollout: Worker, broker: "RunningBroker") -> None:
    import subprocess
    import sys

    tensor = memory.empty(MIB, tag="weights")
    rollout.ask(f"take a {pack(tensor)}")
    command = [sys.executable, "-m", "vrambroker.broker.cli", "status"]
    shown = subprocess.run(
        command, env={**broker.environment, "COLUMNS": "200"}, capture_output=True, text=True, timeout=60, check=True
    )
    assert "resident, read by rollout" in shown.stdout
    end(rollout)
