"""What each option of `broker serve` means, in the words of `--help` and of the table in docs/operations.md.

Apart from `settings.py`, since the command line is read without pydantic unless a daemon is started.
"""

from typing import Final

OPTIONS: Final[dict[str, str]] = {
    "device": "host, host:N, cuda, cuda:N (or N) or a GPU's UUID.",
    "capacity": "Bytes to lend, such as 24GiB; by default a GPU less 2 GiB, a quarter of the host's memory.",
    "host_budget": "Host memory for parked contents; half of the smallest memory limit.",
    "spill_dir": "Where contents go that the host has no room for, on a disk.",
    "spill_budget": "How much of it, such as 200GiB; set aside on the disk at once.",
    "plan": "The plan of phases to begin with.",
    "keep_free": "What stays free of a GPU for contexts, NCCL and other processes; 2 GiB.",
    "outside_per_session": "What a session's process may have outside of leases before it counts as somebody else.",
    "eager": "Take idle memory though nobody asks for it; auto: while others use the GPU.",
    "copy_ahead": (
        "How long kept memory is idle before it is copied out while the link is idle; 200ms on a GPU, else off."
    ),
    "metrics": "Where to tell numbers for Prometheus: unix:PATH, or a port of the loopback such as 127.0.0.1:9464.",
    "metrics_anywhere": "Let metrics be told at an address that other machines can reach.",
    "history": "What of the host's memory the lines of the latest events may take, for `broker timeline`.",
    "history_dir": "Where the event stream is written as well, for timelines of a daemon that is gone.",
    "history_budget": "How much of that disk it may take; the oldest events go first.",
    "run_dir": "Where the sockets are (VRAMBROKER_RUN_DIR, else /run/vrambroker).",
}
"""By the name that an option has in a file; on the command line it has dashes, in the environment a prefix."""
