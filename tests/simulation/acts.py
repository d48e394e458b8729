"""What applications do: lease, use, pause, resume, return, ask for nonsense, go away."""

from tests.simulation.calls import Build
from tests.simulation.client import SimClient
from tests.simulation.machine import require
from tests.simulation.world import UNIT, World
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import BrokerError, NotOwner
from vrambroker.broker.core.ids import Domain, ExportKey, Instant, LeaseId, SessionId, SlotId, TicketId
from vrambroker.broker.core.phase import Order, Pattern, Phase, PhasePlan, Ranked

TAGS = ("weights", "kv_cache", "grads")
CONTENTS = (ev.Contents.KEEP, ev.Contents.KEEP, ev.Contents.DROP, ev.Contents.ZERO)


def act(world: World) -> None:
    active = [client for client in world.clients if client.alive and not client.stopped]
    if len(active) < world.shape.clients and world.chance.random() < 0.3 and not world.draining:
        world.spawn()
        return
    if not active:
        return
    client = world.chance.choice(active)
    copying = [one for one in active if one.copying.under_way is not None and one.connection is not None]
    if copying and world.chance.random() < 0.4:
        _interfere(world, world.chance.choice(copying))
    elif client.session is None:
        if not any(one.actor == client.peer for one in world.unanswered):
            world.attach(client)
    elif client.connection is None:
        world.reconnect(client)
    else:
        _act_on(world, client, client.session)


def _act_on(world: World, client: SimClient, session: SessionId) -> None:
    roll = world.chance.random()
    if world.chance.random() < 0.12:
        share(world, client, session)
    elif roll < 0.015:
        _lull(world, client, session)
    elif roll < 0.04:
        _phase(world, client)
    elif roll < 0.25:
        _use(world, client)
    elif roll < 0.29:
        _seal(world, client, session)
    elif roll < 0.43:
        _lease(world, client, session)
    elif roll < 0.50:
        client.finish_scope()
    elif roll < 0.66:
        _pause(world, client, session)
    elif roll < 0.84:
        _resume(world, client, session)
    elif roll < 0.88:
        _claim(world, client, session)
    elif roll < 0.955:
        _return(world, client, session)
    elif roll < 0.96:
        detach(world, client, session)
    elif roll < 0.97:
        label = world.chance.choice(("train", "generate", ""))
        world.ask(client, lambda call: ev.Mark(call=call, label=label))
    elif roll < 0.985:
        _take_turns(world, client, session)
    else:
        _nonsense(world, client, session)


def _interfere(world: World, client: SimClient) -> None:
    """Do what makes a copy that is under way worth nothing, or uses what it has come to."""
    assert client.session is not None
    act = world.chance.choice((_resume, _resume, _pause, _return))
    act(world, client, client.session)


def share(world: World, client: SimClient, session: SessionId) -> None:
    """Send something, receive something, use what was received, or let go of it."""
    roll = world.chance.random()
    if roll < 0.25:
        _export(world, client, session)
    elif roll < 0.6 and world.exported:
        key, number = world.chance.choice(world.exported[-6:]), world.draw()
        world.ask(client, lambda call: ev.Read(call=call, session=session, key=key, number=number))
    elif roll < 0.8:
        owners = [one for one in world.clients if one.alive]
        for number, reader in client.reading.in_use().items():
            client.write_as_reader(number, reader, owners)
    elif roll < 0.97:
        for number in tuple(client.reading.reads)[: world.chance.randint(1, 3)]:
            end_read(world, client, session, number)
    else:
        world.ask(client, lambda call: ev.Unexport(call=call, session=session))


def end_read(world: World, client: SimClient, session: SessionId, number: int) -> None:
    client.reading.end(number)
    world.ask(client, lambda call: ev.EndRead(call=call, session=session, number=number))


def _export(world: World, client: SimClient, session: SessionId) -> None:
    """Send slots of a lease of its own, mostly; or of one that it reads, or the same once more."""
    key = ExportKey(world.draw().to_bytes(16, "big"))
    again = bool(world.exported) and world.chance.random() < 0.2
    if again:
        key = world.chance.choice(world.exported)
    having = {number: list(lease.slots) for number, lease in client.leases.items() if lease.slots}
    received = {reader.lease: list(reader.frames) for reader in client.reading.in_use().values() if reader.frames}
    known = received if received and world.chance.random() < 0.3 else having
    if not known:
        return
    lease = world.chance.choice(list(known))
    slots = tuple(
        ev.ExportedSlot(slot=slot, offset_bytes=number * UNIT)
        for number, slot in enumerate(world.chance.sample(known[lease], world.chance.randint(1, len(known[lease]))))
    )
    read_only = world.chance.random() < 0.3
    world.exported.append(key)
    world.ask(
        client,
        lambda call: ev.Export(
            call=call, session=session, key=key, lease=lease, read_only=read_only, again=again, slots=slots
        ),
    )


def _lull(world: World, client: SimClient, session: SessionId) -> None:
    """Pause something, and let what is under way come to rest, so that the link is idle."""
    _pause(world, client, session)
    for _ in range(200):
        if not world.go_on(world.chance.random() < 0.7):
            break
    world.pass_time(400)


def _use(world: World, client: SimClient) -> None:
    waiting = [one.what for one in world.unanswered if one.actor == client.peer]
    if any(isinstance(what, ev.Lease | ev.Claim | ev.Pause | ev.Return | ev.Detach | ev.Seal) for what in waiting):
        return
    for lease in client.usable():
        client.write(lease)


def _deadline(world: World) -> Instant:
    return Instant(world.now + world.chance.choice((0, 300, 3000, 20_000)))


def _lease(world: World, client: SimClient, session: SessionId) -> None:
    tag, contents = world.chance.choice(TAGS), world.chance.choice(CONTENTS)
    size_bytes = world.chance.choice((1, 3 * UNIT, 5 * UNIT - 7, 9 * UNIT, 12 * UNIT))
    claimed, deadline = world.chance.random() < 0.7, _deadline(world)
    spare_bytes = world.chance.choice((0, 0, UNIT, 13 * UNIT))
    world.ask(
        client,
        lambda call: ev.Lease(
            call=call,
            session=session,
            tag=tag,
            contents=contents,
            size_bytes=size_bytes,
            spare_bytes=spare_bytes,
            claimed=claimed,
            deadline=deadline,
        ),
    )


def _tags(world: World, session: SessionId) -> tuple[str, ...]:
    """Return tags to act on: mostly some that the session has."""
    client = world.by_session.get(session)
    known = list(dict.fromkeys(lease.tag for lease in client.leases.values())) if client is not None else []
    if not known or world.chance.random() < 0.1:
        known = list(TAGS)
    return tuple(world.chance.sample(known, world.chance.randint(1, len(known))))


def _some_session(world: World, client: SimClient, session: SessionId) -> tuple[SessionId, bool]:
    """Return whose tags to act on: mostly the client's own."""
    if world.chance.random() < 0.7 or not world.by_session:
        return session, True
    other = world.chance.choice(list(world.by_session))
    return other, other == session


def _has_nothing(world: World, session: SessionId) -> bool:
    """Tell whether there is no point in asking; now and then that is asked for all the same."""
    client = world.by_session.get(session)
    return (client is None or not client.leases) and world.chance.random() < 0.9


def _pause(world: World, client: SimClient, session: SessionId) -> None:
    target, own = _some_session(world, client, session)
    if _has_nothing(world, target):
        return
    waiting = any(one.actor == client.peer and isinstance(one.what, ev.Lease) for one in world.unanswered)
    quiet = own and world.chance.random() < 0.7 and not waiting
    tags, release, deadline = _tags(world, target), world.chance.random() < 0.3, _deadline(world)
    discard = quiet and world.chance.random() < 0.2
    if discard:
        client.expect_nothing_of(tags)
    world.ask(
        client,
        lambda call: ev.Pause(
            call=call,
            session=target,
            tags=tags,
            release=release,
            discard=discard,
            quiet=quiet,
            deadline=deadline,
        ),
    )


def _resume(world: World, client: SimClient, session: SessionId) -> None:
    target, _ = _some_session(world, client, session)
    if _has_nothing(world, target):
        return
    tags, wait, deadline = _tags(world, target), world.chance.random() < 0.6, _deadline(world)
    world.ask(
        client,
        lambda call: ev.Resume(call=call, session=target, tags=tags, wait=wait, deadline=deadline),
    )


PATTERNS = tuple(
    Pattern(session=session, tag=tag)
    for session, tag in (("*", "weights"), ("trainer*", "*"), ("*", "kv_cache"), ("rollout*", "[gk]*"), ("*-?", "*"))
)


def _phase(world: World, client: SimClient) -> None:
    """Set a plan or enter a phase, mostly as an operator who may."""
    root = ev.Peer(pid=1_000_000 + client.peer.pid, uid=0, gid=0, domain=client.peer.domain)
    actor = client.peer if world.chance.random() < 0.2 else root
    if world.broker.snapshot().plan is None or world.chance.random() < 0.1:
        plan = _plan(world)
        world.ask(client, lambda call: ev.SetPlan(call=call, plan=plan), actor=actor)
    else:
        phase, deadline = world.chance.choice(("a", "b", "b", "c")), _deadline(world)
        world.ask(client, lambda call: ev.Enter(call=call, phase=phase, deadline=deadline), actor=actor)


def _plan(world: World) -> PhasePlan:
    chance = world.chance
    phases = tuple(
        Phase(name=name, tags=tuple(chance.sample(PATTERNS, chance.randint(1, 3)))) for name in ("a", "b", "c")
    )
    ranked = tuple(Ranked(pattern=pattern, priority=chance.randint(-2, 2)) for pattern in PATTERNS[:2])
    return PhasePlan(order=chance.choice(list(Order)), phases=phases, priorities=ranked)


def _seal(world: World, client: SimClient, session: SessionId) -> None:
    """Seal what is known, or unseal what was sealed; one after the other, as a client does."""
    waiting = [one.what for one in world.unanswered if one.actor == client.peer]
    if not client.leases or any(isinstance(what, ev.Seal | ev.Unseal | ev.Lease | ev.Claim) for what in waiting):
        return
    sealed = {lease.tag for lease in client.leases.values() if lease.sealed}
    if sealed and world.chance.random() < 0.4:
        tags = tuple(sorted(sealed))
        world.ask(client, lambda call: ev.Unseal(call=call, session=session, tags=tags))
        return
    kept = [lease.tag for lease in client.leases.values() if lease.contents is ev.Contents.KEEP]
    others = {lease.tag for lease in client.leases.values() if lease.contents is not ev.Contents.KEEP}
    fitting = [tag for tag in dict.fromkeys(kept) if tag not in others or world.chance.random() < 0.1]
    if fitting:
        tags = (world.chance.choice(fitting),)
        client.seal(tags, sealed=True)
        world.ask(client, lambda call: ev.Seal(call=call, session=session, tags=tags))


def _claim(world: World, client: SimClient, session: SessionId) -> None:
    claim = client.claims.pop(0) if client.claims else world.chance.randint(1, 400)
    world.ask(client, lambda call: ev.Claim(call=call, session=session, claim=claim))


def _return(world: World, client: SimClient, session: SessionId) -> None:
    if not client.leases or client.inbox or _busy_with_lease(world, client):
        return
    number = world.chance.choice(list(client.leases))
    # Slots of a growth that was undone are gone, which the broker tells by refusing it; naming one is nonsense.
    views = (lease for view in world.broker.snapshot().sessions for lease in view.leases if lease.lease == number)
    there = {slot.slot for lease in views for slot in lease.slots}
    slots = [slot for slot in client.leases[number].slots if slot in there]
    named = world.chance.sample(slots, world.chance.randint(1, len(slots))) if slots else []
    if world.chance.random() < 0.4:
        named = []
    client.let_go(number, named)
    chosen = tuple(named)
    world.ask(client, lambda call: ev.Return(call=call, session=session, lease=number, slots=chosen))


def _busy_with_lease(world: World, client: SimClient) -> bool:
    """A client names slots only if it knows them all: not while a grant of its own may still fail."""
    waiting = (one.what for one in world.unanswered if one.actor == client.peer)
    return any(isinstance(what, ev.Lease | ev.Claim | ev.Return) for what in waiting)


def detach(world: World, client: SimClient, session: SessionId) -> None:
    client.end_copy()
    for number in list(client.leases):
        client.let_go(number, [])
    client.reading.let_go()
    world.machine.let_go(client.peer.pid)
    world.close_dying_files()
    client.gone = True
    client.alive = False
    world.ask(client, lambda call: ev.Detach(call=call, session=session))
    world.lane(client, "end").append(ev.ProcessEnded(session=session))


def _take_turns(world: World, client: SimClient, session: SessionId) -> None:
    """Set a priority or a budget, set something aside, have room made, or cancel some ticket."""
    target, _ = _some_session(world, client, session)
    tags, priority = _tags(world, target), world.chance.randint(-2, 2)
    size_bytes, wait, deadline = world.chance.randint(1, 9 * UNIT), world.chance.random() < 0.7, _deadline(world)
    lasts = world.chance.randint(1, world.limits.room_ns_max)
    seen = world.broker.snapshot()
    tag = world.chance.choice(("", *tags))
    soft_bytes = world.chance.choice((None, UNIT, 4 * UNIT))
    hard_bytes = world.chance.choice((None, 8 * UNIT, 20 * UNIT))
    known = [one.budgets[tag].revision for one in seen.sessions if one.session == target and tag in one.budgets]
    revision = world.chance.choice([*known, 0])
    tickets = [one.ticket for one in (*seen.queue, *seen.granted, *seen.kept)]
    ticket = world.chance.choice([*tickets, TicketId(10_000)])
    builds: list[Build] = [
        lambda call: ev.Prioritize(call=call, session=target, tags=tags, priority=priority),
        lambda call: ev.SetAside(call=call, session=session, size_bytes=size_bytes, wait=wait, deadline=deadline),
        lambda call: ev.MakeRoom(call=call, size_bytes=size_bytes, lasts_ns=lasts, wait=wait, deadline=deadline),
        lambda call: ev.AskFree(call=call, session=session),
        lambda call: ev.Cancel(call=call, ticket=ticket),
        lambda call: ev.SetBudget(
            call=call, session=target, tag=tag, soft_bytes=soft_bytes, hard_bytes=hard_bytes, revision=revision
        ),
    ]
    world.ask(client, world.chance.choice(builds))


def _nonsense(world: World, client: SimClient, session: SessionId) -> None:
    """Ask for what can't be: every one of these is refused and changes nothing."""
    deadline, other = _deadline(world), world.chance.choice(list(world.by_session))
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
    _refused(world, client, world.chance.choice(builds))
    if other != session and other in world.by_session:
        stranger = ev.Peer(pid=9_999_999, uid=77, gid=77, domain=Domain("stranger"))
        _refused(
            world,
            client,
            lambda call: ev.Resume(call=call, session=other, tags=TAGS, wait=True, deadline=deadline),
            stranger,
        )


def _refused(world: World, client: SimClient, build: Build, actor: ev.Peer | None = None) -> None:
    world.let_come_what_is_due()
    before = world.broker.snapshot()
    asked, event = world.calls.ask(actor or client.peer, build)
    world.happen(event)
    require(isinstance(asked.answer, BrokerError), f"nonsense is refused: {event}")
    require(world.broker.snapshot() == before, f"a refused call has changed something: {event}")
    if actor is not None and not isinstance(asked.answer, NotOwner):
        require(type(asked.answer).__name__ in ("UnknownSession", "Draining"), "a stranger may not act")
