"""Frames of a GPU: memory that the driver made, known here as one fd each and as nothing else.

Making one can wait for the driver's scrubber, closing one takes as long as it is large, and NVML is a call into the
kernel, so all three are done on one thread. It alone changes the sum of what exists, so its readings of what is in use
are never taken while memory is on its way in or out.

A few of the smallest frames are made ahead of need: an export after a pause takes most of a millisecond, which malloc
would wait for. They are not in the ledger, and live on what the capacity leaves free; they go when the driver runs out,
and with the last frame.
"""

import asyncio
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vrambroker.broker.adapters.cuda_driver import CudaGpu, DriverRefused
from vrambroker.broker.adapters.job_thread import JobThread
from vrambroker.broker.adapters.nvml import Nvml
from vrambroker.broker.core.errors import DriverFailed
from vrambroker.broker.core.events import FencePassed, FrameCreated, FrameCreateFailed, FrameDestroyed
from vrambroker.broker.core.ids import FrameId, SessionId
from vrambroker.broker.core.limits import GIB, MIB
from vrambroker.broker.ports import Deliver

log = logging.getLogger(__name__)

AHEAD_FRAMES = 4
KEEP_FREE_BYTES = 2 * GIB
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
POOL_NS = 2_000_000_000
COPY_AHEAD_NS = 200_000_000
# The readings that fences wait for: all of them share one, and after a few seconds there is one in two seconds.
FENCE_POLL_FIRST_S = 0.001
FENCE_POLL_LAST_S = 2.0
# How much other memory may come between two readings before it is taken for a frame that has not gone.
FENCE_SLACK_BYTES = 16 * MIB


class FrameMaker(Protocol):
    """The driver, as far as frames need it. Called on the thread."""

    @property
    def total_bytes(self) -> int: ...
    @property
    def granularity_bytes(self) -> int: ...
    def make_frame(self, size_bytes: int) -> int:
        """Return the fd of new memory that reads as zero; raises `DriverRefused`. Ownership: the caller's."""
        ...


class Meter(Protocol):
    """What is in use on the device. Called on the thread and on the loop."""

    def used_bytes(self) -> int:
        """Return what is in use, by whomever; raises `DriverRefused`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    fd: int
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class _Fence:
    """Frames that were closed and are still there. `peak_bytes`: the most that was in use outside since then."""

    session: SessionId
    frames: tuple[FrameId, ...]
    size_bytes: int
    peak_bytes: int

    def is_gone(self, outside_bytes: int) -> bool:
        """Take a reading; say whether the memory of all the frames has gone back."""
        self.peak_bytes = max(self.peak_bytes, outside_bytes)
        return _is_fall(self.peak_bytes - outside_bytes, self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passed:
    """What is out of everybody's reach now, and whether other fences are still waited for."""

    events: tuple[FencePassed, ...]
    waiting: bool


class CudaFrames:
    """The `Frames` of a GPU, for one running loop. Every fd is owned here and closed here.

    `baseline_bytes` is what the daemon itself costs the device; it is no frame and is not foreign.
    """

    def __init__(
        self,
        *,
        deliver: Deliver,
        gpu: FrameMaker,
        meter: Meter,
        baseline_bytes: int = 0,
        ahead_frames: int = AHEAD_FRAMES,
    ) -> None:
        self._deliver = deliver
        self._gpu = gpu
        self._meter = meter
        self._baseline_bytes = baseline_bytes
        self._ahead_frames = ahead_frames
        self._sizes_bytes = frame_sizes_bytes(gpu.total_bytes, gpu.granularity_bytes)
        self._frames: dict[FrameId, _Frame] = {}
        self._ahead: list[_Frame] = []
        self._creating = 0
        self._refilling = False
        self._tight = False
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False
        self._pause_s = FENCE_POLL_FIRST_S
        self._closing = False
        # The thread's: what exists, fences included; the fences; the fds that the loop has not heard of yet.
        self._existing_bytes = 0
        self._fences: list[_Fence] = []
        self._unclaimed: set[int] = set()
        self._last_outside_bytes = 0
        self._thread = JobThread("frames")

    def sizes_bytes(self) -> tuple[int, ...]:
        """Return the frame sizes, ascending."""
        return self._sizes_bytes

    def device_bytes(self) -> int:
        """Return what the driver says the device has in all."""
        return self._gpu.total_bytes

    def foreign_bytes(self) -> int:
        """Return what is in use and is neither a frame, lent or fenced, nor the daemon's own."""
        return max(0, self._outside_bytes() - self._baseline_bytes)

    def create(self, frame: FrameId, size_bytes: int) -> None:
        """Take a frame made ahead, or make one on the thread; delivers `FrameCreated` or `FrameCreateFailed`."""
        if self._ahead and size_bytes == self._ahead[-1].size_bytes:
            self._frames[frame] = self._ahead.pop()
            self._refill()
            self._deliver(FrameCreated(frame=frame))
            return
        self._creating += 1
        self._thread.run(lambda: self._make(size_bytes), lambda made: self._made(frame, size_bytes, made))

    def destroy(self, frame: FrameId) -> None:
        """Close a frame that nobody maps; delivers `FrameDestroyed` once its memory has gone back."""
        gone = self._frames.pop(frame)
        self._thread.run(lambda: self._close_frame(gone), lambda _: self._room_again(FrameDestroyed(frame=frame)))

    def fence(self, session: SessionId, frames: tuple[FrameId, ...]) -> None:
        """Close the frames of a process whose pidfd has fired, and deliver `FencePassed` as their memory goes back.

        A forked child keeps a dead client's memory, and only what is in use on the device tells. Read before and after
        each fd is closed, that tells exactly; what is held is read again until as much as all of it has gone. Memory of
        others that goes meanwhile can be taken for it: then the ledger says free what the driver will refuse, and no
        frame is ever shared, since these are closed for good.
        """
        closing = {frame: self._frames.pop(frame) for frame in frames}
        self._thread.run(lambda: self._close_watched(session, closing), self._fenced)

    def fd_of(self, frame: FrameId) -> int | None:
        """Return the frame's fd, which stays owned here; None once the frame is on its way out."""
        found = self._frames.get(frame)
        return None if found is None else found.fd

    def close(self) -> None:
        """Close every fd and end the thread."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.close()
        for frame in (*self._frames.values(), *self._ahead):
            os.close(frame.fd)
        for fd in self._unclaimed:
            os.close(fd)
        self._frames.clear()
        self._ahead.clear()
        self._unclaimed.clear()
        self._fences.clear()
        self._meter.close()

    # Creation.

    def _made(self, frame: FrameId, size_bytes: int, made: _Frame | DriverRefused) -> None:
        self._creating -= 1
        if isinstance(made, _Frame):
            self._unclaimed.discard(made.fd)
            self._frames[frame] = made
            self._deliver(FrameCreated(frame=frame))
        elif self._ahead:
            # What was made ahead goes first; the thread closes it before it tries again.
            self._give_ahead_back()
            self.create(frame, size_bytes)
            return
        else:
            self._tight = True
            self._deliver(_failed(frame, made))
        self._refill()

    def _give_ahead_back(self) -> None:
        self._tight = True
        for spare in self._ahead:
            self._thread.run(partial(self._close_frame, spare), lambda _: None)
        self._ahead.clear()

    def _refill(self) -> None:
        """Make one more frame ahead, when nobody waits for one and the device is not known to be full."""
        wanted = bool(self._frames) and len(self._ahead) < self._ahead_frames and not self._tight
        if self._creating or self._refilling or self._closing or not wanted:
            return
        self._refilling = True
        self._thread.run(lambda: self._make(self._sizes_bytes[0]), self._refilled)

    def _refilled(self, made: _Frame | DriverRefused) -> None:
        self._refilling = False
        if isinstance(made, _Frame):
            self._unclaimed.discard(made.fd)
            self._ahead.append(made)
            self._give_back_the_last()
        else:
            self._tight = True
        self._refill()

    def _give_back_the_last(self) -> None:
        """Have nothing made ahead when there is no other frame: a daemon that lends nothing takes nothing."""
        if not self._frames:
            self._give_ahead_back()
            self._tight = False

    def _room_again(self, event: FrameDestroyed | FencePassed) -> None:
        self._give_back_the_last()
        self._tight = False
        self._deliver(event)
        self._refill()

    # Fences.

    def _fenced(self, passed: _Passed) -> None:
        self._pause_s = FENCE_POLL_FIRST_S
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_passed(passed)

    def _tell_passed(self, passed: _Passed) -> None:
        self._waiting = passed.waiting
        self._arm()
        for event in passed.events:
            self._room_again(event)

    def _arm(self) -> None:
        """Read again after a while: a process that ends, and its mappings with it, tells nobody here."""
        if self._waiting and self._timer is None and not self._looking:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._look)
            self._pause_s = min(2 * self._pause_s, FENCE_POLL_LAST_S)

    def _look(self) -> None:
        self._timer = None
        self._looking = True
        self._thread.run(self._pass_fences, self._looked)

    def _looked(self, passed: _Passed) -> None:
        self._looking = False
        self._tell_passed(passed)

    # What the thread does.

    def _make(self, size_bytes: int) -> _Frame | DriverRefused:
        if self._closing:
            return DriverRefused(call="cuMemCreate", result="the daemon is closing")
        self._existing_bytes += size_bytes
        try:
            fd = self._gpu.make_frame(size_bytes)
        except DriverRefused as refusal:
            self._existing_bytes -= size_bytes
            return refusal
        self._unclaimed.add(fd)
        return _Frame(fd=fd, size_bytes=size_bytes)

    def _close_frame(self, frame: _Frame) -> None:
        os.close(frame.fd)
        self._existing_bytes -= frame.size_bytes

    def _close_watched(self, session: SessionId, closing: dict[FrameId, _Frame]) -> _Passed:
        """Close one after the other; what stays in use when its fd is closed is held by somebody, and is fenced."""
        gone: list[FrameId] = []
        held: list[FrameId] = []
        outside_bytes = self._outside_bytes()
        for number, frame in closing.items():
            os.close(frame.fd)
            before_bytes, outside_bytes = outside_bytes, self._outside_bytes()
            if _is_fall(before_bytes - outside_bytes, frame.size_bytes):
                gone.append(number)
                self._existing_bytes -= frame.size_bytes
                outside_bytes += frame.size_bytes
            else:
                held.append(number)
        if held:
            size_bytes = sum(closing[number].size_bytes for number in held)
            fence = _Fence(session=session, frames=tuple(held), size_bytes=size_bytes, peak_bytes=outside_bytes)
            self._fences.append(fence)
            # The largest first: a fall as large as that is theirs, and not that of smaller ones.
            self._fences.sort(key=lambda one: one.size_bytes, reverse=True)
        events = (FencePassed(session=session, frames=tuple(gone)),) if gone else ()
        return _Passed(events=events, waiting=bool(self._fences))

    def _pass_fences(self) -> _Passed:
        """Take a reading. Memory that has gone counts for one fence: what exists is less by it from then on."""
        outside_bytes = self._outside_bytes()
        passed: list[FencePassed] = []
        waiting: list[_Fence] = []
        for fence in self._fences:
            if fence.is_gone(outside_bytes):
                passed.append(FencePassed(session=fence.session, frames=fence.frames))
                self._existing_bytes -= fence.size_bytes
                outside_bytes += fence.size_bytes
            else:
                waiting.append(fence)
        self._fences = waiting
        return _Passed(events=tuple(passed), waiting=bool(waiting))

    def _outside_bytes(self) -> int:
        """Return what is in use and is no frame of ours, from a new reading, or as it was at the last one."""
        try:
            self._last_outside_bytes = self._meter.used_bytes() - self._existing_bytes
        except DriverRefused as refusal:
            log.warning("memory in use can't be read: %s", refusal)
        return self._last_outside_bytes


def _failed(frame: FrameId, refusal: DriverRefused) -> FrameCreateFailed:
    out_of_memory = refusal.result == OUT_OF_MEMORY
    return FrameCreateFailed(
        frame=frame, driver_call=refusal.call, driver_result=refusal.result, out_of_memory=out_of_memory
    )


def _is_fall(fall_bytes: int, size_bytes: int) -> bool:
    """Say whether so much memory has gone, give or take what others did meanwhile."""
    return fall_bytes >= size_bytes - min(FENCE_SLACK_BYTES, size_bytes // 2)


def frame_sizes_bytes(device_bytes: int, granularity_bytes: int) -> tuple[int, ...]:
    """Return the frame sizes for a device: large ones, since each frame costs calls and decisions, and small ones.

    A lease keeps what it does not use of its last frame, so the largest are for demands and leases that are large
    themselves. Powers of two, as the granularity is, so each divides the next.
    """
    sizes = (32 * MIB, 256 * MIB, GIB) if device_bytes >= 16 * GIB else (8 * MIB, 64 * MIB, 256 * MIB)
    return tuple(sorted({max(size, granularity_bytes) for size in sizes}))


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaPlace:
    """A GPU that can be served, before there is a loop: its name (`GPU-…`), its size, and what frames are made from."""

    name: str
    gpu: CudaGpu
    meter: Meter
    baseline_bytes: int

    @property
    def device_bytes(self) -> int:
        """Return what the driver says the device has in all."""
        return self.gpu.total_bytes

    @property
    def lent_bytes(self) -> int:
        """Return all but what is kept free, in whole frames."""
        return max(0, self.device_bytes - self.keep_free_bytes)

    @property
    def keep_free_bytes(self) -> int:
        """Return 2 GiB, which is for contexts, NCCL and whatever else is no lease."""
        return KEEP_FREE_BYTES

    @property
    def frame_sizes_bytes(self) -> tuple[int, ...]:
        """Return the frame sizes, ascending."""
        return frame_sizes_bytes(self.gpu.total_bytes, self.gpu.granularity_bytes)

    @property
    def arena_ahead(self) -> bool:
        """Return True: populating and registering takes several times as long as the copy."""
        return True

    @property
    def pool_ns(self) -> int:
        """Return two seconds: closing and making 16 GiB takes ten milliseconds and more, and mapping them one."""
        return POOL_NS

    @property
    def copy_ahead_ns(self) -> int:
        """Return a fifth of a second: what is paused and resumed within a step is left alone, since copying slows its own
        process's launches, and a phase of seconds is long enough to copy tens of GiB.
        """
        return COPY_AHEAD_NS

    def frames(self, deliver: Deliver) -> CudaFrames:
        """Return the frames of this device, for the running loop. Ownership: they close the meter."""
        return CudaFrames(deliver=deliver, gpu=self.gpu, meter=self.meter, baseline_bytes=self.baseline_bytes)


def open_cuda(device: str) -> CudaPlace:
    """Open `cuda`, `cuda:N` or a GPU's UUID; raises `InvalidArgument` or `DriverFailed`. Makes no context."""
    with ExitStack() as undo:
        nvml = Nvml()
        undo.callback(nvml.close)
        try:
            before = nvml.used_everywhere_bytes()
            gpu = CudaGpu(device)
            meter = nvml.meter(gpu.uuid)
            used_bytes = meter.used_bytes()
        except DriverRefused as refusal:
            raise DriverFailed(
                message=f"memory in use can't be read: {refusal}",
                driver_call=refusal.call,
                driver_result=refusal.result,
            ) from refusal
        undo.pop_all()
    # What the driver took when it was initialised just now.
    baseline_bytes = max(0, used_bytes - before.get(meter.name, used_bytes))
    return CudaPlace(name=meter.name, gpu=gpu, meter=meter, baseline_bytes=baseline_bytes)
