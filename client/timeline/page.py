"""The history as a page of its own (`.html`): zoomed and pointed at in a browser, with nothing to install or to fetch.

What draws it is `viewer/`; here it is put into one file with its data. The page's policy lets it run that script and
use that style, and nothing else, from nowhere else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from heapq import merge
from html import escape
from importlib.resources import files

from vrambroker.client.timeline.history import History, Step, Track
from vrambroker.client.timeline.picture import HUES

SCRIPTS = ("series.js", "words.js", "drawing.js", "viewer.js")
TRACKS_MAX = 48
OTHERS = "others"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def render(history: History) -> str:
    """Return the text of a `.html` file."""
    style = _part("viewer.css")
    script = "\n".join((*map(_part, SCRIPTS), "begin();\n"))
    parts = {
        "title": escape(f"Who had the memory of {history.device}"),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}",
        "style": style,
        "script": script,
        "data": _json(document(history)),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _part("viewer.html"))


def _part(name: str) -> str:
    return (files("vrambroker.client.timeline") / "viewer" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _json(told: object) -> str:
    """Return JSON that ends no element of a page, whatever names and reasons are in it."""
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")


class _Words:
    """Texts by number: the same few come again and again."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)


def document(history: History) -> dict[str, object]:
    """Return what the page's script reads (`historyOf` in series.js): times are microseconds since the beginning, those
    of steps as differences, and words are numbers into one list.
    """
    words = _Words()

    def micros(at_ns: int) -> int:
        return (at_ns - history.begin_ns) // 1000

    told: dict[str, object] = {
        "device": history.device,
        "capacity_bytes": history.capacity_bytes,
        "host_budget_bytes": history.host_budget_bytes,
        "peak_lent_bytes": history.peak_lent_bytes,
        "begin_ms": history.begin_ns / 1e6,
        "length_us": max(1, micros(history.end_ns)),
        "complete": history.complete,
        "hues": HUES,
        "tracks": [_track(track, words, history.begin_ns) for track in few_tracks(history.tracks)],
        "totals": {
            "at": _differences(micros(total.at_ns) for total in history.totals),
            "lent": [total.lent_bytes for total in history.totals],
            "held": [total.held_bytes for total in history.totals],
            "files": [total.host_file_bytes for total in history.totals],
        },
        "outside": {
            "at": _differences(micros(outside.at_ns) for outside in history.outside),
            "bytes": [outside.size_bytes for outside in history.outside],
        },
        "stages": [
            {
                "label": stage.label,
                "name": stage.name,
                "begin": micros(stage.begin_ns),
                "end": micros(stage.end_ns),
            }
            for stage in history.stages
        ],
        "waits": [
            [
                wait.ticket,
                *map(words.number, (wait.session, wait.tag, wait.phase)),
                micros(wait.begin_ns),
                micros(wait.end_ns),
                *map(words.number, (wait.outcome, wait.asked, wait.answered)),
            ]
            for wait in history.waits
        ],
        "incidents": [
            [micros(one.at_ns), *map(words.number, (one.kind, one.session, one.tag, one.why))]
            for one in history.incidents
        ],
    }
    return {**told, "words": words.all()}


def _track(track: Track, words: _Words, begin_ns: int) -> dict[str, object]:
    return {
        "session": track.session,
        "tag": track.tag,
        "at": _differences((step.at_ns - begin_ns) // 1000 for step in track.steps),
        "device": [step.device_bytes for step in track.steps],
        "host": [step.host_bytes for step in track.steps],
        "idle": [step.idle_bytes for step in track.steps],
        "moving": [step.moving_bytes for step in track.steps],
        "state": [words.number(step.state) for step in track.steps],
        "why": [words.number(step.why) for step in track.steps],
        "cause": [words.number(step.cause) for step in track.steps],
    }


def _differences(values: Iterable[int]) -> list[int]:
    differences: list[int] = []
    before = 0
    for value in values:
        differences.append(value - before)
        before = value
    return differences


def few_tracks(tracks: Sequence[Track]) -> Sequence[Track]:
    """Return the largest tracks, in their order, and the sum of all others as one more, if there are too many to be seen."""
    if len(tracks) <= TRACKS_MAX:
        return tracks
    by_size = sorted(range(len(tracks)), key=lambda number: _most_bytes(tracks[number]), reverse=True)
    shown = set(by_size[: TRACKS_MAX - 1])
    rest = [track for number, track in enumerate(tracks) if number not in shown]
    return [*(tracks[number] for number in sorted(shown)), _summed(rest)]


def _most_bytes(track: Track) -> int:
    return max((step.device_bytes + step.host_bytes for step in track.steps), default=0)


def _summed(tracks: Sequence[Track]) -> Track:
    """Return the sum of tracks: whatever one of them does, it tells of that."""
    changes = merge(*([(step, number) for step in track.steps] for number, track in enumerate(tracks)), key=_at_ns)
    now: dict[int, Step] = {}
    measures = ("device_bytes", "host_bytes", "idle_bytes", "moving_bytes")
    sums = dict.fromkeys(measures, 0)
    steps: list[Step] = []
    for step, number in changes:
        before = now.get(number)
        for measure in measures:
            sums[measure] += getattr(step, measure) - (getattr(before, measure) if before else 0)
        now[number] = step
        name = f"{tracks[number].session}/{tracks[number].tag}"
        steps.append(
            Step(
                at_ns=step.at_ns,
                state="resident" if sums["device_bytes"] else "parked",
                why=f"{name} is {step.state or 'gone'}: {step.why}",
                cause=step.cause,
                **sums,
            )
        )
    return Track(session=OTHERS, tag=f"{len(tracks)} tags", steps=tuple(steps))


def _at_ns(change: tuple[Step, int]) -> int:
    return change[0].at_ns
