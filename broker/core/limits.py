"""The numbers the broker is held to. There is a limit on everything."""

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes. `frame_sizes_bytes` ascends, each divides the next, and the smallest divides the capacity."""

    capacity_bytes: int
    frame_sizes_bytes: tuple[int, ...]
    host_budget_bytes: int
    arena_file_bytes: int
    pool_bytes_max: int = 0
    sessions_max: int = 256
    leases_per_session_max: int = 4096
    slots_per_lease_max: int = 65536
    tickets_per_session_max: int = 256
    tags_per_call_max: int = 256
    requests_remembered_max: int = 1024
    name_length_max: int = 64
    tag_length_max: int = 64
