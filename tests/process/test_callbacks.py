"""Pauses from outside that an engine's callbacks prepare or decline, and scopes that resume: real daemon, real processes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vrambroker.client import (
    InvalidArgument,
    Memory,
    NotQuiescent,
    OutOfDeviceMemory,
    WrongState,
    connect,
)
from vrambroker.client.rpc import Control

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartWorker

MIB = 1 << 20
TIMEOUT_S = 20.0

# Brings itself to rest as the test tells it: "yes" lets the pause be, "no" and "why ..." don't.
ENGINE = """
import threading, torch
from vrambroker.client import Decline, connect
memory = connect("engine")
weights = memory.empty(10 << 20, dtype=torch.uint8, tag="weights")
weights.fill_(7)
def drain(tags):
    tell("drain", *tags)
    with memory.use("weights"):
        assert weights.eq(7).all()
    word = told()
    if word.startswith("why"):
        raise Decline(word)
    if word == "fail":
        raise ValueError("a bug of the engine's")
    return word == "yes"
def refill(tags):
    tell("refill", *(f"{tag}={same}" for tag, same in tags.items()))
memory.on_pause(drain, "weights")
memory.on_resume(refill)
threading.excepthook = lambda args: None
tell("ready")
threading.Event().wait()
"""


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("worker", broker.device) as attached:
        yield attached


def state(control: Control, session: str) -> str:
    found = control.status().session(session)
    assert found is not None
    return found.tags[0].state


def test_an_engine_is_drained_paused_resumed_and_refilled(start_worker: "StartWorker", control: Control) -> None:
    engine = start_worker(ENGINE)
    assert engine.hear() == "ready"
    with ThreadPoolExecutor(1) as asker:
        for release, same in ((False, True), (True, False)):
            pausing = asker.submit(control.pause, "engine", ["weights"], release=release, timeout_s=TIMEOUT_S)
            assert engine.hear() == "drain weights"
            assert state(control, "engine") == "resident"
            engine.say("yes")
            pausing.result(TIMEOUT_S)
            assert state(control, "engine") == ("parked" if release else "idle")
            assert control.resume("engine", ["weights"]) == {"weights": same}
            assert engine.hear() == f"refill weights={same}"


@pytest.mark.parametrize(
    ("word", "told"),
    [("no", "it said no"), ("why: a batch is running", "a batch is running"), ("fail", "ValueError: a bug")],
)
def test_an_engine_that_declines_says_why(start_worker: "StartWorker", control: Control, word: str, told: str) -> None:
    engine = start_worker(ENGINE)
    assert engine.hear() == "ready"
    with ThreadPoolExecutor(1) as asker:
        for _ in range(2):
            pausing = asker.submit(control.pause, "engine", ["weights"], timeout_s=TIMEOUT_S)
            assert engine.hear() == "drain weights"
            engine.say(word)
            with pytest.raises(NotQuiescent, match=told) as caught:
                pausing.result(TIMEOUT_S)
            assert (caught.value.session, caught.value.tag, caught.value.scope) == ("engine", "weights", "drain")
    assert state(control, "engine") == "resident"


def test_the_askers_deadline_holds_and_the_engine_goes_on(start_worker: "StartWorker", control: Control) -> None:
    engine = start_worker(ENGINE)
    assert engine.hear() == "ready"
    with pytest.raises(NotQuiescent, match="engine/weights was not brought to rest in time by its callback 'drain'"):
        control.pause("engine", ["weights"], timeout_s=0.5)
    assert engine.hear() == "drain weights"
    engine.say("yes")
    assert engine.hear() == "refill weights=True"
    assert state(control, "engine") == "resident"


def test_callbacks_for_some_tags_and_for_all(memory: Memory, control: Control) -> None:
    kept = [memory.empty(100, tag=tag) for tag in ("a", "b")]
    heard: list[object] = []
    memory.on_pause(lambda tags: heard.append(("all", tags)))
    memory.on_pause(lambda tags: heard.append(("b", tags)), "b", "later")
    back = threading.Semaphore(0)

    def resumed(tags: dict[str, bool]) -> None:
        heard.append(tags)
        back.release()

    memory.on_resume(resumed, "b")
    control.pause("worker", ["a"], timeout_s=TIMEOUT_S)
    control.pause("worker", ["a", "b"], timeout_s=TIMEOUT_S)
    assert heard == [("all", ("a",)), ("all", ("b",)), ("b", ("b",))]
    control.resume("worker", ["a", "b"])
    assert back.acquire(timeout=TIMEOUT_S)
    assert heard[3:] == [{"b": True}]
    memory.pause("a", "b")
    memory.resume("a", "b")
    assert len(heard) == 4, "one's own pauses and resumes are no news"
    assert len(kept) == 2


def test_an_engine_may_pause_itself_when_it_is_asked(memory: Memory, control: Control) -> None:
    kept = memory.empty(100, tag="a")
    memory.on_pause(lambda tags: memory.pause(*tags))
    control.pause("worker", ["a"], timeout_s=TIMEOUT_S)
    assert state(control, "worker") == "idle"
    memory.resume("a")
    assert kept.numel() == 100


def test_a_failing_on_resume_is_reported_and_the_next_one_runs(
    memory: Memory, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = memory.empty(100, tag="a")
    failures: list[object] = []

    def note(args: threading.ExceptHookArgs) -> None:
        failures.append(args.exc_type)

    monkeypatch.setattr(threading, "excepthook", note)
    back = threading.Event()

    def fail(tags: dict[str, bool]) -> None:
        raise ValueError

    memory.on_pause(lambda tags: None)
    memory.on_resume(fail)
    memory.on_resume(lambda tags: back.set())
    control.pause("worker", ["a"], timeout_s=TIMEOUT_S)
    control.resume("worker", ["a"])
    assert back.wait(TIMEOUT_S)
    assert failures == [ValueError]
    assert kept.numel() == 100


def test_what_is_no_callback_or_no_tag_is_refused_and_watches_nothing(memory: Memory, control: Control) -> None:
    kept = memory.empty(100, tag="a")
    for register in (memory.on_pause, memory.on_resume):
        with pytest.raises(InvalidArgument):
            register(None, "a")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidArgument):
            register(lambda tags: None, "a", "no/tag")
    with pytest.raises(NotQuiescent, match="no scopes or callbacks"):
        control.pause("worker", ["a"], timeout_s=TIMEOUT_S)
    assert kept.numel() == 100


def callback_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vrambroker-callbacks"]


def test_closing_ends_the_thread_and_nothing_can_be_registered_then(broker: "RunningBroker") -> None:
    memory = connect("worker", broker.device)
    memory.on_pause(lambda tags: None)
    (thread,) = callback_threads()
    memory.close()
    assert not thread.is_alive()
    with pytest.raises(WrongState):
        memory.on_pause(lambda tags: None)


def test_closing_while_a_callback_runs_declines(broker: "RunningBroker", control: Control) -> None:
    memory = connect("worker", broker.device)
    kept = memory.empty(100, tag="a")
    running, go_on = threading.Event(), threading.Event()

    def drain(tags: tuple[str, ...]) -> None:
        running.set()
        go_on.wait(TIMEOUT_S)

    memory.on_pause(drain)
    with ThreadPoolExecutor(1) as asker:
        pausing = asker.submit(control.pause, "worker", ["a"], timeout_s=TIMEOUT_S)
        assert running.wait(TIMEOUT_S)
        (thread,) = callback_threads()
        memory.close()
        with pytest.raises(NotQuiescent, match="closed its client"):
            pausing.result(TIMEOUT_S)
    del kept
    go_on.set()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


FORKING = """
import os, threading
from vrambroker.client import WrongState, connect
memory = connect("engine")
kept = memory.empty(100, tag="a")
memory.on_pause(lambda tags: tell("drain"))
if os.fork() == 0:
    try:
        memory.on_pause(lambda tags: None)
    except WrongState:
        memory.close()
        os._exit(3)
    os._exit(1)
tell(os.waitstatus_to_exitcode(os.wait()[1]))
told()
"""


def test_a_forked_child_has_no_callbacks_and_a_process_ends_with_its_own(
    start_worker: "StartWorker", control: Control
) -> None:
    engine = start_worker(FORKING)
    assert engine.hear() == "3"
    control.pause("engine", ["a"], timeout_s=TIMEOUT_S)
    assert engine.hear() == "drain"
    engine.say()
    engine.end()


def test_entering_a_scope_resumes_what_is_paused(memory: Memory, control: Control) -> None:
    kept = memory.empty(10 * MIB, tag="a")
    kept.fill_(3)
    memory.pause("a", release=True)
    with pytest.raises(WrongState), memory.use("a"):
        pass
    with memory.use("a", if_paused="resume", timeout=TIMEOUT_S):
        assert kept.eq(3).all()
        with pytest.raises(NotQuiescent, match="scope"):
            control.pause("worker", ["a"], timeout_s=0.2)
    with memory.use("a", if_paused="resume"):
        pass
    with pytest.raises(InvalidArgument), memory.use("a", if_paused="maybe"):  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        pass


# Holds the device until it is told to let go.
HOLDER = """
from vrambroker.client import connect
memory = connect("holder")
held = memory.empty(48 << 20, dtype=__import__("torch").uint8, tag="held", contents="drop")
tell("taken")
told()
memory.pause("held")
tell("paused")
told()
"""


def test_a_scope_waits_for_room_like_any_resume(memory: Memory, start_worker: "StartWorker", control: Control) -> None:
    kept = memory.empty(6 * MIB, tag="a")
    memory.pause("a", release=True)
    holder = start_worker(HOLDER)
    assert holder.hear() == "taken"
    with pytest.raises(OutOfDeviceMemory) as caught, memory.use("a", if_paused="resume", timeout=0.3):
        pass
    assert [one.session for one in caught.value.holders] == ["holder"]
    entered = threading.Event()

    def work() -> None:
        with memory.use("a", if_paused="resume", timeout=TIMEOUT_S):
            entered.set()

    worker = threading.Thread(target=work)
    worker.start()
    assert holder.ask() == "paused"
    assert entered.wait(TIMEOUT_S)
    worker.join(TIMEOUT_S)
    assert kept.numel() == 6 * MIB
