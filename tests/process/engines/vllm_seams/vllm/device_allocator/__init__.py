"""Which allocator a worker asks for memory."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

DEFERRABLE_TAGS: tuple[str, ...] = ("weights", "kv_cache")


class MemAllocator(Protocol):
    """What a worker asks of it."""

    def use_memory_pool(self, tag: str | None = None) -> AbstractContextManager[Any]: ...

    def sleep(self, offload_tags: tuple[str, ...] | str | None = None) -> None: ...

    def discard(self, tags: tuple[str, ...] | str) -> None: ...

    def wake_up(self, tags: list[str] | None = None) -> None: ...

    def get_current_usage(self) -> int: ...
