"""Leased memory beside software that knows nothing of the broker: plain allocations, torch's own, and NCCL."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false
# mypy: disable-error-code="no-untyped-call, arg-type"

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from vrambroker.client import connect

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, Worker

pytestmark = pytest.mark.gpu

GIB = 1 << 30

# Each allocates 5 GiB of the device, says so, and keeps them until told.
THROUGH_TORCH = """
import torch
plain = torch.ones(5 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
tell("there")
told()
tell(int(plain.sum(dtype=torch.int64)) == 5 << 30)
"""
THROUGH_THE_RUNTIME = """
import ctypes
import torch
runtime = ctypes.CDLL("libcudart.so." + torch.version.cuda.split(".")[0])
address = ctypes.c_void_p()
size = ctypes.c_size_t(5 << 30)
assert runtime.cudaMalloc(ctypes.byref(address), size) == 0
assert runtime.cudaMemset(address, 1, size) == 0
assert runtime.cudaDeviceSynchronize() == 0
tell("there")
told()
last = ctypes.c_uint8()
assert runtime.cudaMemcpy(ctypes.byref(last), ctypes.c_void_p(address.value + (5 << 30) - 1), ctypes.c_size_t(1), 2) == 0
tell(last.value == 1)
"""


@pytest.mark.parametrize("neighbour", [THROUGH_TORCH, THROUGH_THE_RUNTIME], ids=["torch", "runtime"])
def test_a_plain_neighbour_is_foreign(
    neighbour: str, broker: "RunningBroker", start_worker: "Callable[[str], Worker]"
) -> None:
    with connect("test", broker.device) as memory:
        before = memory.status().device.foreign_bytes
        worker = start_worker(neighbour)
        assert worker.hear() == "there"
        assert 5 * GIB < memory.status().device.foreign_bytes - before < 7 * GIB
        with memory.region("weights"):
            leased = torch.randint(0, 256, (4 * GIB,), dtype=torch.uint8, device="cuda")
        kept = leased.cpu()
        memory.pause("weights", release=True)
        memory.resume("weights")
        assert torch.equal(leased.cpu(), kept)
        assert worker.ask() == "True"
        worker.end()
        del leased


# One rank, with its buffers registered and used, before and after their frames went to somebody else.
NCCL = """
import ctypes
import torch
from vrambroker.client import connect
nccl = ctypes.CDLL("libnccl.so.2")
class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_byte * 128)]
def check(status):
    assert status == 0, (status, text(status))
text = nccl.ncclGetErrorString
text.restype = ctypes.c_char_p
pointer = lambda tensor: ctypes.c_void_p(tensor.data_ptr())
memory = connect("trainer")
with memory.region("gradients"):
    sent = torch.arange(64 << 20, dtype=torch.float32, device="cuda")
    received = torch.zeros_like(sent)
unique, communicator, handle = UniqueId(), ctypes.c_void_p(), ctypes.c_void_p()
check(nccl.ncclGetUniqueId(ctypes.byref(unique)))
check(nccl.ncclCommInitRank(ctypes.byref(communicator), 1, unique, 0))
def reduce():
    received.zero_()
    stream = torch.cuda.current_stream()
    check(nccl.ncclAllReduce(
        pointer(sent), pointer(received), ctypes.c_size_t(sent.numel()), 7, 0, communicator, ctypes.c_void_p(stream.cuda_stream)
    ))
    stream.synchronize()
    return torch.equal(sent, received) and float(sent[12345]) == 12345.0
for turn in range(2):
    check(nccl.ncclCommRegister(communicator, pointer(sent), ctypes.c_size_t(sent.nbytes), ctypes.byref(handle)))
    tell("reduced", reduce())
    told()
    check(nccl.ncclCommDeregister(communicator, handle))
    memory.pause("gradients", release=True)
    tell("paused")
    told()
    assert memory.resume("gradients") == {"gradients": False}
tell("reduced", reduce())
check(nccl.ncclCommDestroy(communicator))
memory.close()
"""

TAKER = """
import torch
from vrambroker.client import connect
memory = connect("rollout")
tell("attached")
while told():
    with memory.region("cache", contents="drop"):
        taken = torch.full((7 << 30,), 7, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    tell("taken", int(taken[:: 1 << 20].sum()))
    told()
    del taken
    memory.pause("cache", release=True)
    tell("released")
    memory.resume("cache")
memory.close()
"""


def test_nccl_reduces_in_leased_memory_that_was_lent_meanwhile(start_worker: "Callable[[str], Worker]") -> None:
    taker = start_worker(TAKER)
    assert taker.hear() == "attached"
    trainer = start_worker(NCCL)
    for _ in range(2):
        assert trainer.hear() == "reduced True"
        assert trainer.ask("deregister") == "paused"
        assert taker.ask("take") == f"taken {7 * 7 * 1024}"
        assert taker.ask("release") == "released"
        trainer.say("resume")
    assert trainer.hear() == "reduced True"
    trainer.end()
    taker.say("")
    taker.end()
