"""Moving what exists into leased memory: the parameters of a module, or tensors, in place and all or nothing.

The objects stay who they are; what changes is where their bytes lie. The unit that moves is the storage, so tensors
that shared one share the new one, at the same offsets and strides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch.nn.parameter import is_lazy

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.tensors import CPU, Allocate, is_plain, tensor_over

Placeable = torch.nn.Module | torch.Tensor | Mapping[str, "Placeable"] | Sequence["Placeable"]

# A list that contains itself has no end.
NESTED_MAX = 64


@dataclass(slots=True, kw_only=True)
class _Move:
    """One storage, and the tensors among those given that lie in it."""

    old: torch.UntypedStorage
    tensors: list[torch.Tensor] = field(default_factory=list[torch.Tensor])


def place(what: Placeable, allocate: Allocate, *, grads: bool, device: torch.device = CPU) -> None:
    """Move every storage under `what`, all on this device, to memory from `allocate`; see `Memory.place`.

    If anything raises, every tensor is where it was, and what was allocated is free again.
    """
    moves = _plan(_named_tensors(what, "", grads=grads), device)
    # Everything that can fail comes first: until all of the new memory is there and filled, no tensor has changed.
    placed = [(move, allocate(move.old.nbytes())) for move in moves]
    for move, new in placed:
        new.copy_(move.old)
    # What is made in inference mode would make parameters of a kind that never learns.
    with torch.inference_mode(False):
        fresh = [(tensor, _moved(tensor, new)) for move, new in placed for tensor in move.tensors]
        _switch(fresh)


def _plan(named: Iterable[tuple[str, torch.Tensor]], device: torch.device) -> list[_Move]:
    moves: dict[int, _Move] = {}
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if is_lazy(tensor):
            raise InvalidArgument(
                message=f"{name} has no memory yet: run its module once before it is placed", argument=name or "what"
            )
        if tensor.is_inference():
            raise InvalidArgument(
                message=f"{name or 'the tensor'} was made in inference mode, so its memory can't be replaced: it can't "
                "be placed",
                argument=name or "what",
            )
        if not is_plain(tensor, device):
            raise InvalidArgument(
                message=f"{name or 'the tensor'} has no plain strided memory on {device} "
                f"(device {tensor.device}, layout {tensor.layout}, {type(tensor).__name__}): it can't be placed",
                argument=name or "what",
            )
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            continue
        move = moves.setdefault(storage.data_ptr(), _Move(old=storage))
        move.tensors.append(tensor)
        # Memory from outside torch may have several storages that begin at one address: the longest holds them all.
        if storage.nbytes() > move.old.nbytes():
            move.old = storage
    return list(moves.values())


def _named_tensors(what: object, name: str, *, grads: bool) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(what, torch.nn.Module):
        for inner, tensor in (*what.named_parameters(), *what.named_buffers()):
            yield from _with_grad(f"{name}{inner}", tensor, grads=grads)
    elif isinstance(what, torch.Tensor):
        yield from _with_grad(name, what, grads=grads)
    elif name.count("[") > NESTED_MAX:
        raise InvalidArgument(message=f"what is given is nested more than {NESTED_MAX} deep", argument="what")
    elif isinstance(what, Mapping):
        for key, entry in cast(Mapping[object, object], what).items():
            yield from _named_tensors(entry, f"{name}[{key!r}]", grads=grads)
    elif isinstance(what, (list, tuple)):
        for index, entry in enumerate(cast(Sequence[object], what)):
            yield from _named_tensors(entry, f"{name}[{index}]", grads=grads)
    else:
        raise InvalidArgument(
            message=f"{name or 'what'} is {type(what).__name__}: expected a module, a tensor, "
            "or lists, tuples and dicts of them",
            argument=name or "what",
        )


def _with_grad(name: str, tensor: torch.Tensor, *, grads: bool) -> Iterator[tuple[str, torch.Tensor]]:
    yield name, tensor
    # Only a leaf has a gradient of its own; asking another one for it makes torch warn.
    if grads and tensor.is_leaf and tensor.grad is not None:
        yield f"{name}.grad", tensor.grad


def _moved(tensor: torch.Tensor, new: torch.UntypedStorage) -> torch.Tensor:
    return tensor_over(new, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _switch(fresh: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for tensor, there in fresh:
            before.append((tensor, tensor.data))
            tensor.data = there
    except BaseException:
        for tensor, data in before:
            tensor.data = data
        raise
