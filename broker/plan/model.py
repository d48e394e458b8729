"""What a plan file says, as plain values: phases, and of each tag what it is known to take before anything runs."""

from dataclasses import dataclass, replace

from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.limits import GIB, MIB
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.sizes import parse_size

GPU_FRAMES_BYTES = (32 * MIB, 256 * MIB, GIB)
"""The frames of a GPU, unless the file says otherwise."""

SPARE_FRAMES = 2
"""How many frames beside both sides' own let a copy in run beside a copy out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTag:
    """`size_bytes`: whole frames. `elastic`: it takes what the others leave, so its largest size is asked for. `sealed`: it
    is copied out at most once, so its copy stays on the host.
    """

    session: str
    tag: str
    size_bytes: int
    contents: Contents
    elastic: bool = False
    sealed: bool = False

    @property
    def kept_bytes(self) -> int:
        """What it takes of the host while it is paused."""
        return self.size_bytes if self.contents is Contents.KEEP else 0

    def __str__(self) -> str:
        return f"{self.session}/{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`capacity_bytes` and `host_budget_bytes` are None where nobody has said how much there is."""

    phases: PhasePlan
    tags: tuple[PlannedTag, ...] = ()
    capacity_bytes: int | None = None
    host_budget_bytes: int | None = None
    frames_bytes: tuple[int, ...] = GPU_FRAMES_BYTES
    spare_frames: int = SPARE_FRAMES

    def resized(self, tag: PlannedTag, size_bytes: int) -> "Plan":
        """Return the same plan with another size of one tag."""
        tags = tuple(replace(one, size_bytes=size_bytes) if one == tag else one for one in self.tags)
        return replace(self, tags=tags)

    def bounded(self, capacity: str | None, host_budget: str | None) -> "Plan":
        """Return the same plan for a device and a host of these sizes, where given; raises `InvalidArgument`."""
        capacity_bytes = self.capacity_bytes if capacity is None else parse_size(capacity, "capacity")
        budget_bytes = self.host_budget_bytes if host_budget is None else parse_size(host_budget, "host_budget")
        return replace(self, capacity_bytes=capacity_bytes, host_budget_bytes=budget_bytes)

    def bounded_by(self, capacity_bytes: int, host_budget_bytes: int) -> "Plan":
        """Return the same plan with these bounds where it has none."""
        return replace(
            self,
            capacity_bytes=capacity_bytes if self.capacity_bytes is None else self.capacity_bytes,
            host_budget_bytes=host_budget_bytes if self.host_budget_bytes is None else self.host_budget_bytes,
        )

    def left_alone(self) -> tuple[PlannedTag, ...]:
        """Return the tags that no phase lists, which stay where they are."""
        return tuple(tag for tag in self.tags if not self.phases.is_planned(tag.session, tag.tag))
