"""Tensors over leased memory: a `DLManagedTensor` of the native client becomes a storage that frees itself natively."""

import ctypes
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch.utils.dlpack import from_dlpack

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.native import Lease

# DLPack's name for a capsule that nobody has consumed; PyCapsule_New keeps the pointer, so the bytes live as long as we
# do.
_CAPSULE_NAME = b"dltensor"

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_new.restype = ctypes.py_object

BYTES_MAX = (1 << 63) - 1
ITEM_BYTES_MAX = 16
CPU = torch.device("cpu")

Allocate = Callable[[int], torch.UntypedStorage]
"""Return a storage of so many bytes in leased memory, or raise a `BrokerError`."""


def leased_storage(lease: Lease, size_bytes: int, *, timeout_s: float) -> torch.UntypedStorage:
    """Allocate `size_bytes` > 0 from the lease, as a storage that can't be resized.

    Contents: whatever the memory held; zero under `zero`. Ownership: torch's; it is freed natively, in any state of the
    lease, by the thread that drops the last reference. Raises what the native client answers.
    """
    if lease.contents != "zero":
        return _storage(lease, size_bytes, timeout_s)
    with lease.filling():
        storage = _storage(lease, size_bytes, timeout_s)
        # Carved from a frame that held another allocation of this range, it may be anything.
        ctypes.memset(storage.data_ptr(), 0, size_bytes)
    return storage


def _storage(lease: Lease, size_bytes: int, timeout_s: float) -> torch.UntypedStorage:
    return consumed(lease.byte_tensor(size_bytes, timeout_s=timeout_s)).untyped_storage()


def consumed(managed: int) -> torch.Tensor:
    """Return the tensor of a `DLManagedTensor` at this address, which is its from now on, also if it raises."""
    try:
        tensor: torch.Tensor = from_dlpack(_capsule_new(managed, _CAPSULE_NAME, None))
    except BaseException:
        _delete(managed)
        raise
    return tensor


def tensor_over(
    storage: torch.UntypedStorage, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int], offset: int = 0
) -> torch.Tensor:
    """Return a tensor that is no view of another, over a storage; `stride` and `offset` count elements."""
    with torch.no_grad():
        nothing = torch.empty(0, dtype=dtype, device=storage.device)
        return nothing.set_(storage, offset, tuple(shape), tuple(stride))


def empty(allocate: Allocate, shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
    """Return an uninitialised contiguous tensor; one without elements has no memory, leased or other.

    Raises `InvalidArgument` for sizes that are no counts, or more than any device has, and for what is no type or a
    quantised one; else what `allocate` raises.
    """
    _check_type(dtype)
    shape = _counts(shape)
    if dtype in _QUANTISED:
        raise InvalidArgument(message=f"{dtype}: quantised tensors can't be leased", argument="dtype")
    elements = math.prod(shape)
    if elements == 0:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return tensor_over(allocate(elements * dtype.itemsize), dtype, shape, stride)


def _check_type(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgument(message=f"dtype {dtype!r}: expected a torch.dtype", argument="dtype")


def _counts(shape: Sequence[object]) -> tuple[int, ...]:
    """Return the sizes as integers, if that is what they are. torch counts bytes in 63 bits."""
    try:
        counts = [operator.index(size) for size in shape if not isinstance(size, bool)]  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError:
        counts = []
    if len(counts) < len(shape):
        raise _no_shape(shape, "sizes are integers")
    if any(size < 0 for size in counts):
        raise _no_shape(shape, "sizes can't be negative")
    if math.prod(max(size, 1) for size in counts) * ITEM_BYTES_MAX > BYTES_MAX:
        raise _no_shape(shape, "no device has so much memory")
    return tuple(counts)


def _no_shape(shape: Sequence[object], why: str) -> InvalidArgument:
    try:
        shown = str(tuple(shape))[:100]
    except ValueError:
        # Python does not write integers of thousands of digits.
        shown = "of sizes beyond all bounds"
    return InvalidArgument(message=f"shape {shown}: {why}", argument="shape")


def is_plain(tensor: torch.Tensor, device: torch.device = CPU) -> bool:
    """Whether the tensor is strided, on such a device and over a storage: what can be moved by copying its bytes."""
    return (
        tensor.layout is torch.strided
        and tensor.device == device
        and not tensor.is_quantized
        and not tensor.is_nested
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not _has_zeros_only(tensor)
        and _dispatches_plainly(type(tensor))
    )


def _has_zeros_only(tensor: torch.Tensor) -> bool:
    # A gradient of nothing but zeroes may be a tensor without memory ("efficient zero tensor"), on the CPU and strided.
    ask: Callable[[], bool] = getattr(tensor, "_is_zerotensor")  # noqa: B009 (torch does not type it)
    return ask()


def _dispatches_plainly(kind: type) -> bool:
    # FakeTensor, DTensor and their like are wrappers: what they call their storage is not where their data is.
    return getattr(kind, "__torch_dispatch__", None) is _PLAIN_DISPATCH


_PLAIN_DISPATCH: object = getattr(torch.Tensor, "__torch_dispatch__", None)
_QUANTISED = frozenset((torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4))


class _Managed(ctypes.Structure):
    """The end of DLPack's `DLManagedTensor` (0.x): `DLTensor dl_tensor; void *manager_ctx; void (*deleter)(self *)`."""

    class _DLTensor(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p),
            ("device_type", ctypes.c_int32),
            ("device_id", ctypes.c_int32),
            ("ndim", ctypes.c_int32),
            ("dtype_code", ctypes.c_uint8),
            ("dtype_bits", ctypes.c_uint8),
            ("dtype_lanes", ctypes.c_uint16),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("byte_offset", ctypes.c_uint64),
        )

    _fields_ = (("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def _delete(managed: int) -> None:
    deleter: int = _Managed.from_address(managed).deleter
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(managed)
