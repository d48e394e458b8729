"""The end of a run: faults cease, everybody comes back, waits run out, everything is returned.

Then all must be free, nothing may wait, and every call must have been answered exactly once.
"""

from tests.simulation import acts
from tests.simulation.calls import Build
from tests.simulation.client import SimClient
from tests.simulation.faults import configure_as_begun
from tests.simulation.machine import Wronged, require
from tests.simulation.world import World
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.errors import BrokerError, OutOfHostMemory
from vrambroker.broker.core.ids import Instant, LeaseId, SessionId
from vrambroker.broker.core.snapshot import FileState, FramePlace


def end(world: World) -> None:
    """Let the faults end, everything settle and everybody leave; then look whether all is free."""
    world.faulty = False
    for client in world.clients:
        client.faulty, client.stopped = False, False
    configure_as_begun(world)
    _settle(world)
    world.happen(world.outsiders.leave())
    while (deadline := world.broker.next_deadline()) is not None:
        world.now = max(world.now, deadline)
        world.happen(ev.DeadlineReached())
        _settle(world)
    _nothing_is_stuck(world)
    _everybody_can_come_back(world)
    for client in list(world.clients):
        if client.alive and client.session is not None:
            acts.detach(world, client, client.session)
            _settle(world)
    _settle(world)
    _all_is_free(world)


def _settle(world: World) -> None:
    """Let everything happen that is under way, until only time could bring more."""
    for _ in range(100_000):
        for client in [one for one in world.clients if one.alive and one.session is not None]:
            if client.connection is None:
                world.reconnect(client)
            client.finish_scope()
            assert client.session is not None
            for number in tuple(client.reading.reads):
                acts.end_read(world, client, client.session, number)
        moved = world.deliver_one()
        moved = world.obey_one() or moved
        if not moved and not any(client.busy for client in world.clients if client.alive):
            return
    raise Wronged("things go on for ever")


def _nothing_is_stuck(world: World) -> None:
    """With nothing under way and all deadlines past, there is no ticket, and clients and broker see the same."""
    seen = world.broker.snapshot()
    for ticket in (*seen.queue, *seen.granted):
        require(False, f"a ticket is stuck: {ticket}")
    require(not seen.entering, f"a phase is never entered: {seen.entering}")
    for file in seen.arena:
        require(file.state is FileState.READY, f"a file is stuck on its way: {file}")
    for session in (one for one in seen.sessions if one.session in world.by_session):
        client = world.by_session[session.session]
        resident = {lease.tag for lease in session.leases if not lease.paused}
        closed = [tags for tags in client.gates.values() if resident.intersection(tags)]
        require(not client.alive or not closed, f"gates stay closed: {client.gates}")
        for lease in session.leases if client.alive else ():
            settled = lease.state not in (ef.LeaseState.ARRIVING, ef.LeaseState.LEAVING)
            require(settled or not lease.slots, f"a lease is stuck on its way: {lease}")
            known = client.leases.get(lease.lease)
            require(known is None or known.paused == lease.paused, f"its owner was not told: {lease}")


def _ask_and_settle(world: World, client: SimClient, build: Build) -> ef.Outcome | BrokerError | None:
    asked, event = world.calls.ask(client.peer, build)
    world.lane_of[asked.number] = client
    world.happen(event)
    _settle(world)
    return asked.answer


def _everybody_can_come_back(world: World) -> None:
    """All pause; then one after the other comes back with all it has, and finds what it wrote."""
    there = [client for client in world.clients if client.alive and client.session is not None]
    for client in there:
        _return_what_was_never_claimed(world, client)
    for client in there:
        tags = _tags_held(world, client)
        if not tags or world.draining:
            continue
        answer = _pause_all(world, client, tags)
        require(isinstance(answer, ef.Paused | OutOfHostMemory), f"{answer}")
    for client in there:
        if not world.draining:
            _lift_budgets(world, client)
        if _tags_held(world, client) and not world.draining:
            _bring_back(world, client)


def _lift_budgets(world: World, client: SimClient) -> None:
    session = _session_of(client)
    views = [one for one in world.broker.snapshot().sessions if one.session == session]
    for tag, revision in [(tag, budget.revision) for view in views for tag, budget in view.budgets.items()]:
        answer = _ask_and_settle(world, client, _without_budget(session, tag, revision))
        require(isinstance(answer, ef.BudgetSet) and answer.hard_bytes is None, f"a budget stays: {answer}")


def _without_budget(session: SessionId, tag: str, revision: int) -> Build:
    return lambda call: ev.SetBudget(
        call=call, session=session, tag=tag, soft_bytes=None, hard_bytes=None, revision=revision
    )


def _tags_held(world: World, client: SimClient) -> tuple[str, ...]:
    views = (one for one in world.broker.snapshot().sessions if one.session == client.session)
    return tuple(dict.fromkeys(lease.tag for view in views for lease in view.leases))


def _return_what_was_never_claimed(world: World, client: SimClient) -> None:
    session = _session_of(client)
    for view in (one for one in world.broker.snapshot().sessions if one.session == session):
        for number in [lease.lease for lease in view.leases if lease.lease not in client.leases]:
            _ask_and_settle(world, client, _returning(session, number))


def _pause_all(world: World, client: SimClient, tags: tuple[str, ...]) -> ef.Outcome | BrokerError | None:
    session = _session_of(client)
    return _ask_and_settle(
        world,
        client,
        lambda call: ev.Pause(
            call=call,
            session=session,
            tags=tags,
            release=True,
            discard=False,
            quiet=True,
            deadline=Instant(world.now + 10**6),
        ),
    )


def _bring_back(world: World, client: SimClient) -> None:
    session = _session_of(client)
    tags = _tags_held(world, client)
    answer = _ask_and_settle(
        world,
        client,
        lambda call: ev.Resume(call=call, session=session, tags=tags, wait=False, deadline=Instant(world.now + 10**6)),
    )
    seen = world.broker.snapshot()
    views = [lease for one in seen.sessions for lease in one.leases]
    mine = [lease for one in seen.sessions if one.session == session for lease in one.leases]
    size_bytes = sum(slot.size_bytes for lease in mine for slot in lease.slots)
    others_bytes = sum(
        lease.device_bytes for lease in views if lease not in mine and not (lease.paused and lease.takeable)
    )
    names = [one.name for one in seen.sessions if one.session == session]
    others_bytes += sum(one.size_bytes for one in seen.kept if one.session not in names)
    if size_bytes + others_bytes <= seen.capacity_bytes:
        require(isinstance(answer, ef.Resumed), f"there is room for all of it: {answer}")
    if isinstance(answer, ef.Resumed):
        for lease in client.leases.values():
            client.write(lease)
    _pause_all(world, client, tags)


def _all_is_free(world: World) -> None:
    seen = world.broker.snapshot()
    left = (*seen.queue, *seen.granted, *seen.kept)
    require(not left, f"tickets are left: {left}")
    require(not seen.sessions, f"sessions are left: {seen.sessions}")
    require(seen.free_bytes == seen.capacity_bytes, f"all returned, and not all free: {seen}")
    require(all(frame.place is FramePlace.POOLED for frame in seen.frames), f"frames are left: {seen.frames}")
    require(not seen.arena and not seen.host_file_bytes, f"the arena is not empty: {seen.arena}")
    require(not seen.spill_used_bytes and not world.store.under_way, f"something is left in the spill store: {seen}")
    require(not world.calls.open_calls(), f"calls without an answer: {world.calls.open_calls()}")
    require(set(world.machine.frames) == {frame.frame for frame in seen.frames}, "the machine has other frames")


def _session_of(client: SimClient) -> SessionId:
    assert client.session is not None
    return client.session


def _returning(session: SessionId, lease: LeaseId) -> Build:
    return lambda call: ev.Return(call=call, session=session, lease=lease, slots=())
