"""The history as a Chrome trace, which Perfetto opens: counters of bytes, slices of stages and of lease states.

Format: "Trace Event Format" of the Chromium project; `C` is a counter, `X` a slice, `M` names a process or thread,
`ts` and `dur` are microseconds. The device is process 1; each session is a process of its own, each tag a thread of it.
"""

import json
from collections.abc import Iterator, Sequence

from vrambroker.client.timeline.history import History, Step, Total, Track

DEVICE_PID = 1
STAGES_TID = 1

TraceEvent = dict[str, object]


def render(history: History) -> str:
    """Return the trace as the text of a `.json` file."""
    document: dict[str, object] = {
        "displayTimeUnit": "ms",
        "otherData": {"device": history.device, "capacity_bytes": history.capacity_bytes},
        "traceEvents": list(_events(history)),
    }
    return json.dumps(document, separators=(",", ":")) + "\n"


def _events(history: History) -> Iterator[TraceEvent]:
    yield _named("process_name", f"device {history.device}", DEVICE_PID, 0)
    yield _named("thread_name", "stages", DEVICE_PID, STAGES_TID)
    for stage in history.stages:
        yield _slice(history, stage.label, "stage", DEVICE_PID, STAGES_TID, (stage.begin_ns, stage.end_ns))
    for total in history.totals:
        yield from _device_counters(history, total)
    sessions = list(dict.fromkeys(track.session for track in history.tracks))
    for pid, session in enumerate(sessions, start=DEVICE_PID + 1):
        yield _named("process_name", session, pid, 0)
        tracks = [track for track in history.tracks if track.session == session]
        for tid, track in enumerate(tracks, start=1):
            yield from _track_events(history, track, pid, tid)


def _device_counters(history: History, total: Total) -> Iterator[TraceEvent]:
    device = {"lent": total.lent_bytes, "held": total.held_bytes, "free": total.free_bytes}
    yield _counter(history, "device bytes", DEVICE_PID, total.at_ns, device)
    yield _counter(history, "host bytes", DEVICE_PID, total.at_ns, {"arena": total.host_bytes})


def _track_events(history: History, track: Track, pid: int, tid: int) -> Iterator[TraceEvent]:
    yield _named("thread_name", track.tag, pid, tid)
    for step in track.steps:
        yield _counter(history, f"{track.tag} device bytes", pid, step.at_ns, {"bytes": step.device_bytes})
        yield _counter(history, f"{track.tag} host bytes", pid, step.at_ns, {"bytes": step.host_bytes})
    for state, begin_ns, end_ns in spans(track.steps, history.end_ns):
        yield _slice(history, state, "lease", pid, tid, (begin_ns, end_ns))


def spans(steps: Sequence[Step], end_ns: int) -> Iterator[tuple[str, int, int]]:
    """Yield the times that a track spent in each state, as (state, begin, end); neighbours differ."""
    begin_ns, state = 0, ""
    for step in steps:
        if step.state == state:
            continue
        if state:
            yield state, begin_ns, step.at_ns
        begin_ns, state = step.at_ns, step.state
    if state and end_ns > begin_ns:
        yield state, begin_ns, end_ns


def _micros(history: History, at_ns: int) -> float:
    return (at_ns - history.begin_ns) / 1000


def _named(what: str, name: str, pid: int, tid: int) -> TraceEvent:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _counter(history: History, name: str, pid: int, at_ns: int, values: dict[str, int]) -> TraceEvent:
    return {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _micros(history, at_ns), "args": values}


def _slice(history: History, name: str, kind: str, pid: int, tid: int, span_ns: tuple[int, int]) -> TraceEvent:
    begin_ns, end_ns = span_ns
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "pid": pid,
        "tid": tid,
        "ts": _micros(history, begin_ns),
        "dur": (end_ns - begin_ns) / 1000,
    }
