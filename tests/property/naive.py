"""A naive broker: what the core promises, said in the plainest way, for a world that does everything at once.

One frame size, one domain, and no index or counter: every question is answered by looking at everything. Nothing fails
here.
"""

from dataclasses import dataclass, field

from vrambroker.broker.core.events import Contents


@dataclass(slots=True, kw_only=True, eq=False)
class NaiveLease:
    """`idle_since` orders the idle; `size` counts frames, and `there` those that are on the device."""

    session: int
    tag: str
    contents: Contents
    number: int
    size: int = 0
    paused: bool = False
    there: int = 0
    idle_since: int = 0

    @property
    def keeps(self) -> int:
        """What it takes of the arena."""
        return self.size if self.paused and self.contents is Contents.KEEP else 0


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A resume that waits for room."""

    call: int
    leases: list[NaiveLease]


@dataclass(slots=True, kw_only=True, eq=False)
class Naive:
    capacity: int
    budget: int
    leases: list[NaiveLease] = field(default_factory=list[NaiveLease])
    queue: list[Waiting] = field(default_factory=list[Waiting])
    answers: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def free(self) -> int:
        return self.capacity - sum(lease.there for lease in self.leases)

    def of(self, session: int, tags: tuple[str, ...]) -> list[NaiveLease]:
        return [lease for lease in self.leases if lease.session == session and lease.tag in tags]

    def idle(self, spared: list[NaiveLease]) -> list[NaiveLease]:
        """Return who may be recalled: who need not be copied first, then the longest idle."""
        found = [one for one in self.leases if one.paused and one.there and one not in spared]
        return sorted(found, key=lambda one: (one.contents is Contents.KEEP, one.idle_since, one.number))

    def take(self, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for so many frames by recall, or change nothing."""
        idle = self.idle(spared)
        if need > self.free + sum(lease.there for lease in idle):
            return False
        for lease in idle:
            lease.there -= min(lease.there, max(0, need - self.free))
        return True

    def take_at_once(self, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for what does not wait: by recall only if nobody waits already."""
        return need <= self.free or (not self.queue and self.take(need, spared))

    def known(self, session: int, tags: tuple[str, ...]) -> bool:
        return all(self.of(session, (tag,)) for tag in tags)

    def lend(self, session: int, tag: str, contents: Contents, size: int, number: int) -> str:
        if any(lease.paused for lease in self.of(session, (tag,))):
            return "WrongState"
        if not self.take_at_once(size, []):
            return "OutOfDeviceMemory"
        lease = next((one for one in self.of(session, (tag,)) if one.contents is contents), None)
        if lease is None:
            lease = NaiveLease(session=session, tag=tag, contents=contents, number=number)
            self.leases.append(lease)
        lease.size += size
        lease.there += size
        return "Leased"

    def pause(self, session: int, tags: tuple[str, ...], release: bool, now: int) -> str:
        if not self.known(session, tags):
            return "UnknownTag"
        fresh = [lease for lease in self.of(session, tags) if not lease.paused]
        need = sum(lease.size for lease in fresh if lease.contents is Contents.KEEP)
        if sum(lease.keeps for lease in self.leases) + need > self.budget:
            return "OutOfHostMemory"
        for lease in fresh:
            lease.paused, lease.idle_since = True, now
        for lease in self.of(session, tags) if release else []:
            lease.there = 0
        self.serve()
        return "Paused"

    def resume(self, session: int, tags: tuple[str, ...], wait: bool, call: int) -> str:
        """Return the answer, or nothing if there is none yet."""
        if not self.known(session, tags):
            return "UnknownTag"
        leases = self.of(session, tags)
        if sum(lease.size for lease in leases) > self.capacity:
            return "OutOfDeviceMemory"
        need = sum(lease.size - lease.there for lease in leases)
        if not need or (not wait and self.take_at_once(need, leases)):
            self.bring_back(leases)
            self.serve()
            return "Resumed"
        if not wait:
            return "OutOfDeviceMemory"
        self.queue.append(Waiting(call=call, leases=leases))
        self.serve()
        return ""

    def bring_back(self, leases: list[NaiveLease]) -> None:
        for lease in leases:
            lease.paused, lease.there = False, lease.size

    def serve(self) -> None:
        """Serve the queue, first come first served; past one that can't be served, only those that fit in what is
        free.
        """
        served = True
        while served:
            served, blocked = False, False
            for waiting in list(self.queue):
                need = sum(lease.size - lease.there for lease in waiting.leases)
                if need <= self.free or (not blocked and self.take(need, waiting.leases)):
                    self.bring_back(waiting.leases)
                    self.queue.remove(waiting)
                    self.answers[waiting.call] = "Resumed"
                    served = True
                else:
                    blocked = True

    def drop(self, lease: NaiveLease) -> None:
        """Take a lease back whole."""
        self.leases.remove(lease)
        for waiting in list(self.queue):
            if lease in waiting.leases:
                waiting.leases.remove(lease)
                if not waiting.leases:
                    self.queue.remove(waiting)
                    self.answers[waiting.call] = "UnknownTag"

    def end(self, session: int) -> None:
        for waiting in list(self.queue):
            if waiting.leases[0].session == session:
                self.queue.remove(waiting)
                self.answers[waiting.call] = "UnknownSession"
        for lease in [one for one in self.leases if one.session == session]:
            self.drop(lease)
        self.serve()

    def expire(self) -> None:
        """Let every wait run out."""
        for waiting in self.queue:
            self.answers[waiting.call] = "OutOfDeviceMemory"
        self.queue.clear()
