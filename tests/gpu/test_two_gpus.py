"""One process, two GPUs, a daemon for each: memory of the one is paused beside the other's, and each reaches the other's."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from vrambroker.client import Memory, connect
from vrambroker.client.discovery import gpu_name

if TYPE_CHECKING:
    from tests.gpu.conftest import StartGpuBroker

pytestmark = pytest.mark.gpu

MIB = 1 << 20
COUNT = 64 * MIB


@pytest.fixture
def memories(start_broker: "StartGpuBroker") -> Iterator[tuple[Memory, Memory]]:
    """This process's sessions on both GPUs."""
    if torch.cuda.device_count() < 2:
        pytest.skip("SKIPPED: torch sees one GPU on this machine, and this takes two")
    for number in range(2):
        start_broker(device=gpu_name(number), capacity="4GiB", host_budget="4GiB")
    with connect("both", "cuda:0") as first, connect("both", "cuda:1") as second:
        yield first, second
    torch.cuda.empty_cache()


def test_regions_of_two_gpus_are_kept_apart(memories: tuple[Memory, Memory]) -> None:
    first, second = memories
    with first.region("weights"), second.region("weights"):
        tensors = [torch.arange(COUNT, dtype=torch.int32, device=f"cuda:{number}") for number in range(2)]
    for memory in memories:
        assert COUNT * 4 <= memory.stats().allocated_bytes < COUNT * 8
    first.pause("weights", release=True)
    assert first.status().device.lent_bytes == 0
    assert second.status().device.lent_bytes >= COUNT * 4
    assert int(tensors[1].sum(dtype=torch.int64)) == COUNT * (COUNT - 1) // 2
    assert first.resume("weights") == {"weights": False}
    assert torch.equal(tensors[0].cpu(), tensors[1].cpu())


@pytest.mark.parametrize("leased", [0, 1])
def test_kernels_of_one_gpu_reach_what_is_leased_on_the_other(memories: tuple[Memory, Memory], leased: int) -> None:
    other = 1 - leased
    if not torch.cuda.can_device_access_peer(other, leased):
        pytest.skip("SKIPPED: these GPUs can't reach each other's memory")
    with memories[leased].region("weights"):
        there = torch.zeros(1024, COUNT // 1024, dtype=torch.int32, device=f"cuda:{leased}")
    here = torch.arange(COUNT, dtype=torch.int32, device=f"cuda:{other}").view(1024, -1)
    for _ in range(2):
        there.zero_()
        # Transposed, so that torch has a kernel of the source's GPU write over the link, not the copy engine.
        there.copy_(here.t().contiguous().t())
        torch.cuda.synchronize(other)
        assert torch.equal(there.cpu(), here.cpu())
        memories[leased].pause("weights", release=True)
        memories[leased].resume("weights")
        assert torch.equal(there.to(f"cuda:{other}"), here)
