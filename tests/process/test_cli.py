"""The `broker` command as a person and a script use it: what it prints, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vrambroker.broker.reporting import one_line

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker, WaitFor
    from vrambroker.client.rpc import Control

DEADLINE_S = 30.0

HOLDER = """
from vrambroker.client.native import Client
from vrambroker.client.discovery import find
client = Client(socket_path=str(find().handle_socket), name="rollout", device="host", version="test", timeout_s=10)
lease = client.open_lease("kv_cache", "drop")
lease.malloc(4 << 20, timeout_s=1)
if told() == "scoped":
    client.use_enter(("kv_cache",), "forward")
    client.use_exit(("kv_cache",), "forward")
tell("ready")
told()
"""


def command(broker: "RunningBroker", *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vrambroker.broker.cli", *words],
        env=broker.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def status(broker: "RunningBroker") -> list[dict[str, Any]]:
    done = command(broker, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def test_status_json_keeps_its_contract(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    worker = start_worker(HOLDER)
    assert worker.ask("scoped") == "ready"
    (entry,) = status(broker)
    device = {"id", "capacity_bytes", "lent_bytes", "free_bytes", "held_bytes", "foreign_bytes"}
    assert device <= entry["device"].keys()
    assert entry["device"]["id"] == broker.device
    assert entry["device"]["lent_bytes"] == 4 << 20
    (session,) = entry["sessions"]
    assert (session["name"], session["pid"]) == ("rollout", worker.pid)
    assert {"name", "pid", "uid", "tags"} <= session.keys()
    (tag,) = session["tags"]
    assert (tag["tag"], tag["state"], tag["device_bytes"], tag["host_bytes"]) == ("kv_cache", "resident", 4 << 20, 0)
    assert entry["queue"] == []
    assert {"budget_bytes", "used_bytes", "file_bytes"} <= entry["host"].keys()


def test_pause_with_release_and_resume_from_outside(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    assert start_worker(HOLDER).ask("scoped") == "ready"
    assert command(broker, "pause", "rollout/kv_cache", "--release").returncode == 0
    assert status(broker)[0]["sessions"][0]["tags"][0]["state"] == "parked"
    assert status(broker)[0]["device"]["lent_bytes"] == 0
    assert command(broker, "resume", "rollout/kv_cache").returncode == 0
    assert status(broker)[0]["sessions"][0]["tags"][0]["state"] == "resident"


def test_pause_of_a_tag_without_scopes_is_refused_in_one_line(
    broker: "RunningBroker", start_worker: "StartWorker"
) -> None:
    assert start_worker(HOLDER).ask("unscoped") == "ready"
    done = command(broker, "pause", "rollout/kv_cache")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("NotQuiescent: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def attended(shared_broker: "RunningBroker", start_shared_worker: "StartWorker") -> "RunningBroker":
    """The daemon that the file's tests share, with a session."""
    assert start_shared_worker(HOLDER).ask("scoped") == "ready"
    return shared_broker


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("pause", "nobody/weights"), 1, "UnknownSession: "),
        (("pause", "weights"), 1, "InvalidArgument: "),
        (("pause", "rollout/\udcff"), 1, "InvalidArgument: "),
        (("resume", "rollout/weights"), 1, "UnknownTag: "),
        (("status", "--device", "host:99999"), 1, "BrokerUnavailable: "),
        (("status", "--device", "host:x"), 1, "InvalidArgument: "),
        (("status", "--device", "bogus"), 1, "InvalidArgument: "),
        (("demo", "--device", "bogus"), 1, "InvalidArgument: "),
        (("status", "--nonsense"), 2, "Usage: "),
        (("pause", "rollout/kv_cache", "--timeout", "nan"), 2, "Usage: "),
        (("resume", "rollout/kv_cache", "--timeout", "-1"), 2, "Usage: "),
        (("timeline", "/dev/null/out.svg"), 1, "FileExistsError: "),
        (("serve", "--capacity", "many"), 1, "InvalidArgument: "),
        (("serve", "--device", "tpu:0"), 1, "InvalidArgument: "),
        (("timeline", "out.png"), 1, "InvalidArgument: "),
        (("demo", "--size", "gigantic"), 1, "InvalidArgument: "),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    attended: "RunningBroker", words: tuple[str, ...], code: int, error: str
) -> None:
    done = command(attended, *words)
    assert done.returncode == code, done
    assert done.stderr.startswith(error), done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_status_without_any_daemon_says_what_to_do(broker: "RunningBroker", tmp_path: Path) -> None:
    done = command(broker, "status", "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("BrokerUnavailable: ")
    assert "broker serve" in done.stderr


def test_a_second_daemon_names_the_first(broker: "RunningBroker", start_broker: "StartBroker", tmp_path: Path) -> None:
    done = command(broker, "serve", "--device", broker.device, "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert str(broker.process.pid) in done.stderr


@pytest.mark.parametrize("name", ["out.svg", "out.json", "out.html"])
def test_timeline_is_written(broker: "RunningBroker", start_worker: "StartWorker", tmp_path: Path, name: str) -> None:
    assert start_worker(HOLDER).ask("scoped") == "ready"
    out = tmp_path / name
    done = command(broker, "timeline", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "kv_cache" in out.read_text()


def test_status_for_people_names_the_holder(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    assert start_worker(HOLDER).ask("scoped") == "ready"
    done = command(broker, "status")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("rollout", "kv_cache", "resident", "4.0 MiB"))


def test_a_daemon_that_is_gone_does_not_hide_the_others(
    broker: "RunningBroker", start_broker: "StartBroker", start_worker: "StartWorker"
) -> None:
    assert start_worker(HOLDER).ask("scoped") == "ready"
    other = start_broker()
    other.kill()
    done = command(broker, "status", "--json")
    assert done.returncode == 1
    assert [entry["device"]["id"] for entry in json.loads(done.stdout)] == [broker.device]
    assert done.stderr.startswith("BrokerUnavailable: ")
    assert done.stderr.count("\n") == 1
    assert other.device in done.stderr
    done = command(broker, "status")
    assert done.returncode == 1
    assert "kv_cache" in done.stdout
    done = command(broker, "pause", "rollout/kv_cache")
    assert (done.returncode, done.stderr) == (0, "")
    done = command(broker, "pause", "nobody/kv_cache")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("UnknownSession: ")
    assert other.device in done.stderr
    broker.kill()
    done = command(broker, "resume", "rollout/kv_cache")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("BrokerUnavailable: ")


def test_what_a_message_says_does_not_act_on_the_terminal() -> None:
    assert one_line("a\x1b[31m\nb\u202e \udcff é") == "a\\x1b[31m\\nb\\u202e \\udcff é"


@pytest.mark.parametrize(("options", "on_terminal"), [(("--json",), False), ((), False), ((), True)])
def test_a_watch_is_renewed_until_it_is_interrupted(
    broker: "RunningBroker", start_worker: "StartWorker", options: tuple[str, ...], on_terminal: bool
) -> None:
    worker = start_worker(HOLDER)
    assert worker.ask("scoped") == "ready"
    ours, theirs = os.openpty() if on_terminal else os.pipe()
    watching = subprocess.Popen(
        [sys.executable, "-m", "vrambroker.broker.cli", "status", "--watch", *options],
        env={**broker.environment, "TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    assert watching.stderr is not None
    late = threading.Timer(DEADLINE_S, watching.kill)
    late.start()
    try:
        _read_until(ours, b"resident")
        assert command(broker, "pause", "rollout/kv_cache", "--release").returncode == 0
        seen = _read_until(ours, b"parked")
        assert not options or json.loads(seen.splitlines()[-1])[0]["device"]["lent_bytes"] == 0
        watching.send_signal(signal.SIGINT)
        assert (watching.wait(DEADLINE_S), watching.stderr.read()) == (0, b"")
    finally:
        late.cancel()
        watching.kill()
        watching.wait(DEADLINE_S)
        watching.stderr.close()
        os.close(ours)


def _read_until(fd: int, word: bytes) -> bytes:
    """Read until there is the word, and the end of its line."""
    seen = b""
    while b"\n" not in seen.partition(word)[2]:
        got = os.read(fd, 1 << 16)
        assert got, seen
        seen += got
    return seen


IN_USE = HOLDER.replace('client.use_exit(("kv_cache",), "forward")', "")


def test_a_pause_waits_as_long_as_it_is_told_to(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    assert start_worker(IN_USE).ask("scoped") == "ready"
    began = time.monotonic()
    done = command(broker, "pause", "rollout/kv_cache", "--timeout", "0.2")
    assert done.returncode == 1
    assert "forward" in done.stderr
    assert time.monotonic() - began < 9.0, "by default it waits for ten seconds"


WAITING = """
from vrambroker.client.native import Client
from vrambroker.client.discovery import find
client = Client(socket_path=str(find().handle_socket), name="trainer", device="host", version="test", timeout_s=10)
client.open_lease("params", "drop").malloc(48 << 20, timeout_s=1)
client.pause(("params",), release=True, timeout_s=10)
tell("paused")
told()
tell("asking")
client.resume(("params",), timeout_s=60)
tell("resumed")
"""


def test_who_waits_is_shown_with_whom_they_wait_for(
    broker: "RunningBroker", start_worker: "StartWorker", control: "Control", wait_for: "WaitFor"
) -> None:
    trainer = start_worker(WAITING)
    assert trainer.hear() == "paused"
    holder = start_worker(HOLDER.replace("4 << 20", "32 << 20"))
    assert holder.ask("scoped") == "ready"
    assert trainer.ask() == "asking"
    wait_for(control, lambda: bool(control.status().queue))
    done = command(broker, "status")
    assert done.returncode == 0
    waiting = done.stdout[done.stdout.index("waiting") :]
    assert all(word in waiting for word in ("trainer", "params", "48.0 MiB", "rollout/kv_cache"))
    assert status(broker)[0]["queue"][0]["session"] == "trainer"
    assert command(broker, "pause", "rollout/kv_cache").returncode == 0
    assert trainer.hear() == "resumed"


PLAN = """
[[phase]]
name = "generate"
tags = ["rollout/weights", "rollout/kv_cache"]
[[phase]]
name = "train"
tags = ["trainer/*"]
[tags."rollout/weights"]
size = "8MiB"
[tags."rollout/kv_cache"]
size = "8MiB"
contents = "drop"
elastic = true
[tags."trainer/params"]
size = "12MiB"
[device]
frames = ["2MiB"]
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_plan_prints_what_fits_and_how_large_the_cache_can_be(broker: "RunningBroker", plan_file: Path) -> None:
    done = command(broker, "plan", str(plan_file), "--capacity", "24MiB", "--host-budget", "32MiB", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["fits"]
    assert [entry["name"] for entry in told["phases"]] == ["generate", "train"]
    assert [(entry["from"], entry["to"]) for entry in told["changes"]] == [("generate", "train"), ("train", "generate")]
    assert told["elastic"] == [{"tag": "rollout/kv_cache", "size_bytes": 8 << 20, "largest_bytes": 16 << 20}]
    text = command(broker, "plan", str(plan_file), "--capacity", "24MiB")
    assert text.returncode == 0
    assert "rollout/kv_cache fits up to 16.0 MiB (8.0 MiB planned)" in text.stdout


def test_plan_asks_the_daemon_what_there_is(broker: "RunningBroker", plan_file: Path) -> None:
    told = json.loads(command(broker, "plan", str(plan_file), "--json").stdout)
    (entry,) = status(broker)
    assert told["capacity_bytes"] == entry["device"]["capacity_bytes"]
    assert told["host_budget_bytes"] == entry["host"]["budget_bytes"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--capacity", "14MiB"), 1, "OutOfDeviceMemory: generate takes 16.0 MiB of the device, 2.0 MiB more than"),
        (("--capacity", "64MiB", "--host-budget", "16MiB"), 1, "OutOfHostMemory: generate → train takes 20.0 MiB"),
        (("--capacity", "lots"), 1, "InvalidArgument: capacity 'lots' is not a size"),
        (("--nonsense",), 2, "Usage: "),
    ],
)
def test_plan_says_what_does_not_fit_in_one_line(
    broker: "RunningBroker", plan_file: Path, words: tuple[str, ...], code: int, error: str
) -> None:
    done = command(broker, "plan", str(plan_file), *words)
    assert done.returncode == code
    assert done.stderr.startswith(error), done.stderr
    assert code == 2 or done.stderr.count("\n") == 1
    assert "Memory" not in error or "too much" in done.stdout


def test_a_plan_that_is_none_is_refused_in_one_line(broker: "RunningBroker", tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    for text, error in ((b"order = 1", "InvalidArgument: "), (b"\xff", "InvalidArgument: "), (None, "FileNotFound")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_bytes(text)
        done = command(broker, "plan", str(path))
        assert done.returncode == 1
        assert done.stderr.startswith(error)
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr


def test_a_reader_that_has_gone_is_no_error(broker: "RunningBroker") -> None:
    for words in (["status"], ["doctor"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as out:
            done = subprocess.run(
                [sys.executable, "-m", "vrambroker.broker.cli", *words],
                env=broker.environment,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=DEADLINE_S,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_under_what_is_printed_is_one_line(broker: "RunningBroker") -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vrambroker.broker.cli", "status", "--json"],
            env=broker.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"OSError: No space left on device\n")


def test_without_any_terminal_or_stream_a_command_does_its_work(broker: "RunningBroker") -> None:
    """As cron, or a service whose streams are closed, would have it."""
    environment = {name: value for name, value in broker.environment.items() if name not in {"TERM", "COLUMNS"}}
    for words, code in (("status", 0), ("pause nobody/nothing", 1)):
        shell = f'exec "$0" -m vrambroker.broker.cli {words} <&- >&- 2>&-'
        done = subprocess.run(
            ["sh", "-c", shell, sys.executable],
            env=environment,
            start_new_session=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == code


def test_what_is_piped_is_whole_and_what_is_narrow_cuts_no_name(
    broker: "RunningBroker", start_worker: "StartWorker", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert start_worker(HOLDER).ask("scoped") == "ready"
    piped = command(broker, "status").stdout
    assert [line.split()[0] for line in piped.splitlines()[2:4]] == ["session", "rollout"]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = command(broker, "status").stdout
    assert max(map(len, narrow.splitlines())) <= 40
    assert "session rollout" in narrow
    assert "…" not in narrow


def test_without_a_daemon_it_says_where_it_looked_and_why_in_vain(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vrambroker.broker.cli", "status", "--run-dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert f"no broker for any device at {tmp_path}: start one" in done.stderr
