"""Phases: which tags must be there together, by session/tag patterns, and in what order memory changes hands between them.

A tag that no phase lists is left alone by every phase change. Patterns are those of `fnmatch`, within each part.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase, translate

from vrambroker.broker.core.errors import InvalidArgument, UnknownPhase

NAME_LENGTH_MAX = 64
PATTERN_LENGTH_MAX = 160
PHASES_MAX = 64
PATTERNS_MAX = 256
PRIORITY_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9_.:@+-]+")
_PART = re.compile(r"[A-Za-z0-9_.:@+*?!\[\]-]+")


class Order(Enum):
    """What a handover keeps lowest. DEVICE: all that leaves is paused first, so both sides' kept contents are on the
    host at once. HOST: kept contents come before others leave, so both sides' are on the device at once.
    """

    DEVICE = "device"
    HOST = "host"


def _fits(name: str, pattern: str) -> bool:
    # No name has wildcards in it, and most patterns are names.
    return name == pattern or fnmatchcase(name, pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    session: str
    tag: str

    def matches(self, session: str, tag: str) -> bool:
        return _fits(session, self.session) and _fits(tag, self.tag)

    @property
    def is_exact(self) -> bool:
        """Whether it matches one tag alone, and that as it is written."""
        return not any(letter in "*?[" for letter in self.session + self.tag)

    def __str__(self) -> str:
        return f"{self.session}/{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """`tags`: what must be resident in it."""

    name: str
    tags: tuple[Pattern, ...]

    def lists(self, session: str, tag: str) -> bool:
        return any(pattern.matches(session, tag) for pattern in self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Of tags that come in one phase change, the higher priority gets its room first. While a phase is entered that lists
    a tag, this is its priority among all that waits and all that is idle, unless somebody has set another.
    """

    pattern: Pattern
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """All phases of a device, in the order in which they follow each other; after the last comes the first."""

    order: Order
    phases: tuple[Phase, ...]
    priorities: tuple[Ranked, ...] = ()

    def phase(self, name: str) -> Phase:
        """Return the phase of this name; raises `UnknownPhase`."""
        found = next((phase for phase in self.phases if phase.name == name), None)
        if found is None:
            known = ", ".join(phase.name for phase in self.phases)
            raise UnknownPhase(message=f"there is no phase {name!r} in the plan (there are: {known})", phase=name)
        return found

    def is_planned(self, session: str, tag: str) -> bool:
        """Tell whether some phase lists the tag."""
        return any(phase.lists(session, tag) for phase in self.phases)

    def priority_of(self, session: str, tag: str) -> int:
        """Return the tag's priority; 0, if it was given none."""
        return priority_among(self.priorities, session, tag)


def priority_among(priorities: Iterable[Ranked], session: str, tag: str) -> int:
    """Return the priority of the first pattern that matches a tag; 0, if none does."""
    return next((one.priority for one in priorities if one.pattern.matches(session, tag)), 0)


class Matcher:
    """Tells which phases list a tag; made once for a plan, so that no pattern is read twice."""

    def __init__(self, phases: Iterable[Phase]) -> None:
        self._exact: dict[tuple[str, str], set[str]] = {}
        self._wild: list[tuple[re.Pattern[str], str]] = []
        for phase in phases:
            for pattern in phase.tags:
                if pattern.is_exact:
                    self._exact.setdefault((pattern.session, pattern.tag), set()).add(phase.name)
                else:
                    # No session or tag has a slash in its name.
                    both = f"{_unanchored(pattern.session)}/{_unanchored(pattern.tag)}"
                    self._wild.append((re.compile(both, re.DOTALL), phase.name))

    def phases_of(self, session: str, tag: str) -> frozenset[str]:
        """Return the names of the phases that list a tag."""
        label = f"{session}/{tag}"
        wild = {name for pattern, name in self._wild if pattern.fullmatch(label)}
        return frozenset(wild | self._exact.get((session, tag), set()))


def _unanchored(pattern: str) -> str:
    # As `(?s:…)\Z`, of which the second half would only match at the end of both parts.
    return translate(pattern).removesuffix(r"\Z").removesuffix(r"\z")


def parse_pattern(text: str, argument: str) -> Pattern:
    """Return a pattern written as SESSION/TAG; raises `InvalidArgument`."""
    session, slash, tag = text.partition("/")
    parts = len(text) <= PATTERN_LENGTH_MAX and bool(slash)
    if not (parts and _PART.fullmatch(session) and _PART.fullmatch(tag)):
        raise InvalidArgument(
            message=f"{argument}: {text[:PATTERN_LENGTH_MAX]!r} is not SESSION/TAG or a pattern of that",
            argument=argument,
        )
    return Pattern(session=session, tag=tag)


def require_sound_plan(plan: PhasePlan) -> None:
    """Raise `InvalidArgument` for a plan without phases, with one twice, with a phase of no tags, or too large a one."""
    if not 0 < len(plan.phases) <= PHASES_MAX:
        raise _wrong("phase", f"a plan has 1 to {PHASES_MAX} phases, not {len(plan.phases)}")
    names = [phase.name for phase in plan.phases]
    for number, name in enumerate(names):
        _require_name(name)
        if name in names[:number]:
            raise _wrong("name", f"there are two phases {name!r}")
    for phase in plan.phases:
        if not 0 < len(phase.tags) <= PATTERNS_MAX:
            raise _wrong("tags", f"phase {phase.name!r}: {len(phase.tags)} tags are not between 1 and {PATTERNS_MAX}")
    if len(plan.priorities) > PATTERNS_MAX:
        raise _wrong("priority", f"{len(plan.priorities)} priorities are more than {PATTERNS_MAX}")
    for one in plan.priorities:
        if abs(one.priority) > PRIORITY_MAX:
            raise _wrong("priority", f"{one.pattern}: priority {one.priority} is beyond {PRIORITY_MAX}")


def _require_name(name: str) -> None:
    if len(name) > NAME_LENGTH_MAX or _NAME.fullmatch(name) is None:
        raise _wrong(
            "name",
            f"phase {name[:NAME_LENGTH_MAX]!r} is not 1 to {NAME_LENGTH_MAX} of the characters A-Z a-z 0-9 _ . : @ + -",
        )


def _wrong(argument: str, message: str) -> InvalidArgument:
    return InvalidArgument(message=message, argument=argument)
