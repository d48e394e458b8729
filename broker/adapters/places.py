"""The devices that can be served, before there is a loop: which one it is, how large, and what its frames are made by."""

from dataclasses import dataclass
from typing import Protocol

from vrambroker.broker.adapters.cuda_frames import open_cuda
from vrambroker.broker.adapters.host_frames import FRAME_SIZES_BYTES, HostFrames
from vrambroker.broker.adapters.memory_limit import memory_limit_bytes
from vrambroker.broker.ports import Deliver, Frames


class Place(Protocol):
    """A device, found and open. `lent_bytes` is what is lent of it unless the operator says otherwise, and
    `keep_free_bytes` what is left free for others; None where nobody measures what they use.

    `arena_ahead`: whether host memory is set up for contents before they must be parked. `pool_ns`: for how long
    frames that come back are kept for whoever asks next. `copy_ahead_ns`: how long kept contents are idle before they are
    copied out, unless the operator says otherwise; None: they never are.
    """

    @property
    def name(self) -> str: ...
    @property
    def device_bytes(self) -> int: ...
    @property
    def lent_bytes(self) -> int: ...
    @property
    def keep_free_bytes(self) -> int | None: ...
    @property
    def frame_sizes_bytes(self) -> tuple[int, ...]: ...
    @property
    def arena_ahead(self) -> bool: ...
    @property
    def pool_ns(self) -> int: ...
    @property
    def copy_ahead_ns(self) -> int | None: ...
    def frames(self, deliver: Deliver) -> Frames:
        """Return the frames of this device, for the running loop. Ownership: the caller's, who closes them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlace:
    """The stand-in: as large as the memory limit, of which a quarter is lent."""

    name: str
    device_bytes: int

    @property
    def lent_bytes(self) -> int:
        """Return a quarter: the pages are the clients' memory, beside the arena and all else they have."""
        return self.device_bytes // 4

    @property
    def keep_free_bytes(self) -> None:
        """Return None: others use the host's memory as they do without a daemon."""
        return None

    @property
    def frame_sizes_bytes(self) -> tuple[int, ...]:
        """Return the frame sizes, ascending."""
        return FRAME_SIZES_BYTES

    @property
    def arena_ahead(self) -> bool:
        """Return False: the host's memory is the device here, and there is nothing to register."""
        return False

    @property
    def pool_ns(self) -> int:
        """Return 0: making a memfd takes microseconds."""
        return 0

    @property
    def copy_ahead_ns(self) -> int | None:
        """Return None: there is no link that would be idle, and the copies would take the workers' own cores."""
        return None

    def frames(self, deliver: Deliver) -> HostFrames:
        """Return memfds."""
        return HostFrames(deliver=deliver, device_bytes=self.device_bytes)


def open_place(device: str) -> Place:
    """Find and open `host:N`, `cuda`, `cuda:N` or a GPU's UUID; raises `InvalidArgument` or `DriverFailed`."""
    if device.startswith("host:"):
        return HostPlace(name=device, device_bytes=memory_limit_bytes())
    return open_cuda(device)
