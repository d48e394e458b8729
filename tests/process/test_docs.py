"""Every example of README.md and docs/ does what its page says, from the first to the last as a reader would type them.

A page's examples share a folder, an environment, a daemon and a Python process. `broker serve … &` starts the daemon on
a device and in a run directory of the test's own, which stand for the page's in all that follows; a page that starts
none finds one running. A daemon that the page has ended is started again by the same words; another device has one of
its own. A block that can't be run here says why in a comment before it; what it types at least is there.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.conftest import RunningBroker, StartBroker, Worker
from tests.process.page import Block, blocks_of, is_shown, steps_of
from tests.tidy.reference_tables import broker_commands, options_of
from vrambroker.broker.plan_file import read_plan_file
from vrambroker.broker.settings import Sources
from vrambroker.client.discovery import RUN_DIR_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEADLINE_S = 60.0
RUN_DIR_OF_THE_DOCS = "/tmp/vrb"
DEVICE_OF_THE_DOCS = "host:0"
# Wide enough for the test's own device, whose name is longer than the docs'.
COLUMNS = "160"
SERVED_TWICE = """
```sh
broker serve --device host --capacity 64MiB --run-dir /tmp/vrb &
```
```sh
broker serve --device host --capacity 32MiB --run-dir /tmp/vrb &
```
"""
PICTURES = ("", "text")
SERVES = re.compile(r"^broker serve .*&[ ]*(#.*)?$", re.MULTILINE)

READER = """
import ast, contextlib, json, re, traceback
space = {"__name__": "__main__"}

def follow(source, where):
    tree = ast.parse(source, where)
    compared = 0
    for statement in tree.body:
        shown = re.search("# → (.*)", source.splitlines()[statement.end_lineno - 1])
        if not (shown and isinstance(statement, ast.Expr)):
            exec(compile(ast.Module([statement], []), where, "exec"), space)
            continue
        value = eval(compile(ast.Expression(statement.value), where, "eval"), space)
        pattern = ".*".join(re.escape(part) for part in shown.group(1).split("…"))
        assert re.fullmatch(pattern, repr(value)), f"the page shows {shown.group(1)}, and it is {value!r}"
        compared += 1
    arrows = len(re.findall("→|#.*->", source))
    assert compared == arrows, f"{arrows} arrows, and {compared} of them are `# → VALUE` after an expression"

for line in sys.stdin:
    block = json.loads(line)
    failure = ""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            follow(block["source"], block["where"])
    except BaseException:
        failure = traceback.format_exc()
    tell(json.dumps(failure))
"""


class Reader:
    """Who follows a page: types its commands, runs its Python, writes its files."""

    def __init__(self, page: Path, *, folder: Path, start_broker: StartBroker, closing: ExitStack) -> None:
        self._serves_itself = any(SERVES.search(block.text) for block in blocks_of(page) if not block.not_run)
        self._folder = folder
        self._start_broker = start_broker
        self._closing = closing
        self._brokers: dict[str, RunningBroker] = {}
        self._options: dict[str, list[str]] = {}
        self._processes: dict[str, Worker] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        unsaid = {name: value for name, value in os.environ.items() if not name.startswith("VRAMBROKER_")}
        self._environment = {**unsaid, "PATH": path, "COLUMNS": COLUMNS, "PWD": str(folder)}

    def follow(self, block: Block) -> None:
        """Do what a block says; raises AssertionError if that is not what comes of it."""
        known: dict[str, Callable[[Block], None]] = {
            "console": self._type,
            "sh": self._run_script,
            "python": self._run_python,
            "toml": self._write_toml,
            "ini": check_environment_file,
            "json": lambda block: json.loads(block.text),
        }
        assert block.language in known, f"{block.where}: say of {block.language!r} why it is not run"
        known[block.language](block)

    def _type(self, block: Block) -> None:
        self._require_broker()
        for step in steps_of(block.text):
            done = self._bash(step.command)
            printed = self._as_in_the_docs(done.stdout + done.stderr)
            assert done.returncode == int(step.is_refused), f"{block.where}: {step.command}: {printed}"
            assert is_shown(step.shown, printed), f"{block.where}: {step.command} prints:\n{printed}"

    def _run_script(self, block: Block) -> None:
        """Run a script; what it exports stays for the rest of the page."""
        lines: list[str] = []
        for line in block.text.splitlines():
            if not SERVES.match(line):
                lines.append(line)
                continue
            self._run_lines(block, lines)
            self._serve(block, shlex.split(line.rpartition("&")[0]))
            lines.clear()
        self._run_lines(block, lines)

    def _run_lines(self, block: Block, lines: list[str]) -> None:
        self._require_broker()
        script = "\n".join(["set -euo pipefail", *lines, "env -0 > .environment"])
        done = self._bash(script)
        assert done.returncode == 0, f"{block.where}: {done.stdout}{done.stderr}"
        exported = (self._folder / ".environment").read_text().rstrip("\0").split("\0")
        self._environment = dict(entry.split("=", 1) for entry in exported)

    def _run_python(self, block: Block) -> None:
        self._require_broker()
        if block.process not in self._processes:
            process = Worker(f"import os\nos.chdir({str(self._folder)!r})\n{READER}", environment=self._environment)
            self._closing.callback(process.close)
            self._processes[block.process] = process
        said = json.dumps({"source": self._as_here(block.text), "where": block.where})
        failure = json.loads(self._processes[block.process].ask(said))
        assert not failure, f"{block.where}: {failure}"

    def _write_toml(self, block: Block) -> None:
        """Write a file, named by its first line, and have it read by what reads it."""
        named = re.match(r"# (\S+\.toml)\b", block.text)
        assert named, f"{block.where}: the first line names the file"
        path = self._folder / Path(named.group(1)).name
        path.write_text(block.text)
        if "phase" in tomllib.loads(block.text):
            read_plan_file(path)
        else:
            Sources(said={}, file=path, environment={}).read()

    def _serve(self, block: Block, words: list[str]) -> None:
        """Start a daemon that a page starts, but for its place; a second time, when the page has ended it."""
        options = words[2:]
        device, run_dir = _taken_out(options, "--device"), _taken_out(options, "--run-dir")
        assert run_dir == RUN_DIR_OF_THE_DOCS, f"{block.where}: the docs' daemons are in {RUN_DIR_OF_THE_DOCS}"
        device = DEVICE_OF_THE_DOCS if device == "host" else device
        if device not in self._brokers:
            self._options[device] = options
            here = tuple(self._as_here(option) for option in options)
            self._brokers[device] = self._start_broker(options=here, folder=self._folder)
            return
        assert options == self._options[device], f"{block.where}: it was {self._options[device]} before"
        self._brokers[device].process.wait(DEADLINE_S)
        self._brokers[device].start_again()

    def _require_broker(self) -> None:
        if not (self._brokers or self._serves_itself):
            self._brokers[DEVICE_OF_THE_DOCS] = self._start_broker()
            self._environment[RUN_DIR_VARIABLE] = str(self._brokers[DEVICE_OF_THE_DOCS].run_dir)

    def _bash(self, script: str) -> "subprocess.CompletedProcess[str]":
        here = self._as_here(script)
        return subprocess.run(
            ["bash", "-c", here],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def _as_here(self, text: str) -> str:
        """Return what the page says with the test's own places in it."""
        if not self._brokers:
            return text
        broker = self._brokers[DEVICE_OF_THE_DOCS]
        places = {f"/{DEVICE_OF_THE_DOCS}": str(broker.endpoint.directory), "": str(broker.run_dir)}
        return re.sub(rf"{RUN_DIR_OF_THE_DOCS}(/{DEVICE_OF_THE_DOCS}|)", lambda found: places[found.group(1)], text)

    def _as_in_the_docs(self, printed: str) -> str:
        for device, broker in self._brokers.items():
            printed = printed.replace(str(broker.run_dir), RUN_DIR_OF_THE_DOCS)
            printed = printed.replace(broker.device, device)
        return printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_do_what_it_says(page: Path, start_broker: StartBroker, tmp_path: Path) -> None:
    follow(page, start_broker, tmp_path)


def follow(page: Path, start_broker: StartBroker, folder: Path) -> None:
    """Do all that a page says, in a folder; raises AssertionError if that is not what comes of it."""
    with ExitStack() as closing:
        reader = Reader(page, folder=folder, start_broker=start_broker, closing=closing)
        for block in blocks_of(page):
            if block.not_run:
                check_unrun(block)
            elif block.language in PICTURES:
                assert not re.search(r"^\$ ", block.text, re.MULTILINE), f"{block.where}: name the block's language"
            else:
                reader.follow(block)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```python title\nx = 1\n```\n```sh\nfalse\n```\n", "fences are"),
        ("- an item\n  ```sh\n  false\n  ```\n", "fences are"),
        ("~~~sh\nfalse\n~~~\n", "fences are"),
        ("```python\nx = 1  # → 2\n```\n", "1 arrows, and 0"),
        ("```python\nif True:\n    1  # → 2\n```\n", "1 arrows, and 0"),
        ("```python\n1  #→ 2\n```\n", "1 arrows, and 0"),
        ("```python\n1  # -> 2\n```\n", "1 arrows, and 0"),
        ("```python\n1  # → 2\n```\n", "the page shows 2, and it is 1"),
        ("```console\n$ echo something\n```\n", "echo something prints"),
        ("```console\n$ true\n…\n```\n", "… alone"),
        (SERVED_TWICE, "it was .*64MiB.* before"),
    ],
)
def test_a_page_whose_examples_would_show_nothing_is_refused(
    page: str, says: str, start_broker: StartBroker, tmp_path: Path
) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(AssertionError, match=says):
        follow(path, start_broker, tmp_path)


def check_environment_file(block: Block) -> None:
    """Read a block as the environment of a daemon."""
    said = dict(line.split("=", 1) for line in block.text.splitlines() if line and not line.startswith("#"))
    Sources(said={}, file=None, environment=said).read()


def check_unrun(block: Block) -> None:
    """Check of a block that can't be run what can be: the grammar of Python, the commands and options of `broker`."""
    if block.language == "python":
        ast.parse(block.text, block.where)
    if block.language in ("console", "sh"):
        typed = (
            [step.command for step in steps_of(block.text)] if block.language == "console" else block.text.splitlines()
        )
        for words in calls_of_broker("\n".join(typed)):
            require_known(block, words)


def _taken_out(options: list[str], name: str) -> str:
    """Take an option out of these; returns its value."""
    at = options.index(name)
    _, value = options[at : at + 2]
    del options[at : at + 2]
    return value


def calls_of_broker(text: str) -> Iterator[list[str]]:
    """Yield the words behind `broker` of each line that calls it, in whatever it is wrapped."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        at = next((at for at, word in enumerate(words) if Path(word).name == "broker"), None)
        if at is not None:
            yield words[at + 1 :]


def require_known(block: Block, words: list[str]) -> None:
    """Require a command and its options to be those of the command line."""
    assert words and words[0] in broker_commands(), f"{block.where}: there is no such command: broker {words}"
    own = words[: words.index("--")] if "--" in words else words
    for option in (word.partition("=")[0] for word in own[1:] if word.startswith("--")):
        assert option in options_of(words[0]), f"{block.where}: broker {words[0]} has no {option}"
