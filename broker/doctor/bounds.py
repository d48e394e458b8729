"""How much a daemon started here would be allowed: fds and memory."""

import resource
from collections.abc import Iterator

from vrambroker.broker.adapters.memory_limit import MemoryLimit, memory_limits
from vrambroker.broker.core.limits import GIB
from vrambroker.broker.doctor.finding import Finding, fail, ok, unseen, warn
from vrambroker.broker.sizes import size_text

# A GPU of 80 GiB in its smallest frames is 2,560 fds; a session has some, and a batch on its way has them twice.
FDS_AMPLE = 8192
FDS_LEAST = 1024
# Less than that is not worth parking anything in.
HOST_LEAST_BYTES = 4 * GIB


def bounds() -> Iterator[Finding]:
    """Look at the limits of this process, which a daemon started from here would have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield fds(most, "a daemon started here")
    yield memory(memory_limits(), "a daemon started here")


def fds(most: int, whose: str, mend: str = f"ulimit -Hn {FDS_AMPLE}    # or LimitNOFILE= of the unit") -> Finding:
    """Judge a hard limit of fds: each frame is one."""
    if most < FDS_LEAST:
        return fail(
            "fds", f"{whose} may have {most} fds, and each frame is one: it would refuse sessions and leases", mend
        )
    if most < FDS_AMPLE:
        return warn(
            "fds", f"{whose} may have {most} fds; a large GPU lent in small frames takes up to {FDS_AMPLE}", mend
        )
    return ok("fds", f"{whose} may have {most} fds")


def memory(limits: tuple[MemoryLimit, ...], whose: str) -> Finding:
    """Judge the tightest bound on parked contents, and say who is charged for them."""
    tightest = min(limits, key=lambda limit: limit.available_bytes)
    left = (
        f"{size_text(tightest.available_bytes)} of {size_text(tightest.limit_bytes)} are left under {tightest.source}"
    )
    text = f"{whose} is charged for all parked contents, and {left}"
    if tightest.available_bytes < HOST_LEAST_BYTES:
        return warn("host-memory", text, "# raise MemoryMax= of the daemon's unit or pod, or give it --spill-dir")
    return ok("host-memory", text)


def memory_of(pid: int, budget_bytes: int) -> Finding:
    """Judge the host budget of a running daemon against the bounds on its process."""
    try:
        limits = memory_limits(process=str(pid))
    except OSError as error:
        return unseen("host-budget", f"the limits of process {pid} can't be read: {error.strerror}")
    tightest = min(limits, key=lambda limit: limit.limit_bytes)
    text = (
        f"the daemon may park {size_text(budget_bytes)}, of {size_text(tightest.limit_bytes)} under {tightest.source}"
    )
    if budget_bytes > tightest.limit_bytes:
        return fail("host-budget", text, "# start it with a smaller --host-budget, or raise the limit")
    return ok("host-budget", text)
