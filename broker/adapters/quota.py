"""So many of something for each process and each user, so that nobody locks the others out."""

import os

from vrambroker.broker.core.errors import QuotaExceeded
from vrambroker.broker.core.events import Peer


class Quota:
    """Counts what processes have of one thing; `what` is its name in the error. Root and our own user have no bound of
    their own: what they have is bounded by process, and in sum by whatever limit there is on all.
    """

    def __init__(self, what: str, *, per_process: int, per_user: int) -> None:
        self._what = what
        self._per_process = per_process
        self._per_user = per_user
        self._processes: dict[tuple[int, int], int] = {}
        self._users: dict[int, int] = {}

    def require(self, peer: Peer) -> None:
        """Raise `QuotaExceeded` if the peer's process or user may have no more."""
        if self._processes.get((peer.pid, peer.uid), 0) >= self._per_process:
            raise self._exceeded(f"process {peer.pid}", "process", self._per_process)
        if peer.uid not in (0, os.geteuid()) and self._users.get(peer.uid, 0) >= self._per_user:
            raise self._exceeded(f"uid {peer.uid}", "user", self._per_user)

    def take(self, peer: Peer) -> None:
        """Count one more, as `require` has allowed."""
        process = (peer.pid, peer.uid)
        self._processes[process] = self._processes.get(process, 0) + 1
        self._users[peer.uid] = self._users.get(peer.uid, 0) + 1

    def give(self, peer: Peer) -> None:
        """Count one less."""
        process = (peer.pid, peer.uid)
        self._processes[process] -= 1
        if not self._processes[process]:
            del self._processes[process]
        self._users[peer.uid] -= 1
        if not self._users[peer.uid]:
            del self._users[peer.uid]

    def _exceeded(self, who: str, whose: str, most: int) -> QuotaExceeded:
        message = f"{who} has {most} {self._what} already"
        return QuotaExceeded(message=message, limit=f"{self._what}_per_{whose}", limit_value=most)
