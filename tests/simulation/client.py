"""A simulated client: one process with its agent and its application, obedient, forgetful, and mortal.

It does what the protocol asks of a client: maps what it is granted, parks and unmaps what is recalled, closes its
gates when asked to, answers again what is asked again. And it does what applications do: leases, writes, pauses,
resumes, returns, asks for nonsense, goes away. What it wrote into kept memory it expects to find again.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.simulation.copying import Copying, SimCopy
from tests.simulation.machine import Machine, require
from tests.simulation.reading import Reading, SimReader
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import (
    ArenaFileId,
    ConnectionId,
    FrameId,
    LeaseId,
    OrderId,
    ReaderId,
    SessionId,
    SlotId,
)

MAP_FAILS, COPY_FAILS = 0.04, 0.02


@dataclass(slots=True, kw_only=True, eq=False)
class SimSlot:
    """`expected`: what was last written into kept memory. `extent`: where it was last parked."""

    frame: FrameId | None
    expected: int | None = None
    extent: ef.Extent | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SimLease:
    """`sealed`: from before the broker is asked to call it so until it has said that it is not any more."""

    tag: str
    contents: ev.Contents
    paused: bool = False
    sealed: bool = False
    slots: dict[SlotId, SimSlot] = field(default_factory=dict[SlotId, SimSlot])


@dataclass(frozen=True, slots=True, kw_only=True)
class LetGo:
    """Unmap a file of the arena: what the handle socket makes of `DestroyArenaFile`."""

    file: ArenaFileId


Order = (
    LetGo
    | ef.SendGrant
    | ef.SendRecall
    | ef.SendCopy
    | ef.SendReadGrant
    | ef.SendCloseReader
    | ef.SendExportSettled
    | ef.SendPauseOrder
    | ef.SendPauseCancelled
    | ef.SendLeaseState
    | ef.SendDraining
    | ef.OfferArenaFile
)


class SimClient:
    """`report` sends what the agent has to say, in order, over the present connection."""

    def __init__(
        self, peer: ev.Peer, machine: Machine, chance: Random, report: Callable[["SimClient", ev.Event], None]
    ) -> None:
        self.peer = peer
        self.session: SessionId | None = None
        self.connection: ConnectionId | None = None
        self.inbox: deque[Order] = deque()
        self.leases: dict[LeaseId, SimLease] = {}
        self.returned: set[LeaseId] = set()
        self.returned_slots: set[SlotId] = set()
        self.claims: list[int] = []
        self.gates: dict[OrderId, tuple[str, ...]] = {}
        self.busy: list[OrderId] = []
        self.alive = True
        self.stopped = False
        self.gone = False
        self.faulty = True
        self.copying = Copying()
        self.reading = Reading(machine, peer.pid, self._say_reader_closed)
        self._machine = machine
        self._chance = chance
        self._report = report
        self._written = peer.pid * 1_000_000

    @property
    def has_work(self) -> bool:
        return bool(self.inbox) or self.copying.under_way is not None

    def go_on(self) -> None:
        """Carry out the oldest order; a copy that is under way takes longer than what else there is to do."""
        if self.copying.under_way is not None and (not self.faulty or self._chance.random() < 0.15):
            self.end_copy()
        elif self.inbox:
            self._obey()

    def _obey(self) -> None:
        order = self.inbox.popleft()
        match order:
            case LetGo(file=file):
                self.end_copy()
                self._machine.files[file].mappers.discard(self.peer.pid)
            case ef.OfferArenaFile(file=file):
                self._machine.map_file(file, self.peer.pid, self.peer.domain)
            case ef.SendGrant():
                self._map(order)
            case ef.SendRecall():
                self._vacate(order)
            case ef.SendCopy():
                self._copy(order)
            case ef.SendReadGrant():
                self.reading.map(order)
            case ef.SendCloseReader(reader=reader):
                self.reading.close(reader)
            case ef.SendExportSettled():
                pass
            case ef.SendPauseOrder():
                self._close_gates(order)
            case ef.SendPauseCancelled():
                self._open_gates(order)
            case ef.SendLeaseState():
                self._change_state(order)
            case ef.SendDraining():
                pass

    def _fails(self, likelihood: float) -> bool:
        return self.faulty and self._chance.random() < likelihood

    def _map(self, order: ef.SendGrant) -> None:
        if order.lease in self.returned:
            return
        lease = self.leases.setdefault(order.lease, SimLease(tag=order.tag, contents=order.contents))
        arrived: list[SlotId] = []
        for grant in (one for one in order.slots if one.slot not in self.returned_slots):
            slot = lease.slots.get(grant.slot)
            if slot is not None and slot.frame is not None:
                require(slot.frame == grant.frame, f"slot {grant.slot} is granted a second frame")
                arrived.append(grant.slot)
                continue
            if self._fails(MAP_FAILS):
                self._say_arrived(order.lease, [grant.slot], "out of address space")
                continue
            self._map_slot(lease, grant)
            arrived.append(grant.slot)
        self._in_parts(arrived, lambda part: self._say_arrived(order.lease, part, None))

    def _map_slot(self, lease: SimLease, grant: ef.GrantedSlot) -> None:
        machine, domain = self._machine, self.peer.domain
        machine.map(grant.frame, self.peer.pid, domain, dirty=grant.dirty)
        frame = machine.frames[grant.frame]
        slot = lease.slots.setdefault(grant.slot, SimSlot(frame=None))
        if grant.restore is not None:
            require(lease.contents is ev.Contents.KEEP, "only kept contents are restored")
            frame.content = machine.parked(grant.restore, self.peer.pid, domain)
        elif lease.contents is ev.Contents.ZERO:
            frame.content = 0
        slot.frame = grant.frame

    def _in_parts(self, slots: list[SlotId], say: Callable[[list[SlotId]], None]) -> None:
        while slots:
            number = self._chance.randint(1, len(slots))
            part, slots = slots[:number], slots[number:]
            say(part)
            if self._fails(0.1):
                say(part)

    def _say_arrived(self, lease: LeaseId, slots: list[SlotId], failure: str | None) -> None:
        if self.session is not None:
            self._report(self, ev.Arrived(session=self.session, lease=lease, slots=tuple(slots), failure=failure))

    def _vacate(self, order: ef.SendRecall) -> None:
        lease = self.leases.get(order.lease)
        if lease is None or order.lease in self.returned:
            return
        left: list[SlotId] = []
        for recalled in order.slots:
            slot = lease.slots.get(recalled.slot)
            if slot is None:
                continue
            if slot.frame is not None and self._fails(COPY_FAILS):
                self._say_left(order.lease, [recalled.slot], "copy failed")
                continue
            if slot.frame is not None:
                in_place = self._copied_before(order.lease, recalled)
                self._vacate_slot(lease, slot, None if in_place else recalled.park)
                slot.extent = recalled.park or slot.extent
            left.append(recalled.slot)
        self._in_parts(left, lambda part: self._say_left(order.lease, part, None))

    def _copied_before(self, lease: LeaseId, recalled: ef.RecalledSlot) -> bool:
        """End what is copied of a slot that is about to leave; tells whether no other copy is needed."""
        copy = self.copying.under_way
        if copy is None or copy.lease != lease or recalled.slot not in copy.places:
            return False
        self._write_copy(copy, recalled.slot)
        return not copy.resumed and recalled.park == copy.places[recalled.slot]

    def _vacate_slot(self, lease: SimLease, slot: SimSlot, park: ef.Extent | None) -> None:
        assert slot.frame is not None
        if park is not None:
            require(lease.contents is ev.Contents.KEEP, "only kept contents are parked")
            content = self._machine.frames[slot.frame].content
            self._machine.park(park, content, self.peer.pid, self.peer.domain)
            slot.extent = park
        self._machine.unmap(slot.frame, self.peer.pid)
        slot.frame = None

    def _copy(self, order: ef.SendCopy) -> None:
        """Begin to copy slots of a lease that is paused; answer what is asked again as before."""
        if self.copying.knows(order.order):
            return
        if self.copying.report is not None and self.copying.report.order == order.order:
            self._report(self, self.copying.report)
            return
        require(self.copying.under_way is None, f"pid {self.peer.pid} has a second order to copy: {order}")
        lease = self.leases.get(order.lease)
        if lease is None or not lease.paused or not order.slots:
            self._say_copied(order.order, (), "the lease is in use")
            return
        require(lease.contents is ev.Contents.KEEP, "only kept contents are copied")
        places = {one.slot: one.to for one in order.slots if one.slot in lease.slots}
        frames = {slot: lease.slots[slot].frame for slot in places}
        read = {slot: self._machine.frames[frame].content for slot, frame in frames.items() if frame is not None}
        known = {slot: place for slot, place in places.items() if slot in read}
        self.copying.under_way = SimCopy(order=order.order, lease=order.lease, places=known, read=read)

    def end_copy(self) -> None:
        """Have in its place what was ordered, wherever its slots are by now, and say so; now and then it fails."""
        copy = self.copying.under_way
        if copy is None:
            return
        fails = copy.resumed or self._fails(COPY_FAILS)
        for slot in copy.rest():
            if not self._fails(COPY_FAILS):
                self._write_copy(copy, slot)
            else:
                fails = True
        self.copying.under_way = None
        # Nobody may rely on an agent's word that was given before it heard of a resume.
        slots = tuple(copy.done) if not copy.resumed or self._fails(0.5) else ()
        self._say_copied(copy.order, slots, "cuMemcpy" if fails else None)

    def _write_copy(self, copy: SimCopy, slot: SlotId) -> None:
        lease = self.leases.get(copy.lease)
        there = lease.slots.get(slot) if lease is not None else None
        content = copy.read[slot]
        if there is not None and there.frame is not None:
            content, there.extent = self._machine.frames[there.frame].content, copy.places[slot]
        copy.write(slot, content, self._machine, self.peer.pid)

    def _say_copied(self, order: OrderId, slots: tuple[SlotId, ...], failure: str | None) -> None:
        assert self.session is not None
        report = ev.Copied(session=self.session, order=order, slots=slots, failure=failure)
        self.copying.report = report
        self._report(self, report)
        if self._fails(0.1):
            self._report(self, report)

    def _say_left(self, lease: LeaseId, slots: list[SlotId], failure: str | None) -> None:
        if self.session is not None:
            self._report(self, ev.Left(session=self.session, lease=lease, slots=tuple(slots), failure=failure))

    def _close_gates(self, order: ef.SendPauseOrder) -> None:
        assert self.session is not None
        roll = self._chance.random()
        if roll < 0.15:
            self._open_gates(order)
            self._report(self, ev.Busy(session=self.session, order=order.order, tag=order.tags[0]))
        elif roll < 0.25:
            self._call_back(order, declined=roll < 0.2)
        elif roll < 0.4:
            self.gates[order.order] = order.tags
            self.busy.append(order.order)
            self._report(self, ev.StillBusy(session=self.session, order=order.order, tag=order.tags[0], scope="step"))
        else:
            self.gates[order.order] = order.tags
            self._report(self, ev.Quiet(session=self.session, order=order.order))

    def _open_gates(self, order: ef.SendPauseOrder | ef.SendPauseCancelled) -> None:
        self.gates.pop(order.order, None)
        self.busy = [one for one in self.busy if one != order.order]

    def _call_back(self, order: ef.SendPauseOrder, declined: bool) -> None:
        """Have the application's callback refuse the order, or keep it waiting."""
        assert self.session is not None
        tag = order.tags[0]
        if declined:
            self._open_gates(order)
            why = self._chance.choice(("in the middle of a batch", ""))
            self._report(self, ev.Declined(session=self.session, order=order.order, tag=tag, callback="drain", why=why))
            return
        self._report(self, ev.Calling(session=self.session, order=order.order, tag=tag, callback="drain"))
        self.gates[order.order] = order.tags
        self.busy.append(order.order)

    def finish_scope(self) -> None:
        """Leave the scope that has kept an order waiting."""
        if self.busy and self.session is not None:
            self._report(self, ev.Quiet(session=self.session, order=self.busy.pop(0)))

    def _change_state(self, order: ef.SendLeaseState) -> None:
        lease = self.leases.get(order.lease)
        if lease is None:
            return
        if order.paused and not lease.paused:
            lease.paused = True
        elif not order.paused and lease.paused:
            lease.paused = False
            self.copying.hear_resumed(order.lease)
            for number, slot in lease.slots.items():
                self._verify(number, slot)
        busy = self.busy if order.paused else []
        for one, tags in tuple(self.gates.items()):
            if one not in busy:
                self.gates[one] = tuple(tag for tag in tags if tag != lease.tag)
        self.gates = {one: tags for one, tags in self.gates.items() if tags}

    def _verify(self, number: SlotId, slot: SimSlot) -> None:
        """Look whether kept contents are there."""
        if slot.expected is None or slot.frame is None:
            return
        frame = self._machine.frames[slot.frame]
        require(frame.mapper == self.peer.pid, f"slot {number} of pid {self.peer.pid} is mapped by {frame.mapper}")
        require(frame.content == slot.expected, f"slot {number} held {slot.expected} and now holds {frame.content}")

    def verify(self, lease: SimLease) -> None:
        for number, slot in lease.slots.items():
            self._verify(number, slot)

    def _say_reader_closed(self, reader: ReaderId) -> None:
        if self.session is not None:
            self._report(self, ev.ReaderClosed(session=self.session, reader=reader))
            if self._fails(0.1):
                self._report(self, ev.ReaderClosed(session=self.session, reader=reader))

    def slot_with(self, frame: FrameId) -> tuple[SimLease, SimSlot] | None:
        """Return what this client has a frame for."""
        for lease in self.leases.values():
            for slot in lease.slots.values():
                if slot.frame == frame:
                    return lease, slot
        return None

    def write_as_reader(self, number: ReaderId, reader: SimReader, owners: list["SimClient"]) -> None:
        """Look whether what somebody else keeps is there, and write something else, where that is allowed."""
        for frame in reader.frames.values():
            physical = self._machine.frames.get(frame)
            if physical is None:
                continue
            require(
                (self.peer.pid, number) in physical.readers,
                f"frame {frame} is lost to pid {self.peer.pid}, which reads it",
            )
            held = (owner.slot_with(frame) for owner in owners)
            found = next((one for one in held if one is not None), None)
            if found is None:
                continue
            lease, slot = found
            kept = lease.contents is ev.Contents.KEEP and slot.expected is not None
            require(not kept or physical.content == slot.expected, f"frame {frame} held {slot.expected}")
            if reader.writable:
                self._written += 1
                physical.content = self._written
                slot.expected = self._written if lease.contents is ev.Contents.KEEP else None

    def write(self, lease: SimLease) -> None:
        """Use the memory: look at what is there and write something else, unless it is sealed."""
        self.verify(lease)
        if lease.sealed:
            return
        for slot in lease.slots.values():
            if slot.frame is not None:
                self._written += 1
                self._machine.frames[slot.frame].content = self._written
                slot.expected = self._written if lease.contents is ev.Contents.KEEP else None

    def expect_nothing_of(self, tags: tuple[str, ...]) -> None:
        """Count on nothing that is in these tags now: it is about to be discarded; also what is sealed, since that may be
        over by then.
        """
        for lease in self.leases.values():
            if lease.tag in tags:
                for slot in lease.slots.values():
                    slot.expected = None

    def usable(self) -> list[SimLease]:
        """Return the leases that the application may touch just now: resident, no gate closed, nothing on the way."""
        if self.inbox:
            return []
        closed = {tag for tags in self.gates.values() for tag in tags}
        return [one for one in self.leases.values() if not one.paused and one.tag not in closed]

    def seal(self, tags: tuple[str, ...], *, sealed: bool) -> None:
        """Make memory read-only before the broker hears of it, or writable after it has."""
        for lease in self.leases.values():
            if lease.tag in tags:
                lease.sealed = sealed

    def let_go(self, number: LeaseId, slots: list[SlotId]) -> None:
        """Unmap slots that are about to be returned; all of the lease, if none are named."""
        lease = self.leases[number]
        for name in slots or list(lease.slots):
            slot = lease.slots.pop(name)
            self.returned_slots.add(name)
            if slot.frame is not None:
                self._machine.unmap(slot.frame, self.peer.pid)
        if not slots:
            del self.leases[number]
            self.returned.add(number)

    def lose_connection(self) -> None:
        self.connection = None
        self.inbox.clear()

    def die(self) -> None:
        """End at once, in the middle of whatever is going on."""
        self.alive = False
        self.lose_connection()
        extents = [
            slot.extent
            for lease in self.leases.values()
            for slot in lease.slots.values()
            if slot.extent is not None and slot.frame is None
        ]
        self._machine.die(self.peer.pid, extents, self.copying.late_writes())
