"""The GPUs and their driver, as far as they can be looked at without a context."""

import importlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from vrambroker.broker.adapters.cuda_driver import CudaGpu, DriverRefused
from vrambroker.broker.adapters.nvml import Nvml
from vrambroker.broker.core.errors import BrokerError, DriverFailed
from vrambroker.broker.doctor.finding import Finding, fail, ok, unseen, warn
from vrambroker.broker.sizes import size_text

DEVICES = Path("/dev")
NODES = ("nvidiactl", "nvidia-uvm")
PROBE_BYTES = 2 << 20
INSTALL = "pip install '.[broker,cuda]'    # where vrambroker's source is"


def gpus(device: str | None, sessions: frozenset[int]) -> Iterator[Finding]:
    """Look at the driver, at one GPU as a daemon of `device` (the first, if None) would use it, and at who has memory of
    any GPU and is none of these processes.
    """
    if not (DEVICES / "nvidiactl").exists():
        yield unseen("device-nodes", "there is no /dev/nvidiactl: no GPU is looked at (--device host needs none)")
        return
    yield from _nodes()
    try:
        gpu = CudaGpu(device if device is not None else "cuda")
    except DriverFailed as error:
        mend = INSTALL if error.driver_call == "import" else "nvidia-smi    # tells more"
        yield fail("driver", error.message, mend)
        return
    except BrokerError as error:
        yield fail("driver", error.message, "nvidia-smi -L    # names the GPUs")
        return
    yield ok("driver", f"CUDA {_version()}: GPU-{gpu.uuid} has {size_text(gpu.total_bytes)}")
    yield _frame(gpu)
    yield from _holders(sessions)


def name_of(device: str) -> str:
    """Return the name (`GPU-…`) of a GPU that is given by its index; raises `DriverFailed` or `InvalidArgument`."""
    return f"GPU-{CudaGpu(device).uuid}" if device.startswith("cuda") else device


def _nodes() -> Iterator[Finding]:
    for name in NODES:
        node = DEVICES / name
        if not node.exists():
            yield fail(
                "device-nodes", f"{node} is not there: the driver can't be initialised", "nvidia-modprobe -c 0 -u"
            )
        elif not os.access(node, os.R_OK | os.W_OK):
            yield fail("device-nodes", f"{node} may not be used by uid {os.geteuid()}", f"ls -l {node}    # who may")
        else:
            yield ok("device-nodes", f"{node} may be used")


def _version() -> str:
    driver = importlib.import_module("cuda.bindings.driver")
    number = int(driver.cuDriverGetVersion()[1])
    return f"{number // 1000}.{number % 1000 // 10}"


def _frame(gpu: CudaGpu) -> Finding:
    """Make a frame and export it, which is what a driver or a container without virtual memory management refuses."""
    try:
        os.close(gpu.make_frame(max(PROBE_BYTES, gpu.granularity_bytes)))
    except DriverRefused as refusal:
        if refusal.result == "CUDA_ERROR_OUT_OF_MEMORY":
            return ok("frames", "memory can be managed, and there is none free just now")
        return fail(
            "frames", f"memory can't be made and exported as an fd: {refusal}", "nvidia-smi    # a driver from 550 on"
        )
    return ok("frames", f"memory is made in steps of {size_text(gpu.granularity_bytes)} and exported as an fd")


def _holders(sessions: frozenset[int]) -> Iterator[Finding]:
    try:
        with closing(Nvml()) as nvml:
            for name, used_bytes in nvml.used_everywhere_bytes().items():
                yield ok("device-memory", f"{name}: {size_text(used_bytes)} are in use, by whomever")
            for pid, used_bytes in nvml.processes_bytes().items():
                yield _holder(pid, used_bytes, is_session=pid in sessions)
    except (DriverFailed, DriverRefused) as error:
        yield fail("nvml", str(error), INSTALL)


def _holder(pid: int, used_bytes: int, *, is_session: bool) -> Finding:
    text = f"process {pid} ({_program(pid)}) has {size_text(used_bytes)} of its own"
    if is_session:
        return ok("foreign", f"{text}, beside its leases")
    return warn("foreign", f"{text} and is no session: nobody can ask for it", "broker run -- CMD    # or --keep-free")


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "not seen from here"
