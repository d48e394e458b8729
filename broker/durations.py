"""Durations as people write them."""

import re

from vrambroker.broker.core.errors import InvalidArgument

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|min)")
_UNITS_NS = {"ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}


def parse_duration(text: str, argument: str) -> int:
    """Return a duration in nanoseconds, such as `200ms`, `1.5s` or `2min`; raises `InvalidArgument`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            message=f"{argument} {text!r} is no time: a number and one of {', '.join(_UNITS_NS)}", argument=argument
        )
    return int(float(match[1]) * _UNITS_NS[match[2]])
