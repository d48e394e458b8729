"""A GPU for `CudaFrames` where there is none: memfds for memory, and books of what is in use, as NVML would show it.

Memory is in use for as long as its fd is open in this process or a process reaches it, whoever closed what.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from vrambroker.broker.adapters.cuda_driver import DriverRefused


@dataclass(slots=True, kw_only=True)
class _Memory:
    fd: int
    size_bytes: int
    reached: int = 0


class FakeGpu:
    """Both what makes frames and what measures the memory in use. `others_bytes` is what other processes have."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.granularity_bytes = 2 << 20
        self.others_bytes = 0
        self.made: list[int] = []
        self.refusals = 0
        self.unreadable = 0
        self.on_reading: Callable[[], None] = lambda: None
        self._memory: dict[int, _Memory] = {}

    def make_frame(self, size_bytes: int) -> int:
        if self.refusals or self._in_use_bytes() + size_bytes > self.total_bytes:
            self.refusals = max(0, self.refusals - 1)
            raise DriverRefused(call="cuMemCreate", result="CUDA_ERROR_OUT_OF_MEMORY")
        fd = os.memfd_create("fake-gpu-frame", os.MFD_CLOEXEC)
        os.truncate(fd, size_bytes)
        self._memory[os.fstat(fd).st_ino] = _Memory(fd=fd, size_bytes=size_bytes)
        self.made.append(fd)
        return fd

    def used_bytes(self) -> int:
        self.on_reading()
        if self.unreadable:
            self.unreadable -= 1
            raise DriverRefused(call="nvmlDeviceGetMemoryInfo", result="Unknown Error")
        return self._in_use_bytes()

    def close(self) -> None:
        """A meter is closed once, after the last reading."""
        self.unreadable = -1

    def reach(self, fd: int) -> int:
        """Have a process map the memory of this fd; returns what `unreach` takes."""
        number = os.fstat(fd).st_ino
        self._memory[number].reached += 1
        return number

    def unreach(self, number: int) -> None:
        """Have that process unmap it, or end."""
        self._memory[number].reached -= 1

    def _in_use_bytes(self) -> int:
        memory = self._memory.items()
        here = sum(one.size_bytes for number, one in memory if one.reached or _is_open(one.fd, number))
        return here + self.others_bytes


def _is_open(fd: int, number: int) -> bool:
    try:
        return os.fstat(fd).st_ino == number
    except OSError:
        return False
