"""Frames of the stand-in without a GPU: one memfd each, sized once and sealed against resizing.

The daemon never touches a page, so a frame costs memory only where a client has written, and is charged to that client.
Creating one takes microseconds and is done at once. Closing gives pages back, which takes as long as there are pages,
so that happens on a thread.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable, Sequence

from vrambroker.broker.adapters.host_memory import seal_against_writing, sealed_memfd
from vrambroker.broker.adapters.job_thread import JobThread
from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.ports import Deliver

FRAME_SIZES_BYTES = (2 * MIB, 32 * MIB)
FENCE_POLL_FIRST_S = 0.001
FENCE_POLL_LAST_S = 0.2

OnPassed = Callable[[tuple[FrameId, ...]], None]


class HostFrames:
    """The `Frames` of `host`, for one running loop. Every fd is owned here and closed here."""

    def __init__(self, *, deliver: Deliver, device_bytes: int) -> None:
        self._deliver = deliver
        self._device_bytes = device_bytes
        self._fds: dict[FrameId, int] = {}
        self._fenced: dict[FrameId, int] = {}
        self._timers: dict[FrameId, asyncio.TimerHandle] = {}
        self._closer = JobThread("frames")

    def sizes_bytes(self) -> tuple[int, ...]:
        """Return the frame sizes, ascending."""
        return FRAME_SIZES_BYTES

    def device_bytes(self) -> int:
        """Return the memory limit that stands for the device's size."""
        return self._device_bytes

    def foreign_bytes(self) -> int:
        """Return 0: host memory that is no frame is not on this device."""
        return 0

    def create(self, frame: FrameId, size_bytes: int) -> None:
        """Make a memfd that reads as zero; delivers `FrameCreated` or `FrameCreateFailed`."""
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        try:
            self._fds[frame] = sealed_memfd(f"vrambroker-frame-{frame}", size_bytes, seals)
        except OSError as error:
            result = f"{error.strerror} ({error.errno})"
            self._deliver(FrameCreateFailed(frame=frame, driver_call="memfd_create", driver_result=result))
            return
        self._deliver(FrameCreated(frame=frame))

    def destroy(self, frame: FrameId) -> None:
        """Close a frame that was given back; delivers `FrameDestroyed` once its pages have gone back.

        Whoever gave it back has said that nobody maps it; it is fenced all the same, since its pages stay in use for as
        long as that is untrue.
        """
        self._fence((frame,), lambda _: self._deliver(FrameDestroyed(frame=frame)))

    def fence(self, session: SessionId, frames: tuple[FrameId, ...]) -> None:
        """Close each frame once no process can write to it any more, and deliver `FencePassed` for it then."""
        self._fence(frames, lambda passed: self._deliver(FencePassed(session=session, frames=passed)))

    def _fence(self, frames: tuple[FrameId, ...], on_passed: OnPassed) -> None:
        """Close frames as they get out of everybody's reach, and tell of those that were closed.

        A forked child keeps a dead client's mappings. Sealing a memfd against writing fails for as long as anybody has
        it mapped writable, and binds for good once it succeeds, whoever still has a copy of the fd.
        """
        for frame in frames:
            self._fenced[frame] = self._fds.pop(frame)
        self._try_fence(frames, on_passed, FENCE_POLL_FIRST_S)

    def fd_of(self, frame: FrameId) -> int | None:
        """Return the frame's fd, which stays owned here; None once the frame is on its way out."""
        return self._fds.get(frame)

    def close(self) -> None:
        """Close every fd and end the thread."""
        for timer in self._timers.values():
            timer.cancel()
        self._closer.close()
        for fd in (*self._fds.values(), *self._fenced.values()):
            os.close(fd)
        self._fds.clear()
        self._fenced.clear()

    def _try_fence(self, frames: tuple[FrameId, ...], on_passed: OnPassed, pause_s: float) -> None:
        """Seal on the thread, because sealing looks at every page; what can't be sealed yet is tried again later."""
        fds = tuple(self._fenced[frame] for frame in frames)

        def seal() -> tuple[bool, ...]:
            return tuple(seal_against_writing(fd) for fd in fds)

        self._closer.run(seal, lambda sealed: self._fence_tried(frames, on_passed, sealed, pause_s))

    def _fence_tried(
        self, frames: tuple[FrameId, ...], on_passed: OnPassed, sealed: tuple[bool, ...], pause_s: float
    ) -> None:
        passed = tuple(frame for frame, out_of_reach in zip(frames, sealed, strict=True) if out_of_reach)
        left = tuple(frame for frame, out_of_reach in zip(frames, sealed, strict=True) if not out_of_reach)
        if passed:
            fds = [self._fenced.pop(frame) for frame in passed]
            self._closer.run(lambda: _close_all(fds), lambda _: on_passed(passed))
        if left:
            # A mapping that goes away tells nobody, so this has to ask again.
            loop = asyncio.get_running_loop()
            self._timers[left[0]] = loop.call_later(pause_s, self._fence_again, left, on_passed, 2 * pause_s)

    def _fence_again(self, frames: tuple[FrameId, ...], on_passed: OnPassed, pause_s: float) -> None:
        del self._timers[frames[0]]
        self._try_fence(frames, on_passed, min(pause_s, FENCE_POLL_LAST_S))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
