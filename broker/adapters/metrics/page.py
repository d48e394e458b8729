"""What Prometheus reads: every number with its name, unit and meaning, as of the moment it asks.

Names and units are by Prometheus's conventions: bytes and seconds, `_total` for what only grows. There are as many series as
there are sessions and tags, up to a limit; the rest are summed as `other`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vrambroker.broker.adapters.metrics.histogram import Histogram
from vrambroker.broker.adapters.metrics.metered_core import MeteredCore
from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.core.effects import Kind, Publish
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.ids import Instant

NS_PER_S = 1_000_000_000
PAIRS_MAX = 200
"""How many pairs of session and tag have series of their own."""
OTHER = "other"

# Told from the start, so that a first refusal is a rise and not a new series. The excluded ones are a client's own.
_ERRORS = sorted(
    {one.__name__ for one in BrokerError.__subclasses__()} - {"BrokerLost", "BrokerUnavailable", "DeviceBusy"}
)

Values = dict[tuple[str, ...], float]
"""By the values of the labels."""

_COUNTERS = {
    Kind.RECALLED: ("vrambroker_recalls", "Idle leases of which frames were taken back."),
    Kind.SESSION_ATTACHED: ("vrambroker_sessions_attached", "Sessions that have come."),
    Kind.SESSION_ENDED: ("vrambroker_sessions_ended", "Sessions that are over, by a goodbye or with their process."),
    Kind.TICKET_QUEUED: ("vrambroker_tickets_queued", "Demands for frames."),
    Kind.TICKET_DONE: ("vrambroker_tickets_done", "Demands for frames that were met."),
    Kind.PHASE_ENTERED: ("vrambroker_phases_entered", "Changes of phase."),
    Kind.PHASE_REFUSED: ("vrambroker_phases_refused", "Changes of phase that were refused or undone."),
    Kind.COPY_FAILED: ("vrambroker_copy_failures", "Leases whose contents could not be copied out ahead."),
    Kind.SPILL_FAILED: ("vrambroker_spill_failures", "Writes to the spill store that failed."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What does not change while the daemon runs, and whom to ask for what does."""

    device: str
    version: str
    capacity_bytes: int
    host_budget_bytes: int
    spill_budget_bytes: int
    outside_bytes: Callable[[], int]
    history_missing_lines: Callable[[], int]
    now: Callable[[], Instant]


class Page(Collector):
    """Tells a tally and a metered core; to be asked on the runtime's loop."""

    def __init__(self, given: Given, tally: Tally, core: MeteredCore) -> None:
        self._given = given
        self._tally = tally
        self._core = core
        self._pairs: dict[tuple[str, str], None] = {}
        # Of its own, so that nothing else in the process is told, and two daemons in one don't collide.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type, in the format that a reader says it takes."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Return every metric, as the registry asks for them."""
        yield self._build()
        yield from self._totals()
        yield from self._leases()
        yield from self._waits()
        yield from self._counts()
        yield from self._copies()
        yield self._histogram(
            "vrambroker_decision_seconds", "How long the core took to decide about an event.", self._core.decisions
        )

    def _build(self) -> Metric:
        family = InfoMetricFamily("vrambroker_build", "The daemon's version.", labels=("device",))
        family.add_metric((self._given.device,), {"version": self._given.version})
        return family

    def _totals(self) -> Iterable[Metric]:
        given, tally = self._given, self._tally
        for name, meaning, value in (
            ("device_capacity_bytes", "What the daemon may lend of the device.", given.capacity_bytes),
            ("device_lent_bytes", "Frames that leases have.", tally.lent_bytes),
            ("device_free_bytes", "Capacity that nobody has.", tally.free_bytes),
            ("device_held_bytes", "Capacity set aside, being made, or of ended processes.", tally.held_bytes),
            ("device_outside_bytes", "Memory in use on the device that is no lease.", given.outside_bytes()),
            ("arena_budget_bytes", "Host memory that parked contents may take.", given.host_budget_bytes),
            ("arena_used_bytes", "Host memory set aside for contents.", tally.host_bytes),
            (
                "arena_file_bytes",
                "Host memory that the arena's files take, empty room included.",
                tally.host_file_bytes,
            ),
            ("spill_budget_bytes", "Disk that contents may take.", given.spill_budget_bytes),
            ("spill_used_bytes", "Disk set aside for contents.", tally.spill_bytes),
            ("leases", "Leases that there are.", len(tally.leases)),
            ("sessions", "Sessions that there are.", len(tally.sessions)),
            ("sessions_connected", "Sessions whose agent can be reached.", sum(tally.sessions.values())),
        ):
            yield self._gauge(f"vrambroker_{name}", meaning, value)

    def _leases(self) -> Iterable[Metric]:
        on_device: Values = defaultdict(int)
        on_host: Values = defaultdict(int)
        on_disk: Values = defaultdict(int)
        for line, pair in self._labelled():
            state = "" if line.state is None else line.state.value
            on_device[*pair, state] += line.device_bytes
            on_host[pair] += line.host_bytes
            on_disk[pair] += line.spill_bytes
        labels = ("session", "tag")
        yield self._series(
            "vrambroker_lease_device_bytes", "Frames, by state of the lease.", (*labels, "state"), on_device
        )
        yield self._series("vrambroker_lease_host_bytes", "Host memory set aside for contents.", labels, on_host)
        yield self._series("vrambroker_lease_spill_bytes", "Disk set aside for contents.", labels, on_disk)

    def _labelled(self) -> Iterable[tuple[Publish, tuple[str, str]]]:
        """Return each lease with the labels that it is counted under: the first pairs keep theirs while they are there."""
        lines = list(self._tally.leases.values())
        there = dict.fromkeys((line.session, line.tag) for line in lines)
        kept = [pair for pair in self._pairs if pair in there]
        self._pairs = dict.fromkeys(list(dict.fromkeys((*kept, *there)))[:PAIRS_MAX])
        for line in lines:
            pair = (line.session, line.tag)
            yield line, pair if pair in self._pairs else (OTHER, OTHER)

    def _waits(self) -> Iterable[Metric]:
        tally = self._tally
        yield self._gauge("vrambroker_tickets_waiting", "Demands that nobody has promised room to.", tally.waiting)
        oldest_s = tally.oldest_wait_s(self._given.now())
        yield self._gauge("vrambroker_tickets_oldest_seconds", "For how long the oldest of them has waited.", oldest_s)
        yield self._histogram(
            "vrambroker_ticket_wait_seconds", "From a demand for frames until it was met.", tally.waits
        )

    def _counts(self) -> Iterable[Metric]:
        for kind, (name, meaning) in _COUNTERS.items():
            yield self._counter(name, meaning, (), {(): self._tally.counts[kind]})
        yield self._counter(
            "vrambroker_history_missing_lines",
            "Lines of the event stream that were not written to the history's disk.",
            (),
            {(): self._given.history_missing_lines()},
        )
        refusals: Values = {(error,): self._core.refusals[error] for error in (*_ERRORS, *self._core.refusals)}
        yield self._counter("vrambroker_refusals", "Calls that were refused, by error.", ("error",), refusals)

    def _copies(self) -> Iterable[Metric]:
        copies, now = self._core.copies, self._given.now()
        done: Values = {(direction.value,): way.done_bytes for direction, way in copies.ways.items()}
        busy: Values = {(direction.value,): way.busy_until(now) / NS_PER_S for direction, way in copies.ways.items()}
        spilled: Values = {("write",): copies.written_bytes, ("read",): copies.read_bytes}
        of = ("direction",)
        yield self._counter("vrambroker_copied_bytes", "Contents copied between device and host by agents.", of, done)
        yield self._counter("vrambroker_copy_seconds", "Time in which any such copy was under way.", of, busy)
        yield self._counter("vrambroker_spill_bytes", "Contents written to the spill store and read back.", of, spilled)

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        return self._series(name, meaning, (), {(): value})

    def _series(self, name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=("device", *labels))
        for key, value in values.items():
            family.add_metric((self._given.device, *key), value)
        return family

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
        family = CounterMetricFamily(name, meaning, labels=("device", *labels))
        for key, value in values.items():
            family.add_metric((self._given.device, *key), value)
        return family

    def _histogram(self, name: str, meaning: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, meaning, labels=("device",))
        family.add_metric((self._given.device,), buckets=histogram.cumulative(), sum_value=histogram.sum)
        return family
