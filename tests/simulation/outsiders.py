"""Whoever uses the device and is no session: their memory comes and goes, and the broker hears of it late."""

from random import Random

from tests.simulation.machine import Machine, require
from vrambroker.broker.core import events as ev


class Outsiders:
    """`used_bytes`: what they have just now. Without `device_bytes` nobody measures, and there are none."""

    def __init__(self, *, device_bytes: int | None, machine: Machine, chance: Random) -> None:
        self._device_bytes = device_bytes
        self._machine = machine
        self._chance = chance
        self.used_bytes = 0

    def come_or_go(self, unit_bytes: int) -> ev.OutsideMeasured | None:
        """Have them take some of what no frame is in, or give some back; returns what a reading says afterwards."""
        if self._device_bytes is None:
            return None
        room_bytes = self._device_bytes - self._frames_bytes()
        self.used_bytes = self._chance.choice((0, 0, self.used_bytes // 2, self._chance.randint(0, room_bytes)))
        return ev.OutsideMeasured(used_bytes=min(self.used_bytes + self._chance.randint(0, unit_bytes), room_bytes))

    def leave(self) -> ev.OutsideMeasured:
        """Have all of them gone."""
        self.used_bytes = 0
        return ev.OutsideMeasured(used_bytes=0)

    def leave_room_for(self, size_bytes: int) -> bool:
        """Tell whether the driver has so much more for frames."""
        if self._device_bytes is None:
            return True
        return self._frames_bytes() + self.used_bytes + size_bytes <= self._device_bytes

    def require_room(self, size_bytes: int) -> None:
        """Raise `Wronged` unless so much of what the broker may lend is no frame."""
        free_bytes = self._machine.capacity_bytes - self._frames_bytes()
        require(size_bytes <= free_bytes, f"room of {size_bytes} bytes was made, and {free_bytes} are free")

    def _frames_bytes(self) -> int:
        return sum(frame.size_bytes for frame in self._machine.frames.values())
