"""What frames of a few sizes and an arena of files cost in the long run: the core alone, its classes of size as they are.

Tags of 20 MiB to 8 GiB (a 64th of that on `host`) come, grow in steps with something to spare, as clients have it, are
paused, resumed, cut short and returned, in sessions of three domains, on a device that is rarely less than full; time goes by,
up to half a second between two calls. Writes `results/fragmentation.json`; the run is drawn from one seed.

Predictions, written before the first run. Frames change their size when nobody's fit: most of the traffic is the same
tags coming back, so 0.6 of granted bytes are recycled frames, 0.25 were made of others that were destroyed; a third of
what is free lies in frames, for two seconds. The device refuses nothing for its pieces, since any frame can become any
other. The arena's files hold 0.6 of what they take, and there a need of large extents may fail beside the sum of small
ones, at most a file's worth: 1 GiB.
"""

import random
import sys
from collections import defaultdict
from dataclasses import dataclass, field

from core_world import CoreWorld
from harness import Result, write_results

from vrambroker.broker.core.effects import CreateFrame, DestroyFrame, Effect, Refuse, Reply, SendGrant
from vrambroker.broker.core.errors import OutOfDeviceMemory, OutOfHostMemory
from vrambroker.broker.core.events import Contents, Return
from vrambroker.broker.core.ids import LeaseId, SessionId, SlotId
from vrambroker.broker.core.limits import GIB, MIB, NS_PER_S, Limits
from vrambroker.broker.core.snapshot import FramePlace

STEPS = 3000
SAMPLE_EVERY = 10
SEED = 1
DOMAINS = 3
SESSIONS = 6
TAGS = 8
PLACES = {
    # As the daemon of an 80 GiB GPU and that of `host` have them.
    "gpu": Limits(
        capacity_bytes=64 * GIB,
        frame_sizes_bytes=(32 * MIB, 256 * MIB, GIB),
        host_budget_bytes=96 * GIB,
        arena_file_bytes=GIB,
        arena_ahead=True,
        pool_ns=2 * NS_PER_S,
    ),
    "host": Limits(
        capacity_bytes=GIB,
        frame_sizes_bytes=(2 * MIB, 32 * MIB),
        host_budget_bytes=1536 * MIB,
        arena_file_bytes=64 * MIB,
    ),
}
# What the fragmentation of each place was predicted to be.
PREDICTIONS = {
    "recycled": 0.6,
    "converted": 0.25,
    "framed": 0.33,
    "device_refused": 0.0,
    "arena_full": 0.6,
    "arena_refused": float(GIB),
}


@dataclass(slots=True)
class Tag:
    """One tag as its client knows it: its slots with their sizes, in the order in which they came."""

    contents: Contents
    slots: dict[SlotId, tuple[LeaseId, int]] = field(default_factory=dict[SlotId, tuple[LeaseId, int]])
    paused: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.slots.values())


class Life(CoreWorld):
    """Sessions of several domains on one full device."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.limits = limits
        self.chance = random.Random(SEED)
        self.domains = {
            self.attach(f"s{number}", f"d{number % DOMAINS}"): f"d{number % DOMAINS}" for number in range(SESSIONS)
        }
        self.tags: dict[tuple[SessionId, str], Tag] = {}
        self.created_bytes = self.granted_bytes = self.converted_bytes = 0
        self.sizes: dict[int, int] = {}
        self.device_refused: list[int] = []
        self.arena_refused: list[int] = []
        self.samples: dict[str, list[float]] = defaultdict(list)

    def seen(self, effect: Effect) -> None:
        super().seen(effect)
        match effect:
            case CreateFrame(frame=frame, size_bytes=size_bytes):
                self.sizes[frame] = size_bytes
                self.created_bytes += size_bytes
            case DestroyFrame(frame=frame):
                # What nobody waits for goes back to the driver, which is no conversion.
                gone = self.broker._book.ledger.frames.get(frame)  # pyright: ignore[reportPrivateUsage]
                self.converted_bytes += self.sizes[frame] if gone is not None and gone.ticket is not None else 0
            case SendGrant(session=session, tag=tag, lease=lease, slots=slots):
                known = self.tags[session, tag].slots
                for slot in slots:
                    self.granted_bytes += slot.size_bytes
                    known[slot.slot] = (lease, slot.size_bytes)
            case Refuse(error=OutOfDeviceMemory() as error) if error.requested_bytes <= error.free_bytes:
                self.device_refused.append(error.requested_bytes)
            case Refuse(error=OutOfHostMemory() as error) if error.requested_bytes <= error.free_bytes:
                self.arena_refused.append(error.requested_bytes)
            case _:
                pass

    def step(self) -> None:
        session = self.chance.choice(tuple(self.domains))
        name = f"t{self.chance.randrange(TAGS)}"
        tag = self.tags.get((session, name))
        act = self.chance.random()
        if tag is None or not tag.slots:
            self.open(session, name)
        elif tag.paused and act < 0.7:
            within_ns = NS_PER_S
            self.resume(session, name, within_ns=within_ns, domain=self.domains[session])
            self.wait(within_ns // 10)
        elif act < 0.75:
            tag.paused |= self.pause(session, name, release=self.chance.random() < 0.2, domain=self.domains[session])
        elif act < 0.85 and not tag.paused:
            self.grow(session, name, self.draw_bytes() // 8)
        elif act < 0.95:
            self.give(session, tag, self.chance.sample(tuple(tag.slots), k=self.chance.randint(1, len(tag.slots))))
        else:
            self.give(session, tag, tag.slots)
        self.refresh(session, name)
        self.wait(int(self.chance.random() * NS_PER_S / 2))

    def refresh(self, session: SessionId, name: str) -> None:
        """Note whether the tag is paused; a resume may have been met late, or refused."""
        view = next(one for one in self.broker.snapshot().sessions if one.session == session)
        paused = [lease.paused for lease in view.leases if lease.tag == name]
        if (session, name) in self.tags:
            self.tags[session, name].paused = any(paused)

    def draw_bytes(self) -> int:
        """Draw how large a tag is: as many small ones as large ones, by magnitude."""
        scale = self.limits.frame_sizes_bytes[0] / (32 * MIB)
        return int(20 * MIB * scale * 2 ** (self.chance.random() * 8.7))

    def open(self, session: SessionId, name: str) -> None:
        contents = self.chance.choice((Contents.KEEP, Contents.KEEP, Contents.DROP))
        self.tags[session, name] = Tag(contents)
        wanted_bytes = self.draw_bytes()
        piece_bytes = max(1, wanted_bytes // self.chance.choice((1, 8, 40)))
        while self.tags[session, name].size_bytes < wanted_bytes:
            if not self.grow(session, name, piece_bytes):
                break
        self.trim(session, self.tags[session, name], wanted_bytes)

    def grow(self, session: SessionId, name: str, size_bytes: int) -> bool:
        tag = self.tags[session, name]
        most_bytes = min(4 * GIB, self.limits.capacity_bytes // 8)
        spare_bytes = min(max(8 * size_bytes, 3 * tag.size_bytes), most_bytes)
        domain = self.domains[session]
        return self.lease(session, name, size_bytes, tag.contents, spare_bytes=spare_bytes, domain=domain)

    def trim(self, session: SessionId, tag: Tag, wanted_bytes: int) -> None:
        """Give back what was lent to spare and is not used: whole frames from the end."""
        spare_bytes, spare = tag.size_bytes - wanted_bytes, list[SlotId]()
        for slot, (_, size_bytes) in reversed(tag.slots.items()):
            if size_bytes > spare_bytes:
                break
            spare_bytes -= size_bytes
            spare.append(slot)
        self.give(session, tag, spare)

    def give(self, session: SessionId, tag: Tag, slots: "list[SlotId] | dict[SlotId, tuple[LeaseId, int]]") -> None:
        gone = tuple(slots)
        if not gone:
            return
        lease, _ = tag.slots[gone[0]]
        call = self.call(self.domains[session])
        named = () if len(gone) == len(tag.slots) else gone
        (answer,) = [
            one
            for one in self.tell(Return(call=call, session=session, lease=lease, slots=named))
            if one.call == call.call
        ]
        assert isinstance(answer, Reply), answer
        for slot in gone:
            del tag.slots[slot]

    def sample(self) -> None:
        view = self.broker.snapshot()
        framed = sum(frame.size_bytes for frame in view.frames if frame.place is FramePlace.POOLED)
        if view.free_bytes:
            self.samples["framed"].append(framed / view.free_bytes)
        if view.host_file_bytes:
            self.samples["arena_full"].append(view.host_used_bytes / view.host_file_bytes)
        self.samples["free"].append(view.free_bytes / view.capacity_bytes)


def live(limits: Limits, steps: int) -> dict[str, float]:
    """Return the figures of one long life."""
    life = Life(limits)
    for number in range(steps):
        life.step()
        if number % SAMPLE_EVERY == 0:
            life.sample()
        if number % 500 == 0:
            life.broker.check()
    life.broker.check()
    return {
        "recycled": 1 - life.created_bytes / life.granted_bytes,
        "converted": life.converted_bytes / life.granted_bytes,
        "framed": _mean(life.samples["framed"]),
        "device_refused": float(max(life.device_refused, default=0)),
        "arena_full": _mean(life.samples["arena_full"]),
        "arena_refused": float(max(life.arena_refused, default=0)),
        "free": _mean(life.samples["free"]),
        "granted_bytes": life.granted_bytes,
        "arena_refusals": len(life.arena_refused),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


WHAT = {
    "recycled": ("share of granted bytes in frames that were there already", "ratio"),
    "converted": ("bytes of frames destroyed for their bytes, against granted bytes", "ratio"),
    "framed": ("share of what is free that lies in frames of some size", "ratio"),
    "device_refused": ("the largest need refused on the device though as much was free", "bytes"),
    "arena_full": ("share of the arena's files that is set aside for contents", "ratio"),
    "arena_refused": ("the largest need refused in the arena though as much was free", "bytes"),
}


def main() -> None:
    """Live both lives, and write down what they came to."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    results: list[Result] = []
    details: dict[str, dict[str, float]] = {}
    for place, limits in PLACES.items():
        found = details[place] = live(limits, steps)
        for name, (what, unit) in WHAT.items():
            prediction = PREDICTIONS[name] * (1 if place == "gpu" or unit == "ratio" else 1 / 16)
            label = f"{'frames of 32 MiB, 256 MiB and 1 GiB' if place == 'gpu' else 'of 2 and 32 MiB'}: {what}"
            results.append(
                Result(name=f"{place}_{name}", what=label, value=found[name], unit=unit, prediction=prediction)
            )
    for result in results:
        print(f"{result.name:24} {result.value:12.4g} {result.unit:6} (predicted {result.prediction:g})")
    print(details)
    if steps == STEPS:
        write_results(
            "fragmentation.json",
            "the core alone",
            f"{STEPS} calls, {SESSIONS} sessions of {DOMAINS} domains",
            results,
            beside={"details": details},
        )


if __name__ == "__main__":
    main()
