"""How much memory this process may use: the least of what the machine has and what any cgroup above it allows.

Going over the limit of a cgroup (v1 or v2) is answered by the OOM killer and not by an error, so who populates memory
asks here first. Over `memory.high` the kernel stops whoever allocates instead, which is no better.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

V1_LIMIT, V1_USED = "memory.limit_in_bytes", "memory.usage_in_bytes"
V2_LIMIT, V2_SOFT, V2_USED = "memory.max", "memory.high", "memory.current"
# What a cgroup's counter calls used, but the kernel gives up before it kills; the pages of memfds are not among it.
V1_CACHE = frozenset({"total_inactive_file", "total_active_file"})
V2_CACHE = frozenset({"inactive_file", "active_file"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """One bound and how much of it is used; `source` says whose it is."""

    limit_bytes: int
    used_bytes: int
    source: str

    @property
    def available_bytes(self) -> int:
        """What could still be used under this bound."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hierarchy:
    mount: Path
    root: str
    is_v2: bool


def memory_limits(proc: Path = Path("/proc"), process: str = "self") -> tuple[MemoryLimit, ...]:
    """Return every bound on this process, or on the one of this pid: the machine's, then the cgroups', from the nearest
    upwards. Of another user's process they may be unreadable: OSError.
    """
    limits = [_of_machine(proc)]
    for hierarchy, path in _memory_cgroups(proc / process):
        for folder in _upwards(hierarchy, path):
            limit = _of_cgroup(folder, hierarchy.is_v2)
            if limit is not None:
                limits.append(limit)
    return tuple(limits)


def memory_limit_bytes(proc: Path = Path("/proc")) -> int:
    """Return the smallest bound."""
    return min(limit.limit_bytes for limit in memory_limits(proc))


def tightest_memory_limit(proc: Path = Path("/proc")) -> MemoryLimit:
    """Return the bound that leaves the least to be used now."""
    return min(memory_limits(proc), key=lambda limit: limit.available_bytes)


def _of_machine(proc: Path) -> MemoryLimit:
    sizes: dict[str, int] = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    total = sizes["MemTotal"]
    return MemoryLimit(limit_bytes=total, used_bytes=total - sizes["MemAvailable"], source="the machine")


def _memory_cgroups(process: Path) -> list[tuple[_Hierarchy, str]]:
    """Return where the memory controller of a process is: its hierarchy and the path in it."""
    v1, v2 = _mounts(process)
    found: list[tuple[_Hierarchy, str]] = []
    for line in (process / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers and v2 is not None:
            found.append((v2, path))
        elif "memory" in controllers.split(",") and v1 is not None:
            found.append((v1, path))
    return found


def _mounts(process: Path) -> tuple[_Hierarchy | None, _Hierarchy | None]:
    """Return the v1 hierarchy with the memory controller and the v2 hierarchy, as mounted (proc(5), mountinfo)."""
    v1 = v2 = None
    for line in (process / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(maxsplit=2)
        root, mount = fields[3], Path(fields[4])
        if kind == "cgroup2" and v2 is None:
            v2 = _Hierarchy(mount=mount, root=root, is_v2=True)
        elif kind == "cgroup" and "memory" in options.split(",") and v1 is None:
            v1 = _Hierarchy(mount=mount, root=root, is_v2=False)
    return v1, v2


def _upwards(hierarchy: _Hierarchy, path: str) -> list[Path]:
    """Return the folders from the process's cgroup up to the mount, as far as they can be seen from here."""
    inside = PurePosixPath(path)
    if inside.is_relative_to(hierarchy.root):
        inside = PurePosixPath("/") / inside.relative_to(hierarchy.root)
    elif ".." in inside.parts or hierarchy.root != "/":
        inside = PurePosixPath("/")
    parts = inside.parts[1:]
    return [hierarchy.mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _of_cgroup(folder: Path, is_v2: bool) -> MemoryLimit | None:
    """Return a cgroup's bound; None where there is none (the root of v2 has no such files, `max` is no bound)."""
    names, used_name = ((V2_LIMIT, V2_SOFT), V2_USED) if is_v2 else ((V1_LIMIT,), V1_USED)
    try:
        bounds = [bound for name in names if (bound := _bound_of(folder / name)) is not None]
        used_bytes = int((folder / used_name).read_text())
        cache_bytes = _cache_bytes(folder, V2_CACHE if is_v2 else V1_CACHE)
    except (FileNotFoundError, PermissionError):
        return None
    if not bounds:
        return None
    used_bytes = max(0, used_bytes - cache_bytes)
    return MemoryLimit(limit_bytes=min(bounds), used_bytes=used_bytes, source=str(folder))


def _bound_of(file: Path) -> int | None:
    text = file.read_text().strip() if file.exists() else "max"
    return None if text == "max" else int(text)


def _cache_bytes(folder: Path, names: frozenset[str]) -> int:
    entries = (line.partition(" ") for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, _, value in entries if name in names)
