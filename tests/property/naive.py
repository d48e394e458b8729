"""A naive broker: what the core promises, said in the plainest way, for a world that does everything at once.

One frame size, one domain, and no index or counter: every question is answered by looking at everything. Nothing fails
here.
"""

from dataclasses import dataclass, field

from vrambroker.broker.core.events import Contents


@dataclass(slots=True, kw_only=True, eq=False)
class NaiveLease:
    """`idle_since` orders the idle; `size` counts frames, `there` those that are on the device, and `parked` those whose
    contents are in the arena. `discarded`: nobody wants its contents back from this pause.
    """

    session: int
    tag: str
    contents: Contents
    number: int
    size: int = 0
    priority: int = 0
    paused: bool = False
    there: int = 0
    idle_since: int = 0
    sealed: bool = False
    discarded: bool = False
    parked: int = 0
    readers: dict[tuple[int, bool], frozenset[int]] = field(default_factory=dict[tuple[int, bool], frozenset[int]])

    @property
    def is_kept(self) -> bool:
        return self.contents is Contents.KEEP and not self.discarded

    @property
    def keeps(self) -> int:
        """What it takes of the arena."""
        if not self.is_kept:
            return 0
        return self.size if self.paused else self.parked

    @property
    def cost(self) -> int:
        if not self.is_kept:
            return 0
        return 1 if self.parked == self.size else 2

    def lose(self, frames: int) -> None:
        """Have so many frames taken, those first that are parked already."""
        self.there -= frames
        if self.is_kept:
            self.parked = max(self.parked, self.size - self.there)


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A resume that waits for room; or, if it is about no lease, for so much to be set aside."""

    call: int
    session: int
    since: int
    leases: list[NaiveLease]
    aside: int = 0

    @property
    def need(self) -> int:
        return self.aside + sum(lease.size - lease.there for lease in self.leases)

    @property
    def total(self) -> int:
        return self.aside + sum(lease.size for lease in self.leases)


@dataclass(slots=True, kw_only=True, eq=False)
class Aside:
    """What a session has set aside."""

    call: int
    session: int
    size: int


@dataclass(slots=True, kw_only=True, eq=False)
class Naive:
    capacity: int
    budget: int
    ageing: int
    leases: list[NaiveLease] = field(default_factory=list[NaiveLease])
    queue: list[Waiting] = field(default_factory=list[Waiting])
    asides: list[Aside] = field(default_factory=list[Aside])
    answers: dict[int, str] = field(default_factory=dict[int, str])
    given_up: int = 0

    @property
    def free(self) -> int:
        return self.capacity - sum(lease.there for lease in self.leases) - sum(one.size for one in self.asides)

    def aside(self, session: int) -> int:
        return sum(one.size for one in self.asides if one.session == session)

    def of(self, session: int, tags: tuple[str, ...]) -> list[NaiveLease]:
        return [lease for lease in self.leases if lease.session == session and lease.tag in tags]

    def idle(self, spared: list[NaiveLease]) -> list[NaiveLease]:
        """Return who may be recalled: whose contents are worth nothing first, or parked already, then the less urgent, then
        the longest idle.
        """
        found = [one for one in self.leases if one.paused and one.there and one not in spared]
        return sorted(found, key=lambda one: (one.cost, one.priority, one.idle_since, one.number))

    def take(self, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for so many frames by recall, or change nothing."""
        idle = self.idle(spared)
        if need > self.free + sum(lease.there for lease in idle):
            return False
        for lease in idle:
            lease.lose(min(lease.there, max(0, need - self.free)))
        return True

    def cover(self, session: int, need: int, spared: list[NaiveLease], *, recalls: bool) -> bool:
        """Make room for so many frames: out of what the session has set aside, then what is free, then by recall, if that
        is allowed; or change nothing.
        """
        own = min(need, self.aside(session))
        if need - own > self.free and not (recalls and self.take(need - own, spared)):
            return False
        for one in [one for one in self.asides if one.session == session]:
            part = min(own, one.size)
            one.size -= part
            own -= part
        self.asides = [one for one in self.asides if one.size]
        return True

    def cover_at_once(self, session: int, need: int, spared: list[NaiveLease]) -> bool:
        """Make room for what does not wait: by recall only if nobody waits already."""
        return self.cover(session, need, spared, recalls=not self.queue)

    def known(self, session: int, tags: tuple[str, ...]) -> bool:
        return all(self.of(session, (tag,)) for tag in tags)

    def lend(self, session: int, tag: str, contents: Contents, size: int, number: int) -> str:
        if any(lease.paused or lease.sealed for lease in self.of(session, (tag,))):
            return "WrongState"
        if not self.cover_at_once(session, size, []):
            return "OutOfDeviceMemory"
        lease = next((one for one in self.of(session, (tag,)) if one.contents is contents), None)
        if lease is None:
            lease = NaiveLease(session=session, tag=tag, contents=contents, number=number)
            self.leases.append(lease)
        lease.size += size
        lease.there += size
        return "Leased"

    def pause(self, session: int, tags: tuple[str, ...], release: bool, discard: bool, now: int) -> str:
        if not self.known(session, tags):
            return "UnknownTag"
        if discard and any(lease.sealed for lease in self.of(session, tags)):
            return "WrongState"
        fresh = [lease for lease in self.of(session, tags) if not lease.paused]
        kept = [lease for lease in fresh if lease.contents is Contents.KEEP and not discard]
        need = sum(lease.size - lease.parked for lease in kept)
        over = sum(lease.keeps for lease in self.leases) + need - self.budget
        if over > sum(lease.parked for lease in self.spare(fresh)):
            return "OutOfHostMemory"
        self.given_up = max(0, over)
        for lease in fresh:
            lease.paused, lease.idle_since = True, now
            lease.discarded = discard and lease.contents is Contents.KEEP
        for lease in self.of(session, tags) if release else []:
            lease.lose(lease.there)
        self.serve()
        return "Paused"

    def resume(self, session: int, tags: tuple[str, ...], wait: bool, call: int, now: int) -> str:
        """Return the answer, or nothing if there is none yet."""
        if not self.known(session, tags):
            return "UnknownTag"
        leases = self.of(session, tags)
        if sum(lease.size for lease in leases) > self.capacity:
            return "OutOfDeviceMemory"
        need = sum(lease.size - lease.there for lease in leases)
        if not need or (not wait and self.cover_at_once(session, need, leases)):
            self.bring_back(leases)
            self.serve()
            return "Resumed"
        if not wait:
            return "OutOfDeviceMemory"
        self.queue.append(Waiting(call=call, session=session, since=now, leases=leases))
        self.serve()
        return ""

    def hold(self, session: int, size: int, wait: bool, call: int, now: int) -> str:
        """Return the answer, or nothing if there is none yet."""
        waiting = Waiting(call=call, session=session, since=now, leases=[], aside=size)
        if not wait:
            return self.serve_one(waiting, recalls=not self.queue) or "OutOfDeviceMemory"
        self.queue.append(waiting)
        self.serve()
        return ""

    def read(self, lease: NaiveLease, session: int, slots: frozenset[int], *, read_only: bool) -> str:
        """Have a session map slots of somebody's lease; its owner has them already."""
        if session == lease.session:
            return "ReadGranted"
        if lease.paused or (lease.sealed and not read_only):
            return "WrongState"
        key = (session, not read_only)
        lease.readers[key] = lease.readers.get(key, frozenset()) | slots
        return "ReadGranted"

    def prioritize(self, session: int, tags: tuple[str, ...], priority: int) -> str:
        if not self.known(session, tags):
            return "UnknownTag"
        for lease in self.of(session, tags):
            lease.priority = priority
        self.serve()
        return "Done"

    def leaving(self, listed: tuple[str, ...], planned: tuple[str, ...]) -> list[NaiveLease]:
        there = (one for one in self.leases if not one.paused and one.size)
        return [one for one in there if one.tag in planned and one.tag not in listed]

    def enter(self, listed: tuple[str, ...], planned: tuple[str, ...], now: int) -> str:
        """Pause what leaves and bring back what comes, if nobody waits; or change nothing."""
        leave = self.leaving(listed, planned)
        come = [one for one in self.leases if one.paused and one.tag in listed]
        parts = [[lease for lease in come if lease.session == one] for one in sorted({one.session for one in come})]
        needs = {part[0].session: sum(lease.size - lease.there for lease in part) for part in parts}
        own = sum(min(need, self.aside(session)) for session, need in needs.items())
        idle = sum(lease.there for lease in self.idle(come))
        if sum(needs.values()) > own + self.free + idle + sum(lease.there for lease in leave):
            return "OutOfDeviceMemory"
        keeps = sum(lease.size - lease.parked for lease in leave if lease.contents is Contents.KEEP)
        over = sum(lease.keeps for lease in self.leases) + keeps - self.budget
        if over > sum(lease.parked for lease in self.spare(leave)):
            return "OutOfHostMemory"
        self.given_up = max(0, over)
        for lease in leave:
            lease.paused, lease.idle_since = True, now
        for part in sorted(parts, key=lambda part: -max(lease.priority for lease in part)):
            session = part[0].session
            assert self.cover(session, needs[session], come, recalls=True)
            for lease in part:
                lease.there = lease.size
        self.bring_back(come)
        return "Entered"

    def spare(self, needed: list[NaiveLease]) -> list[NaiveLease]:
        """Return the leases whose copies nobody needs just now; which of them go is the core's choice."""
        return [one for one in self.leases if one.sealed and not one.paused and one not in needed]

    def bring_back(self, leases: list[NaiveLease]) -> None:
        for lease in leases:
            lease.paused, lease.there, lease.discarded = False, lease.size, False
            lease.parked = lease.parked if lease.sealed else 0

    def seal(self, session: int, tags: tuple[str, ...], sealed: bool) -> str:
        if not self.known(session, tags):
            return "UnknownTag"
        leases = self.of(session, tags)
        if sealed and any(lease.contents is not Contents.KEEP for lease in leases):
            return "InvalidArgument"
        if sealed and any(lease.discarded for lease in leases):
            return "WrongState"
        for lease in leases:
            lease.sealed = sealed
            if not lease.paused and not sealed:
                lease.parked = 0
        return "Done"

    def turns(self) -> list[Waiting]:
        """Return who waits, in the order of their turn."""

        def turn(one: Waiting) -> tuple[int, int]:
            return one.since - max((lease.priority for lease in one.leases), default=0) * self.ageing, one.call

        return sorted(self.queue, key=turn)

    def serve(self) -> None:
        """Serve the queue; past one that can't be served, only those that fit in what is free, unless it needs others who
        wait to go on first. Then refuse who waits in a ring.
        """
        served = True
        while served:
            served, blocked, waiting = False, False, self.only_waiting()
            for one in self.turns():
                if answer := self.serve_one(one, recalls=not blocked):
                    self.answer(one, answer)
                    served = True
                elif not self.blocks(waiting, one):
                    blocked = True
            if not served and (ring := self.ring()):
                self.answer(ring[-1], "OutOfDeviceMemory")
                served = True

    def answer(self, one: Waiting, answer: str) -> None:
        self.queue.remove(one)
        self.answers[one.call] = answer

    def serve_one(self, one: Waiting, *, recalls: bool) -> str:
        """Give one what it needs, if it is there; returns the answer, or nothing."""
        if one.leases and self.cover(one.session, one.need, one.leases, recalls=recalls):
            self.bring_back(one.leases)
            return "Resumed"
        if not one.leases and (one.aside <= self.free or (recalls and self.take(one.aside, []))):
            self.asides.append(Aside(call=one.call, session=one.session, size=one.aside))
            self.asides.sort(key=lambda aside: aside.call)
            return "Held"
        return ""

    def in_use(self, session: int) -> int:
        return sum(lease.there for lease in self.leases if lease.session == session and not lease.paused)

    def only_waiting(self) -> set[int]:
        """Return the sessions that wait, but for those that nobody else can help."""
        totals: dict[int, list[int]] = {}
        for one in self.queue:
            totals.setdefault(one.session, []).append(one.total)
        return {who for who, sizes in totals.items() if min(sizes) <= self.capacity - self.in_use(who)}

    def blocks(self, waiting: set[int], one: Waiting) -> bool:
        """Tell whether those who wait have what this one needs."""
        others = sum(self.in_use(who) + self.aside(who) for who in waiting)
        own = self.aside(one.session) if one.session in waiting else 0
        return one.total > self.capacity - others + own

    def ring(self) -> list[Waiting]:
        """Return who waits for each other, in the order of their turn."""
        left = self.only_waiting()
        while True:
            helped = {one.session for one in self.queue if one.session in left and not self.blocks(left, one)}
            if not helped:
                break
            left -= helped
        holding = {who for who in left if self.in_use(who) + self.aside(who)}
        return [one for one in self.turns() if one.session in holding] if len(holding) > 1 else []

    def drop(self, lease: NaiveLease) -> None:
        """Take a lease back whole."""
        self.leases.remove(lease)
        for waiting in list(self.queue):
            if lease in waiting.leases:
                waiting.leases.remove(lease)
                if not waiting.leases:
                    self.answer(waiting, "UnknownTag")

    def end(self, session: int) -> None:
        for waiting in list(self.queue):
            if waiting.session == session:
                self.answer(waiting, "UnknownSession")
        self.asides = [one for one in self.asides if one.session != session]
        for lease in [one for one in self.leases if one.session == session]:
            self.drop(lease)
        self.serve()

    def expire(self) -> None:
        """Let every wait run out."""
        for waiting in self.queue:
            self.answers[waiting.call] = "OutOfDeviceMemory"
        self.queue.clear()

    def copy_ahead(self) -> None:
        """Have all that is idle in the arena as well: nobody waits."""
        for lease in self.leases:
            if lease.paused and lease.is_kept:
                lease.parked = lease.size
