"""The numbers the broker is held to. There is a limit on everything."""

from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
GIB = 1 << 30
NS_PER_S = 1_000_000_000


class Eager(Enum):
    """When idle memory is taken though nobody asks for it. AUTO: while others use the device."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes. `frame_sizes_bytes` ascends, each divides the next, and the smallest divides the capacity.

    `pool_bytes_max`: how much nobody's frames may come to for ever; `pool_ns`: for how long what is more than that is
    kept after the last frame came back, for whoever asks next.
    `arena_ahead`: files are made, and offered to a session's process, for what it may have to park, before it does.
    `replays_max`: how often a request may be sent again while it is not answered.
    `seal_ns`: how long a tag is waited for to be sealed that others may write to.
    `claim_ns`: how long frames are kept for a claim until it is presented, and then until they have arrived.
    `ageing_ns`: how much waiting a step of priority is worth, and how long a ticket waits before others that wait don't
    overtake it any more.
    `patience_ns`: past its deadline, what has been granted or released is not cut short before its peer has shown no
    progress for so long.
    `spill_budget_bytes`: how much of what must be kept may lie in the spill store; 0 if there is none. `staging_bytes`: how
    much of the host's budget is for contents on their way to it and back; the largest frame at least.
    `retry_ns`: how long after the host or the spill store has refused is tried again; longer, if it goes on refusing.
    `undo_ns`: how long a change of phase that failed waits until what it had paused is back.
    `copy_ahead_ns`: how long kept contents are idle before they are copied out in the background; None: they never are.
    `copy_ahead_bytes`: how much of them one order is about at most, but for a single slot that is larger.
    `device_bytes`: what the device has for frames and all others together; unknown where nobody measures that.
    `keep_free_bytes`: how much of it is left free for others. `outside_per_session_bytes`: what a session's process
    may have outside of leases before it is taken for somebody who is no session. `eager`: when idle memory is taken
    though nobody asks for it; `eager_ns`: for how long after what is outside has grown by an eighth of that.
    `room_ns_max`: how long capacity is kept for others at most.
    """

    capacity_bytes: int
    frame_sizes_bytes: tuple[int, ...]
    host_budget_bytes: int
    arena_file_bytes: int
    arena_ahead: bool = False
    spill_budget_bytes: int = 0
    staging_bytes: int = 0
    pool_bytes_max: int = 0
    pool_ns: int = 0
    sessions_max: int = 256
    leases_per_session_max: int = 4096
    slots_per_lease_max: int = 65536
    tickets_per_session_max: int = 256
    tags_per_call_max: int = 256
    requests_remembered_max: int = 1024
    replays_max: int = 128
    name_length_max: int = 64
    tag_length_max: int = 64
    priority_max: int = 100
    budgets_per_session_max: int = 256
    ageing_ns: int = 10 * NS_PER_S
    claim_ns: int = 10 * NS_PER_S
    seal_ns: int = 10 * NS_PER_S
    patience_ns: int = NS_PER_S
    undo_ns: int = 5 * NS_PER_S
    retry_ns: int = NS_PER_S
    copy_ahead_ns: int | None = None
    copy_ahead_bytes: int = 256 * MIB
    device_bytes: int | None = None
    keep_free_bytes: int = 0
    outside_per_session_bytes: int = 4 * GIB
    eager: Eager = Eager.AUTO
    eager_ns: int = NS_PER_S
    room_ns_max: int = 600 * NS_PER_S
    rooms_per_user_max: int = 16
    exports_per_session_max: int = 65_536
    slots_per_export_max: int = 1_024
    readers_per_session_max: int = 4_096
