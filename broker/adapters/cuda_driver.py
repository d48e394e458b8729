"""One GPU through the CUDA driver, as far as it goes without a context: find it, make memory, export it as an fd.

`cuInit` alone costs 3 MiB of device memory, a context more than 500, so no call here makes one. The driver is reached
through cuda-python (`cuda.bindings.driver`), imported when a GPU is asked for: a daemon of `host` needs neither. It
lets go of the GIL during a call, so a thread that waits for the driver's scrubber does not stop the loop.
"""

import importlib
import os
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from vrambroker.broker.core.errors import DriverFailed, InvalidArgument

_UUID_PREFIXES = ("GPU-", "MIG-")


@dataclass(kw_only=True, eq=False)
class DriverRefused(Exception):
    """A driver answered a call with an error; nothing has changed."""

    call: str
    result: str

    def __str__(self) -> str:
        return f"{self.call}: {self.result}"


class CudaGpu:
    """A device of the driver. Every method may be called from any thread."""

    def __init__(self, device: str) -> None:
        """Open `cuda`, `cuda:N` (as this process counts) or a UUID; raises `InvalidArgument` or `DriverFailed`."""
        self._driver = _bindings()
        try:
            self._ask("cuInit", 0)
            self._ordinal = self._find(device)
            self.uuid = self._uuid_of(self._ordinal)
            self.total_bytes = int(self._ask("cuDeviceTotalMem", self._ordinal))
            self._properties = self._frame_properties()
            self.granularity_bytes = self._granularity_bytes()
        except DriverRefused as refusal:
            raise DriverFailed(
                message=f"device {device!r} can't be served: {refusal}",
                driver_call=refusal.call,
                driver_result=refusal.result,
            ) from refusal

    def make_frame(self, size_bytes: int) -> int:
        """Make memory that reads as zero, and return the fd that alone keeps it; the caller owns the fd.

        Raises `DriverRefused`. Takes microseconds, or as long as the driver needs to scrub what was closed just before.
        """
        kind = self._driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        handle = self._ask("cuMemCreate", size_bytes, self._properties, 0)
        try:
            fd = int(self._ask("cuMemExportToShareableHandle", handle, kind, 0))
        except DriverRefused:
            self._driver.cuMemRelease(handle)
            raise
        try:
            self._ask("cuMemRelease", handle)
        except DriverRefused:
            os.close(fd)
            raise
        os.set_inheritable(fd, False)
        return fd

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Make a call; returns what it returns beside its CUresult."""
        result, *values = getattr(self._driver, call)(*arguments)
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise DriverRefused(call=call, result=str(getattr(result, "name", result)))
        return values[0] if values else None

    def _find(self, device: str) -> int:
        if device == "cuda" or device.startswith("cuda:"):
            return self._find_index(device)
        wanted = parse_uuid(device)
        for index in range(int(self._ask("cuDeviceGetCount"))):
            ordinal = int(self._ask("cuDeviceGet", index))
            if self._uuid_of(ordinal) == wanted:
                return ordinal
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise InvalidArgument(
            message=f"no device {device} is visible here (CUDA_VISIBLE_DEVICES is {visible})", argument="device"
        )

    def _find_index(self, device: str) -> int:
        index = device.removeprefix("cuda").removeprefix(":") or "0"
        count = int(self._ask("cuDeviceGetCount"))
        if not index.isdecimal() or int(index) >= count:
            raise InvalidArgument(message=f"device {device!r}: the driver has {count} here", argument="device")
        return int(self._ask("cuDeviceGet", int(index)))

    def _uuid_of(self, ordinal: int) -> UUID:
        # Before CUDA 13 the name without a suffix means the GPU that a MIG instance is a part of.
        call = "cuDeviceGetUuid_v2" if hasattr(self._driver, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        return UUID(bytes=bytes(self._ask(call, ordinal).bytes))

    def _frame_properties(self) -> Any:
        driver = self._driver
        properties = driver.CUmemAllocationProp()
        properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self._ordinal
        properties.requestedHandleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        # What lies in such memory can be registered with a NIC, where there is one that can.
        rdma = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
        properties.allocFlags.gpuDirectRDMACapable = int(self._ask("cuDeviceGetAttribute", rdma, self._ordinal))
        return properties

    def _granularity_bytes(self) -> int:
        kind = self._driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        return int(self._ask("cuMemGetAllocationGranularity", self._properties, kind))


def parse_uuid(device: str) -> UUID:
    """Return the UUID in `GPU-…`, `MIG-…` or a bare one; raises `InvalidArgument`."""
    digits = device
    for prefix in _UUID_PREFIXES:
        digits = digits.removeprefix(prefix)
    try:
        return UUID(digits)
    except ValueError as error:
        raise InvalidArgument(message=f"device {device!r} is not cuda, cuda:N or a UUID", argument="device") from error


def _bindings() -> Any:
    """Return `cuda.bindings.driver`, whose functions return a tuple that begins with a CUresult."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        # Looks the driver up; its own errors, where the library or a symbol is missing, are RuntimeErrors.
        driver.cuDriverGetVersion()
    except ImportError as error:
        raise DriverFailed(
            message=f"a CUDA device needs the package cuda-bindings ({error}): install with the extra cuda",
            driver_call="import",
            driver_result=str(error),
        ) from error
    except RuntimeError as error:
        raise DriverFailed(
            message=f"the CUDA driver can't be loaded: {error}", driver_call="dlopen", driver_result=str(error)
        ) from error
    return driver
