"""Sizes as people write and read them."""

import re

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.limits import GIB, MIB

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)")
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}


def parse_size(text: str, argument: str) -> int:
    """Return a size in bytes, such as `1.5GiB`, `96MiB` or `1048576`; raises `InvalidArgument`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS or ("." in match[1] and _UNITS[match[2]] == 1):
        units = ", ".join(unit for unit in _UNITS if unit)
        raise InvalidArgument(
            message=f"{argument} {text!r} is not a size: a number and one of {units}", argument=argument
        )
    size_bytes = int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]
    if size_bytes <= 0:
        raise InvalidArgument(message=f"{argument} {text!r} is no memory at all", argument=argument)
    return size_bytes


def size_text(size_bytes: int) -> str:
    """Return a size for people: whole bytes below 1 MiB, one decimal above."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if size_bytes >= MIB:
        return f"{size_bytes / MIB:.1f} MiB"
    return f"{size_bytes} B"
