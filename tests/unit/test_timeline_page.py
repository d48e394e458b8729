"""The page: what is in it does no harm, and what its script works out is what Python does."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_timeline import MIB, Book, two_sides
from vrambroker.client.timeline import history_of, page
from vrambroker.client.timeline.history import History, Step
from vrambroker.client.timeline.stack import Span, even, mean, stack

NASTY = '</script><b onclick="x()">&amp;<!--\u2028{{script}}'
VIEWER = Path(page.__file__).parent / "viewer"
DEADLINE_S = 30.0


class _Reader(HTMLParser):
    """What a browser would see: elements, the text of each kind, and the policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.convert_charrefs = False
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.texts.setdefault(tag, []).append("")
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.names:
            self.texts[self.names[-1]][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.names.append("")
        self.texts.setdefault("", []).append("")


def _nasty() -> History:
    book = two_sides(1)
    book.lease(1.5, f"{NASTY.replace('/', '|')}/{NASTY}", 3, 1, 1, "idle")
    book.mark(1.6, NASTY)
    book.add(1.7, "recalled", session=NASTY, tag=NASTY, why=NASTY)
    return history_of(book.status(), sorted(book.events, key=lambda event: event.time_ns))


def test_no_name_ends_the_data_or_becomes_markup() -> None:
    text = page.render(_nasty())
    seen = _Reader(text)
    assert seen.names.count("script") == 2
    assert "b" not in seen.names
    told = json.loads(seen.texts["script"][0])
    assert NASTY in {track["tag"] for track in told["tracks"]}
    assert NASTY in {stage["label"] for stage in told["stages"]}
    assert NASTY in told["words"]


def test_the_page_fetches_nothing_and_runs_nothing_but_its_own_script() -> None:
    text = page.render(_nasty())
    seen = _Reader(text)
    script, style = seen.texts["script"][1], seen.texts["style"][0]
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    assert seen.policy == f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'"
    assert not re.search(r"https?:|//[a-z]+\.|\bsrc=|href=|@import|url\(|innerHTML|insertAdjacentHTML|eval\(", text)


def test_many_tags_are_a_few_and_the_sum_of_the_others() -> None:
    book = Book(10_000)
    for number in range(200):
        book.lease(number, f"s{number % 3}/t{number}", number + 1, number, 1, "idle" if number % 2 else "resident")
    for number in range(0, 200, 7):
        book.lease(300 + number, f"s{number % 3}/t{number}", number + 1, 0, 0, "")
    history = book.history()
    shown = page.few_tracks(history.tracks)
    assert len(shown) == page.TRACKS_MAX
    for measure in ("device_bytes", "host_bytes", "idle_bytes"):
        for at_ns in range(history.begin_ns, history.end_ns, 7_000_000_000):
            sums = [
                sum(getattr(held, measure) for track in tracks if (held := _step_at(track.steps, at_ns)) is not None)
                for tracks in (history.tracks, shown)
            ]
            assert sums[0] == sums[1]


def _step_at(steps: Sequence[Step], at_ns: int) -> Step | None:
    return max((step for step in steps if step.at_ns <= at_ns), key=lambda step: step.at_ns, default=None)


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("SKIPPED: there is no node here, so the page's script was not run")
    return found


def _run(node: str, history: History, act: str) -> Any:
    """Return what an expression of the page's own functions gives, `told` being the page's data."""
    script = "".join((VIEWER / name).read_text() for name in ("series.js", "words.js"))
    script += f"const told = historyOf(JSON.parse(require('fs').readFileSync(0)));console.log(JSON.stringify({act}));"
    done = subprocess.run(
        [node, "-e", script],
        input=json.dumps(page.document(history)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", page.SCRIPTS)
def test_the_script_can_be_read_by_a_browser(node: str, name: str) -> None:
    subprocess.run([node, "--check", VIEWER / name], timeout=DEADLINE_S, check=True)


def test_what_is_drawn_is_what_python_stacks(node: str) -> None:
    history = two_sides(40).history()
    length_ns = history.end_ns - history.begin_ns
    act = f"[[0, {length_ns // 1000}, 50], [2e6, 6e6, 500]].map(([b, e, n]) => stacked(told, 'device', b, e, n))"
    coarse, exact = _run(node, history, act)
    assert (coarse["exact"], exact["exact"]) == (False, True)
    whole = Span(begin_ns=history.begin_ns, end_ns=history.end_ns)
    means = mean(stack(history, whole, lambda step: step.device_bytes), even(whole, 50))
    for layer, wanted in zip(coarse["layers"], means.layers, strict=True):
        assert list(layer["values"].values()) == pytest.approx(wanted, rel=1e-4, abs=MIB / 1000)
    part = Span(begin_ns=history.begin_ns + 2_000_000_000, end_ns=history.begin_ns + 6_000_000_000)
    steps = stack(history, part, lambda step: step.device_bytes)
    wanted_us = [(edge_ns - history.begin_ns) // 1000 for edge_ns in steps.edges_ns]
    assert list(exact["edges"].values()) == wanted_us
    for layer, wanted in zip(exact["layers"], steps.layers, strict=True):
        assert list(layer["values"].values()) == list(wanted)


def test_a_hover_says_who_holds_what_and_why(node: str) -> None:
    book = Book(64)
    book.lease(0, "trainer/params", 1, 8, 8, "idle")
    book.add(2, "ticket_queued", session="rollout", tag="kv", ticket=7, why="rollout/kv asks for room")
    book.add(2, "recalled", session="trainer", tag="params", lease=1, why="idle, and rollout/kv needs the room")
    book.lease(2, "trainer/params", 1, 8, 8, "leaving")
    book.lease(4, "trainer/params", 1, 0, 8, "parked")
    book.add(6, "ticket_done", session="rollout", tag="kv", ticket=7, why="all has arrived")
    book.mark(8, "end")
    act = "[1e6, 3e6, 5e6, 7e6, -1].map((at) => describeTrack(told, told.tracks[0], at))"
    idle, leaving, parked, after, before = _run(node, book.history(), act)
    assert idle == [
        "trainer/params",
        "idle, from 0.000 s for 2.00 s",
        "8 MiB on the device, 8 MiB set aside on the host",
        "then leaving: idle, and rollout/kv needs the room",
    ]
    assert leaving[1] == "leaving, from 2.000 s for 2.00 s"
    assert "for whom: idle, and rollout/kv needs the room" in leaving
    assert leaving[-1] == parked[-1] == "waiting: ticket 7, rollout/kv, done after 4.00 s"
    assert not [line for line in after if "waiting" in line]
    assert before == ["trainer/params", "holds nothing then"]
