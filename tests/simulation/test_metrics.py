"""Metrics against the broker's own snapshot, over whole runs with faults: nothing is counted that is not there."""

import pytest

from tests.simulation import run
from tests.simulation.world import Shape, World
from vrambroker.broker.adapters.metrics.copies import Direction
from vrambroker.broker.adapters.metrics.metered_core import MeteredCore
from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import Instant


class MeteredWorld(World):
    """A world whose broker is watched, and compared with its snapshot now and then."""

    def __init__(self, shape: Shape) -> None:
        self.tally: Tally | None = None
        super().__init__(shape)

    def happen(self, event: ev.Event) -> None:
        if self.tally is None:
            self._begin()
        super().happen(event)
        if self.events % 16 == 0:
            self.compare()

    def _begin(self) -> None:
        broker, tally = self.broker, Tally(capacity_bytes=self.limits.capacity_bytes)
        handled = broker.handle

        class Unmetered:
            def handle(self, event: ev.Event, now: Instant) -> list[ef.Effect]:
                return handled(event, now)

            next_deadline = broker.next_deadline
            snapshot = broker.snapshot

        self.tally, self.metered = tally, MeteredCore(Unmetered())

        def handle(event: ev.Event, now: Instant) -> list[ef.Effect]:
            effects = self.metered.handle(event, now)
            for effect in effects:
                if isinstance(effect, ef.Publish):
                    tally.published(effect)
            return effects

        broker.handle = handle  # type: ignore[method-assign]

    def compare(self) -> None:
        assert self.tally is not None
        tally, there = self.tally, self.broker.snapshot()
        assert (tally.lent_bytes, tally.free_bytes) == (there.lent_bytes, there.free_bytes)
        assert (tally.host_bytes, tally.host_file_bytes) == (there.host_used_bytes, there.host_file_bytes)
        leases = {one.lease: (one.state, one.device_bytes) for session in there.sessions for one in session.leases}
        assert {number: (one.state, one.device_bytes) for number, one in tally.leases.items()} == leases
        live = {session.name: session.connected for session in there.sessions if not session.ended}
        assert tally.sessions == live
        queued = {one.ticket for one in there.queue}
        assert queued <= tally.tickets.keys(), "who waits is known to wait"
        unpromised = {one.ticket for one in there.queue if not one.admitted}
        assert {number for number, one in tally.tickets.items() if not one.admitted} <= unpromised


@pytest.mark.parametrize("seed", range(1, 13))
def test_the_totals_are_the_snapshots_and_nothing_is_under_way_at_the_end(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "World", MeteredWorld)
    world = run.simulate(Shape(seed=seed, steps=500, clients=4))
    assert isinstance(world, MeteredWorld)
    world.compare()
    assert world.tally is not None
    assert (world.tally.tickets, world.tally.leases, world.tally.lent_bytes) == ({}, {}, 0)
    for direction in Direction:
        way = world.metered.copies.ways[direction]
        assert (way.under_way, way.since) == ({}, None)
    assert world.metered.decisions.cumulative()[-1][1] == world.events


def test_something_was_copied_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "World", MeteredWorld)
    worlds = [run.simulate(Shape(seed=seed, steps=500, clients=4)) for seed in range(1, 9)]
    done = {
        direction: sum(
            world.metered.copies.ways[direction].done_bytes for world in worlds if isinstance(world, MeteredWorld)
        )
        for direction in Direction
    }
    assert all(done.values()), done
