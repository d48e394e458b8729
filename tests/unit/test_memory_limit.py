"""The smallest bound is found wherever it is: the machine, this cgroup, or one above; v1 or v2."""

from pathlib import Path

import pytest

from vrambroker.broker.adapters.memory_limit import memory_limit_bytes, memory_limits, tightest_memory_limit

GIB = 1 << 30
MEMINFO = f"MemTotal: {32 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {20 * GIB // 1024} kB\n"


def memory_available_bytes(proc: Path = Path("/proc")) -> int:
    return tightest_memory_limit(proc).available_bytes


class Machine:
    """A /proc and cgroup hierarchies of files."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.v1, self.v2 = root / "cg1", root / "cg2"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)
        self.place(cgroup="0::/\n", mounts="")

    def place(self, *, cgroup: str, mounts: str) -> None:
        (self.proc / "self/cgroup").write_text(cgroup)
        (self.proc / "self/mountinfo").write_text(mounts)

    def v1_group(self, path: str, *, limit: int, used: int, cache: int = 0) -> None:
        folder = self.v1 / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        stat = f"cache 5\nactive_file 7\ntotal_inactive_file {cache // 2}\ntotal_active_file {cache - cache // 2}\n"
        (folder / "memory.stat").write_text(stat)

    def v2_group(self, path: str, *, limit: str, used: int, cache: int = 0, high: str = "max") -> None:
        folder = self.v2 / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.high").write_text(f"{high}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"anon 5\nshmem 9\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
        )

    def mount(self, folder: Path, kind: str, root: str = "/", options: str = "rw") -> str:
        return f"30 24 0:26 {root} {folder} rw,nosuid - {kind} {kind} {options}\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_the_machine(machine: Machine) -> None:
    assert memory_limit_bytes(machine.proc) == 32 * GIB
    assert memory_available_bytes(machine.proc) == 20 * GIB


def test_v2_an_ancestor_bounds_too(machine: Machine) -> None:
    machine.place(cgroup="0::/pod/worker\n", mounts=machine.mount(machine.v2, "cgroup2"))
    machine.v2_group("", limit="max", used=0)
    machine.v2_group("pod", limit=str(4 * GIB), used=3 * GIB, cache=GIB)
    machine.v2_group("pod/worker", limit=str(8 * GIB), used=GIB)
    assert memory_limit_bytes(machine.proc) == 4 * GIB
    assert memory_available_bytes(machine.proc) == 2 * GIB
    assert [limit.source for limit in memory_limits(machine.proc)][1:] == [
        str(machine.v2 / "pod/worker"),
        str(machine.v2 / "pod"),
    ]


def test_v2_the_bound_above_which_the_kernel_stops_allocations_counts_too(machine: Machine) -> None:
    machine.place(cgroup="0::/pod\n", mounts=machine.mount(machine.v2, "cgroup2"))
    machine.v2_group("pod", limit="max", high=str(4 * GIB), used=3 * GIB)
    assert memory_limit_bytes(machine.proc) == 4 * GIB
    assert memory_available_bytes(machine.proc) == GIB


def test_the_tightest_bound_is_the_one_that_leaves_the_least(machine: Machine) -> None:
    mounts = machine.mount(machine.v1, "cgroup", options="rw,memory") + machine.mount(machine.v2, "cgroup2")
    machine.place(cgroup="4:memory:/a/b\n0::/pod/worker\n", mounts=mounts)
    machine.v1_group("a", limit=30 * GIB, used=2 * GIB)
    machine.v1_group("a/b", limit=16 * GIB, used=2 * GIB)
    machine.v2_group("pod", limit=str(18 * GIB), used=18 * GIB, cache=7 * GIB)
    machine.v2_group("pod/worker", limit=str(17 * GIB), used=3 * GIB)
    tightest = tightest_memory_limit(machine.proc)
    assert (tightest.source, tightest.available_bytes) == (str(machine.v2 / "pod"), 7 * GIB)
    machine.v2_group("pod", limit=str(18 * GIB), used=0)
    tightest = tightest_memory_limit(machine.proc)
    assert (tightest.source, tightest.available_bytes) == (str(machine.v1 / "a/b"), 14 * GIB)
    machine.v1_group("a", limit=30 * GIB, used=29 * GIB)
    tightest = tightest_memory_limit(machine.proc)
    assert (tightest.source, tightest.available_bytes) == (str(machine.v1 / "a"), GIB)


def test_v1_beside_an_empty_v2(machine: Machine) -> None:
    mounts = machine.mount(machine.v1, "cgroup", options="rw,memory") + machine.mount(machine.v2, "cgroup2")
    machine.place(cgroup="5:cpu:/x\n4:memory:/a/b\n0::/a\n", mounts=mounts)
    machine.v1_group("", limit=2**63 - 4096, used=9 * GIB)
    machine.v1_group("a", limit=6 * GIB, used=GIB)
    machine.v1_group("a/b", limit=7 * GIB, used=6 * GIB)
    assert memory_limit_bytes(machine.proc) == 6 * GIB
    assert memory_available_bytes(machine.proc) == GIB


def test_a_container_sees_its_own_cgroup_as_the_mount(machine: Machine) -> None:
    mounts = machine.mount(machine.v1, "cgroup", root="/docker/abc", options="rw,memory")
    machine.place(cgroup="4:memory:/docker/abc\n", mounts=mounts)
    machine.v1_group("", limit=GIB, used=0)
    assert memory_limit_bytes(machine.proc) == GIB


def test_a_path_outside_the_mount_is_looked_for_at_its_top(machine: Machine) -> None:
    machine.place(cgroup="0::/../other\n", mounts=machine.mount(machine.v2, "cgroup2"))
    machine.v2_group("", limit=str(3 * GIB), used=0)
    assert memory_limit_bytes(machine.proc) == 3 * GIB


def test_this_machine_has_a_limit() -> None:
    assert 0 < memory_available_bytes() <= memory_limit_bytes()
