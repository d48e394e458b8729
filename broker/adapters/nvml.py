"""How much of a GPU's memory is in use, by whomever: from NVML, which needs no context.

The process list is of no use here: memory that was lent is charged to no process there (FACTS: the driver).
"""

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from vrambroker.broker.adapters.cuda_driver import DriverRefused
from vrambroker.broker.core.errors import DriverFailed


class Nvml:
    """The library, initialised. Its methods may be called from any thread, until it is closed."""

    def __init__(self) -> None:
        """Raises `DriverFailed`."""
        try:
            self._library: Any = importlib.import_module("pynvml")
            self._ask("nvmlInit")
        except ImportError as error:
            raise DriverFailed(
                message=f"a CUDA device needs the package nvidia-ml-py ({error}): install with the extra cuda",
                driver_call="import",
                driver_result=str(error),
            ) from error
        except DriverRefused as refusal:
            raise DriverFailed(
                message=f"NVML can't be used: {refusal}", driver_call=refusal.call, driver_result=refusal.result
            ) from refusal

    def used_everywhere_bytes(self) -> dict[str, int]:
        """Return what is in use on each GPU of the machine, by its name (`GPU-…`); raises `DriverRefused`.

        One that refuses to tell is left out: a GPU that has failed, or a part of one that is not ours to see, is no
        reason not to serve another.
        """
        found: dict[str, int] = {}
        for index in range(self._ask("nvmlDeviceGetCount")):
            with suppress(DriverRefused):
                handle = self._ask("nvmlDeviceGetHandleByIndex", index)
                found[str(self._ask("nvmlDeviceGetUUID", handle))] = self._used_bytes(handle)
        return found

    def processes_bytes(self) -> dict[int, int]:
        """Return what each process with a context has by itself, by its pid as seen from here; raises `DriverRefused`.

        Lent memory is not among it, and where NVML can't tell how much it is, it is 0.
        """
        found: dict[int, int] = {}
        for index in range(self._ask("nvmlDeviceGetCount")):
            with suppress(DriverRefused):
                handle = self._ask("nvmlDeviceGetHandleByIndex", index)
                for process in self._ask("nvmlDeviceGetComputeRunningProcesses", handle):
                    found[int(process.pid)] = found.get(int(process.pid), 0) + int(process.usedGpuMemory or 0)
        return found

    def meter(self, uuid: UUID) -> "NvmlMeter":
        """Return the meter of one device, MIG instances included; raises `DriverFailed`."""
        refusals: list[str] = []
        for name in (f"GPU-{uuid}", f"MIG-{uuid}"):
            try:
                handle = self._ask("nvmlDeviceGetHandleByUUID", name)
            except DriverRefused as refusal:
                refusals.append(str(refusal))
                continue
            return NvmlMeter(name=name, read=partial(self._used_bytes, handle), close=self.close)
        raise DriverFailed(
            message=f"NVML does not know device {uuid}: {', '.join(refusals)}",
            driver_call="nvmlDeviceGetHandleByUUID",
            driver_result=refusals[0],
        )

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _used_bytes(self, handle: Any) -> int:
        # Version 2 leaves out what the driver keeps for itself and nobody could ever have.
        return int(self._ask("nvmlDeviceGetMemoryInfo", handle, self._library.nvmlMemory_v2).used)

    def _ask(self, call: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, call)(*arguments)
        except self._library.NVMLError as error:
            raise DriverRefused(call=call, result=str(error)) from error


class NvmlMeter:
    """The memory in use on one device; `name` is its UUID with the prefix that tells a GPU from a MIG instance."""

    def __init__(self, *, name: str, read: Callable[[], int], close: Callable[[], None]) -> None:
        self.name = name
        self._read = read
        self._close = close

    def used_bytes(self) -> int:
        """Return what is in use, by whomever; raises `DriverRefused`."""
        return self._read()

    def close(self) -> None:
        """Let go of NVML."""
        self._close()
