"""Frames that are numbers: keeps books of who could reach what, and can be told to fail. Passes the suite of `host`."""

import asyncio
from collections import Counter

from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.ports import Deliver


class FakeFrames:
    """The `Frames` port without a device. An fd is a number that was never an fd."""

    def __init__(self, *, deliver: Deliver, device_bytes: int) -> None:
        self._deliver = deliver
        self._device_bytes = device_bytes
        self._loop = asyncio.get_running_loop()
        self._fds: dict[FrameId, int] = {}
        self._sizes_bytes: dict[FrameId, int] = {}
        self._reached: Counter[FrameId] = Counter()
        self._fenced: dict[FrameId, FencePassed | FrameDestroyed] = {}
        self._last_fd = 1_000
        self._failures = 0
        self._closed = False

    def sizes_bytes(self) -> tuple[int, ...]:
        return (2 * MIB, 32 * MIB)

    def device_bytes(self) -> int:
        return self._device_bytes

    def foreign_bytes(self) -> int:
        return 0

    def create(self, frame: FrameId, size_bytes: int) -> None:
        assert frame not in self._sizes_bytes, "a frame is created once"
        if self._failures:
            self._failures -= 1
            failed = FrameCreateFailed(frame=frame, driver_call="create", driver_result="out of memory")
            self._loop.call_soon(self._tell, failed)
            return
        self._last_fd += 1
        self._fds[frame] = self._last_fd
        self._sizes_bytes[frame] = size_bytes
        self._loop.call_soon(self._tell, FrameCreated(frame=frame))

    def destroy(self, frame: FrameId) -> None:
        del self._fds[frame]
        self._fenced[frame] = FrameDestroyed(frame=frame)
        self._pass_fences()

    def fence(self, session: SessionId, frames: tuple[FrameId, ...]) -> None:
        for frame in frames:
            del self._fds[frame]
            self._fenced[frame] = FencePassed(session=session, frames=(frame,))
        self._pass_fences()

    def fd_of(self, frame: FrameId) -> int | None:
        return self._fds.get(frame)

    def close(self) -> None:
        self._closed = True
        self._fds.clear()
        self._sizes_bytes.clear()
        self._fenced.clear()

    def used_bytes(self) -> int:
        """Return what exists, fenced frames included."""
        return sum(self._sizes_bytes.values())

    def fail_next(self) -> None:
        """Refuse the next creation."""
        self._failures += 1

    def reach(self, frame: FrameId) -> None:
        """Have a process map a frame."""
        assert frame in self._sizes_bytes
        self._reached[frame] += 1

    def unreach(self, frame: FrameId) -> None:
        """Have that process unmap it, or end."""
        self._reached[frame] -= 1
        self._pass_fences()

    def _pass_fences(self) -> None:
        for frame, event in tuple(self._fenced.items()):
            if not self._reached[frame]:
                del self._fenced[frame], self._sizes_bytes[frame]
                self._loop.call_soon(self._tell, event)

    def _tell(self, event: FrameCreated | FrameCreateFailed | FrameDestroyed | FencePassed) -> None:
        if not self._closed:
            self._deliver(event)
