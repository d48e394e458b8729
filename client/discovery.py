"""Where the broker of a device is: run directories, their device folders, and the two sockets in each.

A daemon keeps `RUN_DIR/<device id>/handles.sock` and `rpc.sock`. The run directory is `VRAMBROKER_RUN_DIR` if set, else
`/run/vrambroker`, else `$XDG_RUNTIME_DIR/vrambroker`; without the variable both of the latter are searched, in this
order.
"""

import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrambroker.broker.core.errors import BrokerUnavailable, InvalidArgument

NUMBER_DIGITS_MAX = 18
RUN_DIR_VARIABLE = "VRAMBROKER_RUN_DIR"
DEVICE_VARIABLE = "VRAMBROKER_DEVICE"
HANDLE_SOCKET = "handles.sock"
RPC_SOCKET = "rpc.sock"
SYSTEM_RUN_DIR = Path("/run/vrambroker")

# As the driver spells the UUIDs of GPUs, and of parts of one (MIG).
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]{1,64}")
_BARE_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# sun_path has 108 bytes, the closing zero included (unix(7)).
_SOCKET_PATH_BYTES_MAX = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The broker of one device, as its files name it; nothing says that a daemon is alive behind them."""

    device: str
    directory: Path

    @property
    def handle_socket(self) -> Path:
        return self.directory / HANDLE_SOCKET

    @property
    def rpc_socket(self) -> Path:
        return self.directory / RPC_SOCKET


def run_dirs() -> tuple[Path, ...]:
    """Return the run directories to search, most telling first."""
    named = os.environ.get(RUN_DIR_VARIABLE)
    if named:
        # Absolute, since a worker that changes its directory must find its daemon again.
        return (Path(named).absolute(),)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if not session:
        return (SYSTEM_RUN_DIR,)
    return (SYSTEM_RUN_DIR, Path(session).absolute() / "vrambroker")


def endpoints() -> tuple[Endpoint, ...]:
    """Return every device that has a handle socket, one entry a device, sorted by name within a directory."""
    found: dict[str, Endpoint] = {}
    for directory in run_dirs():
        for folder in _folders(directory):
            if _has_socket(folder):
                found.setdefault(folder.name, Endpoint(device=folder.name, directory=folder))
    return tuple(found.values())


def find(device: str | None = None) -> Endpoint:
    """Return the broker of `device`: `host` (= `host:0`), `host:N`, `cuda`, `cuda:N` or the UUID of a GPU or a part of one.

    None means what VRAMBROKER_DEVICE says, else the only one there; if there are several, that of torch's current CUDA
    device.
    Raises `BrokerUnavailable` if there is none, `InvalidArgument` if `device` can't be one or None is ambiguous.
    """
    known = endpoints()
    if device is None:
        device = os.environ.get(DEVICE_VARIABLE) or None
    if device is None:
        return _only(known)
    wanted = device_id(device)
    for endpoint in known:
        if _is_same(endpoint.device, wanted):
            return _reachable(endpoint)
    raise _unavailable(wanted, known)


def device_id(device: object) -> str:
    """Return the id, which is also the folder's name, of a device as people call it.

    Raises `InvalidArgument` for what can't be a device, and for `cuda:N` where torch sees no such GPU.
    """
    if not isinstance(device, str):
        raise _no_device(device)
    if is_host(device):
        number = "0" if device == "host" else device.removeprefix("host:")
        if not (number.isascii() and number.isdecimal() and len(number) <= NUMBER_DIGITS_MAX):
            raise _no_device(device)
        return f"host:{int(number)}"
    if device == "cuda" or device.startswith("cuda:"):
        return _cuda_uuid(device)
    if _BARE_UUID.fullmatch(device):
        return f"GPU-{device}"
    if not _UUID.fullmatch(device):
        raise _no_device(device)
    return device


def _is_same(one: str, other: str) -> bool:
    """Whether two ids mean the same device. torch does not know whether a UUID is a GPU's or that of a part of one."""
    return one == other or (_UUID.fullmatch(one) is not None and _digits(one) == _digits(other))


def _digits(uuid: str) -> str:
    return uuid.partition("-")[2].lower()


def is_host(device_id: str) -> bool:
    """Whether a device's id is that of a stand-in without a GPU."""
    return device_id == "host" or device_id.startswith("host:")


def unreachable(endpoint: Endpoint, why: str) -> BrokerUnavailable:
    """Return the error for a daemon whose sockets are there but which does not answer."""
    advice = f"start one with `broker serve --device {endpoint.device}`"
    if not os.access(endpoint.handle_socket, os.W_OK) and endpoint.handle_socket.exists():
        advice = "only the daemon's own user, root and the socket's group may connect"
    return BrokerUnavailable(
        message=f"no broker answers at {endpoint.handle_socket} ({why}): {advice}",
        path=str(endpoint.handle_socket),
    )


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir())
    except OSError:
        return []


def _has_socket(folder: Path) -> bool:
    try:
        return stat.S_ISSOCK((folder / HANDLE_SOCKET).stat().st_mode)
    except OSError:
        return False


def _only(known: tuple[Endpoint, ...]) -> Endpoint:
    if len(known) == 1:
        return _reachable(known[0])
    if not known:
        raise _unavailable("any device", known)
    current = _current_cuda_uuid()
    for endpoint in known:
        if current is not None and _is_same(endpoint.device, current):
            return _reachable(endpoint)
    names = ", ".join(endpoint.device for endpoint in known)
    raise InvalidArgument(message=f"there are several brokers here ({names}): name one with device=", argument="device")


def _reachable(endpoint: Endpoint) -> Endpoint:
    path = str(endpoint.handle_socket)
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
        raise InvalidArgument(
            message=f"the socket's path has more than {_SOCKET_PATH_BYTES_MAX} bytes: {path}; "
            "choose a shorter run directory",
            argument=RUN_DIR_VARIABLE,
        )
    return endpoint


def _unavailable(wanted: str, known: tuple[Endpoint, ...]) -> BrokerUnavailable:
    where = " or ".join(f"{directory}{_closed(directory)}" for directory in run_dirs())
    there = f" (there is one for {', '.join(endpoint.device for endpoint in known)})" if known else ""
    start = wanted if known or wanted != "any device" else "host"
    return BrokerUnavailable(
        message=f"no broker for {wanted} at {where}{there}: start one with `broker serve --device {start}`, "
        f"or name its run directory in {RUN_DIR_VARIABLE}",
        path=where,
    )


def _closed(directory: Path) -> str:
    """Return what to say of a folder that is there and can't be looked into: a daemon may be in it all the same."""
    try:
        next(directory.iterdir(), None)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f" ({error.strerror})"
    return ""


def _no_device(what: object) -> InvalidArgument:
    shown = what[:64] if isinstance(what, str) else what
    return InvalidArgument(
        message=f"{shown!r} is no device: expected host, host:N, cuda, cuda:N or a GPU's UUID (GPU-…)",
        argument="device",
    )


def _cuda_uuid(device: str) -> str:
    number = device.partition(":")[2]
    if number and not (number.isascii() and number.isdecimal() and len(number) <= NUMBER_DIGITS_MAX):
        raise _no_device(device)
    try:
        import torch
    except ImportError:
        there = ", ".join(endpoint.device for endpoint in endpoints()) or "none"
        raise InvalidArgument(
            message=f"{device}: torch, which counts GPUs for this process, is not installed; name the GPU's UUID "
            f"(brokers there are: {there})",
            argument="device",
        ) from None
    if not torch.cuda.is_available():
        raise InvalidArgument(message=f"{device}: torch sees no GPU in this process", argument="device")
    index = int(number) if number else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise InvalidArgument(
            message=f"{device}: torch sees {torch.cuda.device_count()} GPUs in this process", argument="device"
        )
    return gpu_name(index)


def gpu_name(index: int) -> str:
    """Return the UUID, as `GPU-…`, of torch's GPU of this number."""
    import torch

    ask: Callable[[int], Any] = getattr(torch.cuda, "get_device_properties")  # noqa: B009 (torch does not type it)
    return f"GPU-{ask(index).uuid}"


def _current_cuda_uuid() -> str | None:
    # Only a process that already uses CUDA has a current device; asking would otherwise create a context.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return _cuda_uuid("cuda")
