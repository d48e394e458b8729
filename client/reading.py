"""Reading what paused tensors hold, from where the broker has parked it on the host."""

from collections.abc import Callable

import torch

from vrambroker.broker.core.errors import InvalidArgument, WrongState
from vrambroker.client import native
from vrambroker.client.tensors import consumed
from vrambroker.client.torch_host import apart


def read_paused(
    client: native.Client,
    tensor: torch.Tensor,
    *,
    is_spilled: Callable[[str], bool],
    zero_copy: bool,
    timeout_s: float,
) -> torch.Tensor | None:
    """Return a CPU tensor of the same type and shape, or None; see `Memory.read_paused`.

    `is_spilled` asks the daemon whether any of a tag is on a disk, or is about to be.
    """
    if not tensor.is_contiguous():
        raise InvalidArgument(message="only a contiguous tensor can be read while it is paused", argument="tensor")
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes == 0:
        raise InvalidArgument(message="a tensor without elements has no leased memory", argument="tensor")
    address = tensor.data_ptr()
    place = client.find(address, size_bytes)
    if not place.paused:
        return None
    if place.contents != "keep":
        raise WrongState(
            message=f"tag {place.tag} keeps no contents across a pause: there is nothing to read",
            tag=place.tag,
            state="paused",
        )
    client.pause((place.tag,), release=True, timeout_s=timeout_s)
    if is_spilled(place.tag):
        return _brought_back(client, tensor, place.tag, timeout_s)
    bytes_there = consumed(client.parked_tensor(address, size_bytes, timeout_s=timeout_s))
    there = bytes_there.view(tensor.dtype).view(tensor.shape)
    if zero_copy:
        return there
    with apart():
        copy = there.clone()
    # Whoever resumes it, or has it spilled, under our hands may have had something else copied.
    if client.find(address, size_bytes).paused and not is_spilled(place.tag):
        return copy
    raise WrongState(message=f"tag {place.tag} was resumed while it was read", tag=place.tag, state="resident")


def _brought_back(client: native.Client, tensor: torch.Tensor, tag: str, timeout_s: float) -> torch.Tensor:
    """Read what no client can reach, where it was: on the device."""
    client.resume((tag,), timeout_s=timeout_s)
    try:
        with apart():
            return tensor.detach().cpu().clone()
    finally:
        client.pause((tag,), release=False, timeout_s=timeout_s)
