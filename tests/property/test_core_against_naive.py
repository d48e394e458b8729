"""The core against a naive broker that says the same in the plainest way: same answers, same residency, same queue."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tests.property.naive import Naive, NaiveLease
from tests.unit.core.desk import MIB, Answer, Desk, limits, peer
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.ids import CallId, Instant, LeaseId, SessionId

CAPACITY, BUDGET = 8, 6
WAIT_NS = 10_000
# No ticket lives to be that old, and each step of priority is worth more than any wait.
AGEING_NS = 4 * WAIT_NS
COPY_AHEAD_NS = WAIT_NS
"""Longer than all else takes together, so that it is over for what is idle when the waits run out, and only then."""
SESSIONS_MAX = 4
TAGS = ("a", "b", "c")
PHASES = {"train": ("a",), "update": ("a", "b"), "generate": ("b",)}
"""The tag `c` is in none of them."""


def name_of(answer: Answer | None) -> str:
    return "" if answer is None else type(answer).__name__


tag_sets = st.lists(st.sampled_from(TAGS), min_size=1, max_size=3, unique=True).map(tuple)


class CoreAgainstNaive(RuleBasedStateMachine):
    """Every rule does one thing to both and compares the answers; every invariant compares what they have become."""

    sessions: Bundle[SessionId] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        held_to = limits(
            capacity=CAPACITY,
            budget=BUDGET,
            file=4,
            sessions=SESSIONS_MAX,
            ageing=AGEING_NS,
            copy_ahead=COPY_AHEAD_NS,
        )
        self.desk = Desk(held_to, scoped=True)
        self.desk.set_plan({name: tuple(f"*/{tag}" for tag in tags) for name, tags in PHASES.items()})
        self.naive = Naive(capacity=CAPACITY, budget=BUDGET, ageing=AGEING_NS)
        self.pids = 0

    def deadline(self) -> Instant:
        return Instant(self.desk.now + WAIT_NS)

    @precondition(lambda self: len(self.desk.broker.snapshot().sessions) < SESSIONS_MAX)
    @rule(target=sessions)
    def attach(self) -> SessionId:
        self.pids += 1
        return self.desk.attach(peer(self.pids))

    @rule(
        session=sessions,
        tag=st.sampled_from(TAGS),
        contents=st.sampled_from(ev.Contents),
        size=st.integers(min_value=1, max_value=CAPACITY // 2),
        replays=st.integers(min_value=0, max_value=2),
    )
    def lend(self, session: SessionId, tag: str, contents: ev.Contents, size: int, replays: int) -> None:
        self.lend_to(session, tag, contents, size, replays)

    def lend_to(self, session: SessionId, tag: str, contents: ev.Contents, size: int, replays: int = 0) -> str:
        number = self.desk.broker.snapshot().next_id
        request = f"lend-{number}-{self.desk.now}"
        answer = self.desk.lend(session, tag, size, contents, request=request)
        assert name_of(answer) == self.naive.lend(session, tag, contents, size, number)
        self.naive.serve()
        for _ in range(replays if name_of(answer) == "Leased" else 0):
            assert self.desk.lend(session, tag, size, contents, request=request) == answer
        return name_of(answer)

    @rule(session=sessions, tag=st.sampled_from(TAGS), more=st.integers(min_value=0, max_value=1))
    def size_by_what_is_free(self, session: SessionId, tag: str, more: int) -> None:
        """What an engine is told to be free it can have, and no more than that."""
        free = self.desk.ask_free(session)
        if not 0 < free + more <= CAPACITY:
            return
        answer = self.lend_to(session, tag, ev.Contents.DROP, free + more)
        assert more or answer != "OutOfDeviceMemory", f"{free} MiB were said to be free"
        assert not more or answer != "Leased", f"no more than {free} MiB were said to be free"

    def held(self, data: st.DataObject, *, paused: bool) -> tuple[SessionId, tuple[str, ...]]:
        """Draw some tags of one session, one of them paused or not as asked for, if there is such a one."""
        fitting = [lease for lease in self.naive.leases if lease.paused == paused]
        lease = data.draw(st.sampled_from(fitting or self.naive.leases))
        others = sorted({one.tag for one in self.naive.leases if one.session == lease.session} - {lease.tag})
        more = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        return SessionId(lease.session), (lease.tag, *more)

    def do_pause(self, session: SessionId, tags: tuple[str, ...], release: bool, discard: bool = False) -> None:
        fresh = [lease for lease in self.naive.of(session, tags) if not lease.paused]
        spare = self.naive.spare(fresh)
        answer = self.desk.pause(session, *tags, release=release, discard=discard)
        assert name_of(answer) == self.naive.pause(session, tags, release, discard, self.desk.now)
        if name_of(answer) in ("Paused", "OutOfHostMemory"):
            # Those who read it are asked to let go before a place for the contents is looked for.
            for lease in self.naive.of(session, tags):
                lease.readers.clear()
        self.adopt_given_up(spare)

    def adopt_given_up(self, spare: list[NaiveLease]) -> None:
        """Learn of which leases the copies went; as many as had to, and no more."""
        given_up, self.naive.given_up = self.naive.given_up, 0
        before = sum(lease.parked for lease in spare)
        for lease in spare:
            lease.parked = sum(slot.copied for slot in self.view(lease).slots)
        assert sum(lease.parked for lease in spare) == before - given_up

    def do_resume(self, session: SessionId, tags: tuple[str, ...], wait: bool) -> None:
        answer = self.desk.resume(session, *tags, wait=wait, deadline=self.deadline())
        expected = self.naive.resume(session, tags, wait, self.desk.last_call, self.desk.now)
        assert name_of(answer) == (expected or self.naive.answers.get(self.desk.last_call, ""))

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data(), release=st.booleans(), discard=st.booleans())
    def pause(self, data: st.DataObject, release: bool, discard: bool) -> None:
        self.do_pause(*self.held(data, paused=False), release, discard)

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data())
    def leave_idle(self, data: st.DataObject) -> None:
        self.do_pause(*self.held(data, paused=False), release=False)

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data(), wait=st.booleans())
    def resume(self, data: st.DataObject, wait: bool) -> None:
        self.do_resume(*self.held(data, paused=True), wait)

    @rule(session=sessions, size=st.integers(min_value=1, max_value=CAPACITY // 2), wait=st.booleans())
    def set_aside(self, session: SessionId, size: int, wait: bool) -> None:
        self.set_aside_for(session, size, wait=wait)

    def set_aside_for(self, session: SessionId, size: int, *, wait: bool) -> None:
        answer = self.desk.hold(session, size, wait=wait, deadline=self.deadline())
        call = self.desk.last_call
        expected = self.naive.hold(session, size, wait, call, self.desk.now)
        assert name_of(answer) == (expected or self.naive.answers.get(call, ""))
        self.naive.serve()

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data(), priority=st.integers(min_value=-2, max_value=2), paused=st.booleans())
    def prioritize(self, data: st.DataObject, priority: int, paused: bool) -> None:
        session, tags = self.held(data, paused=paused)
        answer = self.desk.prioritize(session, *tags, priority=priority)
        assert name_of(answer) == self.naive.prioritize(session, tags, priority)

    @precondition(lambda self: self.naive.queue or self.naive.asides)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        seen = self.desk.broker.snapshot()
        number = data.draw(st.integers(min_value=0, max_value=len(seen.queue) + len(seen.kept) - 1))
        ticket = (*seen.queue, *seen.kept)[number]
        assert name_of(self.desk.cancel(ticket.ticket, peer(99))) == "Done"
        if number < len(seen.queue):
            self.naive.answer(self.naive.turns()[number], "Cancelled")
        else:
            del self.naive.asides[number - len(seen.queue)]
        self.naive.serve()

    @precondition(lambda self: len({lease.session for lease in self.naive.leases}) > 1)
    @rule(
        data=st.data(),
        share=st.integers(min_value=1, max_value=CAPACITY // 2),
        aside=st.booleans(),
        priorities=st.lists(st.integers(min_value=0, max_value=2), min_size=4, max_size=4),
    )
    def contend(self, data: st.DataObject, share: int, aside: bool, priorities: list[int]) -> None:
        """Have several sessions let go of something, fill the device, and then all want it back."""
        owners = sorted({lease.session for lease in self.naive.leases})
        sessions = data.draw(st.lists(st.sampled_from(owners), min_size=2, unique=True))
        own = [next(one for one in self.naive.leases if one.session == session) for session in sessions]
        for lease, priority in zip(own, priorities, strict=False):
            self.do_pause(SessionId(lease.session), (lease.tag,), release=True)
            answer = self.desk.prioritize(SessionId(lease.session), lease.tag, priority=priority)
            assert name_of(answer) == self.naive.prioritize(lease.session, (lease.tag,), priority)
        if aside:
            self.set_aside_for(SessionId(sessions[0]), share, wait=False)
        for session in sessions:
            self.lend_to(SessionId(session), "busy", ev.Contents.DROP, min(share, self.naive.free or share))
        for lease in own:
            self.do_resume(SessionId(lease.session), (lease.tag,), wait=True)

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data())
    def wait_for_room(self, data: st.DataObject) -> None:
        self.do_resume(*self.held(data, paused=True), wait=True)

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data(), paused=st.booleans(), sealed=st.sampled_from((True, True, False)))
    def seal(self, data: st.DataObject, paused: bool, sealed: bool) -> None:
        self.do_seal(*self.held(data, paused=paused), sealed)

    def do_seal(self, session: SessionId, tags: tuple[str, ...], sealed: bool) -> None:
        answer = self.desk.seal(session, *tags) if sealed else self.desk.unseal(session, *tags)
        assert name_of(answer) == self.naive.seal(session, tags, sealed)
        if sealed and name_of(answer) == "Done":
            for lease in self.naive.of(session, tags):
                lease.readers = {key: slots for key, slots in lease.readers.items() if not key[1]}

    @precondition(lambda self: self.sealable())
    @rule(data=st.data())
    def park_sealed(self, data: st.DataObject) -> None:
        """Do what leaves a sealed lease resident with a copy in the arena, if there is room for that."""
        lease = data.draw(st.sampled_from(self.sealable()))
        session, tags = SessionId(lease.session), (lease.tag,)
        self.do_seal(session, tags, sealed=True)
        self.do_pause(session, tags, release=True)
        self.do_resume(session, tags, wait=False)

    def sealable(self) -> list[NaiveLease]:
        others = {(one.session, one.tag) for one in self.naive.leases if one.contents is not ev.Contents.KEEP}
        return [one for one in self.naive.leases if (one.session, one.tag) not in others]

    @precondition(lambda self: any(lease.size for lease in self.naive.leases))
    @rule(session=sessions, data=st.data(), paused=st.booleans(), read_only=st.booleans(), ends=st.booleans())
    def read(self, session: SessionId, data: st.DataObject, paused: bool, read_only: bool, ends: bool) -> None:
        """Have a lease sent, and received by some session, which may let go of it at once, though not of the mapping."""
        sent = [lease for lease in self.naive.leases if lease.size]
        fitting = [lease for lease in sent if lease.paused == paused]
        lease = data.draw(st.sampled_from(fitting or sent))
        view, number = self.view(lease), int(self.desk.now)
        key = str(number)
        assert name_of(self.desk.export(SessionId(lease.session), view.lease, read_only=read_only, key=key)) == "Done"
        slots = frozenset(int(slot.slot) for slot in view.slots)
        answer = self.desk.read(session, number, key)
        expected = self.naive.read(lease, session, slots, read_only=read_only)
        assert name_of(answer) == expected
        if ends and expected == "ReadGranted":
            assert name_of(self.desk.end_read(session, number)) == "Done"

    @precondition(lambda self: len(self.naive.leases) > 3)
    @rule(session=sessions, tags=tag_sets, pauses=st.booleans())
    def act_on_any_tags(self, session: SessionId, tags: tuple[str, ...], pauses: bool) -> None:
        if pauses:
            self.do_pause(session, tags, release=False)
        else:
            self.do_resume(session, tags, wait=True)

    @precondition(lambda self: self.naive.leases)
    @rule(data=st.data(), share=st.sampled_from((0, 1, 2)))
    def give(self, data: st.DataObject, share: int) -> None:
        """Return a lease whole, or one slot of it, or half of it."""
        lease = data.draw(st.sampled_from(self.naive.leases))
        view = self.view(lease)
        named = view.slots[: (len(view.slots) + 1) // 2 if share == 2 else share]
        slots = [slot.slot for slot in named]
        assert name_of(self.desk.give(SessionId(lease.session), view.lease, slots)) == "Done"
        if slots:
            lease.size -= len(slots)
            lease.there -= sum(slot.frame is not None for slot in named)
            lease.parked -= sum(slot.copied for slot in named)
            returned = {int(slot) for slot in slots}
            lease.readers = {key: read for key, read in lease.readers.items() if not read & returned}
        else:
            self.naive.drop(lease)
        self.naive.serve()

    @precondition(lambda self: len(self.desk.broker.snapshot().sessions) > 2)
    @rule(session=consumes(sessions), dies=st.booleans())
    def go(self, session: SessionId, dies: bool) -> None:
        if dies:
            self.desk.do(ev.ProcessEnded(session=session))
        else:
            call = self.desk.call(self.desk.peers[session])
            assert name_of(self.desk.answer(ev.Detach(call=call, session=session))) == "Done"
        self.naive.end(session)
        for lease in self.naive.leases:
            lease.readers = {key: slots for key, slots in lease.readers.items() if key[0] != session}

    @precondition(lambda self: self.naive.leases and not self.naive.queue)
    @rule(phase=st.sampled_from(tuple(PHASES)))
    def enter(self, phase: str) -> None:
        """Enter a phase; while nobody waits, it is entered at once or not at all."""
        leaving = self.naive.leaving(PHASES[phase], ("a", "b"))
        spare = self.naive.spare(leaving)
        answer = self.desk.enter(phase, actor=peer(0), deadline=self.deadline())
        assert name_of(answer) == self.naive.enter(PHASES[phase], ("a", "b"), self.desk.now)
        for lease in leaving if name_of(answer) == "Entered" else ():
            lease.readers.clear()
        self.adopt_given_up(spare)
        assert self.desk.broker.snapshot().entering == ""

    @precondition(lambda self: self.naive.queue)
    @rule()
    def run_out_of_time(self) -> None:
        self.desk.at(self.desk.now + 2 * WAIT_NS)
        self.naive.expire()
        self.naive.copy_ahead()

    @precondition(lambda self: not self.naive.queue and any(lease.paused for lease in self.naive.leases))
    @rule()
    def let_the_link_be_idle(self) -> None:
        self.desk.at(self.desk.now + 2 * COPY_AHEAD_NS)
        self.naive.copy_ahead()

    def view(self, lease: NaiveLease) -> "LeaseSeen":
        return LeaseSeen(self.desk, lease)

    @invariant()
    def the_same_memory_is_where_it_is(self) -> None:
        seen = {
            (session.session, lease.tag, lease.contents): (
                lease.paused,
                lease.sealed,
                lease.device_bytes // MIB,
                lease.host_bytes // MIB,
                len(lease.slots),
            )
            for session in self.desk.broker.snapshot().sessions
            for lease in session.leases
        }
        expected = {
            (lease.session, lease.tag, lease.contents): (
                lease.paused,
                lease.sealed,
                lease.there,
                lease.keeps,
                lease.size,
            )
            for lease in self.naive.leases
        }
        assert seen == expected
        assert self.desk.free == self.naive.free
        kept = [one.size_bytes // MIB for one in self.desk.broker.snapshot().kept]
        assert kept == [one.size for one in self.naive.asides]

    @invariant()
    def the_same_sessions_read(self) -> None:
        for lease in self.naive.leases:
            assert self.view(lease).readers == {key: len(slots) for key, slots in lease.readers.items()}

    @invariant()
    def the_same_calls_wait(self) -> None:
        assert [ticket.size_bytes // MIB for ticket in self.desk.queue()] == [one.need for one in self.naive.turns()]
        for call, expected in self.naive.answers.items():
            assert name_of(self.desk.answers.get(CallId(call))) == expected
        for waiting in self.naive.queue:
            assert CallId(waiting.call) not in self.desk.answers

    def teardown(self) -> None:
        for session in [one.session for one in self.desk.broker.snapshot().sessions]:
            self.desk.do(ev.ProcessEnded(session=session))
        seen = self.desk.broker.snapshot()
        assert (seen.free_bytes, seen.frames, seen.arena) == (CAPACITY * MIB, (), ())


class LeaseSeen:
    """The core's lease that a naive one stands for."""

    def __init__(self, desk: Desk, lease: NaiveLease) -> None:
        session = next(one for one in desk.broker.snapshot().sessions if one.session == lease.session)
        found = next(one for one in session.leases if (one.tag, one.contents) == (lease.tag, lease.contents))
        self.lease: LeaseId = found.lease
        self.slots = found.slots
        names = {session.name: int(session.session) for session in desk.broker.snapshot().sessions}
        self.readers = {(names[one.session], one.writable): one.size_bytes // MIB for one in found.readers}


TestCoreAgainstNaive = CoreAgainstNaive.TestCase
TestCoreAgainstNaive.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
