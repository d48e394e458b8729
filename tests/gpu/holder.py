"""A process that uses a GPU, run by a test and told over a socket what to do: `python holder.py FD`.

It stands for a client without the broker's library: it imports frames, maps them, reads and fills them, allocates
plainly, and forks a child that keeps everything it has. It ends when the socket closes; the child, when standard input
does.
"""

import contextlib
import importlib
import json
import os
import socket
import sys
from typing import Any

driver: Any = importlib.import_module("cuda.bindings.driver")


def ask(call: str, *arguments: Any) -> Any:
    result, *values = getattr(driver, call)(*arguments)
    if result != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{call}: {result.name}")
    return values[0] if values else None


class Holder:
    def __init__(self) -> None:
        ask("cuInit", 0)
        ask("cuCtxSetCurrent", ask("cuDevicePrimaryCtxRetain", 0))
        self._mapped: dict[str, tuple[int, int]] = {}

    def map(self, name: str, size_bytes: int, fd: int) -> None:
        kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        handle = ask("cuMemImportFromShareableHandle", fd, kind)
        os.close(fd)
        address = int(ask("cuMemAddressReserve", size_bytes, 0, 0, 0))
        ask("cuMemMap", address, size_bytes, 0, handle, 0)
        ask("cuMemRelease", handle)
        access = driver.CUmemAccessDesc()
        access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = 0
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        ask("cuMemSetAccess", address, size_bytes, [access], 1)
        self._mapped[name] = (address, size_bytes)

    def unmap(self, name: str) -> None:
        address, size_bytes = self._mapped.pop(name)
        ask("cuMemUnmap", address, size_bytes)
        ask("cuMemAddressFree", address, size_bytes)

    def ends(self, name: str) -> list[int]:
        """Return the first and the last byte."""
        address, size_bytes = self._mapped[name]
        found: list[int] = []
        for at in (address, address + size_bytes - 1):
            byte = bytearray(1)
            ask("cuMemcpyDtoH", byte, at, 1)
            found.append(byte[0])
        return found

    def fill(self, name: str, byte: int) -> None:
        address, size_bytes = self._mapped[name]
        ask("cuMemsetD8", address, byte, size_bytes)
        ask("cuCtxSynchronize")

    def alloc(self, size_bytes: int) -> None:
        ask("cuMemAlloc", size_bytes)

    def fork(self) -> int:
        child = os.fork()
        if child == 0:
            os.read(0, 1)
            os._exit(0)
        return child


def serve(channel: socket.socket) -> None:
    holder = Holder()
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 4096, 1)
        if not message:
            return
        order: dict[str, Any] = json.loads(message)
        do = str(order.pop("do"))
        try:
            answer = {"answer": getattr(holder, do)(**order, **({"fd": fds[0]} if fds else {}))}
        except RuntimeError as error:
            answer = {"error": str(error)}
        channel.send(json.dumps(answer).encode())


if __name__ == "__main__":
    with contextlib.suppress(ConnectionResetError):
        serve(socket.socket(fileno=int(sys.argv[1])))
