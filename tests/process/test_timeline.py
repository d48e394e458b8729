"""`broker timeline` of a real daemon: the page in a real browser, and histories on disks that are full or gone."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process.browser import Browser, chromium
from tests.process.daemon.scrape import ask, value_of
from tests.process.test_cli import command
from vrambroker.client.timeline import history_of
from vrambroker.client.timeline.saved import read_saved

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker
    from vrambroker.client.rpc import Control

MIB = 1 << 20
DEADLINE_S = 30.0

PARTY = """
from vrambroker.client.native import Client
from vrambroker.client.discovery import find
client = Client(socket_path=str(find().handle_socket), name="NAME", device="host", version="test", timeout_s=30)
lease = client.open_lease("weights", "keep")
lease.malloc(SIZE << 20, timeout_s=30)
tell("ready")
while word := told():
    try:
        if word in ("resume", "try"):
            client.resume(("weights",), timeout_s=30 if word == "resume" else 0.1)
        else:
            client.pause(("weights",), release=False, timeout_s=30)
        tell("done")
    except Exception as error:
        tell(type(error).__name__)
"""
# A stage may have any name, whatever it would be to a browser.
NASTY = "</script><b>"


@pytest.fixture
def chromium_command() -> str:
    found = chromium()
    if found is None:
        pytest.skip("SKIPPED: there is no Chromium here, so nobody looked at the page")
    return found


@pytest.fixture
def told_page(broker: "RunningBroker", start_worker: "StartWorker", tmp_path: Path) -> Path:
    """The page of a daemon on which two take turns, and one is refused."""
    trainer = start_worker(PARTY.replace("NAME", "trainer").replace("SIZE", "40"))
    assert trainer.hear() == "ready"
    assert trainer.ask("pause") == "done"
    rollout = start_worker(PARTY.replace("NAME", "rollout").replace("SIZE", "40"))
    assert rollout.hear() == "ready"
    assert trainer.ask("try") == "OutOfDeviceMemory"
    assert rollout.ask("pause") == "done"
    assert trainer.ask("resume") == "done"
    with ExitStack() as stack:
        broker.control(stack).mark(NASTY)
    out = tmp_path / "timeline.html"
    done = command(broker, "timeline", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_the_page_can_be_zoomed_pointed_at_and_read_by_keys(chromium_command: str, told_page: Path) -> None:
    with Browser(chromium_command, told_page) as browser:
        browser.evaluate("addEventListener('securitypolicyviolation', (e) => (window.broken = e.blockedURI)) ?? 0")
        assert browser.evaluate("document.querySelectorAll('b').length") == 0
        assert "trainer" in browser.evaluate("document.getElementById('legend').textContent")
        box = browser.evaluate(
            "(({x, y, width}) => [x, y, width])(document.getElementById('canvas').getBoundingClientRect())"
        )
        left, top, width = box
        middle = left + width * 0.7
        browser.mouse("mouseMoved", middle, top + 250)
        browser.wait("!document.getElementById('about').hidden")
        said = browser.evaluate("document.getElementById('about').innerText")
        assert "weights" in said and "MiB on the device" in said and "why:" in said, said
        for _ in range(3):
            browser.mouse("mouseWheel", middle, top + 250, deltaX=0, deltaY=-120)
        browser.wait("location.hash.startsWith('#from=')")
        zoomed = browser.evaluate("location.hash")
        browser.mouse("mousePressed", left + 300, top + 200, button="left", clickCount=1)
        browser.mouse("mouseMoved", left + 500, top + 200, button="left")
        browser.mouse("mouseReleased", left + 500, top + 200, button="left", clickCount=1)
        browser.wait(f"location.hash !== {json.dumps(zoomed)}")
        for count in (1, 2):
            browser.mouse("mousePressed", middle, top + 200, button="left", clickCount=count)
            browser.mouse("mouseReleased", middle, top + 200, button="left", clickCount=count)
        browser.wait("location.hash === ''")
        browser.mouse("mousePressed", left + 300, top + 200, button="left", clickCount=1)
        browser.mouse("mouseMoved", left + 500, top + 200, button="left")
        assert browser.evaluate("document.getElementById('cursor').style.width") == "200px"
        # As a browser does that takes a drag for a scroll.
        browser.evaluate("document.getElementById('canvas').dispatchEvent(new PointerEvent('pointercancel')) || 0")
        browser.mouse("mouseMoved", left + 520, top + 210)
        assert browser.evaluate("document.getElementById('cursor').style.width") == "0px"
        browser.evaluate("document.getElementById('canvas').focus()")
        kinds: list[str] = []
        for _ in range(40):
            browser.key("n")
            browser.wait("!document.getElementById('about').hidden")
            kinds.append(browser.evaluate("document.getElementById('about').innerText"))
        assert any(kind.startswith("refused: trainer/weights") and "held by" in kind for kind in kinds), kinds
        assert any(kind.startswith("recalled: trainer/weights") and "rollout/weights" in kind for kind in kinds)
        assert any(NASTY in kind for kind in kinds)
        browser.key("ArrowUp")
        browser.wait("location.hash.startsWith('#from=')")
        assert browser.evaluate("window.broken ?? ''") == ""
        assert browser.said == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "vrb-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("SKIPPED: nothing can be mounted here, so no disk was filled")
    yield folder
    subprocess.run(["umount", str(folder)], timeout=10, check=True)


def _marked(control: "Control", words: str, count: int) -> None:
    for number in range(count):
        control.mark(f"{words} {number}")


def test_a_full_disk_costs_lines_and_nothing_else(
    small_disk: Path, start_broker: "StartBroker", tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics.sock"
    options = ("--history-dir", str(small_disk), "--history-budget", "1MiB", "--metrics", f"unix:{metrics}")
    broker = start_broker(options=options)
    with ExitStack() as stack:
        control = broker.control(stack)
        _marked(control, "before", 3)
        ballast = small_disk / "ballast"
        _until(lambda: _labels(small_disk)[-1:] == ["before 2"])
        _fill(ballast)
        _until(lambda: _mark_and_look(control, "full", broker, "nothing is written"))
        _marked(control, "still full", 50)
        assert control.status().device.capacity_bytes == 64 * MIB
        _until(lambda: value_of(ask(metrics)[2], "vrambroker_history_missing_lines_total") > 50)
        ballast.unlink()
        _until(lambda: _mark_and_look(control, "empty", broker, "is written to again"))
        control.mark("last")
        _until(lambda: _labels(small_disk)[-1:] == ["last"])
    assert broker.log().count("nothing is written") == 1
    assert "No space left on device" in broker.log()
    broker.kill()
    status, events = read_saved(small_disk)
    labels = _labels(small_disk)
    assert labels[:3] == ["before 0", "before 1", "before 2"]
    assert labels[-1] == "last"
    assert not history_of(status, events).complete
    out = tmp_path / "after.html"
    done = command(broker, "timeline", str(out), "--from", str(small_disk))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"last"' in out.read_text()
    done = command(broker, "timeline", str(out), "--from", str(small_disk), "--last", "0s")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"last"' in out.read_text() and '"before 0"' not in out.read_text()
    done = command(broker, "timeline", str(out), "--last", "long")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "InvalidArgument")


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


def _until(claim: Callable[[], bool]) -> None:
    """Look again and again; what the daemon's thread writes is no event of the daemon's."""
    between, deadline = threading.Event(), time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        between.wait(0.02)


def _mark_and_look(control: "Control", label: str, broker: "RunningBroker", words: str) -> bool:
    control.mark(label)
    return words in broker.log()


def _labels(folder: Path) -> list[str]:
    return [event.why for event in read_saved(folder)[1] if event.kind == "marked" and not event.standing]
