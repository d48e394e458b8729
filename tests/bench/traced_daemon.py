"""The daemon, which writes down what its core heard and ordered, and when: `python traced_daemon.py TRACE serve …`.

A line of the trace, a JSON array, is one event: when the core began with it, when it had decided, when all that it
ordered was done or sent (seconds on the clock of `time.perf_counter`, which all processes share), the event, and the
effects by kind, each with its number of slots.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vrambroker.broker import cli, runtime
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.effects import Effect
from vrambroker.broker.core.events import Event
from vrambroker.broker.core.ids import Instant

Line = tuple[float, float, float, str, dict[str, int]]


def _size(what: object) -> int:
    slots: Any = getattr(what, "slots", None)
    return 1 if slots is None else len(slots)


def trace(lines: list[Line]) -> None:
    """Have every event of this process's core written down."""
    handle, perform = Broker.handle, runtime.perform

    def handled(broker: Broker, event: Event, now: Instant) -> list[Effect]:
        began = time.perf_counter()
        effects = handle(broker, event, now)
        kinds: Counter[str] = Counter()
        for effect in effects:
            kinds[type(effect).__name__] += _size(effect)
        decided = time.perf_counter()
        lines.append((began, decided, decided, f"{type(event).__name__} {_size(event)}", dict(kinds)))
        return effects

    def performed(effect: Effect, world: runtime.World) -> None:
        perform(effect, world)
        lines[-1] = (*lines[-1][:2], time.perf_counter(), *lines[-1][3:])

    setattr(Broker, "handle", handled)  # noqa: B010  a method is put in the place of another
    setattr(runtime, "perform", performed)  # noqa: B010


def main() -> None:
    """Be `broker`, traced; the trace is written at the end."""
    path, lines = Path(sys.argv.pop(1)), list[Line]()
    trace(lines)
    try:
        cli.app()
    finally:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
