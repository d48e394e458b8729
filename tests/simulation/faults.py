"""What goes wrong: processes die, stop or lose their connection; answers are lost, reports stale, callers impatient."""

from tests.simulation.client import SimClient
from tests.simulation.machine import require
from tests.simulation.world import UNIT, World
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import LeaseId, OrderId, ReaderId, SlotId
from vrambroker.broker.core.limits import Eager

FAULTS = (
    "outside",
    "reconfigure",
    "die",
    "lose_connection",
    "reconnect",
    "stop",
    "go_on",
    "replay",
    "stale",
    "abandon",
)


def fault(world: World) -> None:
    alive = [client for client in world.clients if client.alive]
    if not alive:
        return
    client = world.chance.choice(alive)
    match world.chance.choice(FAULTS):
        case "die":
            parked = any(
                slot.extent and not slot.frame for one in client.leases.values() for slot in one.slots.values()
            )
            if parked or world.chance.random() < 0.4:
                _die(world, client)
        case "lose_connection":
            _lose_connection(world, client)
        case "reconnect":
            _reconnect_unnoticed(world, client)
        case "stop":
            client.stopped = True
        case "go_on":
            for one in world.clients:
                one.stopped = False
        case "replay":
            _replay(world)
        case "outside":
            measured = world.outsiders.come_or_go(UNIT)
            if measured is not None:
                world.driver.append(measured)
        case "reconfigure":
            world.happen(_reconfiguration(world))
        case "stale":
            _stale_report(world)
        case _:
            _abandon(world)


def _reconfiguration(world: World) -> ev.Reconfigure:
    """Return what an operator may say anew; where nobody measures, nothing is kept free."""
    chance, measured = world.chance, world.limits.device_bytes is not None
    return ev.Reconfigure(
        keep_free_bytes=chance.choice((0, 2, 4, 6)) * UNIT if measured else 0,
        outside_per_session_bytes=chance.choice((1, 4)) * UNIT,
        eager=chance.choice(list(Eager)),
        copy_ahead_ns=chance.choice((None, 0, 300)),
    )


def configure_as_begun(world: World) -> None:
    """Have the broker keep to what it began with."""
    limits = world.limits
    world.happen(
        ev.Reconfigure(
            keep_free_bytes=limits.keep_free_bytes if limits.device_bytes is not None else 0,
            outside_per_session_bytes=limits.outside_per_session_bytes,
            eager=limits.eager,
            copy_ahead_ns=limits.copy_ahead_ns,
        )
    )


def _die(world: World, client: SimClient) -> None:
    client.die()
    world.close_dying_files()
    if world.chance.random() < 0.5:
        world.lane(client, "agent").clear()
    if client.session is not None:
        world.lane(client, "end").append(ev.ProcessEnded(session=client.session))


def _lose_connection(world: World, client: SimClient) -> None:
    """Drop a connection, with all that was on its way to the client and some of what was on its way from it."""
    if client.connection is None or client.session is None:
        return
    lost = ev.ConnectionLost(session=client.session, connection=client.connection)
    client.lose_connection()
    lane = world.lane(client, "agent")
    for _ in range(world.chance.randint(0, len(lane))):
        lane.pop()
    while lane:
        world.happen(lane.popleft())
    world.happen(lost)


def _reconnect_unnoticed(world: World, client: SimClient) -> None:
    """Come back over a new connection before the broker has seen the old one go; that news is late and stale."""
    if client.connection is None or client.session is None:
        return
    lost = ev.ConnectionLost(session=client.session, connection=client.connection)
    client.lose_connection()
    world.reconnect(client)
    world.lane(client, "lost").append(lost)


def drain(world: World) -> None:
    """Tell the broker to take no new work, as at the end of its life."""
    world.draining = True
    world.happen(ev.Drain())


def _replay(world: World) -> None:
    """Send something anew whose answer somebody still waits for, whether or not it was given already."""
    # A client sends on one connection, in order: a seal that comes again late can't follow upon an unseal.
    known = [asked for asked in world.unanswered if not isinstance(asked.what, ev.Reattach | ev.Seal)]
    if known:
        asked = world.chance.choice(known)
        client = next((one for one in world.clients if one.peer == asked.actor), None)
        if client is not None and client.alive:
            world.queue_call(client, world.calls.replay(asked), "again")


def _abandon(world: World) -> None:
    waiting = world.calls.open_calls()
    if waiting:
        world.happen(ev.CallAbandoned(call=world.chance.choice(waiting)))


def _stale_report(world: World) -> None:
    """Report what is not so: about others' slots, about slots in other states, about orders that nobody gave."""
    if not world.by_session:
        return
    session = world.chance.choice(list(world.by_session))
    strangers = [
        (number, slot)
        for client in world.clients
        if client.session != session
        for number, lease in client.leases.items()
        for slot in lease.slots
    ]
    lease, slot = world.chance.choice(strangers) if strangers else (LeaseId(77_777), SlotId(77_777))
    reports: list[ev.Event] = [
        ev.Arrived(session=session, lease=lease, slots=(slot,), failure=None),
        ev.Arrived(session=session, lease=lease, slots=(slot,), failure="no"),
        ev.Left(session=session, lease=lease, slots=(slot, slot), failure=None),
        ev.Left(session=session, lease=lease, slots=(slot,), failure="no"),
        ev.Copied(session=session, order=OrderId(88_888), slots=(slot,), failure=None),
        ev.Busy(session=session, order=OrderId(88_888), tag="weights"),
        ev.Quiet(session=session, order=OrderId(88_888)),
        ev.ReaderClosed(session=session, reader=ReaderId(88_888)),
        ev.Calling(session=session, order=OrderId(88_888), tag="weights", callback="drain"),
        ev.Declined(session=session, order=OrderId(88_888), tag="weights", callback="drain", why="no"),
    ]
    world.let_come_what_is_due()
    before = world.broker.snapshot()
    world.happen(world.chance.choice(reports))
    require(world.broker.snapshot() == before, "a stale report changes nothing")
