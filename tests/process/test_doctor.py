"""`broker doctor` on a real node: what it says where all is well, and under conditions that are made real."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker

DEADLINE_S = 60.0
NOBODY = 65534
PR_SET_THP_DISABLE = 41
DOCTOR = (sys.executable, "-m", "vrambroker.broker.cli", "doctor")
HOLDER = """
from vrambroker.client.native import Client
from vrambroker.client.discovery import find
client = Client(socket_path=str(find().handle_socket), name="rollout", device="host", version="test", timeout_s=10)
client.open_lease("kv_cache", "drop").malloc(4 << 20, timeout_s=1)
tell("ready")
told()
"""

BARRED_FROM_HUGE_PAGES = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_SET_THP_DISABLE}, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
# The first look imports what the second needs: Python itself may be in a folder that is closed to others.
AS_NOBODY = f"""
import json, os, sys
from vrambroker.broker.doctor.examine import examine
from vrambroker.broker.doctor.view import findings_json
examine(sys.argv[1])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
print(json.dumps(findings_json(examine(sys.argv[1]))))
"""

Found = dict[str, list[dict[str, str]]]


def by_check(done: "subprocess.CompletedProcess[str]") -> Found:
    assert not done.stderr, done.stderr
    found: Found = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["check"], []).append(one)
    return found


def examine(run_dir: Path, *words: str, before: str = "") -> tuple["subprocess.CompletedProcess[str]", Found]:
    """Run the doctor, `before` in the shell that becomes it; returns its findings by check."""
    done = subprocess.run(
        ["bash", "-c", f'{before}\nexec "$@"', "bash", *DOCTOR, "--json", "--run-dir", str(run_dir), *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return done, by_check(done)


def levels(found: Found, check: str) -> list[str]:
    return [one["level"] for one in found[check]]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """An empty folder with a short path, that others may look into."""
    path = Path(tempfile.mkdtemp(prefix="vrb-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_without_a_daemon_it_says_what_it_could_not_look_at(run_dir: Path) -> None:
    done, found = examine(run_dir, "--device", "host")
    assert done.returncode == 0
    assert levels(found, "daemon") == ["unseen"]
    assert levels(found, "run-dir") == ["ok"]
    assert {"pidfd", "peer-pidfd", "memfd-seals", "huge-pages", "fds", "host-memory"} <= found.keys()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver here")
def test_without_a_gpu_it_says_so_and_nothing_fails(run_dir: Path) -> None:
    done, found = examine(run_dir)
    assert done.returncode == 0
    assert levels(found, "device-nodes") == ["unseen"]


def test_a_daemon_and_who_holds_what(broker: "RunningBroker", start_worker: "StartWorker") -> None:
    worker = start_worker(HOLDER)
    assert worker.hear() == "ready"
    done, found = examine(broker.run_dir, "--device", broker.device)
    assert done.returncode == 0
    (holder,) = found["holder"]
    assert holder["text"] == f"{broker.device}: rollout (process {worker.pid}, uid {os.geteuid()}) has 4.0 MiB"
    for check in ("daemon", "version", "socket-rights", "host-budget"):
        assert levels(found, check) == ["ok"], found[check]
    assert len(found["fds"]) == 2, "the daemon's own limit, too"


def test_people_are_told_a_line_each_and_what_mends_it(run_dir: Path) -> None:
    words = ["bash", "-c", 'ulimit -n 512; exec "$@"', "bash", *DOCTOR, "--device", "host", "--run-dir", str(run_dir)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("fail"))
    assert lines[at].split()[1] == "fds"
    assert lines[at + 1].strip().startswith("→ ulimit -Hn ")
    assert "1 fail" in lines[-1]


@pytest.mark.parametrize(("most", "level", "code", "strict"), [(512, "fail", 1, 1), (4096, "warn", 0, 1)])
def test_few_fds(most: int, level: str, code: int, strict: int, run_dir: Path) -> None:
    done, found = examine(run_dir, "--device", "host", before=f"ulimit -n {most}")
    assert (levels(found, "fds"), done.returncode) == ([level], code)
    done, _ = examine(run_dir, "--device", "host", "--strict", before=f"ulimit -n {most}")
    assert done.returncode == strict


def test_a_run_directory_that_can_not_be_one(run_dir: Path) -> None:
    (run_dir / "file").touch()
    done, found = examine(run_dir / "file" / "vrb", "--device", "host")
    assert (levels(found, "run-dir"), done.returncode) == (["fail"], 1)
    assert found["run-dir"][0]["mend"] == f"rm {run_dir / 'file'}"


def test_a_run_directory_that_anybody_may_write_to(run_dir: Path) -> None:
    run_dir.chmod(0o777)
    done, found = examine(run_dir, "--device", "host")
    assert (levels(found, "run-dir"), done.returncode) == (["fail"], 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_elses_run_directory_and_sockets(start_broker: "StartBroker") -> None:
    broker = start_broker()
    broker.run_dir.chmod(0o755)
    words = [sys.executable, "-c", AS_NOBODY, broker.device]
    done = subprocess.run(
        words, env=broker.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    found = by_check(done)
    assert levels(found, "run-dir") == ["warn"]
    assert levels(found, "socket-rights") == ["fail"]
    mend = found["socket-rights"][0]["mend"]
    assert mend.startswith(f"chgrp GROUP {broker.run_dir} "), "nobody is to join root's group"
    assert levels(found, "daemon") == ["unseen"], "nothing is wrong with the daemon"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_sockets_of_a_group_and_a_folder_that_can_not_be_looked_into(start_broker: "StartBroker") -> None:
    group = 4321
    broker = start_broker(under="run")
    broker.run_dir.parent.chmod(0o755)
    for path in (broker.endpoint.handle_socket, broker.endpoint.rpc_socket):
        os.chown(path, -1, group)
    words = [sys.executable, "-c", AS_NOBODY, broker.device]
    run = partial(subprocess.run, words, env=broker.environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert by_check(run())["socket-rights"][0]["mend"].startswith(f"usermod -aG {group} ")
    broker.run_dir.parent.chmod(0o700)
    found = by_check(run())
    assert levels(found, "run-dir") == ["unseen"]
    assert levels(found, "daemon") == ["unseen"]


def test_a_stale_socket(run_dir: Path) -> None:
    folder = run_dir / "host:5"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(folder / "handles.sock"))
    done, found = examine(run_dir, "--device", "host:5")
    assert (levels(found, "daemon"), done.returncode) == (["fail"], 1)
    assert "no broker answers" in found["daemon"][0]["text"]
    assert "broker serve --device host:5" in found["daemon"][0]["mend"]


def test_a_dead_daemon_and_one_that_is_stopped(start_broker: "StartBroker") -> None:
    broker = start_broker()
    broker.process.send_signal(signal.SIGSTOP)
    try:
        done, found = examine(broker.run_dir, "--device", broker.device)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    assert (levels(found, "daemon"), done.returncode) == (["fail"], 1)
    (silent,) = found["daemon"]
    assert "journalctl" in silent["mend"]
    assert "broker serve" not in silent["text"] + silent["mend"], "what is parked would be lost"
    broker.kill()
    done, found = examine(broker.run_dir, "--device", broker.device)
    assert (levels(found, "daemon"), done.returncode) == (["fail"], 1)
    assert "broker serve" in found["daemon"][0]["mend"]
    broker.start_again()
    done, found = examine(broker.run_dir, "--device", broker.device)
    assert (levels(found, "daemon"), done.returncode) == (["ok"], 0)


def test_a_host_budget_beyond_the_daemons_limit_is_told() -> None:
    from vrambroker.broker.doctor.bounds import memory_of
    from vrambroker.broker.doctor.finding import Level

    assert memory_of(os.getpid(), 1 << 60).level is Level.FAIL
    assert memory_of(os.getpid(), 1 << 20).level is Level.OK


def test_huge_pages_are_tried(run_dir: Path) -> None:
    """A process may be barred from huge pages (prctl(2)), and what it becomes is, too."""
    words = [
        sys.executable,
        "-c",
        BARRED_FROM_HUGE_PAGES,
        *DOCTOR,
        "--json",
        "--device",
        "host",
        "--run-dir",
        str(run_dir),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    (barred,) = (one for one in json.loads(done.stdout) if one["check"] == "huge-pages")
    assert barred["level"] == "warn"
    assert "shmem_enabled" in barred["mend"]
    _, found = examine(run_dir, "--device", "host")
    if levels(found, "huge-pages") != ["ok"]:
        pytest.skip("this kernel makes no huge pages of memfds, so only that was seen")


def test_what_is_no_device_is_refused() -> None:
    done = subprocess.run(
        [*DOCTOR, "--device", "tpu:0"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("InvalidArgument: ")
