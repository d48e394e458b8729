"""`broker top` on a real daemon: what is on the screen, what its keys do, and how it does without a daemon or a terminal."""

import asyncio
import fcntl
import html
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from textual.pilot import Pilot

from tests.process.test_cli import HOLDER, WAITING, command
from vrambroker.broker.top.app import Top
from vrambroker.broker.top.feed import Feed

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker, WaitFor
    from vrambroker.client.rpc import Control

DEADLINE_S = 30.0
SIZES = [(80, 24), (40, 15), (200, 50)]
_LINE = re.compile(r'<text [^>]*\by="([\d.]+)"[^>]*>(.*?)</text>')


class SeenTop(Top):
    """One that a test can wait for: until something is on its screen."""

    def __init__(self, following: Feed) -> None:
        super().__init__(following)
        self._drawn = asyncio.Event()

    def draw(self) -> None:
        super().draw()
        self._drawn.set()

    def text(self) -> str:
        """Return what stands on the screen, line by line."""
        lines: dict[str, str] = {}
        for y, words in _LINE.findall(self.export_screenshot()):
            lines[y] = lines.get(y, "") + html.unescape(words).replace("\xa0", " ")
        return "\n".join(lines.values())

    async def next_drawing(self) -> None:
        """Wait until it is drawn once more."""
        self._drawn.clear()
        await asyncio.wait_for(self._drawn.wait(), DEADLINE_S)

    async def until(self, pilot: Pilot[None], *words: str) -> str:
        """Wait until all of these are to be read; it draws at least once a second."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._drawn.clear()
                await pilot.pause()
                text = self.text()
                if all(word in text for word in words):
                    return text
                try:
                    await self._drawn.wait()
                except asyncio.CancelledError:
                    raise AssertionError(f"not all of {words} in:\n{text}") from None


Story = Callable[[SeenTop, Pilot[None]], Awaitable[None]]


def sockets() -> int:
    """Return how many this process has open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += str(Path("/proc/self/fd", fd).readlink()).startswith("socket:")
    return found


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test here has connections. gRPC closes a channel's on a thread of its own, so the last ones may still be there."""
    before = sockets()
    yield
    assert sockets() - before < 8


def watch(broker: "RunningBroker", size: tuple[int, int], story: Story) -> None:
    """Run the whole of it on a screen of this size; nothing may be left behind."""

    async def run() -> None:
        with ExitStack() as stack:
            app = SeenTop(Feed(broker.control(stack)))
            async with app.run_test(size=size) as pilot:
                await story(app, pilot)

    threads = set(threading.enumerate())
    asyncio.run(run())
    assert not {one.name for one in set(threading.enumerate()) - threads if "_watched" in one.name}


@pytest.fixture(scope="module")
def attended(shared_broker: "RunningBroker", start_shared_worker: "StartWorker") -> "RunningBroker":
    """A daemon with a tag that can be paused from outside, `aaa/kv_cache`, and one that can't, `rollout/kv_cache`."""
    assert start_shared_worker(HOLDER.replace('"rollout"', '"aaa"')).ask("scoped") == "ready"
    assert start_shared_worker(HOLDER).ask("unscoped") == "ready"
    return shared_broker


def state_of(control: "Control", session: str) -> str:
    found = control.status().session(session)
    assert found is not None
    return found.tags[0].state


@contextmanager
def controlling(broker: "RunningBroker") -> Iterator["Control"]:
    with ExitStack() as stack:
        yield broker.control(stack)


@pytest.mark.parametrize("size", SIZES)
def test_a_screen_of_any_size_says_who_holds_what(attended: "RunningBroker", size: tuple[int, int]) -> None:
    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        text = await app.until(pilot, "aaa/kv_cache", "rollout/kv_cache", "resident", "4.0 MiB", "device", "q quit")
        lines = text.splitlines()
        assert len(lines) <= size[1]
        assert all(len(line.rstrip()) <= size[0] for line in lines)
        assert "its growth is over" in text or size[0] < 80
        assert ("5 min" in text) == (size[1] >= 20)
        assert ("share" in text) == (size[0] > 150)
        await pilot.press("question_mark")
        await app.until(pilot, "pause the row's tag" if size[0] > 60 else "pause the row's")

    watch(attended, size, story)


@pytest.mark.parametrize("size", SIZES)
def test_a_pause_and_a_resume_come_after_a_question(attended: "RunningBroker", size: tuple[int, int]) -> None:
    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "aaa/kv_cache")
        for no in ("n", "escape", "enter", "q") if size == SIZES[0] else ("n",):
            await pilot.press("p")
            await app.until(pilot, "Pause aaa/kv_cache?", "It is resident, 4.0 MiB")
            assert state_of(control, "aaa") == "resident"
            await pilot.press(no)
        await pilot.press("r")
        await app.next_drawing()
        await pilot.press("n", "p", "y")
        await app.until(pilot, "aaa/kv_cache is paused", "idle")
        assert state_of(control, "aaa") == "idle"
        await pilot.press("p", "n", "r", "y")
        await app.until(pilot, "aaa/kv_cache is resumed")
        assert state_of(control, "aaa") == "resident"

    with controlling(attended) as control:
        before = len(list(control.watch(history=True, until_now=True)))
        watch(attended, size, story)
        told = list(control.watch(history=True, until_now=True))[before:]
        assert [one.state for one in told if one.kind == "lease_changed"] == ["idle", "resident"]


def test_a_refused_pause_says_why_and_the_reason_can_be_taken_away(attended: "RunningBroker") -> None:
    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "rollout/kv_cache")
        await pilot.press("down", "p")
        await app.until(pilot, "Pause rollout/kv_cache?")
        await pilot.press("y")
        await app.until(pilot, "NotQuiescent: rollout/kv_cache has no scopes or callbacks", "when it is quiet")
        await pilot.press("escape")
        await pilot.pause()
        assert "NotQuiescent" not in app.text()

    watch(attended, (80, 24), story)


def test_markup_and_what_acts_on_a_terminal_is_shown_as_it_is(attended: "RunningBroker") -> None:
    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "[red]step[/red] [@click=app.quit]3[/]")

    with controlling(attended) as control:
        control.mark("[red]step[/red] [@click=app.quit]3[/]")
        watch(attended, (80, 24), story)


def test_who_waits_is_shown_until_nobody_does(
    broker: "RunningBroker", start_worker: "StartWorker", control: "Control", wait_for: "WaitFor"
) -> None:
    trainer = start_worker(WAITING)
    assert trainer.hear() == "paused"
    holder = start_worker(HOLDER.replace("4 << 20", "32 << 20"))
    assert holder.ask("scoped") == "ready"
    assert trainer.ask() == "asking"
    wait_for(control, lambda: bool(control.status().queue))

    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "trainer/params needs 48.0 MiB", "waits for rollout/kv_cache (resident, 32.0 MiB)")
        await pilot.press("end", "p", "y")
        await app.until(pilot, "nobody", "all has arrived", "rollout/kv_cache is paused")

    watch(broker, (80, 24), story)
    assert trainer.hear() == "resumed"


def test_a_daemon_that_goes_away_and_comes_back(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    holder = start_worker(HOLDER)
    assert holder.ask("scoped") == "ready"

    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "rollout/kv_cache")
        await asyncio.to_thread(broker.kill)
        await app.until(pilot, "no answer since", "rollout/kv_cache", "the daemon does not answer")
        await pilot.press("p", "y")
        await asyncio.to_thread(broker.start_again)
        text = await app.until(pilot, "answers again", "nobody is attached", f"pid {broker.process.pid}")
        assert "no answer since" not in text
        with controlling(broker) as control:
            control.mark("told by another daemon")
            await app.until(pilot, "told by another daemon")

    watch(broker, (80, 24), story)


def test_it_ends_at_once_while_no_daemon_answers(broker: "RunningBroker") -> None:
    async def story(app: SeenTop, pilot: Pilot[None]) -> None:
        await app.until(pilot, "nobody is attached")
        broker.kill()
        await app.until(pilot, "no answer since")
        began.append(time.monotonic())
        await pilot.press("q")

    began: list[float] = []
    watch(broker, (80, 24), story)
    assert time.monotonic() - began[0] < 4.0, "a call to a lost daemon waits for five seconds"


class Terminal:
    """`broker top` on a terminal of its own."""

    def __init__(self, broker: "RunningBroker", *, source: str = "pass", **environment: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        start = f"import sys; sys.argv[1:] = ['top']; {source}; from vrambroker.broker.cli import app; app()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start],
            env={**broker.environment, "TERM": "xterm-256color", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read_until(self, word: str) -> str:
        """Return what is written, up to the word or the end."""
        seen, deadline = "", time.monotonic() + DEADLINE_S
        while word not in seen:
            readable, _, _ = select.select([self._ours], [], [], deadline - time.monotonic())
            assert readable, seen
            try:
                seen += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError:
                break
        return seen

    def terminate(self) -> None:
        self._process.terminate()

    def end(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code, and what was written last."""
        rest = self.read_until("\0")
        return self._process.wait(DEADLINE_S), rest

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(broker: "RunningBroker", **environment: str) -> Terminal:
        opened.append(Terminal(broker, **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_a_terminal_is_left_as_it_was(
    attended: "RunningBroker", on_terminal: Callable[..., Terminal], key: str
) -> None:
    terminal = on_terminal(attended, NO_COLOR="1")
    seen = terminal.read_until("rollout/kv_cache")
    assert "\x1b[?1049h" in seen
    assert not re.search(r"\x1b\[[\d;]*[34]8;[25];", seen), "colours, under NO_COLOR"
    terminal.press(key)
    code, rest = terminal.end()
    assert code == 0
    assert "\x1b[?1049l" in rest
    assert "Traceback" not in rest


def test_a_terminal_is_left_as_it_was_by_sigterm(
    attended: "RunningBroker", on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal(attended)
    terminal.read_until("rollout/kv_cache")
    terminal.terminate()
    code, rest = terminal.end()
    assert code == 128 + signal.SIGTERM
    assert "\x1b[?1049l" in rest
    assert "\x1b[?25h" in rest


def test_without_a_terminal_it_names_the_command_that_needs_none(attended: "RunningBroker") -> None:
    done = command(attended, "top")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("InvalidArgument: top needs a terminal")
    assert "broker status" in done.stderr


@pytest.mark.parametrize(
    ("source", "environment", "error"),
    [
        ("sys.modules['textual'] = None", {}, "InvalidArgument: top is drawn by the package textual: pip install"),
        ("pass", {"TERM": "dumb"}, "InvalidArgument: top needs a terminal that can be drawn on"),
        ("pass", {"VRAMBROKER_RUN_DIR": "/nonexistent"}, "BrokerUnavailable: no broker for any device"),
    ],
)
def test_what_it_lacks_is_one_line(
    attended: "RunningBroker",
    on_terminal: Callable[..., Terminal],
    source: str,
    environment: dict[str, str],
    error: str,
) -> None:
    code, seen = on_terminal(attended, source=source, **environment).end()
    assert code == 1
    assert seen.startswith(error)
    assert seen.count("\n") == 1
