"""What the daemon writes down when it finds a bug in itself: the event, what was raised, and all that the core knew."""

import dataclasses
import json
import os
import time
import traceback
from enum import Enum
from pathlib import Path
from typing import cast

from vrambroker.broker.core.events import Event
from vrambroker.broker.core.snapshot import Snapshot


def plain(value: object) -> object:
    """Return a core value as JSON has it; bytes (tokens) as hex."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(one) for one in cast(tuple[object, ...], value)]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def write_dump(folder: Path, *, event: Event | None, error: BaseException, snapshot: Snapshot | None) -> Path:
    """Write `broken-<time>.json`, for the daemon's own user only, since it holds tokens; returns its path."""
    path = folder / f"broken-{time.time_ns()}.json"
    what = {
        "pid": os.getpid(),
        "error": "".join(traceback.format_exception(error)),
        "event": plain(event),
        "snapshot": plain(snapshot),
    }
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(what, file, indent=1)
    return path
