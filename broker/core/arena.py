"""The arena: host memory where kept contents are parked, as files per domain and extents in them.

An extent is as long as the slot it is for, aligned to its own length, and within one file, so that copies are cut at
the same borders everywhere. Free room is kept as aligned blocks of the frame sizes, which split and merge; asking
whether a set of contents fits is arithmetic on their numbers. Only what is populated by the daemon's order is used,
and all of it counts against the budget, from the moment a file is ordered until it is gone.

A domain keeps its empty files for its next pause, until somebody needs their room more: then they are given up, and
the files that come in their place are planned, so that contents have their place at once, and made when the old ones
have gone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vrambroker.broker.core.effects import Extent
from vrambroker.broker.core.errors import invariant
from vrambroker.broker.core.ids import ArenaFileId, Domain, Instant, LeaseId, SlotId
from vrambroker.broker.core.snapshot import FileState
from vrambroker.broker.core.ticket import compose

NOT_YET = (FileState.PLANNED, FileState.CREATING)
GOING = (FileState.UNWANTED, FileState.DESTROYING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What an extent is for. `punching`: for nothing any more, and being wiped."""

    size_bytes: int
    lease: LeaseId
    slot: SlotId
    punching: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class ArenaFile:
    """`waiting`: leases whose recall waits until the file is populated, or their places in it are not written to any more.
    `written`: places and their sizes that an agent may write to until it says that it has done so, whatever has become of
    what they were for. They may be set aside for others meanwhile.
    """

    file: ArenaFileId
    domain: Domain
    size_bytes: int
    state: FileState = FileState.PLANNED
    used_bytes: int = 0
    uses: dict[int, Use] = field(default_factory=dict[int, Use])
    waiting: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    written: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def disused(self) -> bool:
        """There is nothing in it, and it is not on its way out."""
        return not self.uses and self.state not in GOING


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How a need can be met: the sizes of the files to make, and the empty files to give up for them."""

    make: tuple[int, ...]
    give_up: tuple[ArenaFileId, ...]


class _Blocks:
    """The free blocks of one domain, by size; neighbours merge when their whole parent is free."""

    def __init__(self, sizes_bytes: tuple[int, ...]) -> None:
        self._sizes = sizes_bytes
        self._free: dict[int, dict[tuple[ArenaFileId, int], None]] = {size: {} for size in sizes_bytes}
        self._siblings: dict[tuple[ArenaFileId, int, int], int] = {}

    def numbers(self) -> dict[int, int]:
        """Return how many blocks of each size are free."""
        return {size: len(blocks) for size, blocks in self._free.items()}

    def all(self) -> Iterator[tuple[ArenaFileId, int, int]]:
        for size, blocks in self._free.items():
            for file, offset in blocks:
                yield file, offset, size

    def add_file(self, file: ArenaFile) -> None:
        offset = 0
        for size, number in compose(file.size_bytes, self._sizes).items():
            for _ in range(number):
                self.give(file, offset, size)
                offset += size

    def drop_file(self, file: ArenaFile) -> None:
        for blocks in self._free.values():
            for block in [block for block in blocks if block[0] == file.file]:
                del blocks[block]
        for parent in [parent for parent in self._siblings if parent[0] == file.file]:
            del self._siblings[parent]

    def take(self, size: int) -> tuple[ArenaFileId, int]:
        """Take a block, splitting the smallest that is large enough."""
        found = next((larger for larger in self._sizes if larger >= size and self._free[larger]), None)
        invariant(found is not None, "room in the arena is counted before it is taken")
        assert found is not None
        file, offset = next(iter(self._free[found]))
        self._cut(file, offset, found, offset, size)
        return file, offset

    def take_exactly(self, file: ArenaFileId, offset: int, size: int) -> None:
        """Take the block at this offset, which is free, whatever it has been merged into."""
        whole = (larger for larger in self._sizes if larger >= size)
        found = next((one for one in whole if (file, offset - offset % one) in self._free[one]), None)
        invariant(found is not None, "only what was given is taken again")
        assert found is not None
        self._cut(file, offset - offset % found, found, offset, size)

    def _cut(self, file: ArenaFileId, start: int, size: int, wanted: int, wanted_size: int) -> None:
        """Take a block of the wanted size out of a free one; what is left of that stays free."""
        self._pick(file, start, size)
        for smaller in reversed([part for part in self._sizes if wanted_size <= part < size]):
            within = wanted - wanted % smaller
            for other in range(start, start + size, smaller):
                if other != within:
                    self._free[smaller][file, other] = None
            self._siblings[file, size, start] = size // smaller - 1
            start, size = within, smaller

    def give(self, file: ArenaFile, offset: int, size: int) -> None:
        """Put a block back, merged with its siblings as far as they are free."""
        parent = self._parent_size(size)
        while parent is not None:
            start = offset - offset % parent
            if start + parent > file.size_bytes:
                break
            siblings = self._siblings.get((file.file, parent, start), 0) + 1
            if siblings < parent // size:
                self._siblings[file.file, parent, start] = siblings
                break
            self._siblings.pop((file.file, parent, start), None)
            for other in range(start, start + parent, size):
                self._free[size].pop((file.file, other), None)
            offset, size, parent = start, parent, self._parent_size(parent)
        self._free[size][file.file, offset] = None

    def _pick(self, file: ArenaFileId, offset: int, size: int) -> None:
        del self._free[size][file, offset]
        parent = self._parent_size(size)
        if parent is None:
            return
        key = (file, parent, offset - offset % parent)
        siblings = self._siblings.get(key, 0)
        if siblings > 1:
            self._siblings[key] = siblings - 1
        else:
            self._siblings.pop(key, None)

    def _parent_size(self, size: int) -> int | None:
        return next((larger for larger in self._sizes if larger > size), None)


class Arena:
    """Files and extents, and the budget they are held to.

    `size_bytes`: the files that there are, which is what the budget bounds. `going_bytes`: those of them that are on
    their way out. `planned_bytes`: files that are not there yet; they fit once the others have gone. `roomier`: some
    room has come back since this was last set to false. `retry_at`: when to try again after a file could not be made.
    """

    def __init__(self, *, budget_bytes: int, file_bytes: int, sizes_bytes: tuple[int, ...]) -> None:
        self.budget_bytes = budget_bytes
        self.files: dict[ArenaFileId, ArenaFile] = {}
        self.size_bytes = 0
        self.going_bytes = 0
        self.planned_bytes = 0
        self.used_bytes = 0
        self.roomier = False
        self.retry_at: Instant | None = None
        self._tight = False
        self._file_bytes = file_bytes
        self._sizes = sizes_bytes
        self._blocks: dict[Domain, _Blocks] = {}
        self._by_domain: dict[Domain, dict[ArenaFileId, None]] = {}

    def blocks_of(self, domain: Domain) -> _Blocks:
        blocks = self._blocks.get(domain)
        if blocks is None:
            blocks = self._blocks[domain] = _Blocks(self._sizes)
        return blocks

    def free_bytes(self, domain: Domain) -> int:
        """Return what a domain could still set aside: free room in its files, what the budget has left for more, and
        the empty files of others.
        """
        blocks_bytes = sum(size * number for size, number in self._free_numbers(domain).items())
        others = (file.size_bytes for file in self.files.values() if file.disused and file.domain != domain)
        return blocks_bytes + self._spare_bytes + self.going_bytes + sum(others)

    @property
    def _spare_bytes(self) -> int:
        """What the budget has left just now, beside what is planned; less than nothing while others are going."""
        return self.budget_bytes - self.size_bytes - self.planned_bytes

    def files_ahead(self, domain: Domain, wanted_bytes: int) -> tuple[int, ...]:
        """Return the sizes of the files to make for a domain to have so much, as far as the budget allows. None after
        one could not be made, until some have gone.
        """
        short_bytes, spare_bytes = wanted_bytes - self._staying_bytes(domain), self._spare_bytes
        ahead: list[int] = []
        while short_bytes > 0 and not self._tight:
            # A small lease does not take as much of the host as a large one.
            size_bytes = next((size for size in self._sizes if size >= short_bytes), self._file_bytes)
            size_bytes = min(size_bytes, self._file_bytes)
            if size_bytes > spare_bytes:
                break
            ahead.append(size_bytes)
            short_bytes -= size_bytes
            spare_bytes -= size_bytes
        return tuple(ahead)

    def _staying_bytes(self, domain: Domain) -> int:
        files = (self.files[number] for number in self._by_domain.get(domain, {}))
        return sum(file.size_bytes for file in files if file.state not in GOING)

    def ready(self, domain: Domain) -> list[ArenaFile]:
        """Return the domain's files that can be parked in."""
        files = (self.files[number] for number in self._by_domain.get(domain, {}))
        return [file for file in files if file.state is FileState.READY]

    def room_for(self, domain: Domain, need: Mapping[int, int]) -> Room | None:
        """Return what it takes for all of the need to fit, or None if the budget forbids it.

        What is to spare now comes first, then what is going, then what can be given up: others' empty files, and the
        domain's own that are too small; no more of them than it takes.
        """
        numbers, give_up = self._free_numbers(domain), list[ArenaFileId]()
        make = self._files_needed(numbers, self._spare_bytes, need)
        spare_bytes = self._spare_bytes + self.going_bytes
        if make is None:
            make = self._files_needed(numbers, spare_bytes, need)
        for file in self._to_give_up(domain) if make is None else ():
            give_up.append(file.file)
            spare_bytes += file.size_bytes
            for size, number in compose(file.size_bytes, self._sizes).items() if file.domain == domain else ():
                numbers[size] -= number
            make = self._files_needed(numbers, spare_bytes, need)
            if make is not None:
                break
        return Room(make=make, give_up=tuple(give_up)) if make is not None else None

    def _free_numbers(self, domain: Domain) -> dict[int, int]:
        return self._blocks[domain].numbers() if domain in self._blocks else dict.fromkeys(self._sizes, 0)

    def _to_give_up(self, domain: Domain) -> list[ArenaFile]:
        """Return the empty files, oldest first, the domain's own last."""
        return sorted((file for file in self.files.values() if file.disused), key=lambda file: file.domain == domain)

    def _files_needed(
        self, free: Mapping[int, int], spare_bytes: int, need: Mapping[int, int]
    ) -> tuple[int, ...] | None:
        """Return the sizes of the files that must be made beside these free blocks, or None if they would take more
        than is to spare.
        """
        numbers = dict(free)
        made: list[int] = []
        for size in reversed(self._sizes):
            short = need.get(size, 0) - numbers[size]
            while short > 0:
                file_bytes = self._next_file_bytes(size, spare_bytes)
                if file_bytes is None:
                    return None
                made.append(file_bytes)
                spare_bytes -= file_bytes
                for part, number in self._usable_parts(file_bytes, size).items():
                    numbers[part] += number
                short = need.get(size, 0) - numbers[size]
            self._split_rest(numbers, size, -short)
        return tuple(made)

    def _usable_parts(self, file_bytes: int, size: int) -> dict[int, int]:
        """Return the blocks of a new file, none larger than the size that is being looked at."""
        return compose(file_bytes, tuple(part for part in self._sizes if part <= size))

    def _split_rest(self, numbers: dict[int, int], size: int, rest: int) -> None:
        smaller = max((part for part in self._sizes if part < size), default=None)
        if smaller is not None:
            numbers[smaller] += rest * (size // smaller)

    def _next_file_bytes(self, size: int, spare_bytes: int) -> int | None:
        smallest = self._sizes[0]
        file_bytes = max(self._file_bytes // smallest * smallest, size)
        if file_bytes > spare_bytes:
            file_bytes = spare_bytes // smallest * smallest
        return file_bytes if file_bytes >= size else None

    def file(self, number: ArenaFileId) -> ArenaFile:
        """Return a file that an outcome is about; raise `InvariantViolation` if there is none."""
        found = self.files.get(number)
        invariant(found is not None, f"there is an arena file {number}, as its outcome says")
        assert found is not None
        return found

    def add_file(self, file: ArenaFileId, domain: Domain, size_bytes: int) -> None:
        """Plan a file. Its room can be set aside at once; nobody may be told of it until it is ready."""
        made = ArenaFile(file=file, domain=domain, size_bytes=size_bytes)
        self.files[file] = made
        self.planned_bytes += size_bytes
        self._by_domain.setdefault(domain, {})[file] = None
        self.blocks_of(domain).add_file(made)

    def begin_planned(self) -> list[ArenaFile]:
        """Begin the planned files that there is room for now, and return them; the rest waits for others to go."""
        begun: list[ArenaFile] = []
        for file in self.files.values():
            if file.state is FileState.PLANNED and self.size_bytes + file.size_bytes <= self.budget_bytes:
                file.state = FileState.CREATING
                self.planned_bytes -= file.size_bytes
                self.size_bytes += file.size_bytes
                begun.append(file)
        return begun

    def take(self, domain: Domain, size_bytes: int, lease: LeaseId, slot: SlotId) -> Extent:
        """Set an extent aside for a slot; `files_needed` was asked before."""
        number, offset = self.blocks_of(domain).take(size_bytes)
        file = self.files[number]
        file.uses[offset] = Use(size_bytes=size_bytes, lease=lease, slot=slot)
        file.used_bytes += size_bytes
        self.used_bytes += size_bytes
        return Extent(file=number, offset_bytes=offset, size_bytes=size_bytes)

    def give(self, extent: Extent) -> None:
        """Put an extent back; what is in it stays there for the same domain to overwrite. A planned file of which
        nothing is left is not made at all.
        """
        file = self.files[extent.file]
        use = file.uses.pop(extent.offset_bytes)
        file.used_bytes -= use.size_bytes
        self.used_bytes -= use.size_bytes
        self.roomier = True
        self.blocks_of(file.domain).give(file, extent.offset_bytes, use.size_bytes)
        if file.state is FileState.PLANNED and not file.uses:
            self.planned_bytes -= file.size_bytes
            self._unblock(file)
            self._forget(file)

    def take_again(self, extent: Extent, use: Use) -> None:
        """Undo `give` of an extent in a file that is there, for the same use; nothing else has been taken since."""
        file = self.files[extent.file]
        self.blocks_of(file.domain).take_exactly(extent.file, extent.offset_bytes, extent.size_bytes)
        file.uses[extent.offset_bytes] = use
        file.used_bytes += use.size_bytes
        self.used_bytes += use.size_bytes

    def begin_writing(self, extent: Extent) -> None:
        """Let nobody else put contents there before `end_writing`."""
        invariant(self.is_usable(extent), "a place is written to by one agent, once it is there")
        self.files[extent.file].written[extent.offset_bytes] = extent.size_bytes

    def end_writing(self, extent: Extent) -> None:
        """Undo `begin_writing`; the file may be gone meanwhile, once its agent has let go of it."""
        file = self.files.get(extent.file)
        if file is not None:
            del file.written[extent.offset_bytes]

    def is_usable(self, extent: Extent) -> bool:
        """Tell whether contents can be put there now: the file is there, and nobody still writes to the place."""
        file, end = self.files[extent.file], extent.offset_bytes + extent.size_bytes
        if file.state is not FileState.READY:
            return False
        return not any(at < end and extent.offset_bytes < at + size for at, size in file.written.items())

    def begin_punching(self, extent: Extent) -> bool:
        """Put back an extent of a dead client once it is wiped; tells whether it must be wiped at all."""
        file = self.files[extent.file]
        if file.state in NOT_YET:
            self.give(extent)
            return False
        use = file.uses[extent.offset_bytes]
        file.uses[extent.offset_bytes] = Use(size_bytes=use.size_bytes, lease=use.lease, slot=use.slot, punching=True)
        return True

    def punched(self, number: ArenaFileId, offset_bytes: int) -> ArenaFile:
        file = self.file(number)
        use = file.uses.get(offset_bytes)
        invariant(use is not None and use.punching, "only what is being punched can be done with")
        assert use is not None
        self.give(Extent(file=number, offset_bytes=offset_bytes, size_bytes=use.size_bytes))
        return file

    def made(self, number: ArenaFileId) -> ArenaFile:
        """Take note that a file is there; one that is unwanted by now is to be destroyed."""
        file = self.file(number)
        invariant(file.state in (FileState.CREATING, FileState.UNWANTED), "a file gets ready once")
        file.state = FileState.READY if file.state is FileState.CREATING else FileState.DESTROYING
        return file

    def fail_file(self, number: ArenaFileId) -> ArenaFile:
        """Forget a file that could not be made; returns it, with the uses that have lost their place."""
        file = self.file(number)
        invariant(file.state in (FileState.CREATING, FileState.UNWANTED), "only a file being made can fail")
        self._tight = True
        self.used_bytes -= file.used_bytes
        self._unblock(file)
        self._vanish(file)
        return file

    def give_up(self, file: ArenaFile) -> bool:
        """Set nothing aside in an empty file any more; tells whether it can be destroyed now, and not only when it is
        ready.
        """
        invariant(file.disused, "only an empty file is given up")
        self._unblock(file)
        self.going_bytes += file.size_bytes
        file.state = FileState.DESTROYING if file.state is FileState.READY else FileState.UNWANTED
        return file.state is FileState.DESTROYING

    def destroyed(self, number: ArenaFileId) -> None:
        file = self.file(number)
        invariant(file.state is FileState.DESTROYING, "only a file being destroyed can be gone")
        self._vanish(file)
        self.try_again()

    def try_again(self) -> None:
        """Believe that there may be memory for more files, whatever became of the last ones."""
        self.roomier, self._tight, self.retry_at = True, False, None

    def disused(self, domain: Domain) -> list[ArenaFile]:
        """Return the domain's files that hold nothing."""
        files = (self.files[number] for number in self._by_domain.get(domain, {}))
        return [file for file in files if file.disused]

    def _unblock(self, file: ArenaFile) -> None:
        self.blocks_of(file.domain).drop_file(file)

    def _vanish(self, file: ArenaFile) -> None:
        """Forget a file that was made, at least in part; its bytes are back."""
        self.size_bytes -= file.size_bytes
        if file.state in GOING:
            self.going_bytes -= file.size_bytes
        self._forget(file)

    def _forget(self, file: ArenaFile) -> None:
        del self.files[file.file]
        del self._by_domain[file.domain][file.file]
        if not self._by_domain[file.domain]:
            del self._by_domain[file.domain]
            del self._blocks[file.domain]
