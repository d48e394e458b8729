"""A real Chromium without a window, driven through its pipe (the DevTools protocol), for tests of pages."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 30.0
WIDTH, HEIGHT = 1400, 860


def chromium() -> str | None:
    """Return where there is one."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """One page. Ended, with all its processes, and its folder removed, at the end of the block."""

    def __init__(self, command: str, page: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vrb-browser-", ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        flags = f"--headless --no-sandbox --disable-gpu --no-first-run --window-size={WIDTH},{HEIGHT}"
        pipe = f"--remote-debugging-pipe 3<&{to_browser} 4>&{from_browser}"
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" {flags} --user-data-dir="$1" {pipe}', command, self._folder.name],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._read = b""
        self._number = 0
        self._session: str | None = None
        self.said: list[str] = []
        try:
            self._open(page)
        except BaseException:
            self.end()
            raise

    def _open(self, page: Path) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete' && document.getElementById('facts').textContent !== ''")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the browser with all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def ask(self, method: str, **given: object) -> dict[str, Any]:
        """Have something done; `said` gathers what the page's console and the browser complain of."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": given}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.said.append(json.dumps(told["params"]))
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                result: dict[str, Any] = told["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """Return what an expression gives in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, claim: str) -> None:
        """Wait until an expression is true in the page, looking at every frame of it."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self.evaluate(f"new Promise((tell) => setTimeout(() => tell(Boolean({claim})), 16))"):
                return
        raise AssertionError(f"it did not come true in the page: {claim}")

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, out: Path) -> None:
        out.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._read:
            readable, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "the browser says nothing"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._read += chunk
        line, _, self._read = self._read.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        return told
