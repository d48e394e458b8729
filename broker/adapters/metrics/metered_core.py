"""A core that is watched: how long each decision takes, what is refused, and what is copied. It decides nothing itself."""

import time
from collections import Counter

from vrambroker.broker.adapters.metrics.copies import Copies
from vrambroker.broker.adapters.metrics.histogram import Histogram
from vrambroker.broker.core.effects import (
    Effect,
    Refuse,
    SendCopy,
    SendGrant,
    SendRecall,
    SpillIn,
    SpillOut,
)
from vrambroker.broker.core.events import (
    Arrived,
    Copied,
    Detach,
    Event,
    Left,
    ProcessEnded,
    Return,
    TransferFailed,
    Transferred,
)
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.ports import Core

NS_PER_S = 1_000_000_000
DECISION_BOUNDS_S = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0)
# By class, since there are many effects to an event and few of them are of interest.
_REPORTS = frozenset({Arrived, Copied, Detach, Left, ProcessEnded, Return, Transferred, TransferFailed})
_ORDERS = frozenset({SendCopy, SendGrant, SendRecall, SpillIn, SpillOut})


class MeteredCore:
    """Wraps a core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.decisions = Histogram(DECISION_BOUNDS_S)
        self.refusals: Counter[str] = Counter()
        self.copies = Copies()

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        began_ns = time.perf_counter_ns()
        effects = self._core.handle(event, now)
        self.decisions.add((time.perf_counter_ns() - began_ns) / NS_PER_S)
        if type(event) in _REPORTS:
            self.copies.told(event, now)
        for effect in effects:
            if type(effect) in _ORDERS:
                self.copies.ordered(effect, now)
            elif isinstance(effect, Refuse):
                self.refusals[type(effect.error).__name__] += 1
        return effects

    def next_deadline(self) -> Instant | None:
        return self._core.next_deadline()

    def snapshot(self) -> Snapshot:
        return self._core.snapshot()
