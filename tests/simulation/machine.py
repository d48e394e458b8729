"""The machine under the simulator: frames and arena files with contents, which can tell when somebody was wronged.

Contents are single numbers: 0 for clean memory, otherwise what was last written. The machine knows who maps what, which
process is dead, and which extents a dead process has left its contents in; it raises `Wronged` when the broker lets two
processes have one frame, passes on what was not cleaned, exceeds the device or the arena's budget, or uses a file that
is not there or on its way out.
"""

from dataclasses import dataclass, field

from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.ids import ArenaFileId, Domain, FrameId, ReaderId

OVERWRITTEN = -2
"""The contents of a place that somebody else has written to."""


ReaderKey = tuple[int, ReaderId]
"""A process, and which of its readers."""


class Wronged(AssertionError):
    """The broker has let something happen that it exists to prevent."""


def require(claim: bool, what: str) -> None:
    if not claim:
        raise Wronged(what)


@dataclass(slots=True, kw_only=True, eq=False)
class PhysicalFrame:
    """`mapper`: the pid that maps it as its owner. `writer`: the domain that may have written to it since it was created.
    `readers`: who maps it beside its owner, and may write to it or not. `spoilt`: a dead one could write to it.
    """

    size_bytes: int
    content: int = 0
    mapper: int | None = None
    writer: Domain | None = None
    dying: bool = False
    readers: dict[ReaderKey, bool] = field(default_factory=dict[ReaderKey, bool])
    spoilt: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class PhysicalFile:
    """`mappers`: the pids that map it; while there are any, it can't go. `closed`: the daemon has let go of it too."""

    domain: Domain
    size_bytes: int
    ready: bool = False
    dying: bool = False
    closed: bool = False
    mappers: set[int] = field(default_factory=set[int])
    contents: dict[int, int] = field(default_factory=dict[int, int])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    left_by_dead: set[int] = field(default_factory=set[int])


class Machine:
    """One device and one host memory. `written_from` and `read_into`: extents that the spill store uses just now."""

    def __init__(self, *, capacity_bytes: int, budget_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.budget_bytes = budget_bytes
        self.frames: dict[FrameId, PhysicalFrame] = {}
        self.files: dict[ArenaFileId, PhysicalFile] = {}
        self.dead: set[int] = set()
        self.written_from: set[tuple[ArenaFileId, int]] = set()
        self.read_into: set[tuple[ArenaFileId, int]] = set()
        self.late: dict[int, list[tuple[Extent, int]]] = {}

    def create(self, frame: FrameId, size_bytes: int) -> None:
        require(frame not in self.frames, f"frame {frame} is made twice")
        self.frames[frame] = PhysicalFrame(size_bytes=size_bytes)
        used = sum(one.size_bytes for one in self.frames.values())
        require(used <= self.capacity_bytes, f"{used} bytes of frames on a device of {self.capacity_bytes}")

    def begin_destroying(self, frame: FrameId) -> None:
        found = self.frames[frame]
        require(
            found.mapper is None and not found.dying, f"frame {frame} is destroyed while pid {found.mapper} maps it"
        )
        require(not found.readers, f"frame {frame} is destroyed while pids {found.readers} read it")
        found.dying = True

    def destroy(self, frame: FrameId) -> None:
        del self.frames[frame]

    def pass_fence(self, frames: tuple[FrameId, ...]) -> None:
        for number in frames:
            mapper = self.frames[number].mapper
            require(mapper is None or mapper in self.dead, f"frame {number} is fenced while live pid {mapper} maps it")
            del self.frames[number]

    def map(self, frame: FrameId, pid: int, domain: Domain, *, dirty: bool) -> None:
        found = self.frames[frame]
        require(found.mapper is None, f"frame {frame} is lent to pid {pid} while pid {found.mapper} maps it")
        require(not found.dying, f"frame {frame} is lent while it is destroyed")
        require(not found.readers, f"frame {frame} is lent to pid {pid} while pids {found.readers} read it")
        require(not found.spoilt, f"frame {frame} is lent, and a dead process may write to it")
        require(found.writer in (None, domain), f"frame {frame} crosses from {found.writer} to {domain}")
        require(dirty or found.content == 0, f"frame {frame} is called clean and holds {found.content}")
        found.mapper, found.writer = pid, domain

    def unmap(self, frame: FrameId, pid: int) -> None:
        found = self.frames[frame]
        require(found.mapper == pid, f"frame {frame} is unmapped by {pid} while {found.mapper} has it")
        found.mapper = None

    def read(self, frame: FrameId, reader: ReaderKey, *, writable: bool) -> bool:
        """Map a frame of somebody else's; tells whether it is there still: a dead owner's may have gone."""
        found = self.frames.get(frame)
        if found is None:
            return False
        require(not found.dying, f"frame {frame} is read while it is destroyed")
        require(found.mapper != reader[0], f"frame {frame} is lent to its own owner to read")
        found.readers[reader] = writable
        return True

    def end_read(self, frame: FrameId, reader: ReaderKey) -> None:
        found = self.frames.get(frame)
        if found is not None:
            found.readers.pop(reader, None)

    def is_read(self, frames: tuple[FrameId, ...]) -> bool:
        """Tell whether a process that lives maps any of these beside their owner."""
        return any(self.frames[frame].readers for frame in frames)

    def add_file(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None:
        self.files[file] = PhysicalFile(domain=domain, size_bytes=size_bytes)
        used = sum(one.size_bytes for one in self.files.values())
        require(used <= self.budget_bytes, f"{used} bytes of arena on a budget of {self.budget_bytes}")

    def map_file(self, number: ArenaFileId, pid: int, domain: Domain) -> None:
        """Map a file ahead of need; one that is about to go, or has gone meanwhile, is not sent any more."""
        file = self.files.get(number)
        if file is None:
            return
        require(file.domain == domain, f"file {number} is offered across domains")
        if not file.dying:
            file.mappers.add(pid)

    def close_dying_files(self) -> list[ArenaFileId]:
        """Close the files that are to go and that nobody maps any more; returns them."""
        closed = [one for one, file in self.files.items() if file.dying and not file.closed and not file.mappers]
        for number in closed:
            self.files[number].closed = True
        return closed

    def dying_files_of(self, pid: int) -> list[ArenaFileId]:
        return [number for number, file in self.files.items() if file.dying and pid in file.mappers]

    def let_go(self, pid: int) -> None:
        """Unmap every file, as the end of a process does."""
        for file in self.files.values():
            file.mappers.discard(pid)

    def park(self, extent: Extent, content: int, pid: int, domain: Domain) -> None:
        file = self._usable(extent, pid, domain)
        require(extent.offset_bytes not in file.left_by_dead, f"{extent} was not punched after its owner died")
        busy = (extent.file, extent.offset_bytes) in self.written_from | self.read_into
        require(not busy, f"{extent} is parked in while it goes to the spill store or comes from there")
        file.contents[extent.offset_bytes], file.sizes[extent.offset_bytes] = content, extent.size_bytes

    def write(self, extent: Extent, content: int, pid: int) -> None:
        """Write to a place whoever has it by now, as an agent does that has not heard yet what has become of its order."""
        file = self.files.get(extent.file)
        require(file is not None and pid in file.mappers, f"pid {pid} writes to {extent} of a file that is gone")
        self._overwrite(extent, content)

    def _overwrite(self, extent: Extent, content: int) -> None:
        """Destroy whatever lies there."""
        file, end = self.files[extent.file], extent.offset_bytes + extent.size_bytes
        for at, size in tuple(file.sizes.items()):
            if at < end and extent.offset_bytes < at + size:
                file.contents[at] = OVERWRITTEN
        file.contents[extent.offset_bytes], file.sizes[extent.offset_bytes] = content, extent.size_bytes

    def map_for(self, extents: list[Extent], pid: int, domain: Domain) -> None:
        """Send a process the files of these places, which are its domain's own and ready."""
        for extent in extents:
            self._usable(extent, pid, domain)

    def write_late(self, pid: int) -> None:
        """Let come what a dead process had under way, at the last moment at which it can."""
        for extent, content in self.late.get(pid, ()):
            if extent.file in self.files:
                self._overwrite(extent, content)

    def parked(self, extent: Extent, pid: int, domain: Domain) -> int:
        file = self._usable(extent, pid, domain)
        require((extent.file, extent.offset_bytes) not in self.read_into, f"{extent} is restored before it is read")
        return file.contents.get(extent.offset_bytes, 0)

    def _usable(self, extent: Extent, pid: int, domain: Domain) -> PhysicalFile:
        file = self.files[extent.file]
        require(file.ready and not file.dying, f"{extent} is used while its file is not there")
        require(file.domain == domain, f"{extent} is used across domains")
        require(extent.offset_bytes + extent.size_bytes <= file.size_bytes, f"{extent} crosses its file's border")
        require(extent.offset_bytes % extent.size_bytes == 0, f"{extent} is not aligned")
        file.mappers.add(pid)
        return file

    def punch(self, extent: Extent) -> None:
        file = self.files[extent.file]
        busy = (extent.file, extent.offset_bytes) in self.written_from | self.read_into
        require(not busy, f"{extent} is wiped while it goes to the spill store or comes from there")
        file.contents.pop(extent.offset_bytes, None)
        file.sizes.pop(extent.offset_bytes, None)
        file.left_by_dead.discard(extent.offset_bytes)

    def die(self, pid: int, extents: list[Extent], late: list[tuple[Extent, int]]) -> None:
        """End a process; what it has parked stays where it is until it is punched. `late`: what it may still write until
        it is fenced.
        """
        self.dead.add(pid)
        for frame in self.frames.values():
            gone = [reader for reader in frame.readers if reader[0] == pid]
            frame.spoilt = frame.spoilt or any(frame.readers[reader] for reader in gone)
            for reader in gone:
                del frame.readers[reader]
        self.late[pid] = late
        self.let_go(pid)
        for extent in extents:
            self.files[extent.file].left_by_dead.add(extent.offset_bytes)
