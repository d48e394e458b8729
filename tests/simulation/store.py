"""The simulated spill store: what lies where in it, and what is on its way, out of order, slowly, or in vain.

A write that fails leaves nobody knows what in its place, and a read that fails, in its extent. While something is on its
way, nobody else may touch either end of it.
"""

from dataclasses import dataclass

from tests.simulation.machine import Machine, require
from vrambroker.broker.core.effects import Extent, SpillIn, SpillOut, SpillPlace
from vrambroker.broker.core.ids import TransferId

RUBBISH = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    order: SpillOut | SpillIn
    content: int


class SpillStore:
    """Contents by their offset, each as long as it was written."""

    def __init__(self, *, budget_bytes: int, machine: Machine) -> None:
        self.under_way: dict[TransferId, UnderWay] = {}
        self._budget_bytes = budget_bytes
        self._machine = machine
        self._contents: dict[int, tuple[int, int]] = {}

    def begin(self, order: SpillOut | SpillIn) -> None:
        place, extent = order.place, order.extent
        require(order.transfer not in self.under_way, f"a transfer is ordered twice: {order}")
        require(place.size_bytes == extent.size_bytes, f"a transfer has two sizes: {order}")
        require(0 <= place.offset_bytes <= self._budget_bytes - place.size_bytes, f"{place} is outside of the store")
        for other in self.under_way.values():
            require(not _overlap(other.order.place, place), f"two transfers use one place: {order} and {other.order}")
            require(other.order.extent != extent, f"two transfers use one extent: {order} and {other.order}")
        file = self._machine.files[extent.file]
        require(file.ready and not file.dying, f"{extent} is used while its file is not there")
        if isinstance(order, SpillOut):
            content = file.contents.get(extent.offset_bytes, 0)
            self._machine.written_from.add((extent.file, extent.offset_bytes))
        else:
            written = self._contents.get(place.offset_bytes)
            require(written is not None and written[0] == place.size_bytes, f"{place} was not written as a whole")
            assert written is not None
            content = written[1]
            self._machine.read_into.add((extent.file, extent.offset_bytes))
        self.under_way[order.transfer] = UnderWay(order=order, content=content)

    def end(self, number: TransferId, *, failed: bool) -> SpillOut | SpillIn:
        done = self.under_way.pop(number)
        place, extent = done.order.place, done.order.extent
        at = (extent.file, extent.offset_bytes)
        self._machine.written_from.discard(at)
        self._machine.read_into.discard(at)
        contents = self._machine.files[extent.file].contents
        content = RUBBISH if failed else done.content
        if isinstance(done.order, SpillOut):
            now = contents.get(extent.offset_bytes, 0)
            require(now == done.content, f"{extent} has changed from {done.content} to {now} while it was written")
            self._overwrite(place, content)
        else:
            contents[extent.offset_bytes] = content
        return done.order

    def _overwrite(self, place: SpillPlace, content: int) -> None:
        for offset, (size_bytes, _) in tuple(self._contents.items()):
            if _overlap(SpillPlace(offset_bytes=offset, size_bytes=size_bytes), place):
                del self._contents[offset]
        self._contents[place.offset_bytes] = (place.size_bytes, content)


def _overlap(one: SpillPlace, other: SpillPlace) -> bool:
    return one.offset_bytes < other.offset_bytes + other.size_bytes and (
        other.offset_bytes < one.offset_bytes + one.size_bytes
    )


def is_of(extent: Extent | None, order: SpillOut | SpillIn) -> bool:
    """Tell whether a slot's extent is the one that a transfer uses."""
    return extent is not None and (extent.file, extent.offset_bytes) == (order.extent.file, order.extent.offset_bytes)
