"""How long the core takes to decide, by the number of leases it knows. No process, no socket: the function itself.

`python core_growth.py` measures and writes `results/core.json`; with numbers of leases, it only prints how long the events
of the mix take, by kind. Times are CPU time of the core's thread, since others may use the machine.

The predictions were written after a first look at the mix: a decision walks a ticket's leases, not all that there are. A
change of phase in which all leases change places is some 50 µs for each of them, in Python, in one event.
"""

import random
import statistics
import sys
from collections import defaultdict

from core_world import MIB, CoreWorld, Decision
from harness import Result, cpu_name, median_seconds, write_results

from vrambroker.broker.core.effects import Effect, SendGrant
from vrambroker.broker.core.events import Contents, Enter, Mark, Prioritize, Return, SetBudget, SetPlan
from vrambroker.broker.core.ids import Instant, LeaseId, SessionId, SlotId
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.phase import Order, Phase, PhasePlan, parse_pattern

LEASES_PER_SESSION = 100
ROUNDS = 200
SESSIONS = 64
CALLS = 10_000
# How much of what is leased there is room for.
SHARE = 0.6
FRAME = 2 * MIB
# Of the mix, how often each call is made.
WEIGHTS = {
    "lease": 20,
    "give": 20,
    "pause": 20,
    "resume": 25,
    "release": 5,
    "prioritize": 5,
    "mark": 2,
    "budget": 2,
    "enter": 1,
}
# A change of phase in the mix: so many sessions, so many tags of each leave, and as many come.
PHASE_SESSIONS, PHASE_TAGS = 8, 2


def _limits(leases: int, *, share: float = 1.0) -> Limits:
    return Limits(
        capacity_bytes=int(leases * share) * FRAME,
        frame_sizes_bytes=(FRAME,),
        host_budget_bytes=2 * FRAME * leases,
        arena_file_bytes=64 * MIB,
    )


def decision_seconds(leases: int) -> float:
    """Return the median time in which the core decides a pause and a resume among so many leases."""
    world = CoreWorld(_limits(leases))
    session = SessionId(0)
    for number in range(leases // LEASES_PER_SESSION):
        session = world.attach(f"s{number}")
        for tag in range(LEASES_PER_SESSION):
            world.lease(session, f"t{tag}", FRAME)

    def cycle() -> None:
        world.pause(session, "t50")
        world.resume(session, "t50")

    return median_seconds(cycle, ROUNDS)


class Mix(CoreWorld):
    """64 sessions with so many leases, more than there is room for, and one call after the other, drawn by a seed."""

    def __init__(self, leases: int, *, decisions: list[Decision]) -> None:
        super().__init__(_limits(leases, share=SHARE))
        self._chance = random.Random(leases)
        self._slots: dict[tuple[SessionId, str], list[tuple[LeaseId, SlotId]]] = defaultdict(list)
        self._revisions: dict[SessionId, int] = defaultdict(int)
        self.sessions = [self.attach(f"s{number}") for number in range(SESSIONS)]
        self.tags = {session: max(1, leases // SESSIONS) for session in self.sessions}
        for session in self.sessions[: leases - sum(self.tags.values())]:
            self.tags[session] += 1
        self._open(0, Contents.DROP)
        for session, number in self.tags.items():
            for tag in range(0, number, 2):
                self.pause(session, f"t{tag}")
        self._open(1, Contents.KEEP)
        self._phases = 0
        few = [f"s{session}/t{tag}" for session in range(PHASE_SESSIONS) for tag in range(2 * PHASE_TAGS)]
        phases = {"few0": few[::2], "few1": few[1::2], "all0": ["s*/t*[02468]"], "all1": ["s*/t*[13579]"]}
        self.plan = {
            name: Phase(name=name, tags=tuple(parse_pattern(one, name) for one in tags))
            for name, tags in phases.items()
        }
        self.set_plan("few0", "few1")
        self.decisions = decisions

    def _open(self, first: int, contents: Contents) -> None:
        for session, number in self.tags.items():
            for tag in range(first, number, 2):
                self.lease(session, f"t{tag}", FRAME, contents)

    def seen(self, effect: Effect) -> None:
        super().seen(effect)
        if isinstance(effect, SendGrant):
            known = self._slots[effect.session, effect.tag]
            numbers = {slot for _, slot in known}
            known.extend((effect.lease, slot.slot) for slot in effect.slots if slot.slot not in numbers)

    def set_plan(self, *names: str) -> None:
        phases = tuple(self.plan[name] for name in names)
        self.tell(SetPlan(call=self.call(), plan=PhasePlan(order=Order.DEVICE, phases=phases)))

    def enter(self, phase: str) -> None:
        self.tell(Enter(call=self.call(), phase=phase, deadline=Instant(self.now + 1000)))
        self.wait(1000)

    def step(self) -> None:
        """Make one call."""
        session = self._chance.choice(self.sessions)
        tag = f"t{self._chance.randrange(self.tags[session])}"
        match self._chance.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]:
            case "lease":
                self.lease(session, tag, FRAME)
            case "give":
                slots = self._slots[session, tag]
                if len(slots) > 1:
                    lease, slot = slots.pop()
                    self.tell(Return(call=self.call(), session=session, lease=lease, slots=(slot,)))
            case "pause":
                self.pause(session, tag)
            case "release":
                self.pause(session, tag, release=True)
            case "resume":
                self.resume(session, tag, within_ns=100_000)
            case "prioritize":
                priority = self._chance.randrange(-2, 3)
                self.tell(Prioritize(call=self.call(), session=session, tags=(tag,), priority=priority))
            case "budget":
                self.budget(session)
            case "enter":
                self._phases += 1
                self.enter(f"few{self._phases % 2}")
            case _:
                self.tell(Mark(call=self.call(), label="step"))

    def budget(self, session: SessionId) -> None:
        """Bound a session softly, at what it had in the beginning."""
        revision, self._revisions[session] = self._revisions[session], self._revisions[session] + 1
        soft_bytes = self.tags[session] * FRAME
        call = self.call()
        self.tell(
            SetBudget(call=call, session=session, tag="", soft_bytes=soft_bytes, hard_bytes=None, revision=revision)
        )


def mix(leases: int) -> list[Decision]:
    """Return all decisions of the mix."""
    decisions: list[Decision] = []
    world = Mix(leases, decisions=decisions)
    for _ in range(CALLS):
        world.step()
    world.broker.check()
    return decisions


def enter_all(leases: int, rounds: int = 5) -> list[Decision]:
    """Return, of changes of phase in which half of all leases leave and the other half comes, the longest event each."""
    decisions: list[Decision] = []
    world = Mix(leases, decisions=decisions)
    world.set_plan("all0", "all1")
    world.enter("all0")
    longest: list[Decision] = []
    for number in range(rounds):
        decisions.clear()
        world.enter(f"all{(number + 1) % 2}")
        longest.append(max(decisions, key=lambda one: one.cpu_ns))
    world.broker.check()
    return longest


def p99(times_ns: list[int]) -> float:
    """Return the 99th percentile, in seconds."""
    return sorted(times_ns)[len(times_ns) * 99 // 100] / 1e9


def measure() -> None:
    """Measure the mix with 100 to 10,000 leases, and changes of phase of all of them."""
    times = {leases: p99([one.cpu_ns for one in mix(leases)]) for leases in (100, 1000, 10_000)}
    results = [
        Result(
            name="core_decision_p99",
            what="one decision among 10000 leases of 64 sessions, changes of phase among them, p99",
            value=times[10_000],
            unit="s",
            prediction=0.001,
        )
    ]
    for leases in (1000, 10_000):
        results.append(
            Result(
                name=f"core_decision_p99_growth_{leases}",
                what=f"the same with {leases} leases against 100",
                value=times[leases] / times[100],
                unit="ratio",
                prediction=1.5,
            )
        )
    for leases in (1000, 10_000):
        results.append(
            Result(
                name=f"core_enter_{leases}",
                what=f"a change of phase in which all {leases} leases change places: its longest event",
                value=statistics.median(one.cpu_ns for one in enter_all(leases)) / 1e9,
                unit="s",
                prediction=50e-6 * leases,
            )
        )
    write_results("core.json", "the core alone, CPU time", cpu_name(), results)
    for result in results:
        print(f"{result.name:32} {result.value:10.4g} {result.unit:6} (predicted {result.prediction:g})")


def main() -> None:
    """Measure, or print how long each kind of event takes."""
    if len(sys.argv) == 1:
        measure()
    for leases in map(int, sys.argv[1:]):
        decisions = mix(leases)
        kinds: dict[str, list[int]] = defaultdict(list)
        for one in decisions:
            kinds[one.event].append(one.cpu_ns)
        total = [one.cpu_ns for one in decisions]
        wall = [one.wall_ns for one in decisions]
        print(
            f"{leases} leases: {len(total)} events, p99 {1e3 * p99(total):.3f} ms of CPU, {1e3 * p99(wall):.3f} of wall"
        )
        for kind, times in sorted(kinds.items(), key=lambda item: -max(item[1])):
            median = statistics.median(times) / 1e6
            print(
                f"  {kind:18} {len(times):6} median {median:8.3f} p99 {1e3 * p99(times):8.3f} worst {max(times) / 1e6:8.3f} ms"
            )
        print(
            "  all leases change places: longest event", [round(one.cpu_ns / 1e6, 1) for one in enter_all(leases)], "ms"
        )


if __name__ == "__main__":
    main()
