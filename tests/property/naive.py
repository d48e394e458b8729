"""A naive broker: what the core promises, said in the plainest way, for a world that does everything at once.

One frame size, one domain, and no index or counter: every question is answered by looking at everything. Nothing fails
here.
"""

from dataclasses import dataclass, field

from vrambroker.broker.core.events import Contents


@dataclass(slots=True, kw_only=True, eq=False)
class NaiveLease:
    """`idle_since` orders the idle; `size` counts frames, `there` those that are on the device, and `parked` those whose
    contents are in the arena.
    """

    session: int
    tag: str
    contents: Contents
    number: int
    size: int = 0
    paused: bool = False
    there: int = 0
    idle_since: int = 0
    sealed: bool = False
    parked: int = 0

    @property
    def keeps(self) -> int:
        """What it takes of the arena."""
        if self.contents is not Contents.KEEP:
            return 0
        return self.size if self.paused else self.parked

    @property
    def cost(self) -> int:
        if self.contents is not Contents.KEEP:
            return 0
        return 1 if self.parked == self.size else 2

    def lose(self, frames: int) -> None:
        """Have so many frames taken, those first that are parked already."""
        self.there -= frames
        if self.contents is Contents.KEEP:
            self.parked = max(self.parked, self.size - self.there)


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
    given_up: int = 0

    @property
    def free(self) -> int:
        return self.capacity - sum(lease.there for lease in self.leases)

    def of(self, session: int, tags: tuple[str, ...]) -> list[NaiveLease]:
        return [lease for lease in self.leases if lease.session == session and lease.tag in tags]

    def idle(self, spared: list[NaiveLease]) -> list[NaiveLease]:
        """Return who may be recalled: whose contents are worth nothing first, or parked already, then the longest idle."""
        found = [one for one in self.leases if one.paused and one.there and one not in spared]
        return sorted(found, key=lambda one: (one.cost, one.idle_since, one.number))

    def take(self, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for so many frames by recall, or change nothing."""
        idle = self.idle(spared)
        if need > self.free + sum(lease.there for lease in idle):
            return False
        for lease in idle:
            lease.lose(min(lease.there, max(0, need - self.free)))
        return True

    def take_at_once(self, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for what does not wait: by recall only if nobody waits already."""
        return need <= self.free or (not self.queue and self.take(need, spared))

    def known(self, session: int, tags: tuple[str, ...]) -> bool:
        return all(self.of(session, (tag,)) for tag in tags)

    def lend(self, session: int, tag: str, contents: Contents, size: int, number: int) -> str:
        if any(lease.paused or lease.sealed for lease in self.of(session, (tag,))):
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
        need = sum(lease.size - lease.parked for lease in fresh if lease.contents is Contents.KEEP)
        over = sum(lease.keeps for lease in self.leases) + need - self.budget
        if over > sum(lease.parked for lease in self.spare(fresh)):
            return "OutOfHostMemory"
        self.given_up = max(0, over)
        for lease in fresh:
            lease.paused, lease.idle_since = True, now
        for lease in self.of(session, tags) if release else []:
            lease.lose(lease.there)
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

    def spare(self, needed: list[NaiveLease]) -> list[NaiveLease]:
        """Return the leases whose copies nobody needs just now; which of them go is the core's choice."""
        return [one for one in self.leases if one.sealed and not one.paused and one not in needed]

    def bring_back(self, leases: list[NaiveLease]) -> None:
        for lease in leases:
            lease.paused, lease.there = False, lease.size
            lease.parked = lease.parked if lease.sealed else 0

    def seal(self, session: int, tags: tuple[str, ...], sealed: bool) -> str:
        if not self.known(session, tags):
            return "UnknownTag"
        leases = self.of(session, tags)
        if sealed and any(lease.contents is not Contents.KEEP for lease in leases):
            return "InvalidArgument"
        for lease in leases:
            lease.sealed = sealed
            if not lease.paused and not sealed:
                lease.parked = 0
        return "Done"

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
