"""`cuda.bindings.driver` and `pynvml`, as far as the daemon uses them, on a machine without a GPU: books, and refusals."""

import os
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any
from uuid import UUID


class Result(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_DEVICE = 101


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device of the fake driver; its place in the list is its number."""

    uuid: UUID
    rdma: int = 1
    total_bytes: int = 80 << 30


@dataclass
class FakeDriver:
    """The module. `refused` names the calls that fail from now on."""

    gpus: list[Gpu]
    refused: set[str] = field(default_factory=set[str])
    handles: dict[int, int] = field(default_factory=dict[int, int])
    made: list[Any] = field(default_factory=list[Any])
    CUresult = Result
    CUmemAllocationHandleType = SimpleNamespace(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR=1)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED=1)
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED=124)

    def CUmemAllocationProp(self) -> Any:  # noqa: N802  the driver's name, as are all below
        return SimpleNamespace(location=SimpleNamespace(), allocFlags=SimpleNamespace())

    def cuDriverGetVersion(self) -> tuple[Result, int]:  # noqa: N802
        return Result.CUDA_SUCCESS, 13000

    def cuInit(self, _flags: int) -> tuple[Result, ...]:  # noqa: N802
        return self._answer("cuInit")

    def cuDeviceGetCount(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuDeviceGetCount", len(self.gpus))

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuDeviceGet", index)

    def cuDeviceGetUuid_v2(self, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuDeviceGetUuid", SimpleNamespace(bytes=self.gpus[ordinal].uuid.bytes))

    def cuDeviceTotalMem(self, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuDeviceTotalMem", self.gpus[ordinal].total_bytes)

    def cuDeviceGetAttribute(self, attribute: int, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        assert attribute == 124
        return self._answer("cuDeviceGetAttribute", self.gpus[ordinal].rdma)

    def cuMemGetAllocationGranularity(self, properties: Any, _kind: int) -> tuple[Any, ...]:  # noqa: N802
        assert properties.type == properties.location.type == properties.requestedHandleTypes == 1
        return self._answer("cuMemGetAllocationGranularity", 2 << 20)

    def cuMemCreate(self, size_bytes: int, properties: Any, _flags: int) -> tuple[Any, ...]:  # noqa: N802
        if "cuMemCreate" in self.refused:
            return (Result.CUDA_ERROR_OUT_OF_MEMORY, None)
        self.made.append(properties)
        handle = len(self.made)
        self.handles[handle] = os.memfd_create("fake-driver")
        os.truncate(self.handles[handle], size_bytes)
        return Result.CUDA_SUCCESS, handle

    def cuMemExportToShareableHandle(self, handle: int, _kind: int, _flags: int) -> tuple[Any, ...]:  # noqa: N802
        if "cuMemExportToShareableHandle" in self.refused:
            return (Result.CUDA_ERROR_OUT_OF_MEMORY, None)
        fd = os.dup(self.handles[handle])
        os.set_inheritable(fd, True)
        return Result.CUDA_SUCCESS, fd

    def cuMemRelease(self, handle: int) -> tuple[Result, ...]:  # noqa: N802
        os.close(self.handles.pop(handle))
        return self._answer("cuMemRelease")

    def _answer(self, call: str, *values: Any) -> tuple[Any, ...]:
        return (Result.CUDA_ERROR_INVALID_DEVICE,) if call in self.refused else (Result.CUDA_SUCCESS, *values)


class NvmlError(Exception):
    pass


@dataclass
class FakeNvml:
    """The module. A GPU's use is bytes, or None if it refuses to tell; a process's, by its pid, too."""

    used_bytes: dict[str, int | None]
    processes: dict[str, dict[int, int | None]] = field(default_factory=dict[str, dict[int, "int | None"]])
    open: int = 0
    NVMLError = NvmlError
    nvmlMemory_v2 = 2  # noqa: N815

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return sum(name.startswith("GPU-") for name in self.used_bytes)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return [name for name in self.used_bytes if name.startswith("GPU-")][index]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name not in self.used_bytes:
            raise NvmlError("Not Found")
        return name

    def nvmlDeviceGetUUID(self, name: str) -> str:  # noqa: N802
        return name

    def nvmlDeviceGetMemoryInfo(self, name: str, version: int) -> Any:  # noqa: N802
        assert version == 2
        used_bytes = self.used_bytes[name]
        if used_bytes is None:
            raise NvmlError("Insufficient Permissions")
        return SimpleNamespace(used=used_bytes)

    def nvmlDeviceGetComputeRunningProcesses(self, name: str) -> list[Any]:  # noqa: N802
        there = self.processes.get(name, {})
        return [SimpleNamespace(pid=pid, usedGpuMemory=used_bytes) for pid, used_bytes in there.items()]
