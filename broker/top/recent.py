"""The event stream of the last minutes: as lines of words, and as how much was lent and parked in each second."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vrambroker.broker.top.words import Line, Teller, Tone
from vrambroker.client.status import Status, StreamEvent

SPAN_S = 300
LINES_MAX = 500
_SECOND_NS = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class _Second:
    """What was lent of the device, and set aside in the arena, in one second: at most, and at its end."""

    second: int
    peak: tuple[int, int]
    last: tuple[int, int]


class Recent:
    """What is still worth showing of the past. Events are added in the order of the stream."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=LINES_MAX)
        self._seconds: deque[_Second] = deque()
        self._teller = Teller()
        self._latest: StreamEvent | None = None
        self._begun = False

    @property
    def lines(self) -> Sequence[Line]:
        """What happened, the oldest first."""
        return self._lines

    def begin(self) -> None:
        """Expect a stream from its beginning; what was told before of the same daemon will be left out."""
        self._begun = True

    def add(self, event: StreamEvent) -> None:
        """Take in one line of the stream."""
        before = self._latest
        if before is not None and event.sequence <= before.sequence and event.time_ns <= before.time_ns:
            return
        if before is not None and event.sequence <= before.sequence:
            # Another daemon, which counts its leases and tickets anew.
            self._teller = Teller()
        missed = 0 if before is None or self._begun else event.sequence - before.sequence - 1
        if missed > 0:
            self.note(event.time_ns, f"{missed} lines came faster than they could be read here", Tone.PLAIN)
        self._latest, self._begun = event, False
        if event.kind == "device_changed":
            self._measure(event.time_ns, event.lent_bytes, event.host_bytes)
        line = self._teller.line_of(event)
        if line is not None:
            self._append(line)

    def measure(self, time_ns: int, status: Status) -> None:
        """Take in what is lent and parked at this instant, since nothing is told of what doesn't change."""
        self._measure(time_ns, status.device.lent_bytes, status.host.used_bytes)

    def note(self, time_ns: int, words: str, tone: Tone) -> None:
        """Add a line that the daemon can't tell."""
        self._append(Line(time_ns=time_ns, about="", words=words, tone=tone))

    def lent_bytes(self, count: int, now_ns: int) -> list[int | None]:
        """Return the most that was lent in each of `count` equal parts of the last minutes; None where nobody knows."""
        return self._binned(0, count, now_ns)

    def host_bytes(self, count: int, now_ns: int) -> list[int | None]:
        """Return the same of the arena."""
        return self._binned(1, count, now_ns)

    def _append(self, line: Line) -> None:
        """Add a line, or count it if it is the last one's like."""
        if self._lines and _like(self._lines[-1]) == _like(line):
            line = replace(line, times=self._lines.pop().times + 1)
        self._lines.append(line)

    def _measure(self, time_ns: int, lent_bytes: int, host_bytes: int) -> None:
        second, now = time_ns // _SECOND_NS, (lent_bytes, host_bytes)
        latest = self._seconds[-1] if self._seconds else None
        if latest is None or second > latest.second:
            self._seconds.append(_Second(second=second, peak=now, last=now))
        else:
            latest.peak = max(latest.peak[0], now[0]), max(latest.peak[1], now[1])
            latest.last = now
        while len(self._seconds) > 1 and self._seconds[1].second < second - SPAN_S:
            self._seconds.popleft()

    def _binned(self, which: int, count: int, now_ns: int) -> list[int | None]:
        begin = now_ns / _SECOND_NS - SPAN_S
        seconds = deque(self._seconds)
        carried: int | None = None
        while seconds and seconds[0].second < begin:
            carried = seconds.popleft().last[which]
        values: list[int | None] = []
        for number in range(1, count + 1):
            peak, end = carried, begin + SPAN_S * number / count
            while seconds and (seconds[0].second < end or number == count):
                found = seconds.popleft()
                peak, carried = max(peak or 0, found.peak[which]), found.last[which]
            values.append(peak)
        return values


def _like(line: Line) -> tuple[str, str]:
    return line.about, line.words
