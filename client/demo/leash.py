"""End with one's parent: nothing that the demo started may outlive it, however it ended.

As a program, `python -m vrambroker.client.demo.leash PARENT COMMAND…`, it ties itself and becomes the command.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends (prctl(2); it survives an exec).

    Raises SystemExit if the parent, a pid, has ended already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    if os.getppid() != parent:
        raise SystemExit(f"process {parent}, which started this one, has ended")


def main() -> None:
    """Become the command that follows the parent's pid."""
    parent, *command = sys.argv[1:]
    tie(int(parent))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
