"""The allocator that is a singleton."""

from vllm.device_allocator import MemAllocator

# Whether its extension could be loaded.
cumem_available = False


class CuMemAllocator:
    """Only where it is found; it can't allocate."""

    instance: MemAllocator | None = None
    default_tag: str = "default"

    @staticmethod
    def get_instance() -> MemAllocator:
        assert cumem_available
        assert CuMemAllocator.instance is not None, "a worker of these tests has no use for vLLM's own allocator"
        return CuMemAllocator.instance
