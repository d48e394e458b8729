"""Which leases each phase of the plan lists. Kept as leases come and go, so that a change of phase looks at the leases that
it is about and at no others, and nobody matches patterns twice.
"""

from collections.abc import Iterable, Iterator

from vrambroker.broker.core.ids import LeaseId
from vrambroker.broker.core.phase import Matcher, PhasePlan, Ranked, priority_among

_NOTHING: dict[LeaseId, None] = {}


class Listing:
    """The leases by phase, in the order in which they were opened."""

    def __init__(self) -> None:
        self._matcher = Matcher(())
        self._phases_of: dict[LeaseId, frozenset[str]] = {}
        self._by_phase: dict[str, dict[LeaseId, None]] = {}
        self._priorities: tuple[Ranked, ...] = ()
        self._priority_of: dict[LeaseId, int] = {}

    def renew(self, plan: PhasePlan, leases: Iterable[tuple[LeaseId, str, str]]) -> None:
        """Begin anew with another plan; of each lease its number, its session's name and its tag."""
        self._matcher = Matcher(plan.phases)
        self._phases_of, self._by_phase = {}, {}
        self._priorities, self._priority_of = plan.priorities, {}
        for lease, session, tag in leases:
            self.add(lease, session, tag)

    def add(self, lease: LeaseId, session: str, tag: str) -> None:
        phases = self._matcher.phases_of(session, tag)
        if phases:
            self._phases_of[lease] = phases
        for phase in phases:
            self._by_phase.setdefault(phase, {})[lease] = None
        priority = priority_among(self._priorities, session, tag) if phases else 0
        if priority:
            self._priority_of[lease] = priority

    def discard(self, lease: LeaseId) -> None:
        self._priority_of.pop(lease, None)
        for phase in self._phases_of.pop(lease, ()):
            del self._by_phase[phase][lease]

    def of(self, phase: str) -> Iterator[LeaseId]:
        """Yield what a phase lists."""
        return iter(self._by_phase.get(phase, _NOTHING))

    def of_others(self, phase: str) -> Iterator[LeaseId]:
        """Yield what only other phases list."""
        return (lease for lease, phases in self._phases_of.items() if phase not in phases)

    def is_for_others(self, phase: str, lease: LeaseId) -> bool:
        """Tell whether only other phases list a lease."""
        phases = self._phases_of.get(lease)
        return phases is not None and phase not in phases

    def ranked(self) -> Iterator[LeaseId]:
        """Yield what the plan has a priority for."""
        return iter(self._priority_of)

    def priority_of(self, lease: LeaseId) -> int:
        """Return what the plan says of a lease; 0, if it says nothing."""
        return self._priority_of.get(lease, 0)

    def priority_in(self, phase: str, lease: LeaseId) -> int:
        """Return what the plan says of a lease while this phase is entered, which has to list it."""
        priority = self._priority_of.get(lease, 0)
        return priority if priority and phase in self._phases_of[lease] else 0

    def __len__(self) -> int:
        return len(self._phases_of)
