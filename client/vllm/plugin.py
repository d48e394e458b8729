"""What vLLM loads in each of its processes: the backend's name, and workers that lease their memory if they ask for it.

vLLM has a seam for sleeping and none for allocating: a worker asks `CuMemAllocator.get_instance()`, whatever the backend,
long before it asks for that. The instance is a singleton, so ours takes its place, in a worker whose configuration says so
and nowhere else. That configuration is known when a worker is made.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from vrambroker.broker.core.errors import WrongState
from vrambroker.client.saver import settings
from vrambroker.client.startup.sitecustomize import AfterImport

BACKEND = "vrambroker"
SWITCH_VARIABLE = "VRAMBROKER_VLLM"
WORKERS = "vllm.v1.worker.worker_base"


def register() -> None:
    """Make the backend known to vLLM, and have workers lease their memory that ask for it. More than once is no error.

    Attaches to nobody: that is for the first allocation of a worker that asks.
    """
    _register_backend()
    module = sys.modules.get(WORKERS)
    if module is not None:
        _watch_workers(module)
    elif not any(isinstance(finder, AfterImport) and finder.fullname == WORKERS for finder in sys.meta_path):
        # Importing it here takes seconds, in processes that have no use for it.
        sys.meta_path.insert(0, AfterImport(WORKERS, _watch_workers))


def wants_leases(model_config: Any) -> bool:
    """Whether a worker of this configuration is to lease its memory. Raises `InvalidArgument` for a switch that is neither.

    vLLM names the backend from 0.26 on; the variable is for older ones, and for callers that pass no option on to vLLM.
    """
    if model_config is None:
        return False
    if getattr(model_config, "sleep_mode_backend", None) == BACKEND:
        return True
    return settings.boolean(os.environ, SWITCH_VARIABLE) and bool(model_config.enable_sleep_mode)


def install() -> None:
    """Have this process's worker allocate in leased memory. Raises `WrongState` if vLLM's own allocator is in use in it."""
    from vllm.device_allocator.cumem import CuMemAllocator

    from vrambroker.client.vllm.allocator import LeasedAllocator

    there: object = CuMemAllocator.instance
    if there is None:
        CuMemAllocator.instance = LeasedAllocator()
    elif not isinstance(there, LeasedAllocator):
        raise WrongState(
            message="another engine of this process has memory of vLLM's own allocator: give this one a process of its own",
            state="in use",
        )


def _register_backend() -> None:
    try:
        from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
    except ModuleNotFoundError as error:
        # An older vLLM: it has sleep mode, and one way to do it.
        if error.name is None or not error.name.startswith("vllm.device_allocator"):
            raise
        return
    try:
        SleepModeBackendFactory.register_backend(BACKEND, "vrambroker.client.vllm.backend", "LeasedBackend")
    except ValueError:
        # The name is known: vLLM may load its plugins more than once.
        return


def _watch_workers(module: ModuleType) -> None:
    """Look at the configuration of every worker that is made."""
    worker_base: Any = module.WorkerBase
    make: Callable[..., None] = worker_base.__init__
    if getattr(make, "is_watched", False):
        return

    @wraps(make)
    def watched(self: object, vllm_config: Any, *args: Any, **more: Any) -> None:
        if wants_leases(vllm_config.model_config):
            install()
        make(self, vllm_config, *args, **more)

    watched.is_watched = True  # type: ignore[attr-defined]
    worker_base.__init__ = watched
