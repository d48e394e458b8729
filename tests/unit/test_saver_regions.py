"""The regions of threads without a broker: what is entered when, pools of graphs, several devices, and a GPU's late start."""

# pyright: reportPrivateUsage=false

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from vrambroker.broker.core.errors import BrokerUnavailable, OutOfDeviceMemory
from vrambroker.client import discovery
from vrambroker.client.memory import Memory
from vrambroker.client.saver import regions as regions_module
from vrambroker.client.saver import start
from vrambroker.client.saver.regions import Regions
from vrambroker.client.saver.saver import TorchMemorySaver
from vrambroker.client.saver.settings import Settings

DEADLINE_S = 20.0


class FakeMemory:
    """A device's memory on books."""

    def __init__(self, name: str = "gpu0") -> None:
        self.name = name
        self.torch_device = torch.device("cuda", int(name[-1]))
        self.inside: list[tuple[str, str]] = []
        self.paused: set[str] = set()
        self.known: set[str] = set()
        self.pools: dict[tuple[str, str], tuple[int, int]] = {}
        self.refusal: Exception | None = None

    @contextmanager
    def region(self, tag: str, contents: str) -> Generator[None]:
        if self.refusal is not None and tag != "outer":
            raise self.refusal
        assert tag not in self.paused
        self.known.add(tag)
        self.inside.append((tag, contents))
        try:
            yield
        finally:
            assert self.inside.pop() == (tag, contents)

    def graph_pool(self, tag: str, contents: str) -> tuple[int, int]:
        self.known.add(tag)
        return self.pools.setdefault((tag, contents), (9, len(self.pools)))

    def pause(self, *tags: str, release: bool = False, timeout: float) -> None:
        assert not self.inside, "a thread that pauses has stepped out"
        assert self.known.issuperset(tags)
        self.paused.update(tags)

    def resume(self, *tags: str, timeout: float) -> dict[str, bool]:
        if self.refusal is not None:
            raise self.refusal
        self.paused.difference_update(tags)
        return dict.fromkeys(tags, True)

    def is_paused(self, tag: str) -> bool:
        return tag in self.paused

    def allocated_bytes(self, tag: str) -> int:
        return 1

    def close(self) -> None:
        pass


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[FakeMemory]:
    """The device that a region is on: the first of these."""
    devices = [FakeMemory()]

    def attached(device: str | None, name: str) -> Memory:
        assert device is None
        assert name
        return cast("Memory", devices[0])

    monkeypatch.setattr(regions_module, "attached", attached)
    return devices


def leased(tag: str, **changes: bool) -> Settings:
    return replace(Settings(interesting=True, tag=tag), **changes)  # type: ignore[arg-type]


def test_a_thread_is_in_one_region_at_a_time(current: list[FakeMemory]) -> None:
    memory, regions = current[0], Regions()
    with regions.changed(leased("outer", cpu_backup=True)):
        with regions.changed(leased("inner")):
            assert memory.inside == [("inner", "zero")]
            with regions.outside():
                assert memory.inside == []
            assert memory.inside == [("inner", "zero")]
        assert memory.inside == [("outer", "keep")]
        seen = list[bool]()
        other = threading.Thread(target=lambda: seen.append(regions.settings.interesting))
        other.start()
        other.join(DEADLINE_S)
        assert seen == [False]
    assert memory.inside == []


def test_a_pause_steps_out_and_in_again_elsewhere(current: list[FakeMemory]) -> None:
    memory, regions = current[0], Regions()
    with regions.changed(leased("all")):
        regions.pause("all")
        assert memory.inside == [("all+2", "zero")]
        regions.pause("nothing")
        regions.resume(None)
        assert memory.inside == [("all", "zero")]
        assert memory.paused == set()


def test_a_refused_resume_on_one_device_pauses_the_other_again(current: list[FakeMemory]) -> None:
    first, second, regions = current[0], FakeMemory("gpu1"), Regions()
    with regions.changed(leased("a")):
        pass
    current[0] = second
    with regions.changed(leased("a")):
        pass
    regions.pause(None)
    second.refusal = OutOfDeviceMemory(message="none")
    with pytest.raises(OutOfDeviceMemory):
        regions.resume(None)
    assert first.paused == second.paused == {"a"}
    second.refusal = None
    regions.resume("a")
    assert first.paused == second.paused == set()


def test_a_region_that_can_t_be_entered_leaves_the_thread_where_it_was(current: list[FakeMemory]) -> None:
    memory, regions = current[0], Regions()
    with regions.changed(leased("outer")):
        memory.refusal = BrokerUnavailable(message="gone")
        with pytest.raises(BrokerUnavailable), regions.changed(leased("inner")):
            raise AssertionError("it is not entered")
        memory.refusal = None
        assert regions.settings.tag == "outer"
        assert memory.inside == [("outer", "zero")]


def test_graphs_share_memory_as_their_callers_say(current: list[FakeMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, saver = current[0], TorchMemorySaver()
    given: list[tuple[int, int]] = []

    @contextmanager
    def graph(_graph: object, *, pool: tuple[int, int], stream: object, capture_error_mode: str) -> Generator[None]:
        assert not memory.inside
        assert (stream, capture_error_mode) == (None, "global")
        given.append(pool)
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)

    def capture(pool: object) -> tuple[int, int]:
        made = cast("torch.cuda.CUDAGraph", object())
        with saver.region("weights"), saver.cuda_graph(made, pool=pool, tag="cuda_graph", enable_cpu_backup=True):
            pass
        return given[-1]

    handle, other = (0, 1), SimpleNamespace(id=(0, 2))
    first = capture(handle)
    assert capture(handle) == first
    # What torch says a graph's pool is, is one of ours.
    assert capture(first) == first
    assert capture(other) != first
    assert len({capture(None), capture(None), first}) == 3
    assert all(contents == "keep" for _, contents in memory.pools)
    saver.pause("cuda_graph")
    assert memory.paused == {tag for tag, _ in memory.pools}


def test_on_a_gpu_a_region_from_the_start_waits_for_torch_s_context(
    current: list[FakeMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, waiting, said = current[0], list[Callable[[], None]](), list[str]()
    monkeypatch.setenv(discovery.DEVICE_VARIABLE, "GPU-00000000-0000-0000-0000-000000000000")
    monkeypatch.setenv("VRAMBROKER_TAG", "trainer")
    monkeypatch.setattr(start, "torch_memory_saver", TorchMemorySaver())
    monkeypatch.setattr(torch.cuda, "_lazy_call", waiting.append)
    start.enter(said.append)
    assert memory.inside == []
    memory.refusal = OutOfDeviceMemory(message="none is left")
    (late,) = waiting
    late()
    assert said == ["OutOfDeviceMemory: none is left; nothing is leased here"]
    memory.refusal = None
    late()
    assert memory.inside == [("trainer", "keep")]
    monkeypatch.delenv("VRAMBROKER_TAG")
    start.enter(said.append)
    assert len(waiting) == 1


def test_where_no_broker_is_a_region_from_the_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(discovery.RUN_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TMS_INIT_ENABLE", "1")
    with pytest.raises(BrokerUnavailable, match="broker serve"):
        start.enter(lambda _: None)
