"""Regions and placing over memory that is not torch's own, without a broker: which storages move, and which don't."""

# torch leaves many of its signatures half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
import io
import threading
import warnings
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from vrambroker.broker.core.errors import InvalidArgument, OutOfDeviceMemory
from vrambroker.client import placing, tensors
from vrambroker.client.torch_host import RegionMode


class Range:
    """A stand-in for a lease: foreign memory that torch can't resize, with books."""

    def __init__(self, capacity_bytes: int = 1 << 30) -> None:
        self.storages: list[torch.UntypedStorage] = []
        self.capacity_bytes = capacity_bytes

    def __call__(self, size_bytes: int) -> torch.UntypedStorage:
        if self.used_bytes + size_bytes > self.capacity_bytes:
            raise OutOfDeviceMemory(message="full", requested_bytes=size_bytes)
        storage = torch.frombuffer(bytearray(size_bytes), dtype=torch.uint8).untyped_storage()
        self.storages.append(storage)
        return storage

    @property
    def used_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages)

    def has(self, tensor: torch.Tensor) -> bool:
        return any(storage.data_ptr() == tensor.untyped_storage().data_ptr() for storage in self.storages)


FACTORIES: dict[str, Callable[[], torch.Tensor]] = {
    "empty": lambda: torch.empty(3, 4),
    "zeros": lambda: torch.zeros(3),
    "ones_like": lambda: torch.ones_like(torch.zeros(2)),
    "full": lambda: torch.full((2, 2), 7),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "as_tensor": lambda: torch.as_tensor([1, 2]),
    "asarray": lambda: torch.asarray([1, 2]),
    "legacy": lambda: torch.FloatTensor(3, 4),
    "rand": lambda: torch.rand(5),
    "randperm": lambda: torch.randperm(9),
    "arange": lambda: torch.arange(4),
    "eye": lambda: torch.eye(3),
    "strided": lambda: torch.empty_strided((2, 3), (1, 2)),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "bool": lambda: torch.zeros(2, dtype=torch.bool),
    "scalar": lambda: torch.scalar_tensor(3.0),
    "new_zeros": lambda: torch.zeros(1).new_zeros(8),
    "parameter": lambda: nn.Parameter(torch.randn(4)),
    "resized": lambda: torch.empty(0).resize_(6),
    "cat": lambda: torch.cat([torch.zeros(2), torch.ones(2)]),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_what_a_factory_makes_is_in_the_region(name: str) -> None:
    lease = Range()
    with RegionMode(lease):
        made = FACTORIES[name]()
    assert lease.has(made)


def test_values_survive_the_move() -> None:
    torch.manual_seed(7)
    plain = torch.randn(100, 3)
    torch.manual_seed(7)
    with RegionMode(Range()):
        leased = torch.randn(100, 3)
    assert torch.equal(plain, leased)


def test_a_module_and_a_training_step_are_in_the_region() -> None:
    lease = Range()
    with RegionMode(lease):
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
    assert lease.has(loss)
    for parameter in model.parameters():
        assert isinstance(parameter, nn.Parameter)
        assert lease.has(parameter)
        assert parameter.grad is not None
        assert lease.has(parameter.grad)
        assert lease.has(optimizer.state[parameter]["exp_avg"])


def test_a_region_computes_what_plain_memory_computes() -> None:
    def train(steps: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(7, 6)).logsumexp(dim=1).sum().backward()
            optimizer.step()
        return [*model.parameters(), *model.buffers()]

    plain = train(4)
    with RegionMode(Range()):
        leased = train(4)
    assert all(torch.equal(one, other) for one, other in zip(plain, leased, strict=True))


def test_views_and_in_place_results_stay_where_their_base_is() -> None:
    outside = torch.arange(12.0)
    lease = Range()
    with RegionMode(lease):
        view = outside.view(3, 4)[1:]
        outside.add_(1)
        torch.add(outside, 1, out=outside)
        outside.detach().mul_(2)
    assert not lease.storages
    assert view.untyped_storage().data_ptr() == outside.untyped_storage().data_ptr()


def test_views_of_leased_memory_share_it() -> None:
    lease = Range()
    with RegionMode(lease):
        base = torch.zeros(8)
        view = base.view(2, 4)
        parts = torch.split(base, 4)
    assert all(lease.has(tensor) for tensor in (base, view, *parts))
    base.fill_(3)
    assert view.sum() == 24
    assert parts[1].sum() == 12


def test_out_of_an_empty_tensor_is_new_memory() -> None:
    lease = Range()
    target = torch.empty(0)
    with RegionMode(lease):
        torch.add(torch.ones(5), 1, out=target)
    assert lease.has(target)
    assert target.tolist() == [2] * 5


def test_nothing_is_leased_for_tensors_without_elements() -> None:
    lease = Range()
    with RegionMode(lease):
        empty = torch.empty(0, 5)
    assert not lease.storages
    assert empty.shape == (0, 5)


def test_outputs_that_share_a_storage_go_on_sharing_it() -> None:
    def operator() -> list[torch.Tensor]:
        base = torch.arange(8.0)
        return [base, base[4:], base.view(2, 4)]

    lease = Range()
    made: list[torch.Tensor] = RegionMode(lease).__torch_dispatch__(operator, ())
    assert len(lease.storages) == 1
    assert all(lease.has(tensor) for tensor in made)
    made[0].fill_(3)
    assert made[1].eq(3).all()
    assert made[2].eq(3).all()


def test_numpy_memory_stays_numpys() -> None:
    array = numpy.zeros(4)
    lease = Range()
    with RegionMode(lease):
        shared = [torch.from_numpy(array), torch.as_tensor(array), torch.asarray(array)]
    array[:] = 5
    assert all(tensor.eq(5).all() for tensor in shared)
    assert not lease.storages


def test_what_has_no_plain_memory_is_left_alone() -> None:
    lease = Range()
    with RegionMode(lease):
        meta = torch.empty(4, device="meta")
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (3,), check_invariants=True).coalesce()
    assert meta.device.type == "meta"
    assert sparse.to_dense().tolist() == [1, 1, 0]


def test_a_gradient_of_zeroes_without_memory_is_left_alone() -> None:
    given = torch.ones(3, requires_grad=True)
    with RegionMode(Range()):
        (gradient,) = torch.autograd.grad(torch.sgn(given).sum(), given)
    assert gradient.eq(0).all()
    with pytest.raises(InvalidArgument, match="no plain strided memory"):
        placing.place(gradient, Range(), grads=False)


def test_quantised_tensors_are_left_alone() -> None:
    lease = Range()
    source = torch.tensor([0.5, 1.5])
    with RegionMode(lease), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(source, 0.5, 0, torch.qint8)
    assert not lease.has(quantised)
    assert quantised.dequantize().tolist() == [0.5, 1.5]


def test_fake_tensors_are_left_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    lease = Range()
    with FakeTensorMode(), RegionMode(lease):
        fake = torch.empty(10)
    assert not lease.storages
    assert type(fake).__name__ == "FakeTensor"


def test_memory_from_elsewhere_is_left_alone() -> None:
    raw = bytearray(16)
    stream = io.BytesIO()
    torch.save(torch.ones(3), stream)
    stream.seek(0)
    lease = Range()
    with RegionMode(lease):
        shared = torch.frombuffer(raw, dtype=torch.uint8)
        loaded = torch.load(stream)
    shared.fill_(9)
    assert raw == bytearray([9] * 16)
    assert loaded.tolist() == [1, 1, 1]
    assert not lease.has(loaded)


def test_a_parameter_copied_deeply_is_in_the_region() -> None:
    parameter = nn.Parameter(torch.ones(3))
    lease = Range()
    with RegionMode(lease):
        copied = copy.deepcopy(parameter)
    assert lease.has(copied)
    assert isinstance(copied, nn.Parameter)


def test_the_inner_region_wins_and_the_outer_comes_back() -> None:
    outer, inner = Range(), Range()
    with RegionMode(outer):
        before = torch.zeros(2)
        with RegionMode(inner):
            within = torch.zeros(2)
            mixed = before + within
        after = torch.zeros(2)
    assert outer.has(before)
    assert outer.has(after)
    assert inner.has(within)
    assert inner.has(mixed)
    assert len(outer.storages) == 2


def test_a_region_ends_with_an_exception() -> None:
    lease = Range()
    with pytest.raises(ZeroDivisionError), RegionMode(lease):
        torch.zeros(2)
        raise ZeroDivisionError
    made = len(lease.storages)
    torch.zeros(2)
    assert len(lease.storages) == made == 1


def test_another_thread_allocates_as_ever() -> None:
    lease = Range()
    found: list[torch.Tensor] = []
    with RegionMode(lease):
        thread = threading.Thread(target=lambda: found.append(torch.zeros(4)))
        thread.start()
        thread.join(timeout=10)
    assert found
    assert not lease.has(found[0])


def test_two_threads_have_a_region_each() -> None:
    leases = [Range(), Range()]
    made: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    together = threading.Barrier(2, timeout=10)

    def work(number: int) -> None:
        with RegionMode(leases[number]):
            together.wait()
            made[number].extend(torch.full((8,), number) for _ in range(50))
            together.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    for number in (0, 1):
        assert len(made[number]) == 50
        assert all(leases[number].has(tensor) for tensor in made[number])


def test_no_room_raises_and_the_region_goes_on() -> None:
    lease = Range(capacity_bytes=100)
    with RegionMode(lease):
        with pytest.raises(OutOfDeviceMemory):
            torch.zeros(1000)
        small = torch.zeros(4)
    assert lease.has(small)


def test_inference_and_no_grad() -> None:
    lease = Range()
    with RegionMode(lease), torch.inference_mode():
        inferred = torch.ones(3) * 2
    with RegionMode(lease), torch.no_grad():
        plain = torch.ones(3) * 3
    assert lease.has(inferred)
    assert lease.has(plain)


def test_deterministic_fill_is_kept() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with RegionMode(Range()):
            filled = torch.empty(4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.isnan(filled).all()


def test_checkpointed_backward_is_in_the_region() -> None:
    from torch.utils.checkpoint import checkpoint

    lease = Range()
    with RegionMode(lease):
        layer = nn.Linear(4, 4)
        result = checkpoint(layer, torch.randn(2, 4, requires_grad=True), use_reentrant=False)
        assert isinstance(result, torch.Tensor)
        torch.autograd.backward(result.sum())
    assert layer.weight.grad is not None
    assert lease.has(layer.weight.grad)


class Tied(nn.Module):
    """Two layers with one weight, and two buffers that overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4)
        flat = torch.arange(20.0)
        self.register_buffer("head", flat[:8].view(2, 4).t())
        self.register_buffer("tail", flat[4:], persistent=False)

    def held(self) -> dict[str, torch.Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}


def test_placing_moves_a_module_and_keeps_everything_else() -> None:
    model, lease = Tied(), Range()
    model.one.bias.requires_grad_(False)
    held = model.held()
    values = {name: tensor.detach().clone() for name, tensor in held.items()}
    shapes = {name: (tensor.stride(), tensor.storage_offset(), tensor.requires_grad) for name, tensor in held.items()}
    placing.place(model, lease, grads=False)
    now = model.held()
    for name, tensor in held.items():
        assert now[name] is tensor
        assert lease.has(tensor), name
        assert torch.equal(tensor, values[name])
        assert (tensor.stride(), tensor.storage_offset(), tensor.requires_grad) == shapes[name]
    assert model.two.weight is model.one.weight
    model.get_buffer("head").fill_(-1)
    assert model.get_buffer("tail")[:4].tolist() == [-1] * 4
    assert len(lease.storages) == len({tensor.untyped_storage().data_ptr() for tensor in held.values()})


def test_placing_gradients_only_if_asked() -> None:
    for grads in (False, True):
        layer, lease = nn.Linear(3, 3), Range()
        layer(torch.ones(3)).sum().backward()
        gradient = layer.weight.grad
        assert gradient is not None
        placing.place(layer, lease, grads=grads)
        assert layer.weight.grad is gradient
        assert lease.has(gradient) is grads


def test_training_goes_on_after_placing() -> None:
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    placing.place(layer, Range(), grads=False)
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_placing_containers_of_tensors() -> None:
    lease = Range()
    one, two, three = torch.ones(2), torch.ones(3), torch.empty(0)
    what: placing.Placeable = {"a": one, "b": [two, (three, one)]}
    placing.place(what, lease, grads=False)
    assert lease.has(one)
    assert lease.has(two)
    assert len(lease.storages) == 2


def test_placing_moves_nothing_if_the_room_ends_half_way() -> None:
    one, two = torch.ones(10), torch.ones(1000)
    addresses = [one.data_ptr(), two.data_ptr()]
    with pytest.raises(OutOfDeviceMemory):
        placing.place([one, two], Range(capacity_bytes=100), grads=False)
    assert [one.data_ptr(), two.data_ptr()] == addresses


@pytest.mark.parametrize(
    "what",
    [
        "text",
        3,
        [torch.ones(2), None],
        {"x": torch.empty(3, device="meta")},
        [torch.ones(2), torch.ones(2, 2).to_sparse()],
        torch.ones(2, dtype=torch.complex64).conj(),
    ],
)
def test_what_cannot_be_placed_is_refused_and_nothing_moves(what: object) -> None:
    lease = Range()
    with pytest.raises(InvalidArgument):
        placing.place(what, lease, grads=False)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert not lease.storages


def test_numpy_twins_of_different_length_go_on_sharing() -> None:
    raw = bytearray(64)
    short = torch.frombuffer(raw, dtype=torch.uint8, count=16)
    long = torch.frombuffer(raw, dtype=torch.uint8)
    placing.place([short, long], Range(), grads=False)
    long.fill_(5)
    assert short.tolist() == [5] * 16
    assert raw == bytearray(64)


def test_empty_has_the_shape_type_and_strides_of_torch_empty() -> None:
    for shape in ((), (3,), (2, 3, 4), (0, 4), (4, 0)):
        leased = tensors.empty(Range(), shape, torch.bfloat16)
        plain = torch.empty(shape, dtype=torch.bfloat16)
        assert leased.shape == plain.shape
        assert leased.dtype == plain.dtype
        assert leased.is_contiguous()
        assert leased.is_leaf
        assert not leased._is_view()
    assert tensors.empty(Range(), (2, 3, 4), torch.float32).stride() == torch.empty(2, 3, 4).stride()


def test_empty_refuses_negative_sizes_and_quantised_types() -> None:
    with pytest.raises(InvalidArgument):
        tensors.empty(Range(), (-1, 2), torch.float32)
    with pytest.raises(InvalidArgument):
        tensors.empty(Range(), (2,), torch.qint8)


def test_an_argument_that_is_resized_stays_with_its_views() -> None:
    lease, known = Range(), torch.zeros(4)
    view = known.view(2, 2)
    with RegionMode(lease):
        known.resize_(1000)
        known[0] = 42
    assert view[0, 0] == 42
    assert not lease.has(known)


def test_what_is_placed_in_inference_mode_still_learns() -> None:
    layer = nn.Linear(4, 4)
    with torch.inference_mode():
        placing.place(layer, Range(), grads=False)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_a_parameter_without_memory_yet_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(4)
    with pytest.raises(InvalidArgument, match="weight has no memory yet"):
        placing.place(lazy, Range(), grads=False)
