"""What the tests on a GPU need: the device, frames of it that can be made to fail, and a process that maps them."""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrambroker.broker.adapters.cuda_frames import CudaFrames, CudaPlace, FrameMaker, Meter
from vrambroker.broker.core.ids import FrameId
from vrambroker.broker.ports import Deliver, Frames

HOLDER = Path(__file__).with_name("holder.py")
ANSWER_S = 60.0


class HolderProcess:
    """A process with a context on the GPU (tests/gpu/holder.py)."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_S)
        self._channel = ours
        self._process = subprocess.Popen(
            [sys.executable, str(HOLDER), str(theirs.fileno())], stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),)
        )
        theirs.close()

    def ask(self, do: str, fd: int | None = None, **order: Any) -> Any:
        """Have it done; returns the answer."""
        message = json.dumps({"do": do, **order}).encode()
        socket.send_fds(self._channel, [message], [] if fd is None else [fd])
        reply = self._channel.recv(4096)
        assert reply, f"the holder ended at {do}, with status {self._process.poll()}"
        answer = json.loads(reply)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    def kill(self) -> None:
        """Kill it as the kernel would, and wait for its pidfd, as the daemon does."""
        pidfd = os.pidfd_open(self._process.pid)
        self._process.kill()
        readable, _, _ = select.select([pidfd], [], [], ANSWER_S)
        os.close(pidfd)
        assert readable, "a killed process ends"
        self._process.wait(ANSWER_S)

    def let_child_go(self) -> None:
        """End the child that it forked, if it did."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        self._channel.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(ANSWER_S)


class _WatchedMeter:
    """The device's meter, which outlives the frames of one test and says when it is read."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.on_reading: Callable[[], None] = lambda: None

    def used_bytes(self) -> int:
        self.on_reading()
        return self._meter.used_bytes()

    def close(self) -> None:
        """Leave it open: it is the session's."""


class _Maker:
    """The device's own maker, which can be had to ask for more than any device has, once."""

    def __init__(self, gpu: FrameMaker) -> None:
        self._gpu = gpu
        self.too_much = False
        self.total_bytes = gpu.total_bytes
        self.granularity_bytes = gpu.granularity_bytes

    def make_frame(self, size_bytes: int) -> int:
        too_much, self.too_much = self.too_much, False
        return self._gpu.make_frame(1 << 50 if too_much else size_bytes)


class GpuFramesBench:
    """The port's bench (tests/contract/benches.py) on a real device."""

    def __init__(self, deliver: Deliver, *, place: CudaPlace, holder: HolderProcess, ahead_frames: int = 0) -> None:
        self._maker = _Maker(place.gpu)
        self._meter = _WatchedMeter(place.meter)
        self.holder = holder
        self.frames: Frames = CudaFrames(
            deliver=deliver,
            gpu=self._maker,
            meter=self._meter,
            baseline_bytes=place.baseline_bytes,
            ahead_frames=ahead_frames,
        )

    def map(self, frame: FrameId, size: int = 0) -> None:
        fd = self.frames.fd_of(frame)
        assert fd is not None
        self.holder.ask("map", fd, name=str(frame), size_bytes=self.frames.sizes_bytes()[size])

    def unmap(self, frame: FrameId) -> None:
        self.holder.ask("unmap", name=str(frame))

    def read(self, frame: FrameId) -> bytes:
        self.map(frame)
        ends = bytes(self.holder.ask("ends", name=str(frame)))
        self.unmap(frame)
        return ends

    @contextmanager
    def failing(self) -> Generator[None]:
        self._maker.too_much = True
        yield

    async def looked(self, readings: int = 3) -> None:
        """Wait until the frames have taken readings that begin from now on."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Queue[None] = asyncio.Queue()

        def read() -> None:
            loop.call_soon_threadsafe(taken.put_nowait, None)

        self._meter.on_reading = read
        for _ in range(readings):
            await taken.get()
        self._meter.on_reading = lambda: None
