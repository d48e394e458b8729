"""What a worker knows of its own leased tensors: where each one is, and what was in those that must be kept.

An address is compared with the one at the start; contents with a fingerprint taken before the memory was let go.
"""

import zlib
from collections.abc import Callable, Mapping

import torch

CHUNK_BYTES = 1 << 24
MULTIPLIER = 0x1E3779B97F4A7C15

Tensors = Callable[[], Mapping[str, torch.Tensor]]
"""Looks the tensors up anew, so that one that was replaced is found out."""


class Watchman:
    """Watches the tensors of several tags. Fingerprints are taken of memory that is resident, by the caller's word."""

    def __init__(self, tags: Mapping[str, Tensors]) -> None:
        self._tags = dict(tags)
        self._addresses = {tag: _addresses(tensors) for tag, tensors in self._tags.items()}
        self._fingerprints: dict[str, dict[str, int]] = {}
        self.addresses_changed = 0
        self.contents_changed = 0
        self.checks = 0

    @property
    def addresses(self) -> int:
        """How many addresses are watched."""
        return sum(len(addresses) for addresses in self._addresses.values())

    def tag_bytes(self) -> dict[str, int]:
        """Return how many bytes the tensors of each tag have."""
        return {
            tag: sum(tensor.numel() * tensor.element_size() for tensor in tensors().values())
            for tag, tensors in self._tags.items()
        }

    def before_pause(self, *tags: str) -> None:
        """Remember what is in the tensors of these tags."""
        for tag in tags:
            self._fingerprints[tag] = {name: fingerprint(tensor) for name, tensor in self._tags[tag]().items()}

    def after_resume(self, *tags: str) -> None:
        """Compare the contents of these tags with what was remembered, if anything was."""
        for tag in tags:
            before = self._fingerprints.pop(tag, None)
            if before is not None:
                now = {name: fingerprint(tensor) for name, tensor in self._tags[tag]().items()}
                self.contents_changed += _differences(before, now)

    def check_addresses(self) -> None:
        """Compare every tensor's address with the one at the start; touches no memory of theirs."""
        self.checks += 1
        for tag, tensors in self._tags.items():
            self.addresses_changed += _differences(self._addresses[tag], _addresses(tensors))


def fingerprint(tensor: torch.Tensor) -> int:
    """Return a number that changes, all but certainly, with any bit of the tensor and with their order."""
    if tensor.device.type == "cpu":
        return zlib.crc32(tensor.detach().reshape(-1).numpy().data)
    return weighed_sum(tensor.detach().contiguous().view(-1).view(torch.uint8))


def weighed_sum(data: torch.Tensor) -> int:
    """Return a sum of all bytes, each weighed by an odd number of its own place, modulo 2^64; where the tensor lies."""
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for begin in range(0, len(data), CHUNK_BYTES):
        part = data[begin : begin + CHUNK_BYTES].to(torch.int64)
        places = torch.arange(begin + 1, begin + 1 + len(part), device=data.device)
        total += (part * (places * MULTIPLIER | 1)).sum()
    return int(total)


def _addresses(tensors: Tensors) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors().items()}


def _differences(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    return sum(before.get(name) != now.get(name) for name in before.keys() | now.keys())
