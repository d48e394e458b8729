"""`Memory` against the real daemon and the real library, all in this process: lend, pause, resume, give back."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import nn

from vrambroker.client import (
    BrokerUnavailable,
    InvalidArgument,
    Memory,
    NotQuiescent,
    OutOfDeviceMemory,
    OutOfHostMemory,
    UnknownTag,
    WrongState,
    connect,
    placing,
)
from vrambroker.client import tensors as leased_tensors
from vrambroker.client.discovery import RUN_DIR_VARIABLE
from vrambroker.client.rpc import Control
from vrambroker.client.status import TagStatus

if TYPE_CHECKING:
    from tests.process.conftest import RunningBroker, StartBroker, WaitFor

MIB = 1 << 20


@pytest.fixture
def memory(broker: "RunningBroker") -> Iterator[Memory]:
    with connect("worker", broker.device) as attached:
        yield attached


@pytest.fixture
def lasting(shared_broker: "RunningBroker", monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """As `memory`, of a daemon that many tests share: for what is refused and changes nothing."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(shared_broker.run_dir))
    with connect("worker", shared_broker.device) as attached:
        yield attached


def tag_of(memory: Memory, tag: str) -> TagStatus:
    session = memory.status().session(memory.name)
    assert session is not None
    return next(entry for entry in session.tags if entry.tag == tag)


def tags_of(control: Control) -> list[TagStatus]:
    return [tag for session in control.status().sessions for tag in session.tags]


def test_connecting_names_the_session(memory: Memory, broker: "RunningBroker") -> None:
    assert memory.name == "worker"
    assert memory.device == broker.device
    assert memory.capacity_bytes == 64 * MIB
    assert memory.tags == ()
    session = memory.status().session("worker")
    assert session is not None
    assert session.connected
    assert repr(memory) == f"<vrambroker Memory 'worker' on {broker.device}>"


def test_connecting_again_gives_the_same_memory_to_be_closed_as_often(memory: Memory, broker: "RunningBroker") -> None:
    again = connect("worker")
    assert again is memory
    again.close()
    assert tuple(memory.empty(4, tag="a").shape) == (4,)
    with pytest.raises(WrongState, match="worker"):
        connect("another", broker.device)


def test_a_closed_memory_refuses_and_connecting_anew_works(broker: "RunningBroker") -> None:
    first = connect("worker", broker.device)
    first.close()
    first.close()
    for call in (lambda: first.empty(4, tag="a"), first.status, lambda: first.mark("x"), lambda: first.pause("a")):
        with pytest.raises(WrongState):
            call()
    assert "closed" in repr(first)
    with connect("another", broker.device) as second:
        assert second is not first
        assert second.name == "another"


def test_connecting_where_no_daemon_is(broker: "RunningBroker") -> None:
    with pytest.raises(BrokerUnavailable, match="broker serve --device host:424242"):
        connect("worker", "host:424242")
    broker.kill()
    with pytest.raises(BrokerUnavailable, match="broker serve"):
        connect("worker", broker.device)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b", "a\0b"])
def test_a_name_that_is_none_is_refused(
    shared_broker: "RunningBroker", monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(shared_broker.run_dir))
    with pytest.raises(InvalidArgument):
        connect(name, shared_broker.device)


def test_an_empty_tensor_is_leased_and_given_back(memory: Memory, control: Control, wait_for: "WaitFor") -> None:
    tensor = memory.empty((1024, 1024), dtype=torch.float32, tag="weights")
    tensor.fill_(2.5)
    assert tensor.sum().item() == 2.5 * MIB
    assert tensor.data_ptr() % 512 == 0
    held = tag_of(memory, "weights")
    assert (held.state, held.contents) == ("resident", "keep")
    assert held.device_bytes >= 4 * MIB
    assert memory.stats().allocated_bytes >= 4 * MIB
    assert memory.tags == ("weights",)
    del tensor
    wait_for(control, lambda: control.status().device.lent_bytes == 0)
    assert memory.stats().allocated_bytes == 0


def test_default_type_scalars_and_no_elements(memory: Memory) -> None:
    assert memory.empty(3, tag="a").dtype is torch.get_default_dtype()
    assert memory.empty((), tag="a", dtype=torch.int64).shape == ()
    before = memory.stats().allocations
    assert memory.empty((0, 7), tag="a").numel() == 0
    assert memory.stats().allocations == before


def test_many_small_tensors_share_frames(memory: Memory) -> None:
    tensors = [memory.empty(100, tag="small") for _ in range(500)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all(tensor.eq(number).all() for number, tensor in enumerate(tensors))
    memory.pause("small")  # what it was lent to spare goes back
    assert tag_of(memory, "small").device_bytes <= 8 * MIB


@pytest.mark.parametrize("shape", [(-1,), (1 << 60,)])
def test_sizes_that_cannot_be_are_refused(lasting: Memory, shape: tuple[int, ...]) -> None:
    with pytest.raises((InvalidArgument, OutOfDeviceMemory)):
        lasting.empty(shape, tag="a", timeout=0)
    assert lasting.empty(4, tag="a").numel() == 4


@pytest.mark.parametrize("tag", ["", "a b", "x" * 65, "a/b", "ä"])
def test_odd_tags_are_refused(lasting: Memory, tag: str) -> None:
    for call in (
        lambda: lasting.empty(4, tag=tag),
        lambda: lasting.pause(tag),
        lambda: lasting.resume(tag),
        lambda: lasting.place([torch.ones(2)], tag),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_odd_contents_and_timeouts_are_refused(memory: Memory) -> None:
    with pytest.raises(InvalidArgument):
        memory.empty(4, tag="a", contents="kept")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    for timeout in (-1.0, float("nan")):
        with pytest.raises(InvalidArgument):
            memory.empty(4, tag="a", timeout=timeout)


def test_tags_nobody_knows(memory: Memory) -> None:
    for call in (memory.pause, memory.resume):
        with pytest.raises(UnknownTag) as caught:
            call("nothing")
        assert caught.value.tag == "nothing"
    with pytest.raises(UnknownTag), memory.use("nothing"):
        pass


def test_the_longest_tag_and_many_tags(memory: Memory) -> None:
    longest = memory.empty(4, tag="x" * 64)
    tensors = {f"tag{number}": memory.empty(4, tag=f"tag{number}") for number in range(20)}
    memory.pause()
    assert set(memory.resume()) == {"x" * 64, *tensors}
    assert longest.numel() == 4


def test_ten_thousand_tags_that_nobody_knows(memory: Memory) -> None:
    kept = memory.empty(4, tag="a")
    kept.fill_(1)
    with pytest.raises(UnknownTag):
        memory.pause("a", *(f"tag{number}" for number in range(10_000)))
    assert tag_of(memory, "a").state == "resident"
    assert kept.eq(1).all()


def test_pausing_costs_nothing_until_somebody_needs_the_room(memory: Memory) -> None:
    tensor = memory.empty(MIB, tag="a")
    tensor.fill_(7)
    address = tensor.data_ptr()
    memory.pause("a")
    assert tag_of(memory, "a").state == "idle"
    memory.pause("a")
    assert memory.resume("a") == {"a": True}
    assert memory.resume("a") == {"a": True}
    assert tag_of(memory, "a").state == "resident"
    assert tensor.data_ptr() == address
    assert tensor.eq(7).all()


def test_released_memory_leaves_and_comes_back(memory: Memory) -> None:
    tensor = memory.empty(2 * MIB, tag="a")
    torch.arange(2 * MIB, out=tensor)
    address = tensor.data_ptr()
    memory.pause("a", release=True)
    gone = tag_of(memory, "a")
    assert (gone.state, gone.device_bytes) == ("parked", 0)
    assert gone.host_bytes >= 8 * MIB
    assert memory.resume("a") == {"a": False}
    assert tensor.data_ptr() == address
    assert torch.equal(tensor, torch.arange(2.0 * MIB))


def test_dropped_memory_takes_no_host_memory(memory: Memory) -> None:
    tensor = memory.empty(2 * MIB, tag="kv", contents="drop")
    tensor.fill_(1)
    memory.pause("kv", release=True)
    assert tag_of(memory, "kv").host_bytes == 0
    assert memory.status().host.file_bytes == 0
    memory.resume("kv")
    tensor.fill_(2)
    assert tensor.eq(2).all()


def test_zeroed_memory_reads_zero_at_first_and_after_every_pause(memory: Memory) -> None:
    tensor = memory.empty(MIB, tag="z", contents="zero")
    assert tensor.eq(0).all()
    for release in (False, True):
        tensor.fill_(3)
        memory.pause("z", release=release)
        memory.resume("z")
        assert tensor.eq(0).all()


def test_zeroed_memory_reads_zero_where_another_tensor_was(memory: Memory) -> None:
    keeps_the_frame = memory.empty(100, tag="z", contents="zero")
    for _ in range(5):
        used = memory.empty(1000, tag="z", contents="zero")
        assert used.eq(0).all()
        used.fill_(9)
        del used
    assert keeps_the_frame.eq(0).all()


def test_one_tag_may_have_several_policies(memory: Memory) -> None:
    kept = memory.empty(MIB, tag="a", contents="keep")
    dropped = memory.empty(MIB, tag="a", contents="drop")
    kept.fill_(1)
    dropped.fill_(2)
    memory.pause("a", release=True)
    assert memory.tags == ("a",)
    memory.resume("a")
    assert kept.eq(1).all()


def test_tensors_freed_while_paused_idle_and_parked(memory: Memory, control: Control, wait_for: "WaitFor") -> None:
    for release in (False, True):
        tensor = memory.empty(2 * MIB, tag="a")
        memory.pause("a", release=release)
        del tensor
        wait_for(control, lambda: control.status().device.lent_bytes == 0)
        wait_for(control, lambda: all(held.host_bytes == 0 for held in tags_of(control)))
        memory.resume("a")


def test_a_paused_tag_hands_out_nothing(memory: Memory) -> None:
    tensor = memory.empty(4, tag="a")
    plain = torch.ones(4)
    memory.pause("a")
    with pytest.raises(WrongState) as caught:
        memory.empty(4, tag="a")
    assert caught.value.tag == "a"
    with pytest.raises(WrongState), memory.region("a"):
        pass
    address = plain.data_ptr()
    with pytest.raises(WrongState):
        memory.place(plain, "a")
    assert plain.data_ptr() == address
    memory.resume("a")
    assert tensor.numel() == 4


def test_a_region_whose_tag_is_paused_inside_hands_out_nothing(memory: Memory) -> None:
    with memory.region("a"):
        torch.zeros(4)
        kept = torch.ones(4)
        memory.pause("a")
        with pytest.raises(WrongState):
            torch.zeros(4)
        memory.resume("a")
        assert torch.zeros(4).sum() + kept.sum() == 4


def test_no_room_names_the_holders(memory: Memory) -> None:
    held = memory.empty(12 * MIB, tag="big")
    with pytest.raises(OutOfDeviceMemory) as caught:
        memory.empty(12 * MIB, tag="more", timeout=0)
    assert caught.value.capacity_bytes == 64 * MIB
    assert [(holder.session, holder.tag) for holder in caught.value.holders] == [("worker", "big")]
    assert held.numel() == 12 * MIB


def test_what_was_just_freed_is_room_at_once(memory: Memory) -> None:
    # Two of them don't fit, and freeing is the agent's work: it must not lose to the next request.
    for turn in range(40):
        assert memory.empty(12 * MIB, tag=f"tag{turn % 2}").numel() == 12 * MIB


def test_room_is_made_by_an_idle_tag(memory: Memory) -> None:
    first = memory.empty(12 * MIB, tag="first")
    first.fill_(5)
    memory.pause("first")
    second = memory.empty(12 * MIB, tag="second", contents="drop")
    second.fill_(6)
    assert tag_of(memory, "first").state == "partial"
    with pytest.raises(OutOfDeviceMemory):
        memory.resume("first", timeout=0)
    memory.pause("second")
    assert memory.resume("first") == {"first": False}
    assert first.eq(5).all()


def test_contents_without_a_place_refuse_the_pause(
    start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker(host_budget="4MiB")
    monkeypatch.setenv("VRAMBROKER_RUN_DIR", str(broker.run_dir))
    with connect("worker") as memory:
        tensor = memory.empty(4 * MIB, tag="a")
        tensor.fill_(1)
        with pytest.raises(OutOfHostMemory):
            memory.pause("a", release=True)
        assert tensor.eq(1).all()
        assert tag_of(memory, "a").state == "resident"


def test_a_use_scope_refuses_a_pause_from_inside(memory: Memory) -> None:
    tensor = memory.empty(4, tag="a")
    with memory.use("a", name="forward"):
        with pytest.raises(NotQuiescent) as caught:
            memory.pause("a")
        assert "forward" in caught.value.message
        with memory.use("a", name="inner"), memory.use("a"):
            pass
    memory.pause("a")
    with pytest.raises(WrongState), memory.use("a"):
        pass
    memory.resume("a")
    with memory.use():
        tensor.fill_(1)


def test_a_scope_ends_with_an_exception(memory: Memory) -> None:
    kept = memory.empty(4, tag="a")
    with pytest.raises(ZeroDivisionError), memory.use("a"):
        raise ZeroDivisionError
    memory.pause("a")
    memory.resume("a")
    assert kept.numel() == 4


def test_a_pause_from_outside_waits_for_the_scope(memory: Memory, control: Control) -> None:
    tensor = memory.empty(MIB, tag="a")
    with ThreadPoolExecutor(1) as pool:
        with memory.use("a", name="generate"):
            with pytest.raises(NotQuiescent) as caught:
                control.pause("worker", ["a"], timeout_s=0.2)
            assert caught.value.scope == "generate"
            waiting = pool.submit(control.pause, "worker", ["a"], timeout_s=20)
            tensor.fill_(3)
            assert not waiting.done()
        assert len(waiting.result(timeout=20)) == 1
    with pytest.raises(WrongState), memory.use("a"):
        pass
    assert control.resume("worker", ["a"]) == {"a": True}
    assert tag_of(memory, "a").state == "resident"
    memory.resume("a")  # changes nothing; but the daemon's word to our agent is ahead of this answer
    with memory.use("a"):
        assert tensor.eq(3).all()


def test_a_session_without_scopes_is_never_paused_from_outside(memory: Memory, control: Control) -> None:
    tensor = memory.empty(4, tag="a")
    with pytest.raises(NotQuiescent):
        control.pause("worker", ["a"], timeout_s=5)
    tensor.fill_(1)
    assert tag_of(memory, "a").state == "resident"


def test_scopes_of_many_threads(memory: Memory) -> None:
    tensor = memory.empty(1000, tag="a")
    together = threading.Barrier(4, timeout=20)

    def work(number: int) -> bool:
        with memory.use("a", name=f"thread{number}"):
            together.wait()
            tensor[number] = number
            with pytest.raises(NotQuiescent):
                memory.pause("a")
            together.wait()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4), timeout=60))
    memory.pause("a")
    memory.resume("a")
    assert tensor[:4].tolist() == [0, 1, 2, 3]


def test_marks_reach_the_stream(memory: Memory, control: Control) -> None:
    memory.mark("update")
    assert "update" in [event.why for event in control.watch(history=True, until_now=True) if event.kind == "marked"]


def train(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(model(torch.randn(16, 32)).square().mean())
        optimizer.step()


def test_a_model_trained_in_a_region_survives_leaving(memory: Memory) -> None:
    plain, plain_optimizer = train(3)
    with memory.region("trainer"):
        model, optimizer = train(3)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    torch.manual_seed(5)
    go_on(plain, plain_optimizer, 2)
    memory.pause("trainer", release=True)
    memory.resume("trainer")
    torch.manual_seed(5)
    go_on(model, optimizer, 2)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_regions_under_several_tags(memory: Memory) -> None:
    with memory.region("outer"):
        one = torch.ones(MIB)
        with memory.region("inner", "drop"):
            two = torch.ones(MIB)
        three = torch.ones(MIB)
    assert tag_of(memory, "outer").device_bytes >= 8 * MIB
    memory.pause("inner")  # what it was lent to spare goes back
    assert 4 * MIB <= tag_of(memory, "inner").device_bytes < 8 * MIB
    memory.pause("inner", release=True)
    assert (one + three).eq(2).all()
    memory.resume("inner")
    assert two.numel() == MIB


def test_one_process_on_two_devices(start_broker: "StartBroker", monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = [start_broker(), start_broker()]
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(brokers[0].run_dir))
    with connect("both", brokers[0].device) as first, connect("both", brokers[1].device) as second:
        with first.region("weights"):
            one = torch.ones(MIB)
            with second.region("weights"):
                two = torch.ones(MIB)
        for memory in (first, second):
            assert 4 * MIB <= memory.stats().allocated_bytes < 8 * MIB
        first.pause("weights", release=True)
        assert first.status().device.lent_bytes == 0
        assert second.status().device.lent_bytes >= 4 * MIB
        assert two.eq(1).all()
        assert first.resume("weights") == {"weights": False}
        assert torch.equal(one, two)


def test_a_region_is_a_decorator_too(memory: Memory) -> None:
    @memory.region("made")
    def make() -> torch.Tensor:
        return torch.ones(MIB)

    first, second = make(), make()
    assert tag_of(memory, "made").device_bytes >= 8 * MIB
    assert first.data_ptr() != second.data_ptr()


def test_no_room_in_a_region_raises_and_the_process_goes_on(memory: Memory) -> None:
    with memory.region("a", timeout=0):
        with pytest.raises((OutOfDeviceMemory, InvalidArgument)):
            torch.zeros(40 * MIB)
        small = torch.ones(10)
    assert small.sum() == 10


def test_placing_a_module(memory: Memory) -> None:
    model, optimizer = train(2)
    held = dict(model.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in held.items()}
    assert memory.place(model, "params") is model
    memory.pause("params", release=True)
    memory.resume("params")
    for name, parameter in model.named_parameters():
        assert parameter is held[name]
        assert torch.equal(parameter, values[name])
    go_on(model, optimizer, 1)


def test_placing_moves_nothing_without_room(memory: Memory) -> None:
    small, large = torch.ones(10), torch.ones(20 * MIB)
    addresses = [small.data_ptr(), large.data_ptr()]
    with pytest.raises((OutOfDeviceMemory, InvalidArgument)):
        memory.place([small, large], "a", timeout=0)
    assert [small.data_ptr(), large.data_ptr()] == addresses
    assert memory.stats().allocated_bytes == 0


def test_tensors_outlive_close(broker: "RunningBroker", control: Control, wait_for: "WaitFor") -> None:
    with connect("worker", broker.device) as memory:
        tensor = memory.empty(MIB, tag="a")
        tensor.fill_(4)
    assert tensor.eq(4).all()
    assert control.status().session("worker") is not None
    del tensor
    wait_for(control, lambda: control.status().session("worker") is None)
    assert control.status().device.lent_bytes == 0


def test_a_name_that_is_taken_gets_a_number(broker: "RunningBroker") -> None:
    with connect("worker", broker.device) as first:
        tensor = first.empty(4, tag="a")
    with connect("worker", broker.device) as second:
        assert second.name != "worker"
        assert second.name.startswith("worker")
        assert tensor.numel() == 4


def test_threads_allocate_free_and_pause_at_once(memory: Memory) -> None:
    def work(number: int) -> int:
        tag = f"thread{number}"
        for turn in range(15):
            tensors = [memory.empty(1000 * (1 + turn), tag=tag) for _ in range(4)]
            for tensor in tensors:
                tensor.fill_(turn)
            memory.pause(tag, release=turn % 3 == 0)
            memory.resume(tag)
            assert all(tensor.eq(turn).all() for tensor in tensors)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4), timeout=90)) == [0, 1, 2, 3]


@pytest.mark.parametrize("contents", ["keep", "drop", "zero"])
def test_every_policy_round_trips_in_a_region(memory: Memory, contents: Literal["keep", "drop", "zero"]) -> None:
    with memory.region("a", contents):
        tensor = torch.full((MIB,), 6)
    assert tensor.eq(6).all()
    memory.pause("a", release=True)
    memory.resume("a")
    if contents == "keep":
        assert tensor.eq(6).all()
    if contents == "zero":
        assert tensor.eq(0).all()


ODD_SHAPES: tuple[object, ...] = (
    (2**62, 4),
    (2**33, 2**33),
    2**64 + 8,
    pytest.param(10**5000, id="endless"),
    (0, 2**64),
    (-1,),
    (True,),
    True,
    2.5,
    (2, None),
    ("a",),
)


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_what_is_no_shape_is_refused_and_leases_nothing(shape: Any, lasting: Memory) -> None:
    with pytest.raises(InvalidArgument) as raised:
        lasting.empty(shape, tag="odd")
    assert raised.value.argument == "shape"
    assert lasting.stats().allocations == 0


@pytest.mark.parametrize("dtype", [float, "float32", 3], ids=str)
def test_what_is_no_type_is_refused(dtype: Any, lasting: Memory) -> None:
    with pytest.raises(InvalidArgument) as raised:
        lasting.empty(4, dtype=dtype, tag="odd")
    assert raised.value.argument == "dtype"


def test_what_has_no_end_or_no_version_is_not_placed(memory: Memory) -> None:
    endless: list[Any] = [torch.ones(3)]
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="nested"):
        memory.place(endless, "odd")
    with torch.inference_mode():
        frozen = torch.ones(3)
    with pytest.raises(InvalidArgument, match="can't be placed"):
        memory.place(frozen, "odd")
    assert memory.stats().allocations == 0


def test_no_pause_from_outside_takes_memory_that_is_being_filled(
    memory: Memory, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []

    def pausing_first(name: str, fill: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            with pytest.raises(NotQuiescent, match="new memory being filled"):
                control.pause(memory.name, ["a"], release=True, timeout_s=0.2)
            filled.append(name)
            return fill(*arguments)

        return act

    memory.empty(4, tag="a", contents="zero")
    with memory.use("a"):
        pass
    monkeypatch.setattr(ctypes, "memset", pausing_first("memset", ctypes.memset))
    assert memory.empty(MIB, tag="a", contents="zero").count_nonzero() == 0
    monkeypatch.setattr(placing, "tensor_over", pausing_first("move", leased_tensors.tensor_over))
    assert memory.place(torch.ones(MIB), "a").sum() == MIB
    monkeypatch.undo()
    copy = torch.UntypedStorage.copy_

    def copy_after_a_pause(*given: Any) -> Any:
        return pausing_first("copy", copy)(*given)

    monkeypatch.setattr(torch.UntypedStorage, "copy_", copy_after_a_pause)
    with memory.region("a"):
        assert torch.ones(MIB).sum() == MIB
    monkeypatch.undo()
    assert filled[:2] == ["memset", "move"]
    assert "copy" in filled
    control.pause(memory.name, ["a"], release=True)


def test_filling_memory_is_no_use_scope(memory: Memory, control: Control) -> None:
    memory.empty(4, tag="a", contents="zero")
    with pytest.raises(NotQuiescent, match="has no scopes"):
        control.pause(memory.name, ["a"])
