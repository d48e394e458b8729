"""Which of the broker's tags stand for one tag of torch_memory_saver.

There, a tag is a word on each allocation, and more may be allocated under it while it is paused. With the broker a tag is
paused as a whole. So the first allocations are leased under the tag itself, and what comes while that is paused under
another one, `tag+2` and so on; whoever names the tag means all of them. Graphs' pools have one each, in the same way.
"""

import hashlib
import re
import threading
from typing import Literal, Protocol

# A tag of the broker has 64 characters; some are left for the number.
_PLAIN = re.compile(r"[A-Za-z0-9_.:@-]{1,56}")
_ODD = re.compile(r"[^A-Za-z0-9_.:@-]")


class Leases(Protocol):
    """What of `Memory` this asks."""

    def is_paused(self, tag: str) -> bool: ...
    def allocated_bytes(self, tag: str) -> int: ...
    def resume(self, *tags: str, timeout: float) -> dict[str, bool]: ...


class Tags:
    """One device's. Thread-safe."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._lock = threading.Lock()
        self._members: dict[str, list[str]] = {}
        self._graphs: dict[tuple[str, str, object], str] = {}

    def to_allocate(self, tag: str) -> str:
        """Return the broker's tag for new memory under a tag: one that is not paused."""
        with self._lock:
            graphs = set(self._graphs.values())
            members = [member for member in self._members.get(tag, []) if member not in graphs]
            for member in members:
                if not self._leases.is_paused(member):
                    return member
            for member in members:
                if self._leases.allocated_bytes(member) == 0:
                    # There is nothing to wait for.
                    self._leases.resume(member, timeout=0)
                    return member
            return self._add(tag)

    def for_graphs(self, tag: str, contents: Literal["keep", "zero", "drop"], pool: object) -> str:
        """Return the broker's tag for graphs that share a pool of torch's: no other pool is under it."""
        with self._lock:
            known = self._graphs.get((tag, contents, pool))
            if known is not None and not self._leases.is_paused(known):
                return known
            member = self._graphs[tag, contents, pool] = self._add(tag)
            return member

    def all_of(self, tag: str | None) -> tuple[str, ...]:
        """Return the broker's tags that stand for a tag, or for any; none for one that nothing was allocated under."""
        with self._lock:
            if tag is not None:
                return tuple(self._members.get(tag, ()))
            return tuple(member for members in self._members.values() for member in members)

    def _add(self, tag: str) -> str:
        members = self._members.setdefault(tag, [])
        label = label_of(tag)
        members.append(label if not members else f"{label}+{len(members) + 1}")
        return members[-1]


def label_of(tag: str) -> str:
    """Return the tag as the broker can name it: itself where that is possible, else something like it."""
    if _PLAIN.fullmatch(tag):
        return tag
    return f"{_ODD.sub('_', tag)[:40]}-{hashlib.sha256(tag.encode()).hexdigest()[:12]}"
