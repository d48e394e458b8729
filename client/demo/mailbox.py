"""Where the trainer leaves its weights for the rollout: host memory that both processes map, without a name.

A memfd rather than a file in /dev/shm: it is gone with the last process that has it, however those end.
"""

import mmap
import os
from collections.abc import Iterable

import torch


class Mailbox:
    """Room for one set of weights. Both sides give the same tensors in the same order."""

    def __init__(self, fd: int) -> None:
        """Map it. Ownership: the fd is closed here; the mapping lives as long as this object."""
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        os.close(fd)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)

    @torch.no_grad()
    def leave(self, tensors: Iterable[torch.Tensor]) -> int:
        """Copy the tensors in; returns how many bytes they were."""
        at = 0
        for tensor in tensors:
            at = self._part(at, tensor, incoming=True)
        return at

    @torch.no_grad()
    def collect(self, tensors: Iterable[torch.Tensor]) -> int:
        """Copy what was left into the tensors, in place; returns how many bytes it was."""
        at = 0
        for tensor in tensors:
            at = self._part(at, tensor, incoming=False)
        return at

    def _part(self, at: int, tensor: torch.Tensor, *, incoming: bool) -> int:
        end = at + tensor.numel() * tensor.element_size()
        here = self._bytes[at:end].view(tensor.dtype).view(tensor.shape)
        if incoming:
            here.copy_(tensor)
        else:
            tensor.copy_(here)
        return end
