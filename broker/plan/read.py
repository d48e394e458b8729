"""A plan file, read: TOML in, values out, and for whatever is wrong one line that says which key of what it is."""

import tomllib
from itertools import pairwise
from typing import TypeVar, cast

from vrambroker.broker.core.errors import BrokerError, InvalidArgument
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.phase import (
    Order,
    Pattern,
    Phase,
    PhasePlan,
    Ranked,
    parse_pattern,
    require_sound_plan,
)
from vrambroker.broker.plan.model import GPU_FRAMES_BYTES, SPARE_FRAMES, Plan, PlannedTag
from vrambroker.broker.sizes import parse_size

_Kind = TypeVar("_Kind")
_WORDS: dict[type, str] = {str: "a text", bool: "true or false", int: "a whole number", list: "a list", dict: "a table"}
SPARE_FRAMES_MAX = 64
TAGS_MAX = 1024


class _Table:
    """One table of the file: every key is taken once, with its type, and none may be left over."""

    def __init__(self, where: str, values: dict[str, object]) -> None:
        self.where = where
        self._values = dict(values)
        self._known: list[str] = []

    def take(self, key: str, kind: type[_Kind], default: _Kind | None = None) -> _Kind:
        """Return the value of a key; without a default, it must be there."""
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise self.wrong(key, "is missing")
            return default
        value = self._values.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"must be {_WORDS[kind]}")
        return value

    def take_table(self, key: str) -> "_Table":
        return _Table(self._name(key), cast(dict[str, object], self.take(key, dict, {})))

    def take_size(self, key: str) -> int:
        return self._checked_size(key, self.take(key, str))

    def take_size_if_any(self, key: str) -> int | None:
        text = self.take(key, str, "")
        return self._checked_size(key, text) if text else None

    def take_texts(self, key: str, default: list[object] | None = None) -> list[str]:
        values: list[object] = self.take(key, list, default)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) != len(values):
            raise self.wrong(key, "must be a list of texts")
        return texts

    def left(self) -> list[str]:
        return list(self._values)

    def end(self) -> None:
        """Raise `InvalidArgument` if there was a key that nobody asked for."""
        for key in self._values:
            raise self.wrong(key, f"is no key here (there are: {', '.join(self._known)})")

    def wrong(self, key: str, why: str) -> InvalidArgument:
        return InvalidArgument(message=f"{self._name(key)} {why}", argument=self._name(key))

    def _name(self, key: str) -> str:
        shown = key if "/" not in key else f'"{key}"'
        return f"{self.where}.{shown}" if self.where else shown

    def _checked_size(self, key: str, text: str) -> int:
        return parse_size(text, self._name(key))


def read_plan(text: str) -> Plan:
    """Return what a plan file says; raises `InvalidArgument`."""
    try:
        top = _Table("", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(message=f"this is no TOML: {error}", argument="plan") from None
    order = _order(top)
    phases = _phases(top)
    device, host = top.take_table("device"), top.take_table("host")
    frames_bytes = _frames(device)
    tags, priorities = _tags(top.take_table("tags"), frames_bytes[0])
    plan = Plan(
        phases=PhasePlan(order=order, phases=phases, priorities=priorities),
        tags=tags,
        capacity_bytes=device.take_size_if_any("capacity"),
        host_budget_bytes=host.take_size_if_any("budget"),
        frames_bytes=frames_bytes,
        spare_frames=_spare_frames(device),
    )
    for table in (top, device, host):
        table.end()
    require_sound_plan(plan.phases)
    _require_meant(plan)
    return plan


def _order(top: _Table) -> Order:
    word = top.take("order", str, Order.DEVICE.value)
    found = next((order for order in Order if order.value == word), None)
    if found is None:
        raise top.wrong("order", f"{word!r} is not one of: {', '.join(order.value for order in Order)}")
    return found


def _phases(top: _Table) -> tuple[Phase, ...]:
    entries = cast(list[object], top.take("phase", list))
    return tuple(_phase(number, entry) for number, entry in enumerate(entries, start=1))


def _phase(number: int, entry: object) -> Phase:
    if not isinstance(entry, dict):
        raise InvalidArgument(message=f"phase {number} must be a table: [[phase]]", argument="phase")
    table = _Table(f"phase {number}", cast(dict[str, object], entry))
    name = table.take("name", str)
    table.where = f"phase {name!r}"
    tags = tuple(parse_pattern(one, f"{table.where}.tags") for one in table.take_texts("tags"))
    table.end()
    return Phase(name=name, tags=tags)


def _frames(device: _Table) -> tuple[int, ...]:
    """Return the frame sizes that sizes are rounded up to."""
    texts = device.take_texts("frames", [])
    frames = tuple(parse_size(one, "device.frames") for one in texts) or GPU_FRAMES_BYTES
    if not all(larger > size and larger % size == 0 for size, larger in pairwise(frames)):
        raise device.wrong("frames", "must ascend, and each must divide the next")
    return frames


def _spare_frames(device: _Table) -> int:
    number = device.take("spare_frames", int, SPARE_FRAMES)
    if not 0 <= number <= SPARE_FRAMES_MAX:
        raise device.wrong("spare_frames", f"must be 0 to {SPARE_FRAMES_MAX}")
    return number


def _tags(table: _Table, frame_bytes: int) -> tuple[tuple[PlannedTag, ...], tuple[Ranked, ...]]:
    tags: list[PlannedTag] = []
    priorities: list[Ranked] = []
    if len(table.left()) > TAGS_MAX:
        raise InvalidArgument(message=f"{len(table.left())} tags are more than {TAGS_MAX}", argument="tags")
    for key in table.left():
        entry = table.take_table(key)
        pattern = _exact(entry, key)
        tags.append(_tag(entry, pattern, frame_bytes))
        priority = entry.take("priority", int, 0)
        if priority:
            priorities.append(Ranked(pattern=pattern, priority=priority))
        entry.end()
    return tuple(tags), tuple(priorities)


def _exact(entry: _Table, key: str) -> Pattern:
    pattern = parse_pattern(key, entry.where)
    if any(letter in key for letter in "*?[]!"):
        raise InvalidArgument(message=f"{entry.where} must be one tag, not a pattern", argument=entry.where)
    return pattern


def _tag(entry: _Table, pattern: Pattern, frame_bytes: int) -> PlannedTag:
    word = entry.take("contents", str, Contents.KEEP.value)
    contents = next((one for one in Contents if one.value == word), None)
    if contents is None:
        raise entry.wrong("contents", f"{word!r} is not one of: {', '.join(one.value for one in Contents)}")
    sealed = entry.take("sealed", bool, False)
    if sealed and contents is not Contents.KEEP:
        raise entry.wrong("sealed", f"is for contents that are kept, not {contents.value}")
    return PlannedTag(
        session=pattern.session,
        tag=pattern.tag,
        size_bytes=-(-entry.take_size("size") // frame_bytes) * frame_bytes,
        contents=contents,
        elastic=entry.take("elastic", bool, False),
        sealed=sealed,
    )


def _require_meant(plan: Plan) -> None:
    """Raise `InvalidArgument` if tags are declared, and a phase names one that is not among them: a slip of the pen."""
    for phase in plan.phases.phases if plan.tags else ():
        for pattern in phase.tags:
            if not any(pattern.matches(tag.session, tag.tag) for tag in plan.tags):
                raise InvalidArgument(
                    message=f"phase {phase.name!r} lists {pattern}, which no tag under [tags] matches",
                    argument=f"phase {phase.name!r}.tags",
                )


def require_sizes(plan: Plan) -> None:
    """Raise `InvalidArgument` if there is nothing to work out."""
    if not plan.tags:
        message = 'no tag is declared: say how large each one is, as in [tags."trainer/params"] size = "3GiB"'
        raise InvalidArgument(message=message, argument="tags")


def read_plan_of(name: str, text: str) -> Plan:
    """Return what the plan file of this name says; an error says the name, too."""
    try:
        return read_plan(text)
    except BrokerError as error:
        raise InvalidArgument(message=f"{name}: {error.message}", argument=getattr(error, "argument", "")) from None
