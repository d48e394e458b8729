"""`LeasedAllocator`: what vLLM's workers ask of their `CuMemAllocator`, on leased memory.

A tag of vLLM's is one of the broker's. What contents are worth is said by vLLM when it sleeps, and by the broker when memory
is leased; so what vLLM ever keeps is leased as kept, and discarded in a pause in which vLLM does not keep it.
"""

import gc
import os
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress

import torch

from vrambroker.broker.core.errors import BrokerError, InvalidArgument, NotQuiescent, WaitExpired
from vrambroker.client import discovery
from vrambroker.client.memory import Contents, Memory
from vrambroker.client.saver import settings
from vrambroker.client.saver.attaching import attached
from vrambroker.client.saver.tags import Tags

DEFAULT_TAG = "default"
WEIGHTS = "weights"
GRAPHS = "cudagraph"
DEFERRABLE_TAGS = (WEIGHTS, "kv_cache")
"""What a wake-up may leave asleep; every other tag comes back with the first one."""

# vLLM never keeps these. It finds zeroes in new memory, as a driver makes it, and has relied on that.
ZEROED_TAGS = ("kv_cache", "workspace")
SESSION_NAME = "vllm"


class LeasedAllocator:
    """What a worker allocates in, under tags that sleep and wake. Nothing is attached to before the first allocation.

    Raises what `Memory` raises; a method that does has changed nothing, and can be called again. But for `WaitExpired`,
    under VRAMBROKER_PAUSE=release: what was to sleep does so then, and some of its memory has yet to leave.
    """

    def __init__(self) -> None:
        """Raises `InvalidArgument` for environment variables that can't be understood."""
        self._releases = settings.releases_at_pause(os.environ)
        self._timeout_s = settings.timeout_s(os.environ)
        self._lock = threading.Lock()
        self._leased: tuple[Memory, Tags] | None = None
        self._known: dict[str, Contents] = {}

    @contextmanager
    def use_memory_pool(self, tag: str | None = None) -> Generator[None]:
        """Lease what this thread's torch operators allocate in the block, under the tag; see `Memory.region`.

        Of nested blocks the innermost counts. What the block has freed again is no longer leased after it.
        """
        tag = DEFAULT_TAG if tag is None else tag
        memory, tags = self._attach()
        member = tags.to_allocate(tag)
        with memory.region(member, self._contents_of(tag)):
            yield
        # While a graph is captured nothing can be given back.
        with suppress(NotQuiescent):
            memory.trim(member)

    @contextmanager
    def cudagraph_pool(self) -> Generator[tuple[int, int]]:
        """Yield a pool for CUDA graphs, which all graphs of this worker share; see `Memory.graph_pool`."""
        memory, tags = self._attach()
        contents = self._contents_of(GRAPHS)
        yield memory.graph_pool(tags.for_graphs(GRAPHS, "keep", None), contents)

    @property
    def kept_tags(self) -> tuple[str, ...]:
        """The tags used so far whose contents can be kept."""
        return tuple(tag for tag, contents in self._known.items() if contents == "keep")

    @property
    def is_asleep(self) -> bool:
        """Whether any tag is."""
        return bool(self._leased and self._members_of(self._known, asleep=True))

    def sleep(self, offload_tags: tuple[str, ...] | str | None = None) -> None:
        """Pause every tag: contents of `offload_tags` (of the default tag, if None) are kept, no others.

        What sleeps already stays as it is. Raises `OutOfHostMemory` if what is to be kept has no place, and
        `InvalidArgument` for a tag whose contents can't be kept.
        """
        kept = (DEFAULT_TAG,) if offload_tags is None else _as_tags(offload_tags)
        for tag in kept:
            if tag in ZEROED_TAGS:
                raise InvalidArgument(message=f"tag {tag} keeps no contents when vLLM sleeps", argument="offload_tags")
        discarded = self._members_of([tag for tag in self._known if tag not in kept], asleep=False)
        staying = self._members_of(kept, asleep=False)
        late: WaitExpired | None = None
        try:
            self._pause(staying, discard=False)
        except WaitExpired as error:
            late = error
        try:
            self._pause(discarded, discard=True)
        except WaitExpired as error:
            late = error
        except BrokerError:
            self._resume(staying)
            raise
        if late is not None:
            raise late

    def discard(self, tags: tuple[str, ...] | str) -> None:
        """Pause these tags; their contents are not wanted back. What sleeps already stays as it is."""
        self._pause(self._members_of(_as_tags(tags), asleep=False), discard=True)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Bring these tags back, or all, and with any of them all that can't be left asleep; all or none.

        What was kept is there again, the rest is zero, or as it was. Waits for room for VRAMBROKER_TIMEOUT seconds (60);
        raises `OutOfDeviceMemory` or `WaitExpired`, with the holders.
        """
        woken = [tag for tag in self._known if tags is None or tag in tags or tag not in DEFERRABLE_TAGS]
        self._resume(self._members_of(woken, asleep=True))

    def get_current_usage(self) -> int:
        """Return what is allocated under all tags, in bytes, asleep or not; on a GPU with what torch caches of it."""
        if self._leased is None:
            return 0
        memory, _ = self._leased
        return sum(memory.allocated_bytes(member) for member in self._members_of(self._known))

    def release_pools(self) -> None:
        """Give back what torch caches; the worker is about to end. Tensors that are alive stay."""
        if self._leased is not None:
            memory, _ = self._leased
            memory.trim(*self._members_of(self._known, asleep=False))

    def close(self) -> None:
        """The same, by another name of vLLM's."""
        self.release_pools()

    def _attach(self) -> tuple[Memory, Tags]:
        with self._lock:
            if self._leased is None:
                memory = attached(_device(), SESSION_NAME)
                self._leased = memory, Tags(memory)
            return self._leased

    def _contents_of(self, tag: str) -> Contents:
        return self._known.setdefault(tag, "zero" if tag in ZEROED_TAGS else "keep")

    def _members_of(self, tags: Iterable[str], *, asleep: bool | None = None) -> tuple[str, ...]:
        """Return the broker's tags that stand for these; only those that are asleep, or that are not, if that is asked."""
        if self._leased is None:
            return ()
        memory, known = self._leased
        members = [member for tag in tags for member in known.all_of(tag)]
        return tuple(one for one in members if asleep is None or memory.is_paused(one) == asleep)

    def _pause(self, members: tuple[str, ...], *, discard: bool) -> None:
        if not members or self._leased is None:
            return
        memory, _ = self._leased
        # What only a cycle of references holds is no reason to park it.
        gc.collect()
        memory.pause(*members, release=self._releases, discard=discard, timeout=self._timeout_s)

    def _resume(self, members: tuple[str, ...]) -> None:
        if members and self._leased is not None:
            memory, _ = self._leased
            memory.resume(*members, timeout=self._timeout_s)


def _as_tags(tags: tuple[str, ...] | str) -> tuple[str, ...]:
    return (tags,) if isinstance(tags, str) else tuple(tags)


def _device() -> str | None:
    """Return the device to attach to: the GPU of this worker, whichever others have brokers."""
    named = os.environ.get(discovery.DEVICE_VARIABLE)
    if (named and discovery.is_host(named)) or not torch.cuda.is_available():
        return None
    return "cuda"
