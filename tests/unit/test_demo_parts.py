"""The demo's own machinery: the lane, the leash, the mailbox and the watchman."""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vrambroker.broker.core.errors import OutOfDeviceMemory
from vrambroker.client.demo.child import Child
from vrambroker.client.demo.failure import WorkerFailed
from vrambroker.client.demo.lane import Gone, Lane, Silent, answer_of, answer_questions
from vrambroker.client.demo.mailbox import Mailbox
from vrambroker.client.demo.report import Report, failings
from vrambroker.client.demo.watchman import Watchman, fingerprint, weighed_sum

DEADLINE_S = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_line_in_pieces_is_one_message_and_two_at_once_are_two(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lane = Lane(theirs)
    ours.sendall(b'{"answer"')
    with pytest.raises(Silent):
        lane.receive(0.01)
    ours.sendall(b': {"a": 1}}\n{"answer": {"b": 2}}\n')
    assert lane.receive(DEADLINE_S) == {"answer": {"a": 1}}
    assert lane.receive(DEADLINE_S) == {"answer": {"b": 2}}


def test_a_closed_end_is_told_from_a_silent_one(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    lane = Lane(theirs)
    ours.close()
    with pytest.raises(Gone):
        lane.receive(DEADLINE_S)
    with pytest.raises(Gone):
        lane.send({"verb": "x"}, DEADLINE_S)


def test_an_end_that_does_not_read_is_silent(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(Silent):
        Lane(ends[0]).send({"filler": "x" * (8 << 20)}, 0.05)


def test_what_the_broker_refuses_is_an_answer(ends: tuple[socket.socket, socket.socket]) -> None:
    def refuse() -> dict[str, object]:
        raise OutOfDeviceMemory(message="no room")

    def add(a: int, b: int) -> dict[str, object]:
        return {"sum": a + b}

    lane = Lane(ends[0])
    verbs = {"add": add, "refuse": refuse}
    worker = threading.Thread(
        target=answer_questions, args=(Lane(ends[1]), verbs), kwargs={"answer_timeout_s": DEADLINE_S}
    )
    worker.start()
    lane.send({"verb": "add", "given": {"a": 1, "b": 2}}, DEADLINE_S)
    assert answer_of("adder", lane.receive(DEADLINE_S)) == {"sum": 3}
    lane.send({"verb": "refuse", "given": {}}, DEADLINE_S)
    with pytest.raises(WorkerFailed, match="adder was refused: OutOfDeviceMemory: no room"):
        answer_of("adder", lane.receive(DEADLINE_S))
    ends[0].shutdown(socket.SHUT_RDWR)
    worker.join(DEADLINE_S)
    assert not worker.is_alive()


def test_a_leashed_process_ends_with_its_parent() -> None:
    parent = """
import os, subprocess, sys
child = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
leash = [sys.executable, "-m", "vrambroker.client.demo.leash", str(os.getpid())]
grandchild = subprocess.Popen([*leash, *child], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print(grandchild.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            process.wait(DEADLINE_S)
            # A pidfd is readable once its process has ended.
            assert _readable(pidfd)
        finally:
            os.close(pidfd)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], DEADLINE_S)[0])


def test_a_leash_without_its_parent_starts_nothing() -> None:
    # Process 1 is no test's parent, except where it is; then 2 is not.
    other = 1 if os.getpid() != 1 else 2
    ran = subprocess.run(
        [sys.executable, "-m", "vrambroker.client.demo.leash", str(other), sys.executable, "-c", "print('ran')"],
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ran.returncode == 1
    assert b"has ended" in ran.stderr
    assert b"ran" not in ran.stdout


def test_a_child_leaves_its_last_words(tmp_path: Path) -> None:
    with Child("the speaker", ["-c", "import sys; sys.exit('goodbye')"], environment={}, log=tmp_path / "log") as child:
        assert child.ended(DEADLINE_S)
        assert child.epitaph() == "the speaker ended with status 1: goodbye"


def test_the_mailbox_hands_over_every_bit() -> None:
    weights = [torch.randn(3, 5), torch.randn(7), torch.tensor([1.5]).reshape(())]
    fd = os.memfd_create("mailbox")
    os.truncate(fd, sum(weight.numel() * 4 for weight in weights))
    sender, receiver = Mailbox(os.dup(fd)), Mailbox(fd)
    copies = [torch.zeros_like(weight) for weight in weights]
    addresses = [copy.data_ptr() for copy in copies]
    assert sender.leave(weights) == receiver.collect(copies) == 23 * 4
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))
    assert addresses == [copy.data_ptr() for copy in copies]


def _as_on_a_gpu(tensor: torch.Tensor) -> int:
    return weighed_sum(tensor.view(torch.uint8))


@pytest.mark.parametrize("fingerprint", [fingerprint, _as_on_a_gpu])
def test_a_fingerprint_tells_a_bit_and_an_order(fingerprint: Callable[[torch.Tensor], int]) -> None:
    tensor = torch.arange(10, dtype=torch.float32)
    before = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == before
    assert fingerprint(tensor.flip(0)) != before
    tensor[3] = torch.nextafter(tensor[3], torch.tensor(9.0))
    assert fingerprint(tensor) != before


def test_the_watchman_finds_moved_and_changed_and_missing_tensors() -> None:
    tensors = {"a": torch.ones(4), "b": torch.ones(4)}
    watchman = Watchman({"params": lambda: tensors})
    watchman.before_pause("params")
    watchman.after_resume("params")
    watchman.check_addresses()
    assert (watchman.addresses_changed, watchman.contents_changed) == (0, 0)
    watchman.before_pause("params")
    tensors["a"][2] = 5.0
    watchman.after_resume("params")
    assert (watchman.addresses_changed, watchman.contents_changed) == (0, 1)
    kept = tensors["b"]
    tensors["b"] = kept.clone()
    watchman.check_addresses()
    assert watchman.addresses_changed == 1
    del tensors["b"]
    watchman.check_addresses()
    assert watchman.addresses_changed == 2


def _report(**changed: object) -> Report:
    good: dict[str, object] = {
        "device": "host:0",
        "size": "tiny",
        "steps": 2,
        "reward_first": 0.1,
        "reward_last": 0.8,
        "rewards": (0.1, 0.8),
        "capacity_bytes": 26,
        "peak_bytes": 26,
        "need_together_bytes": 36,
        "arrived_bytes": 0,
        "copied_out_bytes": 0,
        "copied_in_bytes": 0,
        "addresses": 3,
        "addresses_changed": 0,
        "contents_changed": 0,
        "logprob_gap_max": 0.0,
        "seconds": 1.0,
        "setup_seconds": 1.0,
        "timeline": "a.svg",
        "trace": "a.trace.json",
    }
    return Report(**{**good, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, 0),
        ({"reward_last": 0.5}, 1),
        ({"addresses_changed": 1}, 1),
        ({"contents_changed": 1}, 1),
        ({"peak_bytes": 27}, 1),
        ({"need_together_bytes": 26}, 1),
        ({"reward_last": 0.1, "addresses_changed": 2}, 2),
    ],
)
def test_what_was_not_shown_is_found(changed: dict[str, object], found: int) -> None:
    assert len(failings(_report(**changed), judge_reward=True)) == found
    assert len(failings(_report(**changed), judge_reward=False)) == found - ("reward_last" in changed)
