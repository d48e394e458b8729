"""What a plan comes to: its peaks, what does not fit and by how much, and the largest size of each elastic tag."""

from dataclasses import dataclass

from vrambroker.broker.core.errors import BrokerError, OutOfDeviceMemory, OutOfHostMemory
from vrambroker.broker.plan.model import Plan, PlannedTag
from vrambroker.broker.plan.peaks import Peak, peaks
from vrambroker.broker.sizes import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`device_over_bytes`, `host_over_bytes`: by how much it does not fit; 0, if it does or nobody knows."""

    peak: Peak
    device_over_bytes: int
    host_over_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """`largest_bytes`: the most that it may take with all others as planned; 0, if not even one frame fits; None, if
    nobody has said how much there is.
    """

    tag: PlannedTag
    largest_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    plan: Plan
    rows: tuple[Row, ...]
    elastic: tuple[Elastic, ...]

    @property
    def fits(self) -> bool:
        return not any(row.device_over_bytes or row.host_over_bytes for row in self.rows)

    def require_fits(self) -> None:
        """Raise the error that names what is worst: the device first, then the host."""
        error = self._too_much_device() or self._too_much_host()
        if error is not None:
            raise error

    def _too_much_device(self) -> BrokerError | None:
        worst, capacity_bytes = max(self.rows, key=lambda row: row.device_over_bytes), self.plan.capacity_bytes
        if not worst.device_over_bytes or capacity_bytes is None:
            return None
        needed_bytes = worst.peak.device_bytes
        return OutOfDeviceMemory(
            message=f"{worst.peak} takes {size_text(needed_bytes)} of the device, "
            f"{size_text(worst.device_over_bytes)} more than the {size_text(capacity_bytes)} that there are",
            requested_bytes=needed_bytes,
            capacity_bytes=capacity_bytes,
        )

    def _too_much_host(self) -> BrokerError | None:
        worst, budget_bytes = max(self.rows, key=lambda row: row.host_over_bytes), self.plan.host_budget_bytes
        if not worst.host_over_bytes or budget_bytes is None:
            return None
        needed_bytes = worst.peak.host_bytes
        return OutOfHostMemory(
            message=f"{worst.peak} takes {size_text(needed_bytes)} of host memory, "
            f"{size_text(worst.host_over_bytes)} more than the {size_text(budget_bytes)} that there are",
            requested_bytes=needed_bytes,
            capacity_bytes=budget_bytes,
        )


def verdict(plan: Plan) -> Verdict:
    """Work a plan out."""
    rows = tuple(
        Row(
            peak=peak,
            device_over_bytes=_over(peak.device_bytes, plan.capacity_bytes),
            host_over_bytes=_over(peak.host_bytes, plan.host_budget_bytes),
        )
        for peak in peaks(plan)
    )
    elastic = tuple(Elastic(tag=tag, largest_bytes=largest_bytes(plan, tag)) for tag in plan.tags if tag.elastic)
    return Verdict(plan=plan, rows=rows, elastic=elastic)


def _over(needed_bytes: int, there_bytes: int | None) -> int:
    return 0 if there_bytes is None else max(0, needed_bytes - there_bytes)


def _fits(plan: Plan) -> bool:
    """Tell whether all peaks are within what is there. The larger a tag, the larger every peak."""
    return all(
        not _over(peak.device_bytes, plan.capacity_bytes) and not _over(peak.host_bytes, plan.host_budget_bytes)
        for peak in peaks(plan)
    )


def largest_bytes(plan: Plan, tag: PlannedTag) -> int | None:
    """Return the largest size of a tag, in whole frames, with which everything fits, all other tags as planned."""
    if plan.capacity_bytes is None:
        return None
    frame_bytes = plan.frames_bytes[0]
    fitting, beyond = 0, plan.capacity_bytes // frame_bytes + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if _fits(plan.resized(tag, middle * frame_bytes)):
            fitting = middle
        else:
            beyond = middle
    return fitting * frame_bytes
