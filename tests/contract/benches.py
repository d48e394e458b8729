"""What the suites need around an implementation of a port: how to reach its memory, and to make it fail."""

import asyncio
import mmap
import os
import resource
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.contract.fake_frames import FakeFrames
from vrambroker.broker.adapters.host_frames import HostFrames
from vrambroker.broker.core.events import Event
from vrambroker.broker.core.ids import FrameId
from vrambroker.broker.ports import Deliver, Frames

DEADLINE_S = 20.0
DEVICE_BYTES = 1 << 30


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test to its end, within the deadline."""
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Heard:
    """The events that a port delivered, from whatever thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        return await self._events.get()

    def nothing_more(self) -> bool:
        return self._events.empty()


class FramesBench(Protocol):
    """One implementation of `Frames`, and hands to touch what it made."""

    def __init__(self, deliver: Deliver) -> None: ...
    @property
    def frames(self) -> Frames: ...
    def map(self, frame: FrameId) -> None: ...
    def unmap(self, frame: FrameId) -> None: ...
    def read(self, frame: FrameId) -> bytes:
        """Return the frame's first and last byte."""
        ...

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Make creation fail."""
        yield


class FakeFramesBench:
    def __init__(self, deliver: Deliver) -> None:
        self._frames = FakeFrames(deliver=deliver, device_bytes=DEVICE_BYTES)

    @property
    def frames(self) -> Frames:
        return self._frames

    def map(self, frame: FrameId) -> None:
        self._frames.reach(frame)

    def unmap(self, frame: FrameId) -> None:
        self._frames.unreach(frame)

    def read(self, frame: FrameId) -> bytes:
        return b"\0\0"

    @contextmanager
    def failing(self) -> Iterator[None]:
        self._frames.fail_next()
        yield


class HostFramesBench:
    def __init__(self, deliver: Deliver) -> None:
        self._frames = HostFrames(deliver=deliver, device_bytes=DEVICE_BYTES)
        self._mapped: dict[FrameId, mmap.mmap] = {}

    @property
    def frames(self) -> Frames:
        return self._frames

    def map(self, frame: FrameId) -> None:
        fd = self._frames.fd_of(frame)
        assert fd is not None
        self._mapped[frame] = mmap.mmap(fd, 0)
        self._mapped[frame][:5] = b"dirty"

    def unmap(self, frame: FrameId) -> None:
        self._mapped.pop(frame).close()

    def read(self, frame: FrameId) -> bytes:
        fd = self._frames.fd_of(frame)
        assert fd is not None
        return os.pread(fd, 1, 0) + os.pread(fd, 1, os.fstat(fd).st_size - 1)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Leave no fd to be had: the kernel's own refusal."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
