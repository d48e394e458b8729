"""The control plane from Python, against the real daemon: status, stream, errors, and a daemon that goes away."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vrambroker.client import (
    BrokerLost,
    BrokerUnavailable,
    InvalidArgument,
    PeerUnidentified,
    UnknownSession,
)
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.rpc import Control, OperatorHandshake
from vrambroker.client.status import StreamEvent

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, StartWorker

DEADLINE_S = 30.0


def test_status_of_an_idle_broker(broker: "RunningBroker", control: Control) -> None:
    status = control.status()
    assert status.device.id == broker.device
    assert status.device.capacity_bytes == status.device.free_bytes == 64 << 20
    assert status.host.budget_bytes == 128 << 20
    assert (status.sessions, status.queue) == ((), ())
    assert status.pid == broker.process.pid


def test_status_needs_no_token_and_changes_need_one(broker: "RunningBroker") -> None:
    stranger = Control(broker.endpoint, token=lambda: bytes(16))
    assert stranger.status().sessions == ()
    with pytest.raises(PeerUnidentified):
        stranger.mark("x")
    stranger.close()


def test_marks_are_in_the_stream(control: Control) -> None:
    for label in ("train", "generate"):
        control.mark(label)
    told = [event.why for event in control.watch(history=True, until_now=True) if event.kind == "marked"]
    assert told == ["train", "generate"]


def test_errors_come_as_their_class_with_their_fields(control: Control) -> None:
    with pytest.raises(UnknownSession) as caught:
        control.pause("nobody", ["x"])
    assert caught.value.session == "nobody"
    with pytest.raises(InvalidArgument) as refused:
        control.mark("x" * 10_000)
    assert refused.value.argument == "label"


@pytest.mark.parametrize("text", ["\udcff", 3, None], ids=ascii)
def test_what_is_no_text_is_refused_before_it_is_sent(control: Control, text: Any) -> None:
    with pytest.raises(InvalidArgument, match="label"):
        control.mark(text)
    with pytest.raises(InvalidArgument, match="session"):
        control.pause(text, ["x"])
    with pytest.raises(InvalidArgument, match="tag"):
        control.resume("nobody", [text])


ELSEWHERE = """
import os
from vrambroker.client import connect
with connect("rollout") as memory:
    os.chdir("/")
    print(memory.status().session("rollout").name)
"""


def test_a_run_directory_may_have_any_name_and_be_a_relative_one(start_broker: "StartBroker") -> None:
    # Signs that mean something in a URI, and a byte that is no UTF-8.
    broker = start_broker(under="a%20b#?é " + os.fsdecode(b"\xff"))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=broker.run_dir.parent,
        env={**os.environ, RUN_DIR_VARIABLE: broker.run_dir.name},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "rollout\n", "")


def test_closing_ends_a_stream_that_another_thread_reads(broker: "RunningBroker") -> None:
    control = Control(broker.endpoint, token=lambda: bytes(16))
    operator = OperatorHandshake(broker.endpoint, version="test")
    marker = Control(broker.endpoint, token=lambda: operator.token)
    marker.mark("first")
    seen: list[StreamEvent] = []
    begun, ended = threading.Event(), threading.Event()

    def read() -> None:
        for event in control.watch(history=True):
            seen.append(event)
            begun.set()
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert begun.wait(20)
    control.close()
    assert ended.wait(20)
    reader.join(20)
    assert [event.why for event in seen] == ["first"]
    marker.close()
    operator.close()


def test_no_daemon_behind_the_socket(start_broker: "StartBroker") -> None:
    broker = start_broker()
    endpoint = broker.endpoint
    broker.kill()
    control = Control(endpoint, token=lambda: bytes(16))
    with pytest.raises(BrokerUnavailable, match="broker serve --device"):
        control.status()
    with pytest.raises(BrokerUnavailable, match="broker serve --device"):
        OperatorHandshake(endpoint, version="test")
    control.close()


def test_a_daemon_that_went_away_is_lost_and_found_again(start_broker: "StartBroker") -> None:
    broker = start_broker()
    with ExitStack() as stack:
        control = broker.control(stack)
        control.mark("before")
        broker.kill()
        with pytest.raises(BrokerLost, match="broker serve"):
            control.status()
        broker.start_again()
        assert control.status().pid == broker.process.pid
        control.mark("after")
        told = [event.why for event in control.watch(history=True, until_now=True)]
        assert told == ["after"]


USES = 40

FORKING = """
import os
from vrambroker.client import discovery
from vrambroker.client.rpc import Control, OperatorHandshake
endpoint = discovery.find()
operator = OperatorHandshake(endpoint, version="test")
control = Control(endpoint, token=lambda: operator.token)
control.mark("parent")
for round in range(3):
    child = os.fork()
    if child == 0:
        control.mark("child")
        found = control.status().pid
        if round == 0:
            os._exit(0 if found else 1)
        control.close()
        operator.close()
        raise SystemExit(0)
    assert os.waitpid(child, 0)[1] == 0
    control.mark("parent")
control.close()
operator.close()
tell("done")
"""


def test_the_control_plane_survives_fork(start_worker: "StartWorker", control: Control) -> None:
    worker = start_worker(FORKING)
    assert worker.hear() == "done"
    worker.end()
    told = [event.why for event in control.watch(history=True, until_now=True)]
    assert told == ["parent", "child"] * 3 + ["parent"]


def test_no_fd_is_left_open(broker: "RunningBroker") -> None:
    def use() -> None:
        with ExitStack() as stack:
            broker.control(stack).mark("x")

    use()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(USES):
        use()
    # grpc closes a channel's fds on a thread of its own, so the last few uses may still hold theirs.
    assert len(list(Path("/proc/self/fd").iterdir())) - before < USES


def test_a_token_is_asked_for_once(broker: "RunningBroker") -> None:
    operator = OperatorHandshake(broker.endpoint, version="test")
    assert len({operator.token for _ in range(5)}) == 1
    operator.close()
