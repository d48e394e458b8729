"""The whole broker, N clients, an operator and a machine in one process, from one seed: what is under way and happens.

All chance is in the simulator, none in the core. Every source of events has a lane of its own, in order; which lane
moves next is chance, so that everything that can be reordered is. After every event the core checks itself, the machine
watches what the orders do, and the mirror that what is published is what there is. What clients ask for is in
`acts.py`, what goes wrong in `faults.py`, how a run ends in `ending.py`.
"""

from collections import deque
from dataclasses import dataclass
from random import Random

from tests.simulation.calls import Asked, Build, Calls
from tests.simulation.client import LetGo, SimClient
from tests.simulation.gates import Gates
from tests.simulation.machine import Machine, require
from tests.simulation.mirror import Mirror
from tests.simulation.outsiders import Outsiders
from tests.simulation.store import SpillStore, is_of
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import BrokerError, Draining, OutOfHostMemory
from vrambroker.broker.core.ids import (
    ArenaFileId,
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    FrameId,
    Instant,
    LeaseId,
    SessionId,
    SlotId,
)
from vrambroker.broker.core.limits import Eager, Limits
from vrambroker.broker.core.snapshot import SlotState

UNIT = 1 << 20
DOMAINS = (Domain("user-1"), Domain("user-2"))
COPIED = "copied out ahead, the link is idle"
ARENA_OUTCOMES = (ev.ArenaFileReady, ev.ArenaFileFailed, ev.ArenaFileDestroyed)
TRANSFER_OUTCOMES = (ev.Transferred, ev.TransferFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a run is made of."""

    seed: int
    steps: int
    clients: int


def draw_limits(chance: Random) -> Limits:
    """Return limits that bite: a small device, a small arena, sometimes a pool, sometimes a spill store."""
    sizes = chance.choice(((UNIT,), (UNIT, 4 * UNIT), (UNIT, 4 * UNIT, 16 * UNIT)))
    host_bytes = chance.choice((6, 8, 12, 24, 64)) * UNIT
    spill_bytes = chance.choice((0, 3, 8, 16, 16, 64)) * UNIT if sizes[-1] <= host_bytes else 0
    staging_bytes = min(host_bytes, sizes[-1] * chance.choice((1, 1, 2, 4))) if spill_bytes else 0
    capacity_bytes = chance.randint(12, chance.choice((28, 28, 60))) * UNIT
    keep_free_bytes = chance.choice((0, 2, 4)) * UNIT
    return Limits(
        capacity_bytes=capacity_bytes,
        frame_sizes_bytes=sizes,
        host_budget_bytes=host_bytes,
        spill_budget_bytes=spill_bytes,
        staging_bytes=staging_bytes,
        retry_ns=chance.choice((50, 2_000)),
        arena_file_bytes=chance.choice((2, 4, 8, 16, 24)) * UNIT,
        pool_bytes_max=chance.choice((0, 0, 8)) * UNIT,
        sessions_max=16,
        leases_per_session_max=5,
        tickets_per_session_max=6,
        tags_per_call_max=4,
        requests_remembered_max=chance.choice((1, 4, 16, 10_000)),
        claim_ns=chance.choice((300, 20_000)),
        pool_ns=chance.choice((0, 0, 300, 3_000)),
        arena_ahead=chance.random() < 0.5,
        patience_ns=chance.choice((0, 2_000)),
        copy_ahead_ns=chance.choice((None, 0, 0, 20, 300)),
        copy_ahead_bytes=chance.choice((1, 4 * UNIT, 64 * UNIT)),
        device_bytes=chance.choice((None, None, capacity_bytes + keep_free_bytes, capacity_bytes + 8 * UNIT)),
        keep_free_bytes=keep_free_bytes,
        outside_per_session_bytes=chance.choice((1, 4)) * UNIT,
        eager=chance.choice((Eager.AUTO, Eager.AUTO, Eager.NEVER, Eager.ALWAYS)),
        eager_ns=chance.choice((100, 2_000)),
        room_ns_max=50_000,
        rooms_per_user_max=2,
    )


class World:
    """One run. `trail` keeps the latest events, for whoever looks at a failure."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.chance = Random(shape.seed)
        self.limits = draw_limits(self.chance)
        self.broker = Broker(self.limits)
        self.machine = Machine(capacity_bytes=self.limits.capacity_bytes, budget_bytes=self.limits.host_budget_bytes)
        self.store = SpillStore(budget_bytes=self.limits.spill_budget_bytes, machine=self.machine)
        self.outsiders = Outsiders(device_bytes=self.limits.device_bytes, machine=self.machine, chance=self.chance)
        self.mirror = Mirror(self.limits.capacity_bytes)
        self.gates = Gates()
        self.calls = Calls(self.limits.requests_remembered_max)
        self.now = Instant(0)
        self.clients: list[SimClient] = []
        self.by_session: dict[SessionId, SimClient] = {}
        self.by_connection: dict[ConnectionId, SimClient] = {}
        self.lanes: dict[str, deque[ev.Event]] = {}
        self.lane_of: dict[CallId, SimClient] = {}
        self.unanswered: list[Asked] = []
        self.driver: list[ev.Event] = []
        self.trail: deque[str] = deque(maxlen=60)
        self.at_pause: dict[LeaseId, dict[SlotId, FrameId | None]] = {}
        self.events = 0
        self.entered = 0
        self.spilled = self.unspilled = self.failed_writes = self.failed_reads = 0
        self.copied = 0
        self.reads = 0
        self.exported: list[ExportKey] = []
        self.draining = False
        self.faulty = True
        # How often somebody asks for something while much is under way; with less haste, the link is idle now and then.
        self.haste = self.chance.choice((0.22, 0.22, 0.08))
        self._arena_sloth = self.chance.choice((0.0, 0.8, 0.98))
        self._disk_sloth = self.chance.choice((0.0, 0.5, 0.95))
        self._disk_faults = self.chance.choice((0.0, 0.05, 0.3))
        self._drawn = 0
        for _ in range(shape.clients):
            self.spawn()

    def draw(self) -> int:
        self._drawn += 1
        return self._drawn

    def spawn(self) -> SimClient:
        pid = self.draw()
        uid = self.chance.choice((0, 1, 1))
        peer = ev.Peer(pid=pid, uid=uid, gid=uid, domain=DOMAINS[uid])
        client = SimClient(peer, self.machine, self.chance, self._report)
        client.faulty = self.faulty
        self.clients.append(client)
        self.attach(client)
        return client

    # What is under way

    def go_on(self, deliver_first: bool) -> bool:
        """Take something further that is under way, if anything is."""
        if deliver_first:
            return self.deliver_one() or self.obey_one()
        return self.obey_one() or self.deliver_one()

    def deliver_one(self) -> bool:
        """Let one lane's oldest event happen; the driver's come in any order, and the arena's take their time."""
        names = [name for name, lane in self.lanes.items() if lane]
        number = len(names) + min(len(self.driver), 3)
        if not number:
            return False
        pick = self.chance.randrange(number)
        if pick < len(names):
            self.happen(self.lanes[names[pick]].popleft())
            return True
        pick = self.chance.randrange(len(self.driver))
        passed = self.driver[pick]
        if isinstance(passed, ev.FencePassed) and self.machine.is_read(passed.frames):
            # Who reads a dead owner's memory keeps it on the device.
            return False
        if isinstance(self.driver[pick], ARENA_OUTCOMES) and self._unlucky(self._arena_sloth):
            return False
        if isinstance(self.driver[pick], TRANSFER_OUTCOMES) and self._unlucky(self._disk_sloth):
            return False
        self.happen(self.driver.pop(pick))
        return True

    def obey_one(self) -> bool:
        ready = [client for client in self.clients if client.alive and not client.stopped and client.has_work]
        if not ready:
            return False
        self.chance.choice(ready).go_on()
        self.close_dying_files()
        return True

    def pass_time(self, span_ns: int) -> None:
        self.now = Instant(self.now + span_ns)
        deadline = self.broker.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.happen(ev.DeadlineReached())

    def let_come_what_is_due(self) -> None:
        """Have nothing left that the next event's time alone would bring about."""
        while (deadline := self.broker.next_deadline()) is not None and deadline <= self.now + 1:
            self.pass_time(1)

    def happen(self, event: ev.Event) -> None:
        """Let the broker hear of an event, check it, and carry out what it wants done."""
        self.events += 1
        self.now = Instant(self.now + 1)
        call = getattr(event, "call", None)
        if isinstance(call, ev.Call):
            self.calls.sent.add(call.call)
        self._physically(event)
        self.trail.append(f"{self.now}: {event}")
        effects = self.broker.handle(event, self.now)
        self.trail.extend(f"    -> {effect}" for effect in effects if not isinstance(effect, ef.Publish))
        self.broker.check()
        for line in (effect for effect in effects if isinstance(effect, ef.Publish)):
            self.mirror.hear(line)
            self.copied += line.why == COPIED
        self.mirror.compare(self.broker.snapshot())
        for refusal in (effect for effect in effects if isinstance(effect, ef.Refuse)):
            of_pause = isinstance(self.calls.by_call[refusal.call].what, ev.Pause)
            if of_pause and isinstance(event, ev.Pause | ev.Quiet) and isinstance(refusal.error, OutOfHostMemory):
                self._look_at_refused(self.by_session[event.session].peer.domain, refusal.error)
        if not isinstance(event, ev.Reattach | ev.Attach):
            self._note_pause(effects)
        self.gates.hear(event, effects, self._tag_of)
        for effect in effects:
            self._perform(effect)

    def _tag_of(self, lease: LeaseId) -> str:
        views = (one for session in self.broker.snapshot().sessions for one in session.leases)
        return next((view.tag for view in views if view.lease == lease), "")

    def _physically(self, event: ev.Event) -> None:
        """Let come true what a report of the machine's says."""
        match event:
            case ev.ProcessEnded(session=session) if session in self.by_session:
                # Also of what was still being sent to it when it said goodbye.
                self.machine.let_go(self.by_session[session].peer.pid)
                self.close_dying_files()
            case ev.FrameDestroyed(frame=frame):
                self.machine.destroy(frame)
            case ev.FrameCreateFailed(frame=frame):
                self.machine.frames.pop(frame)
            case ev.FencePassed(session=session, frames=frames):
                self.machine.write_late(self.by_session[session].peer.pid)
                self.machine.pass_fence(frames)
            case ev.ArenaFileReady(file=file):
                self.machine.files[file].ready = True
            case ev.ArenaFileFailed(file=file) | ev.ArenaFileDestroyed(file=file):
                del self.machine.files[file]
            case ev.Transferred(transfer=transfer):
                self._transferred(self.store.end(transfer, failed=False))
            case ev.TransferFailed(transfer=transfer):
                self.store.end(transfer, failed=True)
            case ev.ExtentPunched(file=file, offset_bytes=offset):
                self.machine.punch(ef.Extent(file=file, offset_bytes=offset, size_bytes=0))
            case _:
                pass

    def _transferred(self, order: ef.SpillOut | ef.SpillIn) -> None:
        """What was written needs no wiping any more where it was, if the broker believes its owner to be alive."""
        if isinstance(order, ef.SpillIn):
            self.unspilled += 1
            return
        self.spilled += 1
        leases = (lease for session in self.broker.snapshot().sessions for lease in session.leases)
        if any(is_of(slot.extent, order) for lease in leases for slot in lease.slots):
            self.machine.files[order.extent.file].left_by_dead.discard(order.extent.offset_bytes)
            for slot in (
                slot for one in self.clients for lease in one.leases.values() for slot in lease.slots.values()
            ):
                if is_of(slot.extent, order):
                    slot.extent = None

    # What the broker wants done

    def _perform(self, effect: ef.Effect) -> None:
        match effect:
            case ef.Reply(call=call, outcome=outcome):
                self._answered(call, outcome)
            case ef.Refuse(call=call, error=error):
                self._answered(call, error)
            case (
                ef.SendGrant()
                | ef.SendRecall()
                | ef.SendCopy()
                | ef.SendReadGrant()
                | ef.SendCloseReader()
                | ef.SendExportSettled()
                | ef.SendPauseOrder()
                | ef.SendPauseCancelled()
                | ef.SendLeaseState()
                | ef.SendDraining()
                | ef.OfferArenaFile()
            ):
                self._send(effect)
            case ef.CloseConnection(connection=connection):
                client = self.by_connection.pop(connection, None)
                if client is not None and client.connection == connection:
                    client.lose_connection()
            case ef.Publish() | ef.EndReader():
                pass
            case _:
                self._perform_driver(effect)

    def _send(
        self,
        order: ef.SendGrant
        | ef.SendRecall
        | ef.SendCopy
        | ef.SendReadGrant
        | ef.SendCloseReader
        | ef.SendExportSettled
        | ef.SendPauseOrder
        | ef.SendPauseCancelled
        | ef.SendLeaseState
        | ef.SendDraining
        | ef.OfferArenaFile,
    ) -> None:
        client = self.by_session.get(order.session)
        if client is not None and client.connection is not None:
            client.inbox.append(order)
            if isinstance(order, ef.SendCopy):
                self.machine.map_for([slot.to for slot in order.slots], client.peer.pid, client.peer.domain)

    def _perform_driver(
        self,
        effect: ef.WatchFence
        | ef.CreateFrame
        | ef.DestroyFrame
        | ef.CreateArenaFile
        | ef.DestroyArenaFile
        | ef.PunchExtent
        | ef.SpillOut
        | ef.SpillIn,
    ) -> None:
        match effect:
            case ef.WatchFence(session=session, frames=frames):
                cut = self.chance.randint(0, len(frames))
                for part in (frames[:cut], frames[cut:]):
                    if part:
                        self.driver.append(ev.FencePassed(session=session, frames=part))
            case ef.CreateFrame(frame=frame, size_bytes=size_bytes):
                there = self.outsiders.leave_room_for(size_bytes)
                self.machine.create(frame, size_bytes)
                failed = ev.FrameCreateFailed(
                    frame=frame, driver_call="cuMemCreate", driver_result="no", out_of_memory=not there
                )
                self.driver.append(failed if not there or self._unlucky(0.02) else ev.FrameCreated(frame=frame))
            case ef.DestroyFrame(frame=frame):
                self.machine.begin_destroying(frame)
                self.driver.append(ev.FrameDestroyed(frame=frame))
            case ef.CreateArenaFile(file=file, domain=domain, size_bytes=size_bytes):
                self.machine.add_file(file, domain, size_bytes)
                failed_file = ev.ArenaFileFailed(file=file, reason="no memory")
                self.driver.append(failed_file if self._unlucky(0.1) else ev.ArenaFileReady(file=file))
            case ef.DestroyArenaFile(file=file):
                self.machine.files[file].dying = True
                for client in self.by_session.values():
                    if client.connection is not None and client.peer.pid in self.machine.files[file].mappers:
                        client.inbox.append(LetGo(file=file))
                self.close_dying_files()
            case ef.PunchExtent(extent=extent):
                self.driver.append(ev.ExtentPunched(file=extent.file, offset_bytes=extent.offset_bytes))
            case ef.SpillOut() | ef.SpillIn():
                self._transfer(effect)

    def _transfer(self, order: ef.SpillOut | ef.SpillIn) -> None:
        self.store.begin(order)
        if not self._unlucky(self._disk_faults):
            self.driver.append(ev.Transferred(transfer=order.transfer))
            return
        writes = isinstance(order, ef.SpillOut)
        self.failed_writes += writes
        self.failed_reads += not writes
        call = "pwritev" if writes else "preadv"
        self.driver.append(ev.TransferFailed(transfer=order.transfer, driver_call=call, reason="EIO"))

    def close_dying_files(self) -> None:
        """Have the arena's files go that everybody has let go of."""
        self.driver.extend(ev.ArenaFileDestroyed(file=file) for file in self.machine.close_dying_files())

    def _unlucky(self, likelihood: float) -> bool:
        return self.faulty and self.chance.random() < likelihood

    # Answers

    def _answered(self, call: CallId, answer: ef.Outcome | BrokerError) -> None:
        known = self.calls.by_call[call].outcome == answer
        client = self.lane_of.get(call)
        asked = self.calls.answer(call, answer, heard=client is None or client.alive)
        if isinstance(answer, ef.Resumed) and not known:
            self._look_at_resumed({one.lease: one.same_pages for one in answer.leases})
        if isinstance(answer, ef.Held) and isinstance(asked.what, ev.MakeRoom) and not known:
            self.outsiders.require_room(asked.what.size_bytes)
        if isinstance(answer, ef.Entered) and not known:
            self.entered += 1
            self._look_at_resumed({one.lease: one.same_pages for one in answer.resumed})
            paused = {one.lease for view in self.broker.snapshot().sessions for one in view.leases if one.paused}
            require(paused.isdisjoint(one.lease for one in answer.resumed), f"not all of it is open: {answer}")
        if isinstance(asked.what, ev.Unseal) and answer == ef.Done() and client is not None:
            client.seal(asked.what.tags, sealed=False)
        if isinstance(answer, ef.ReadGranted) and not known:
            self._read_granted(client, asked, answer)
        if isinstance(answer, Draining):
            require(self.draining, "only a broker that was told to drain refuses for that")
        if isinstance(answer, ef.Attached) and client is not None:
            self._attached(client, answer, asked)
        if self._unlucky(0.05):
            return
        if asked in self.unanswered:
            self.unanswered.remove(asked)
        if isinstance(answer, ef.Leased) and answer.claim and client is not None and client.alive:
            client.claims.append(answer.claim)

    def _read_granted(self, client: SimClient | None, asked: Asked, granted: ef.ReadGranted) -> None:
        self.reads += 1
        assert isinstance(asked.what, ev.Read)
        if client is not None and client.alive and client.session == asked.what.session:
            client.reading.begin(asked.what.number, granted)

    def _attached(self, client: SimClient, answer: ef.Attached, asked: Asked) -> None:
        if not client.alive:
            self.lane(client, "end").append(ev.ProcessEnded(session=answer.session))
            return
        if client.session not in (None, answer.session):
            # The first answer was forgotten, so that its replay made a second session.
            self.ask(client, lambda call: ev.Detach(call=call, session=answer.session))
        connection = getattr(asked.what, "connection", None)
        if client.session is None and connection is not None:
            client.session = answer.session
            self.by_session[answer.session] = client
            client.connection = connection
            self.by_connection[connection] = client

    def _look_at_resumed(self, same: dict[LeaseId, bool]) -> None:
        """Resumed means that all of it is mapped, and `same_pages` that none of it was ever away."""
        views = [(session, lease) for session in self.broker.snapshot().sessions for lease in session.leases]
        for session, lease in views:
            client = self.by_session.get(session.session)
            if lease.lease not in same or client is None or not client.alive:
                continue
            before = self.at_pause.get(lease.lease, {})
            known = client.leases[lease.lease].slots if lease.lease in client.leases else {}
            for slot in (one for one in lease.slots if one.slot in known):
                if slot.state is SlotState.MAPPED and slot.frame is not None:
                    mapper = self.machine.frames[slot.frame].mapper
                    require(mapper == client.peer.pid, f"slot {slot.slot} is called mapped; pid {mapper} has it")
                moved = before.get(slot.slot, slot.frame) != slot.frame
                require(not (same[lease.lease] and moved), f"lease {lease.lease} was away and is called the same")

    def _look_at_refused(self, domain: Domain, error: OutOfHostMemory) -> None:
        """A pause is refused only for what others have parked, or its own domain: an empty file is no reason."""
        least, most = self._room_bytes(domain, {}), self._room_bytes(domain, self._sparable_bytes())
        seen = self.broker.snapshot()
        spill_bytes = seen.spill_budget_bytes - seen.spill_used_bytes
        # While writing fails, nothing is set aside in the store.
        least, most = least + (0 if self.failed_writes else spill_bytes), most + spill_bytes
        require(least <= error.free_bytes <= most, f"there is room for {least} to {most}: {error}")
        one_size = len(self.limits.frame_sizes_bytes) == 1
        require(not one_size or error.requested_bytes > error.free_bytes, f"there is room for it: {error}")

    def _room_bytes(self, domain: Domain, spare: dict[ArenaFileId, int]) -> int:
        """Return what a domain could set aside, if so much of each file were given up for it."""
        taken = self.limits.staging_bytes
        for file in (one for one in self.broker.snapshot().arena if not one.staging):
            used_bytes = file.used_bytes - spare.get(file.file, 0)
            taken += used_bytes if file.domain == domain else file.size_bytes if used_bytes else 0
        return self.limits.host_budget_bytes - taken

    def _sparable_bytes(self) -> dict[ArenaFileId, int]:
        """Return, for each file, how much in it are copies of sealed leases that are resident."""
        leases = [lease for session in self.broker.snapshot().sessions for lease in session.leases]
        spare: dict[ArenaFileId, int] = {}
        for slot in (slot for lease in leases if lease.sealed and not lease.paused for slot in lease.slots):
            if slot.extent is not None:
                spare[slot.extent.file] = spare.get(slot.extent.file, 0) + slot.size_bytes
        return spare

    def _note_pause(self, effects: list[ef.Effect]) -> None:
        """Remember where leases are when they are paused."""
        paused = {one.lease for one in effects if isinstance(one, ef.SendLeaseState) and one.paused}
        if not paused:
            return
        for lease in (one for session in self.broker.snapshot().sessions for one in session.leases):
            if lease.lease in paused:
                self.at_pause[lease.lease] = {slot.slot: slot.frame for slot in lease.slots}

    # Sending

    def lane(self, client: SimClient, name: str) -> deque[ev.Event]:
        return self.lanes.setdefault(f"{name}:{client.peer.pid}", deque())

    def _report(self, client: SimClient, event: ev.Event) -> None:
        self.lane(client, "agent").append(event)

    def ask(self, client: SimClient, build: Build, *, actor: ev.Peer | None = None, lane: str = "calls") -> None:
        asked, event = self.calls.ask(actor or client.peer, build)
        self.unanswered.append(asked)
        self.queue_call(client, event, lane)

    def queue_call(self, client: SimClient, event: ev.Event, lane: str = "calls") -> None:
        call = getattr(event, "call", None)
        assert isinstance(call, ev.Call)
        self.lane_of[call.call] = client
        self.lane(client, lane).append(event)

    def attach(self, client: SimClient) -> None:
        connection = ConnectionId(self.draw())
        name = self.chance.choice(("trainer", "rollout", "no/name", "x" * 64))
        token = bytes([client.peer.pid % 256])
        self.ask(client, lambda call: ev.Attach(call=call, name=name, token=token, connection=connection))

    def reconnect(self, client: SimClient) -> None:
        session, connection = client.session, ConnectionId(self.draw())
        assert session is not None
        pending = (event for lane in ("agent", "end", "calls") for event in self.lane(client, lane))
        if any(isinstance(event, ev.Detach | ev.Reattach) for event in pending) or client.gone:
            return
        # The broker hears of the new connection before the client hears of anything over it.
        self.lane(client, "agent").clear()
        _, event = self.calls.ask(
            client.peer, lambda call: ev.Reattach(call=call, session=session, connection=connection)
        )
        call = getattr(event, "call", None)
        assert isinstance(call, ev.Call)
        self.lane_of[call.call] = client
        client.connection = connection
        self.by_connection[connection] = client
        self.happen(event)
        if self.calls.by_call[call.call].outcome is None:
            client.connection = None
        else:
            client.inbox.extend(LetGo(file=file) for file in self.machine.dying_files_of(client.peer.pid))
