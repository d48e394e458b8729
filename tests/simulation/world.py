"""The whole broker, N clients, an operator and a machine in one process, from one seed, with faults.

All chance is in here, none in the core. Every source of events has a lane of its own, in order; which lane moves next
is chance, so that everything that can be reordered is. After every event the core checks itself, and the machine
watches what the orders do. The end of a run brings the faults to an end: everybody comes back, waits run out,
everything is returned; then all must be free, nothing may wait, and every call must have been answered exactly once.
"""

from collections import deque
from dataclasses import dataclass
from random import Random

from tests.simulation.calls import Asked, Build, Calls
from tests.simulation.client import SimClient
from tests.simulation.machine import Machine, Wronged, require
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import BrokerError, Draining, NotOwner, OutOfHostMemory
from vrambroker.broker.core.ids import (
    CallId,
    ConnectionId,
    Domain,
    FrameId,
    Instant,
    LeaseId,
    OrderId,
    SessionId,
    SlotId,
)
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.snapshot import FramePlace, SlotState

UNIT = 1 << 20
DOMAINS = (Domain("user-1"), Domain("user-2"))
TAGS = ("weights", "kv_cache", "grads")
FAULTS = ("die", "lose_connection", "reconnect", "stop", "go_on", "replay", "stale", "abandon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a run is made of."""

    seed: int
    steps: int
    clients: int


def draw_limits(chance: Random) -> Limits:
    """Return limits that bite: a small device, a small arena, sometimes a pool."""
    sizes = chance.choice(((UNIT,), (UNIT, 4 * UNIT), (UNIT, 4 * UNIT, 16 * UNIT)))
    return Limits(
        capacity_bytes=chance.randint(12, 28) * UNIT,
        frame_sizes_bytes=sizes,
        host_budget_bytes=chance.choice((8, 24, 64, 96)) * UNIT,
        arena_file_bytes=chance.choice((2, 8, 16, 24)) * UNIT,
        pool_bytes_max=chance.choice((0, 0, 8)) * UNIT,
        sessions_max=16,
        leases_per_session_max=5,
        tickets_per_session_max=6,
        tags_per_call_max=4,
        requests_remembered_max=10_000,
    )


class World:
    """One run. `trail` keeps the latest events, for whoever looks at a failure."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.chance = Random(shape.seed)
        self.limits = draw_limits(self.chance)
        self.broker = Broker(self.limits)
        self.machine = Machine(capacity_bytes=self.limits.capacity_bytes, budget_bytes=self.limits.host_budget_bytes)
        self.calls = Calls()
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
        self.draining = False
        self.faulty = True
        self._drawn = 0
        for _ in range(shape.clients):
            self._spawn()

    def draw(self) -> int:
        self._drawn += 1
        return self._drawn

    def _spawn(self) -> SimClient:
        pid = self.draw()
        uid = self.chance.choice((0, 1, 1, 1))
        peer = ev.Peer(pid=pid, uid=uid, gid=uid, domain=DOMAINS[uid])
        client = SimClient(peer, self.machine, self.chance, self._report)
        client.faulty = self.faulty
        self.clients.append(client)
        self._attach(client)
        return client

    # What the world does next

    def run(self) -> None:
        """Live through all steps and then the end; raises whatever the broker did wrong."""
        drain_at = self.chance.randrange(2 * self.shape.steps)
        for number in range(self.shape.steps):
            if number == drain_at:
                self._drain()
            self.step()
        self.end()

    def step(self) -> None:
        roll = self.chance.random()
        if roll < 0.02:
            self._fault()
        elif roll < 0.05:
            self._pass_time(self.chance.randint(1, 400))
        elif roll < 0.22 or not self._go_on(roll < 0.65):
            self._act()

    def _go_on(self, deliver_first: bool) -> bool:
        """Take something further that is under way, if anything is."""
        if deliver_first:
            return self._deliver_one() or self._obey_one()
        return self._obey_one() or self._deliver_one()

    def _deliver_one(self) -> bool:
        """Let one lane's oldest event happen; the driver's come in any order."""
        names = [name for name, lane in self.lanes.items() if lane]
        number = len(names) + min(len(self.driver), 3)
        if not number:
            return False
        pick = self.chance.randrange(number)
        if pick < len(names):
            self.happen(self.lanes[names[pick]].popleft())
        else:
            self.happen(self.driver.pop(self.chance.randrange(len(self.driver))))
        return True

    def _obey_one(self) -> bool:
        ready = [client for client in self.clients if client.alive and not client.stopped and client.inbox]
        if not ready:
            return False
        self.chance.choice(ready).obey()
        return True

    def _pass_time(self, span_ns: int) -> None:
        self.now = Instant(self.now + span_ns)
        deadline = self.broker.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.happen(ev.DeadlineReached())

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
        if isinstance(event, ev.Pause | ev.Quiet):
            self._note_pause(effects)
        for effect in effects:
            self._perform(effect)

    def _physically(self, event: ev.Event) -> None:
        """Let come true what a report of the machine's says."""
        match event:
            case ev.FrameDestroyed(frame=frame):
                self.machine.destroy(frame)
            case ev.FrameCreateFailed(frame=frame):
                self.machine.frames.pop(frame)
            case ev.FencePassed(frames=frames):
                self.machine.pass_fence(frames)
            case ev.ArenaFileReady(file=file):
                self.machine.files[file].ready = True
            case ev.ArenaFileFailed(file=file) | ev.ArenaFileDestroyed(file=file):
                del self.machine.files[file]
            case ev.ExtentPunched(file=file, offset_bytes=offset):
                self.machine.punch(ef.Extent(file=file, offset_bytes=offset, size_bytes=0))
            case _:
                pass

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
                | ef.SendPauseOrder()
                | ef.SendPauseCancelled()
                | ef.SendLeaseState()
                | ef.SendDraining()
            ):
                self._send(effect)
            case ef.CloseConnection(connection=connection):
                client = self.by_connection.pop(connection, None)
                if client is not None and client.connection == connection:
                    client.lose_connection()
            case ef.Publish(kind=kind):
                if kind is ef.Kind.DEVICE_CHANGED:
                    total = effect.lent_bytes + effect.free_bytes + effect.held_bytes
                    require(total == self.limits.capacity_bytes, "the published totals make up the device")
            case _:
                self._perform_driver(effect)

    def _send(
        self,
        order: ef.SendGrant
        | ef.SendRecall
        | ef.SendPauseOrder
        | ef.SendPauseCancelled
        | ef.SendLeaseState
        | ef.SendDraining,
    ) -> None:
        client = self.by_session.get(order.session)
        if client is not None and client.connection is not None:
            client.inbox.append(order)

    def _perform_driver(
        self,
        effect: ef.WatchFence
        | ef.CreateFrame
        | ef.DestroyFrame
        | ef.CreateArenaFile
        | ef.DestroyArenaFile
        | ef.PunchExtent,
    ) -> None:
        match effect:
            case ef.WatchFence(session=session, frames=frames):
                cut = self.chance.randint(0, len(frames))
                for part in (frames[:cut], frames[cut:]):
                    if part:
                        self.driver.append(ev.FencePassed(session=session, frames=part))
            case ef.CreateFrame(frame=frame, size_bytes=size_bytes):
                self.machine.create(frame, size_bytes)
                failed = ev.FrameCreateFailed(frame=frame, driver_call="cuMemCreate", driver_result="OUT_OF_MEMORY")
                self.driver.append(failed if self._unlucky(0.02) else ev.FrameCreated(frame=frame))
            case ef.DestroyFrame(frame=frame):
                self.machine.begin_destroying(frame)
                self.driver.append(ev.FrameDestroyed(frame=frame))
            case ef.CreateArenaFile(file=file, domain=domain, size_bytes=size_bytes):
                self.machine.add_file(file, domain, size_bytes)
                failed_file = ev.ArenaFileFailed(file=file, reason="no memory")
                self.driver.append(failed_file if self._unlucky(0.1) else ev.ArenaFileReady(file=file))
            case ef.DestroyArenaFile(file=file):
                self.machine.files[file].dying = True
                self.driver.append(ev.ArenaFileDestroyed(file=file))
            case ef.PunchExtent(extent=extent):
                self.driver.append(ev.ExtentPunched(file=extent.file, offset_bytes=extent.offset_bytes))

    def _unlucky(self, likelihood: float) -> bool:
        return self.faulty and self.chance.random() < likelihood

    # Answers

    def _answered(self, call: CallId, answer: ef.Outcome | BrokerError) -> None:
        known = self.calls.by_call[call].outcome is not None
        asked = self.calls.answer(call, answer)
        client = self.lane_of.get(call)
        if isinstance(answer, ef.Resumed) and not known:
            self._look_at_resumed(asked, answer)
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

    def _attached(self, client: SimClient, answer: ef.Attached, asked: Asked) -> None:
        if not client.alive:
            self._lane(client, "end").append(ev.ProcessEnded(session=answer.session))
            return
        connection = getattr(asked.what, "connection", None)
        if client.session is None and connection is not None:
            client.session = answer.session
            self.by_session[answer.session] = client
            client.connection = connection
            self.by_connection[connection] = client

    def _look_at_resumed(self, asked: Asked, answer: ef.Resumed) -> None:
        """Resumed means that all of it is mapped, and `same_pages` that none of it was ever away."""
        client = self.by_session.get(_session_of(asked.what))
        if client is None or not client.alive:
            return
        same = {resumed.lease: resumed.same_pages for resumed in answer.leases}
        for lease in (one for session in self.broker.snapshot().sessions for one in session.leases):
            if lease.lease not in same:
                continue
            before = self.at_pause.get(lease.lease, {})
            known = client.leases[lease.lease].slots if lease.lease in client.leases else {}
            for slot in (one for one in lease.slots if one.slot in known):
                if slot.state is SlotState.MAPPED and slot.frame is not None:
                    mapper = self.machine.frames[slot.frame].mapper
                    require(mapper == client.peer.pid, f"slot {slot.slot} is called mapped; pid {mapper} has it")
                moved = before.get(slot.slot, slot.frame) != slot.frame
                require(not (same[lease.lease] and moved), f"lease {lease.lease} was away and is called the same")

    def _note_pause(self, effects: list[ef.Effect]) -> None:
        """Remember where leases are when they are paused."""
        paused = {one.lease for one in effects if isinstance(one, ef.SendLeaseState) and one.paused}
        if not paused:
            return
        for lease in (one for session in self.broker.snapshot().sessions for one in session.leases):
            if lease.lease in paused:
                self.at_pause[lease.lease] = {slot.slot: slot.frame for slot in lease.slots}

    # Sending

    def _lane(self, client: SimClient, name: str) -> deque[ev.Event]:
        return self.lanes.setdefault(f"{name}:{client.peer.pid}", deque())

    def _report(self, client: SimClient, event: ev.Event) -> None:
        self._lane(client, "agent").append(event)

    def ask(self, client: SimClient, build: Build, *, actor: ev.Peer | None = None, lane: str = "calls") -> None:
        asked, event = self.calls.ask(actor or client.peer, build)
        self.unanswered.append(asked)
        self._queue_call(client, event, lane)

    def _queue_call(self, client: SimClient, event: ev.Event, lane: str = "calls") -> None:
        call = getattr(event, "call", None)
        assert isinstance(call, ev.Call)
        self.lane_of[call.call] = client
        self._lane(client, lane).append(event)

    def _attach(self, client: SimClient) -> None:
        connection = ConnectionId(self.draw())
        name = self.chance.choice(("trainer", "rollout", "no/name", "x" * 64))
        token = bytes([client.peer.pid % 256])
        self.ask(client, lambda call: ev.Attach(call=call, name=name, token=token, connection=connection))

    # What applications do

    def _act(self) -> None:
        active = [client for client in self.clients if client.alive and not client.stopped]
        if len(active) < self.shape.clients and self.chance.random() < 0.3 and not self.draining:
            self._spawn()
            return
        if not active:
            return
        client = self.chance.choice(active)
        if client.session is None:
            if not any(one.actor == client.peer for one in self.unanswered):
                self._attach(client)
        elif client.connection is None:
            self._reconnect(client)
        else:
            self._act_on(client, client.session)

    def _reconnect(self, client: SimClient) -> None:
        session, connection = client.session, ConnectionId(self.draw())
        assert session is not None
        pending = (event for lane in ("agent", "end", "calls") for event in self._lane(client, lane))
        if any(isinstance(event, ev.Detach | ev.Reattach) for event in pending) or client.gone:
            return
        # The broker hears of the new connection before the client hears of anything over it.
        self._lane(client, "agent").clear()
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

    def _act_on(self, client: SimClient, session: SessionId) -> None:
        roll = self.chance.random()
        if roll < 0.25:
            self._use(client)
        elif roll < 0.43:
            self._lease(client, session)
        elif roll < 0.50:
            client.finish_scope()
        elif roll < 0.66:
            self._pause(client, session)
        elif roll < 0.84:
            self._resume(client, session)
        elif roll < 0.88:
            self._claim(client, session)
        elif roll < 0.955:
            self._return(client, session)
        elif roll < 0.965:
            self._detach(client, session)
        elif roll < 0.98:
            label = self.chance.choice(("train", "generate", ""))
            self.ask(client, lambda call: ev.Mark(call=call, label=label))
        else:
            self._nonsense(client, session)

    def _use(self, client: SimClient) -> None:
        waiting = [one.what for one in self.unanswered if one.actor == client.peer]
        if any(isinstance(what, ev.Lease | ev.Claim | ev.Pause | ev.Return | ev.Detach) for what in waiting):
            return
        for lease in client.usable():
            client.write(lease)

    def _deadline(self) -> Instant:
        return Instant(self.now + self.chance.choice((0, 300, 3000, 20_000)))

    def _lease(self, client: SimClient, session: SessionId) -> None:
        tag, contents = self.chance.choice(TAGS), self.chance.choice(list(ev.Contents))
        size_bytes = self.chance.choice((1, 3 * UNIT, 5 * UNIT - 7, 9 * UNIT, 12 * UNIT))
        claimed, deadline = self.chance.random() < 0.7, self._deadline()
        self.ask(
            client,
            lambda call: ev.Lease(
                call=call,
                session=session,
                tag=tag,
                contents=contents,
                size_bytes=size_bytes,
                claimed=claimed,
                deadline=deadline,
            ),
        )

    def _tags(self, session: SessionId) -> tuple[str, ...]:
        """Return tags to act on: mostly some that the session has."""
        client = self.by_session.get(session)
        known = list(dict.fromkeys(lease.tag for lease in client.leases.values())) if client is not None else []
        if not known or self.chance.random() < 0.1:
            known = list(TAGS)
        return tuple(self.chance.sample(known, self.chance.randint(1, len(known))))

    def _some_session(self, client: SimClient, session: SessionId) -> tuple[SessionId, bool]:
        """Return whose tags to act on: mostly the client's own."""
        if self.chance.random() < 0.7 or not self.by_session:
            return session, True
        other = self.chance.choice(list(self.by_session))
        return other, other == session

    def _has_nothing(self, session: SessionId) -> bool:
        """Tell whether there is no point in asking; now and then that is asked for all the same."""
        client = self.by_session.get(session)
        return (client is None or not client.leases) and self.chance.random() < 0.9

    def _pause(self, client: SimClient, session: SessionId) -> None:
        target, own = self._some_session(client, session)
        if self._has_nothing(target):
            return
        waiting = any(one.actor == client.peer and isinstance(one.what, ev.Lease) for one in self.unanswered)
        quiet = own and self.chance.random() < 0.7 and not waiting
        tags, release, deadline = self._tags(target), self.chance.random() < 0.3, self._deadline()
        self.ask(
            client,
            lambda call: ev.Pause(
                call=call, session=target, tags=tags, release=release, quiet=quiet, deadline=deadline
            ),
        )

    def _resume(self, client: SimClient, session: SessionId) -> None:
        target, _ = self._some_session(client, session)
        if self._has_nothing(target):
            return
        tags, wait, deadline = self._tags(target), self.chance.random() < 0.6, self._deadline()
        self.ask(
            client,
            lambda call: ev.Resume(call=call, session=target, tags=tags, wait=wait, deadline=deadline),
        )

    def _claim(self, client: SimClient, session: SessionId) -> None:
        claim = client.claims.pop(0) if client.claims else self.chance.randint(1, 400)
        self.ask(client, lambda call: ev.Claim(call=call, session=session, claim=claim))

    def _return(self, client: SimClient, session: SessionId) -> None:
        if not client.leases or client.inbox or self.busy_with_lease(client):
            return
        number = self.chance.choice(list(client.leases))
        # Slots of a growth that was undone are gone, which the broker tells by refusing it; naming one is nonsense.
        views = (lease for view in self.broker.snapshot().sessions for lease in view.leases if lease.lease == number)
        there = {slot.slot for lease in views for slot in lease.slots}
        slots = [slot for slot in client.leases[number].slots if slot in there]
        named = self.chance.sample(slots, self.chance.randint(1, len(slots))) if slots else []
        if self.chance.random() < 0.4:
            named = []
        client.let_go(number, named)
        chosen = tuple(named)
        self.ask(client, lambda call: ev.Return(call=call, session=session, lease=number, slots=chosen))

    def busy_with_lease(self, client: SimClient) -> bool:
        """A client names slots only if it knows them all: not while a grant of its own may still fail."""
        waiting = (one.what for one in self.unanswered if one.actor == client.peer)
        return any(isinstance(what, ev.Lease | ev.Claim | ev.Return) for what in waiting)

    def _detach(self, client: SimClient, session: SessionId) -> None:
        for number in list(client.leases):
            client.let_go(number, [])
        client.gone = True
        client.alive = False
        self.ask(client, lambda call: ev.Detach(call=call, session=session))
        self._lane(client, "end").append(ev.ProcessEnded(session=session))

    def _nonsense(self, client: SimClient, session: SessionId) -> None:
        """Ask for what can't be: every one of these is refused and changes nothing."""
        deadline, other = self._deadline(), self.chance.choice(list(self.by_session))
        wrong = SessionId(10_000)
        builds: list[Build] = [
            lambda call: ev.Lease(
                call=call,
                session=session,
                tag="bad/tag",
                contents=ev.Contents.DROP,
                size_bytes=UNIT,
                claimed=True,
                deadline=deadline,
            ),
            lambda call: ev.Lease(
                call=call,
                session=wrong,
                tag="t",
                contents=ev.Contents.DROP,
                size_bytes=0,
                claimed=True,
                deadline=deadline,
            ),
            lambda call: ev.Resume(call=call, session=session, tags=(), wait=True, deadline=deadline),
            lambda call: ev.Resume(call=call, session=session, tags=("?",) * 9, wait=True, deadline=deadline),
            lambda call: ev.Return(call=call, session=session, lease=LeaseId(10_000), slots=()),
            lambda call: ev.Return(call=call, session=session, lease=LeaseId(1), slots=(SlotId(10_000),)),
        ]
        self._refused(client, self.chance.choice(builds))
        if other != session and other in self.by_session:
            stranger = ev.Peer(pid=9_999_999, uid=77, gid=77, domain=Domain("stranger"))
            self._refused(
                client,
                lambda call: ev.Resume(call=call, session=other, tags=TAGS, wait=True, deadline=deadline),
                stranger,
            )

    def _refused(self, client: SimClient, build: Build, actor: ev.Peer | None = None) -> None:
        before = self.broker.snapshot()
        asked, event = self.calls.ask(actor or client.peer, build)
        self.happen(event)
        require(isinstance(asked.answer, BrokerError), f"nonsense is refused: {event}")
        require(self.broker.snapshot() == before, f"a refused call has changed something: {event}")
        if actor is not None and not isinstance(asked.answer, NotOwner):
            require(type(asked.answer).__name__ in ("UnknownSession", "Draining"), "a stranger may not act")

    # Faults

    def _fault(self) -> None:
        alive = [client for client in self.clients if client.alive]
        if not alive:
            return
        client = self.chance.choice(alive)
        match self.chance.choice(FAULTS):
            case "die":
                parked = any(
                    slot.extent and not slot.frame for one in client.leases.values() for slot in one.slots.values()
                )
                if parked or self.chance.random() < 0.4:
                    self._die(client)
            case "lose_connection":
                self._lose_connection(client)
            case "reconnect":
                self._reconnect_unnoticed(client)
            case "stop":
                client.stopped = True
            case "go_on":
                for one in self.clients:
                    one.stopped = False
            case "replay":
                self._replay()
            case "stale":
                self._stale_report()
            case _:
                self._abandon()

    def _die(self, client: SimClient) -> None:
        client.die()
        if self.chance.random() < 0.5:
            self._lane(client, "agent").clear()
        if client.session is not None:
            self._lane(client, "end").append(ev.ProcessEnded(session=client.session))

    def _lose_connection(self, client: SimClient) -> None:
        """Drop a connection, with all that was on its way to the client and some of what was on its way from it."""
        if client.connection is None or client.session is None:
            return
        lost = ev.ConnectionLost(session=client.session, connection=client.connection)
        client.lose_connection()
        lane = self._lane(client, "agent")
        for _ in range(self.chance.randint(0, len(lane))):
            lane.pop()
        while lane:
            self.happen(lane.popleft())
        self.happen(lost)

    def _reconnect_unnoticed(self, client: SimClient) -> None:
        """Come back over a new connection before the broker has seen the old one go; that news is late and stale."""
        if client.connection is None or client.session is None:
            return
        lost = ev.ConnectionLost(session=client.session, connection=client.connection)
        client.lose_connection()
        self._reconnect(client)
        self._lane(client, "lost").append(lost)

    def _drain(self) -> None:
        """Tell the broker to take no new work, as at the end of its life."""
        self.draining = True
        self.happen(ev.Drain())

    def _replay(self) -> None:
        """Send something anew whose answer somebody still waits for, whether or not it was given already."""
        known = [asked for asked in self.unanswered if not isinstance(asked.what, ev.Reattach)]
        if known:
            asked = self.chance.choice(known)
            client = next((one for one in self.clients if one.peer == asked.actor), None)
            if client is not None and client.alive:
                self._queue_call(client, self.calls.replay(asked), "again")

    def _abandon(self) -> None:
        waiting = self.calls.open_calls()
        if waiting:
            self.happen(ev.CallAbandoned(call=self.chance.choice(waiting)))

    def _stale_report(self) -> None:
        """Report what is not so: about others' slots, about slots in other states, about orders that nobody gave."""
        if not self.by_session:
            return
        session = self.chance.choice(list(self.by_session))
        strangers = [
            (number, slot)
            for client in self.clients
            if client.session != session
            for number, lease in client.leases.items()
            for slot in lease.slots
        ]
        lease, slot = self.chance.choice(strangers) if strangers else (LeaseId(77_777), SlotId(77_777))
        reports: list[ev.Event] = [
            ev.Arrived(session=session, lease=lease, slots=(slot,), failure=None),
            ev.Arrived(session=session, lease=lease, slots=(slot,), failure="no"),
            ev.Left(session=session, lease=lease, slots=(slot, slot), failure=None),
            ev.Left(session=session, lease=lease, slots=(slot,), failure="no"),
            ev.Busy(session=session, order=OrderId(88_888), tag="weights"),
            ev.Quiet(session=session, order=OrderId(88_888)),
        ]
        before = self.broker.snapshot()
        self.happen(self.chance.choice(reports))
        require(self.broker.snapshot() == before, "a stale report changes nothing")

    # The end

    def end(self) -> None:
        """Let the faults end, everything settle and everybody leave; then look whether all is free."""
        self.faulty = False
        for client in self.clients:
            client.faulty, client.stopped = False, False
        self._settle()
        while (deadline := self.broker.next_deadline()) is not None:
            self.now = max(self.now, deadline)
            self.happen(ev.DeadlineReached())
            self._settle()
        self._nothing_is_stuck()
        self._everybody_can_come_back()
        for client in list(self.clients):
            if client.alive and client.session is not None:
                self._detach(client, client.session)
                self._settle()
        self._settle()
        self._all_is_free()

    def _settle(self) -> None:
        """Let everything happen that is under way, until only time could bring more."""
        for _ in range(100_000):
            for client in [one for one in self.clients if one.alive and one.session is not None]:
                if client.connection is None:
                    self._reconnect(client)
                client.finish_scope()
            moved = self._deliver_one()
            moved = self._obey_one() or moved
            if not moved and not any(client.busy for client in self.clients if client.alive):
                return
        raise Wronged("things go on for ever")

    def _nothing_is_stuck(self) -> None:
        """With nothing under way, a ticket has everything or nothing, and clients and broker see the same."""
        seen = self.broker.snapshot()
        for ticket in seen.queue:
            claimable = ticket.in_hand_bytes == ticket.size_bytes and not ticket.promised_bytes
            require(claimable, f"a ticket is stuck: {ticket}")
        for session in (one for one in seen.sessions if one.session in self.by_session):
            client = self.by_session[session.session]
            resident = {lease.tag for lease in session.leases if not lease.paused}
            closed = [tags for tags in client.gates.values() if resident.intersection(tags)]
            require(not client.alive or not closed, f"gates stay closed: {client.gates}")
            for lease in session.leases if client.alive else ():
                settled = lease.state not in (ef.LeaseState.ARRIVING, ef.LeaseState.LEAVING)
                require(settled or not lease.slots, f"a lease is stuck on its way: {lease}")
                known = client.leases.get(lease.lease)
                require(known is None or known.paused == lease.paused, f"its owner was not told: {lease}")

    def _ask_and_settle(self, client: SimClient, build: Build) -> ef.Outcome | BrokerError | None:
        asked, event = self.calls.ask(client.peer, build)
        self.lane_of[asked.number] = client
        self.happen(event)
        self._settle()
        return asked.answer

    def _everybody_can_come_back(self) -> None:
        """All pause; then one after the other comes back with all it has, and finds what it wrote."""
        there = [client for client in self.clients if client.alive and client.session is not None]
        for client in there:
            self._return_what_was_never_claimed(client)
        for client in there:
            tags = self._tags_held(client)
            if not tags or self.draining:
                continue
            answer = self._pause_all(client, tags)
            require(isinstance(answer, ef.Paused | OutOfHostMemory), f"{answer}")
        for client in there:
            if self._tags_held(client) and not self.draining:
                self._bring_back(client)

    def _tags_held(self, client: SimClient) -> tuple[str, ...]:
        views = (one for one in self.broker.snapshot().sessions if one.session == client.session)
        return tuple(dict.fromkeys(lease.tag for view in views for lease in view.leases))

    def _return_what_was_never_claimed(self, client: SimClient) -> None:
        session = _session_of_client(client)
        for view in (one for one in self.broker.snapshot().sessions if one.session == session):
            for number in [lease.lease for lease in view.leases if lease.lease not in client.leases]:
                self._ask_and_settle(client, _returning(session, number))
            for ticket in (one for one in self.broker.snapshot().queue if one.session == view.name):
                for number in [one for one, lease in client.leases.items() if lease.tag in ticket.tags]:
                    client.let_go(number, [])
                    self._ask_and_settle(client, _returning(session, number))

    def _pause_all(self, client: SimClient, tags: tuple[str, ...]) -> ef.Outcome | BrokerError | None:
        session = _session_of_client(client)
        return self._ask_and_settle(
            client,
            lambda call: ev.Pause(
                call=call, session=session, tags=tags, release=True, quiet=True, deadline=Instant(self.now + 10**6)
            ),
        )

    def _bring_back(self, client: SimClient) -> None:
        session = _session_of_client(client)
        tags = self._tags_held(client)
        answer = self._ask_and_settle(
            client,
            lambda call: ev.Resume(
                call=call, session=session, tags=tags, wait=False, deadline=Instant(self.now + 10**6)
            ),
        )
        seen = self.broker.snapshot()
        views = [lease for one in seen.sessions for lease in one.leases]
        mine = [lease for one in seen.sessions if one.session == session for lease in one.leases]
        size_bytes = sum(slot.size_bytes for lease in mine for slot in lease.slots)
        others_bytes = sum(lease.device_bytes for lease in views if lease not in mine and not lease.paused)
        if size_bytes + others_bytes <= seen.capacity_bytes:
            require(isinstance(answer, ef.Resumed), f"there is room for all of it: {answer}")
        if isinstance(answer, ef.Resumed):
            for lease in client.leases.values():
                client.write(lease)
        self._pause_all(client, tags)

    def _all_is_free(self) -> None:
        seen = self.broker.snapshot()
        require(not seen.queue, f"tickets are left: {seen.queue}")
        require(not seen.sessions, f"sessions are left: {seen.sessions}")
        require(seen.free_bytes == seen.capacity_bytes, f"all returned, and not all free: {seen}")
        require(all(frame.place is FramePlace.POOLED for frame in seen.frames), f"frames are left: {seen.frames}")
        require(not seen.arena and not seen.host_used_bytes, f"the arena is not empty: {seen.arena}")
        require(not self.calls.open_calls(), f"calls without an answer: {self.calls.open_calls()}")
        require(set(self.machine.frames) == {frame.frame for frame in seen.frames}, "the machine has other frames")


def _session_of(event: ev.Event) -> SessionId:
    session = getattr(event, "session", None)
    return SessionId(session) if isinstance(session, int) else SessionId(0)


def _session_of_client(client: SimClient) -> SessionId:
    assert client.session is not None
    return client.session


def _returning(session: SessionId, lease: LeaseId) -> Build:
    return lambda call: ev.Return(call=call, session=session, lease=lease, slots=())
