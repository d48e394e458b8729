"""The regions of a process's threads: entered and left as settings change, and stepped out of while a tag is paused.

One region at a time is entered in a thread, that of its present settings: torch has no need to know what they were before.
"""

import os
import sys
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vrambroker.broker.core.errors import BrokerError, InvalidArgument
from vrambroker.client import discovery, native
from vrambroker.client.memory import Memory
from vrambroker.client.saver import settings as environment
from vrambroker.client.saver.attaching import attached
from vrambroker.client.saver.settings import Settings
from vrambroker.client.saver.tags import Tags

if TYPE_CHECKING:
    import torch


class _Here(threading.local):
    """What is so in this thread."""

    settings: Settings | None = None
    entered: AbstractContextManager[None] | None = None


class Regions:
    """What one process leases for torch_memory_saver or `broker run`. Thread-safe; settings belong to their thread."""

    def __init__(self) -> None:
        """Raises `InvalidArgument` for environment variables that can't be understood, `BrokerUnavailable`."""
        environment.beginning(os.environ)
        self._releases = environment.releases_at_pause(os.environ)
        self._timeout_s = environment.timeout_s(os.environ)
        self._here = _Here()
        self._lock = threading.Lock()
        self._tags: dict[Memory, Tags] = {}
        # The pools under leases, and what they stand for.
        self._graph_pools: dict[tuple[int, ...], object] = {}
        # Whoever is the first to need it hears that there is no broker.
        self._tags_here()

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The devices that this process is attached to so far."""
        return tuple(memory for memory, _ in self._all())

    def close(self) -> None:
        """Leave this thread's region, and end the use of every device. A program has no need to."""
        self._leave(None)
        for memory in self.memories:
            memory.close()

    @property
    def settings(self) -> Settings:
        """This thread's; those that it begins with come from the environment, and are entered when first asked for."""
        if self._here.settings is None:
            # Entering asks again.
            self._here.settings = Settings()
            try:
                self.switch(environment.beginning(os.environ))
            except BrokerError:
                self._here.settings = None
                raise
        return self._here.settings

    def switch(self, settings: Settings) -> None:
        """Have this thread allocate under other settings from now on. Raises what `Memory.region` does."""
        self._leave(None)
        self._here.settings = settings
        self._enter()

    @contextmanager
    def changed(self, settings: Settings) -> Generator[None]:
        """Have this thread allocate under other settings in the block."""
        before = self.settings
        try:
            self.switch(settings)
            yield
        except BaseException as error:
            self._here.settings = before
            try:
                # The region may know more of it than torch's error says.
                self._leave(error)
            finally:
                self._enter()
            raise
        self.switch(before)

    def outside(self) -> AbstractContextManager[None]:
        """Have this thread allocate nothing under a lease in the block."""
        return self.changed(replace(self.settings, interesting=False))

    def pause(self, tag: str | None) -> None:
        """Pause a tag, or all; what is allocated in a region of it afterwards comes from other frames."""
        self._leave(None)
        try:
            for memory, tags in self._all():
                members = self._members(memory, tags, tag)
                if members:
                    memory.pause(*members, release=self._releases, timeout=self._timeout_s)
        finally:
            self._enter()

    def resume(self, tag: str | None) -> None:
        """Bring a tag back, or all; on several devices all of it or none.

        Waits for room for VRAMBROKER_TIMEOUT seconds; raises what `Memory.resume` does.
        """
        done: list[tuple[Memory, tuple[str, ...]]] = []
        self._leave(None)
        try:
            for memory, tags in self._all():
                away = tuple(member for member in self._members(memory, tags, tag) if memory.is_paused(member))
                if away:
                    memory.resume(*away, timeout=self._timeout_s)
                    done.append((memory, away))
        except BrokerError:
            for memory, members in done:
                memory.pause(*members, timeout=self._timeout_s)
            raise
        finally:
            self._enter()

    def graph_pool(self, settings: Settings, pool: tuple[int, ...] | None) -> tuple[int, int]:
        """Return the pool under a lease that stands for a pool of torch's, or a new one for none.

        Raises what `Memory.graph_pool` does.
        """
        memory, tags = self._tags_here()
        # What a caller has from a graph, to be the next one's, is ours already.
        shared = object() if pool is None else self._graph_pools.get(pool, pool)
        leased = memory.graph_pool(tags.for_graphs(settings.tag, settings.contents, shared), settings.contents)
        self._graph_pools[leased] = shared
        return leased

    def read_paused(self, tensor: "torch.Tensor", *, zero_copy: bool) -> "torch.Tensor | None":
        """Return what a paused tensor holds; see `Memory.read_paused`."""
        for memory, _ in self._all():
            if memory.torch_device == tensor.device:
                return memory.read_paused(tensor, zero_copy=zero_copy, timeout=self._timeout_s)
        raise InvalidArgument(message=f"nothing is leased on {tensor.device} in this process", argument="tensor")

    def is_leased_here(self, tensor: "torch.Tensor") -> bool:
        """Whether there is a broker's device that leased tensors of this kind would be on."""
        return any(memory.torch_device == tensor.device for memory, _ in self._all())

    def _enter(self) -> None:
        region = self._region_for(self._here.settings)
        if region is not None:
            region.__enter__()
            self._here.entered = region

    def _region_for(self, settings: Settings | None) -> AbstractContextManager[None] | None:
        """Return what a thread is in under these settings; None where it has nothing to enter."""
        if settings is None or not (settings.interesting or native.is_preloaded()):
            return None
        memory, tags = self._tags_here()
        own = _own_memory(memory)
        if not settings.interesting:
            return None if own is None else memory.unleased()
        if own is not None and (settings.tag, settings.contents) == (own.tag, own.contents):
            return None
        return memory.region(tags.to_allocate(settings.tag), settings.contents)

    def _members(self, memory: Memory, tags: Tags, tag: str | None) -> tuple[str, ...]:
        """Return the broker's tags that stand for a tag, or for any, on a device."""
        own = _own_memory(memory)
        process_tags = memory.process_tags if own is not None and tag in (None, own.tag) else ()
        return tuple(dict.fromkeys([*tags.all_of(tag), *process_tags]))

    def _leave(self, error: BaseException | None) -> None:
        region, self._here.entered = self._here.entered, None
        if region is not None:
            region.__exit__(
                None if error is None else type(error), error, None if error is None else error.__traceback__
            )

    def _all(self) -> tuple[tuple[Memory, Tags], ...]:
        with self._lock:
            return tuple(self._tags.items())

    def _tags_here(self) -> tuple[Memory, Tags]:
        """Return the device that this thread allocates on, attached to."""
        memory = attached(_device(), Path(sys.argv[0]).stem or "python")
        with self._lock:
            known = self._tags.get(memory)
            if known is None:
                known = self._tags[memory] = Tags(memory)
            else:
                # Attached once is enough.
                memory.close()
            return memory, known


def _own_memory(memory: Memory) -> Settings | None:
    """Return what the process leases its own memory of a device under: on a GPU, if the preload library is there to do it."""
    if not native.is_preloaded() or memory.torch_device.type != "cuda":
        return None
    settings = environment.beginning(os.environ)
    return settings if settings.interesting else None


def _device() -> str | None:
    """Return the device to attach to: where there are brokers of several, that of torch's current GPU."""
    if os.environ.get(discovery.DEVICE_VARIABLE) or len(discovery.endpoints()) < 2:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None
