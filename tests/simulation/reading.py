"""What a simulated process has mapped of others' leases, and what it has received and uses.

It maps what it is sent, lets go when it is asked to and nothing there is in use, and says so; whoever dies in the middle
may go on writing to what it could write to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.machine import Machine
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core.ids import FrameId, LeaseId, ReaderId, SlotId


@dataclass(slots=True, kw_only=True, eq=False)
class SimReader:
    """`frames`: what is mapped. `closing`: it is to let go as soon as it can."""

    lease: LeaseId
    writable: bool
    frames: dict[SlotId, FrameId] = field(default_factory=dict[SlotId, FrameId])
    closing: bool = False


class Reading:
    """`reads`: what was received and is in use, by number, and its reader; none of what is the process's own."""

    def __init__(self, machine: Machine, pid: int, tell_closed: Callable[[ReaderId], None]) -> None:
        self.readers: dict[ReaderId, SimReader] = {}
        self.reads: dict[int, ReaderId | None] = {}
        self._machine = machine
        self._pid = pid
        self._tell_closed = tell_closed

    def map(self, order: ef.SendReadGrant) -> None:
        reader = self.readers.setdefault(order.reader, SimReader(lease=order.lease, writable=order.writable))
        for slot in order.slots:
            if slot.slot not in reader.frames and self._machine.read(
                slot.frame, (self._pid, order.reader), writable=order.writable
            ):
                reader.frames[slot.slot] = slot.frame

    def begin(self, number: int, granted: ef.ReadGranted) -> None:
        self.reads[number] = granted.reader

    def end(self, number: int) -> None:
        del self.reads[number]
        self._let_go_if_idle()

    def close(self, number: ReaderId) -> None:
        reader = self.readers.get(number)
        if reader is None and number not in self.reads.values():
            self._tell_closed(number)
            return
        if reader is not None:
            reader.closing = True
        self._let_go_if_idle()

    def _let_go_if_idle(self) -> None:
        used = set(self.reads.values())
        for number in [one for one, reader in self.readers.items() if reader.closing and one not in used]:
            self._unmap(number)
            self._tell_closed(number)

    def _unmap(self, number: ReaderId) -> None:
        for frame in self.readers.pop(number).frames.values():
            self._machine.end_read(frame, (self._pid, number))

    def let_go(self) -> None:
        """Unmap everything, as a process does before it says goodbye."""
        self.reads.clear()
        for number in tuple(self.readers):
            self._unmap(number)

    def in_use(self) -> dict[ReaderId, SimReader]:
        """Return the readers of which something is in use just now."""
        used = dict.fromkeys(self.reads.values())
        return {number: self.readers[number] for number in used if number is not None and number in self.readers}
