"""The event stream in words: of its lines those that somebody at a terminal wants, one for what is one to them.

A lease that moves tells of each frame, and a demand of each of its stages. Said here is what a lease has become, and of a
demand how it ended; who waits meanwhile is shown beside it, out of the status.
"""

import re
from dataclasses import dataclass
from enum import Enum

from vrambroker.broker.core.limits import MIB
from vrambroker.broker.reporting import one_line
from vrambroker.broker.sizes import size_text
from vrambroker.broker.status_view import age_text
from vrambroker.client.status import StreamEvent

# Shorter waits are how things go, and not worth a line.
WAIT_TOLD_S = 0.1
ASKED_MAX = 4096
_SIZE = re.compile(r"\b(\d{7,18})\b(?: bytes)?")


class Tone(Enum):
    """What a line means to whoever looks at it."""

    PLAIN = "plain"
    GOOD = "good"
    WAITING = "waiting"
    BAD = "bad"


_TONES = {
    "recalled": Tone.WAITING,
    "ticket_refused": Tone.BAD,
    "spill_failed": Tone.BAD,
    "copy_failed": Tone.BAD,
    "phase_entering": Tone.WAITING,
    "phase_entered": Tone.GOOD,
    "phase_refused": Tone.BAD,
    "session_disconnected": Tone.WAITING,
    "session_ended": Tone.WAITING,
    "draining": Tone.BAD,
}
# What they count is no size.
_OF_PROCESSES = "session_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Something that happened, `times` in a row. `about` is whom it happened to; empty where that is everybody."""

    time_ns: int
    about: str
    words: str
    tone: Tone
    times: int = 1


class Teller:
    """Turns events, in their order, into lines. It knows what became of each lease, and since when a demand is there."""

    def __init__(self) -> None:
        self._settled: dict[int, str] = {}
        self._states: dict[int, str] = {}
        self._asked_ns: dict[int, int] = {}

    def line_of(self, event: StreamEvent) -> Line | None:
        """Return the event's line, if it is worth one."""
        match event.kind:
            case "device_changed":
                return None
            case "lease_changed":
                return self._lease_line(event)
            case "ticket_queued":
                self._ask(event)
                return None
            case "ticket_admitted":
                waited_s = (event.time_ns - self._asked_ns.get(event.ticket, event.time_ns)) / 1e9
                return _line(event, f"its turn, after {age_text(waited_s)}") if waited_s >= WAIT_TOLD_S else None
            case "ticket_done":
                took_s = (event.time_ns - self._asked_ns.pop(event.ticket, event.time_ns)) / 1e9
                words = f"{_words_of(event)}, {age_text(took_s)} after it was asked for"
                return _line(event, words, Tone.GOOD) if took_s >= WAIT_TOLD_S or not event.tag else None
            case "recalled":
                return _line(event, f"recalled: {_words_of(event)}")
            case _:
                self._asked_ns.pop(event.ticket, None)
                return _line(event, _words_of(event))

    def _ask(self, event: StreamEvent) -> None:
        self._asked_ns[event.ticket] = event.time_ns
        if len(self._asked_ns) > ASKED_MAX:
            del self._asked_ns[next(iter(self._asked_ns))]

    def _lease_line(self, event: StreamEvent) -> Line | None:
        """Return what the lease has become, unless it is on its way, or back to what it was."""
        before = self._states.pop(event.lease, "")
        if not event.state:
            return _line(event, "given back") if self._settled.pop(event.lease, None) else None
        self._states[event.lease] = event.state
        comes = event.state == "partial" and before == "arriving"
        if comes or event.state in {"arriving", "leaving"} or self._settled.get(event.lease) == event.state:
            return None
        self._settled[event.lease] = event.state
        return _line(event, f"{event.state}: {event.why}")


def with_sizes(text: str) -> str:
    """Return a message with its bytes as people read them."""
    return _SIZE.sub(lambda found: size_text(int(found[1])) if int(found[1]) >= MIB else found[0], text)


def _line(event: StreamEvent, words: str, tone: Tone = Tone.PLAIN) -> Line:
    return Line(
        time_ns=event.time_ns, about=one_line(_about(event)), words=one_line(words), tone=_TONES.get(event.kind, tone)
    )


def _about(event: StreamEvent) -> str:
    return f"{event.session}/{event.tag}" if event.tag else event.session or event.phase


def _words_of(event: StreamEvent) -> str:
    """Return the daemon's own words, without the name that they may begin with."""
    words = event.why
    for name in (_about(event), event.session, event.phase):
        if name and words.startswith((f"{name}: ", f"{name} ")):
            words = words[len(name) :].removeprefix(":").lstrip()
            break
    return words if event.kind.startswith(_OF_PROCESSES) else with_sizes(words)
