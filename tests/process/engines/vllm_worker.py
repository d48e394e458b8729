"""An engine as vLLM 0.33.0 is one to its allocator: what its executor and its worker do, in one process, asked in lines.

The classes are vLLM's own where it is installed, else their like (`vllm_seams/`). The plugin is found as vLLM finds it.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
from vllm.device_allocator import DEFERRABLE_TAGS, cumem
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
from vllm.plugins import load_general_plugins

from vrambroker.client import BrokerError

MIB = 1 << 20
FLOATS = 5 * MIB


def configuration(backend: str, *, enable_sleep_mode: bool) -> Any:
    """What a worker is made with, as far as anybody here looks at it."""
    names = ("cache", "lora", "load", "scheduler", "device", "speculative", "observability", "kv_transfer")
    return SimpleNamespace(
        **{f"{name}_config": None for name in names},
        model_config=SimpleNamespace(
            enable_sleep_mode=enable_sleep_mode,
            enable_cumem_allocator=enable_sleep_mode,
            sleep_mode_backend=backend,
        ),
        parallel_config=SimpleNamespace(rank=0),
        compilation_config=SimpleNamespace(ir_enable_torch_wrap=False),
        kernel_config=SimpleNamespace(ir_op_priority=SimpleNamespace(set_default=lambda: None)),
    )


class Engine:
    """`backend` is what `--sleep-mode-backend` says; for `cumem` the worker sleeps by its allocator."""

    def __init__(self, backend: str) -> None:
        load_general_plugins()
        from vllm.v1.worker.worker_base import WorkerBase

        # Its extension can't be loaded where there is no CUDA.
        cumem.cumem_available = True
        config = configuration(backend, enable_sleep_mode=True)
        self.worker = WorkerBase(
            vllm_config=config, local_rank=0, rank=0, distributed_init_method="", is_driver_worker=True
        )
        self.backend = SleepModeBackendFactory.create_backend(config.model_config) if backend != "cumem" else None
        self.asleep: set[str] = set()
        self.saved: torch.Tensor | None = None

    def load(self) -> str:
        allocator = cumem.CuMemAllocator.get_instance()
        assert allocator.get_current_usage() == 0
        with allocator.use_memory_pool(tag="weights"):
            self.weights = torch.zeros(FLOATS)
            self.buffer = torch.linspace(0, 1, 1000)
        with allocator.use_memory_pool(tag="runtime"):
            self.pages = torch.full((1000,), 3.0)
            with allocator.use_memory_pool(tag="kv_cache"):
                self.kv = torch.zeros(FLOATS)
            self.lora = torch.full((1000,), 4.0)
        with allocator.use_memory_pool(tag="workspace"):
            self.scratch = torch.zeros(1000)
        assert allocator.get_current_usage() >= 2 * FLOATS * 4
        self.addresses = self.places()
        return "loaded"

    def places(self) -> list[int]:
        return [one.data_ptr() for one in (self.weights, self.buffer, self.pages, self.kv, self.lora, self.scratch)]

    def sleep(self, level: str = "1") -> str:
        """As the executor and then the worker do."""
        if "weights" in self.asleep:
            return "is asleep"
        if level == "2":
            self.saved = self.buffer.clone()
        if self.backend is not None:
            self.backend.suspend(int(level))
        else:
            kept = ("weights",) if level == "1" else ()
            cumem.CuMemAllocator.get_instance().sleep(offload_tags=(*kept, "runtime", "cudagraph"))
        self.asleep = set(DEFERRABLE_TAGS)
        return "asleep"

    def wake_up(self, *tags: str) -> str:
        if not self.asleep:
            return "is awake"
        if any(tag not in self.asleep for tag in tags):
            return "not among what is asleep"
        named = list(tags) or None
        if self.backend is not None:
            self.backend.resume(named)
        else:
            cumem.CuMemAllocator.get_instance().wake_up(named)
        self.asleep -= set(tags) if tags else self.asleep
        if self.saved is not None and "weights" not in self.asleep:
            self.buffer.copy_(self.saved)
            self.saved = None
        return "awake"

    def release_kv_cache(self) -> str:
        """`release_kv_cache_memory`."""
        assert self.backend is not None
        assert not self.asleep
        self.backend.discard(("kv_cache",))
        self.asleep = {"kv_cache"}
        return "released"

    def state(self) -> str:
        assert self.backend is not None
        return self.backend.state()

    def read(self) -> str:
        """What the weights hold, whether or not they are awake for use."""
        return f"weights {self.weights.min().item():g} {self.weights.max().item():g}"

    def update(self, version: str) -> str:
        self.weights.fill_(float(version))
        return "updated"

    def generate(self) -> str:
        """Read and write everything; tell which weights it was."""
        assert not self.asleep
        assert self.places() == self.addresses, "something moved"
        assert self.kv.eq(0).all(), "the cache holds what it held before"
        self.kv.fill_(1)
        self.scratch.fill_(1)
        assert self.buffer.equal(torch.linspace(0, 1, 1000)), "a buffer is lost"
        assert self.pages.eq(3).all(), "what the cache was set up with is lost"
        assert self.lora.eq(4).all(), "an adapter is lost"
        assert self.weights.min() == self.weights.max()
        return f"weights {self.weights[0].item():g}"


def main() -> None:
    engine = Engine(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        try:
            answer: str = getattr(engine, command)(*words)
        except BrokerError as error:
            answer = f"{type(error).__name__}: {error}"
        print(answer.replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
