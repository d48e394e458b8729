"""vLLM's way to sleep and wake on leased memory: what `--sleep-mode-backend vrambroker` names."""

import torch
from vllm.device_allocator.sleep_mode_backend import SleepModeBackend, SleepModeState

from vrambroker.broker.core.errors import InvalidArgument, WrongState
from vrambroker.client.vllm.allocator import WEIGHTS, LeasedAllocator

LEVELS = (1, 2)


class LeasedBackend(SleepModeBackend):
    """Sleeps by pausing the worker's tags, and wakes by resuming them; see `LeasedAllocator`.

    A call that raises has changed nothing, and can be made again: the broker's errors come through as they are.
    """

    def suspend(self, level: int = 1) -> None:
        """Pause all tags. At level 2 the weights are not wanted back; what is no weights and no cache is kept at any level."""
        if level not in LEVELS:
            raise InvalidArgument(message=f"sleep level {level}: expected 1 or 2", argument="level")
        allocator = _allocator()
        kept = allocator.kept_tags
        allocator.sleep(kept if level == 1 else tuple(tag for tag in kept if tag != WEIGHTS))

    def resume(self, tags: list[str] | None = None) -> None:
        """Bring tags back, all or none; see `LeasedAllocator.wake_up`."""
        self._state = "RESUMING"
        try:
            _allocator().wake_up(tags)
        finally:
            self._state = "RUNNING"

    def discard(self, tags: tuple[str, ...]) -> None:
        """Pause tags whose contents are not wanted back."""
        _allocator().discard(tags)

    def state(self) -> SleepModeState:
        """Whether any tag is asleep, or on its way back."""
        if self._state == "RESUMING":
            return "RESUMING"
        return "SUSPENDED" if _allocator().is_asleep else "RUNNING"

    @classmethod
    def is_supported(cls) -> bool:
        """Whether torch is one for NVIDIA's GPUs, or for none (the stand-in without a GPU)."""
        return torch.version.hip is None and not torch.xpu.is_available()

    @classmethod
    def preserves_communicators(cls) -> bool:
        """True: what NCCL has is no lease, and stays."""
        return True

    @classmethod
    def preserves_compiled_artifacts(cls) -> bool:
        """True: kernels are code of this process, which goes on."""
        return True

    @classmethod
    def preserves_graphs_with_communicators(cls) -> bool:
        """False: NCCL may have registered buffers of a graph by their pages, which are others after a wake-up."""
        return False

    @classmethod
    def supports_durable_storage(cls) -> bool:
        """False: what is parked ends with the process."""
        return False


def _allocator() -> LeasedAllocator:
    from vllm.device_allocator.cumem import CuMemAllocator

    there: object = CuMemAllocator.instance
    if isinstance(there, LeasedAllocator):
        return there
    raise WrongState(
        message="this worker has not allocated in leased memory: was vLLM started with VLLM_PLUGINS that leave vrambroker out?",
        state="not leased",
    )
