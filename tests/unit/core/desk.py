"""A desk to test the core at: a broker whose world answers at once, except for what a test holds back.

`held_back` names kinds of answers that wait in `pending` until `let_go`; everything else that the broker orders is
reported done in the order in which it was ordered. After every event the core checks itself.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from vrambroker.broker.core import effects as ef
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.ids import (
    CallId,
    ConnectionId,
    Domain,
    ExportKey,
    Instant,
    LeaseId,
    RequestId,
    SessionId,
    SlotId,
    TicketId,
)
from vrambroker.broker.core.limits import Eager, Limits
from vrambroker.broker.core.phase import Order, Phase, PhasePlan, Ranked, parse_pattern
from vrambroker.broker.core.snapshot import LeaseView, TicketView

MIB = 1 << 20
FAR = Instant(1_000_000)
HOME = Domain("home")
Wanted = TypeVar("Wanted")
Answer = ef.Outcome | BrokerError


def limits(
    *,
    capacity: int = 8,
    sizes: tuple[int, ...] = (1,),
    budget: int = 64,
    file: int = 8,
    pool: int = 0,
    sessions: int = 8,
    leases: int = 64,
    slots: int = 64,
    tickets: int = 64,
    remembered: int = 64,
    claim: int = 500,
    patience: int = 0,
    ahead: bool = False,
    pool_time: int = 0,
    ageing: int = 10_000,
    undo: int = 5_000,
    spill: int = 0,
    staging: int = 0,
    retry: int = 100,
    copy_ahead: int | None = None,
    copy_size: int = 1,
    device: int | None = None,
    keep_free: int = 0,
    eager: Eager = Eager.NEVER,
    eager_time: int = 100,
    outside_per_session: int = 4,
) -> Limits:
    """Return limits in units of one MiB and one nanosecond."""
    return Limits(
        capacity_bytes=capacity * MIB,
        frame_sizes_bytes=tuple(size * MIB for size in sizes),
        host_budget_bytes=budget * MIB,
        arena_file_bytes=file * MIB,
        pool_bytes_max=pool * MIB,
        sessions_max=sessions,
        leases_per_session_max=leases,
        slots_per_lease_max=slots,
        tickets_per_session_max=tickets,
        tags_per_call_max=4,
        requests_remembered_max=remembered,
        claim_ns=claim,
        patience_ns=patience,
        arena_ahead=ahead,
        pool_ns=pool_time,
        ageing_ns=ageing,
        undo_ns=undo,
        spill_budget_bytes=spill * MIB,
        staging_bytes=staging * MIB,
        retry_ns=retry,
        copy_ahead_ns=copy_ahead,
        copy_ahead_bytes=copy_size * MIB,
        device_bytes=None if device is None else device * MIB,
        keep_free_bytes=keep_free * MIB,
        eager=eager,
        eager_ns=eager_time,
        outside_per_session_bytes=outside_per_session * MIB,
    )


def key_of(name: str) -> ExportKey:
    return ExportKey(name.encode().ljust(16, b"."))


def peer(pid: int, *, uid: int = 1, domain: Domain = HOME) -> ev.Peer:
    return ev.Peer(pid=pid, uid=uid, gid=uid, domain=domain)


class Desk:
    """One broker and the world around it."""

    def __init__(self, held_to: Limits | None = None, *, held_back: Iterable[str] = (), scoped: bool = False) -> None:
        """`scoped`: agents say that gates are closed as soon as they are asked to close them."""
        self.broker = Broker(held_to or limits())
        self.now = Instant(0)
        self.answers: dict[CallId, Answer] = {}
        self.effects: list[ef.Effect] = []
        self.held_back = set(held_back)
        self.pending: list[tuple[str, ev.Event]] = []
        self.peers: dict[SessionId, ev.Peer] = {}
        self.scoped = scoped
        self._calls = 0

    def do(self, event: ev.Event) -> list[ef.Effect]:
        """Let an event happen, and then what it brings and is not held back; returns its own effects."""
        effects = self._handle(event)
        self._go_on()
        return effects

    def _handle(self, event: ev.Event) -> list[ef.Effect]:
        self.now = Instant(self.now + 1)
        effects = self.broker.handle(event, self.now)
        self.broker.check()
        self.effects.extend(effects)
        for effect in effects:
            self._note(effect)
        return effects

    def _note(self, effect: ef.Effect) -> None:
        match effect:
            case ef.Reply(call=call, outcome=outcome):
                assert call not in self.answers, "a call is answered once"
                self.answers[call] = outcome
            case ef.Refuse(call=call, error=error):
                assert call not in self.answers, "a call is answered once"
                self.answers[call] = error
            case ef.CreateFrame(frame=frame):
                self.pending.append(("create", ev.FrameCreated(frame=frame)))
            case ef.DestroyFrame(frame=frame):
                self.pending.append(("destroy", ev.FrameDestroyed(frame=frame)))
            case ef.CreateArenaFile(file=file):
                self.pending.append(("file", ev.ArenaFileReady(file=file)))
            case ef.DestroyArenaFile(file=file):
                self.pending.append(("file_gone", ev.ArenaFileDestroyed(file=file)))
            case ef.OfferArenaFile():
                pass
            case ef.SendPauseOrder(session=session, order=order) if self.scoped:
                self.pending.append(("quiet", ev.Quiet(session=session, order=order)))
            case ef.PunchExtent(extent=extent):
                punched = ev.ExtentPunched(file=extent.file, offset_bytes=extent.offset_bytes)
                self.pending.append(("punch", punched))
            case ef.SpillOut(transfer=transfer):
                self.pending.append(("spill_out", ev.Transferred(transfer=transfer)))
            case ef.SpillIn(transfer=transfer):
                self.pending.append(("spill_in", ev.Transferred(transfer=transfer)))
            case ef.WatchFence(session=session, frames=frames):
                self.pending.append(("fence", ev.FencePassed(session=session, frames=frames)))
            case ef.SendGrant(session=session, lease=lease, slots=granted):
                slots = tuple(slot.slot for slot in granted)
                arrived = ev.Arrived(session=session, lease=lease, slots=slots, failure=None)
                self.pending.append(("arrive", arrived))
            case ef.SendRecall(session=session, lease=lease, slots=recalled):
                slots = tuple(slot.slot for slot in recalled)
                self.pending.append(("leave", ev.Left(session=session, lease=lease, slots=slots, failure=None)))
            case ef.SendCopy(session=session, order=order, slots=ordered):
                slots = tuple(slot.slot for slot in ordered)
                copied = ev.Copied(session=session, order=order, slots=slots, failure=None)
                self.pending.append(("copy", copied))
            case ef.SendCloseReader(session=session, reader=reader):
                self.pending.append(("close_reader", ev.ReaderClosed(session=session, reader=reader)))
            case _:
                pass

    def _go_on(self) -> None:
        while (ready := next((one for one in self.pending if one[0] not in self.held_back), None)) is not None:
            self.pending.remove(ready)
            self._handle(ready[1])

    def let_go(self, kind: str) -> None:
        """Report what was held back of this kind, from now on at once."""
        self.held_back.discard(kind)
        self._go_on()

    def waiting(self, kind: str) -> list[ev.Event]:
        return [event for name, event in self.pending if name == kind]

    def drop(self, kind: str) -> list[ev.Event]:
        """Take what was held back of this kind, so that a test can report something else in its place."""
        dropped = self.waiting(kind)
        self.pending = [one for one in self.pending if one[0] != kind]
        return dropped

    def call(self, actor: ev.Peer, request: str | None = None) -> ev.Call:
        self._calls += 1
        return ev.Call(call=CallId(self._calls), actor=actor, request=RequestId(request or f"r{self._calls}"))

    def answer(self, event: ev.Event) -> Answer | None:
        """Make a call; returns what it was answered by now."""
        call = getattr(event, "call", None)
        assert isinstance(call, ev.Call)
        self.do(event)
        return self.answers.get(call.call)

    @property
    def last_call(self) -> CallId:
        return CallId(self._calls)

    def attach(self, who: ev.Peer, name: str = "trainer") -> SessionId:
        connection = ConnectionId(1000 + who.pid)
        answer = self.answer(ev.Attach(call=self.call(who), name=name, token=b"t", connection=connection))
        assert isinstance(answer, ef.Attached), answer
        self.peers[answer.session] = who
        return answer.session

    def lend(
        self,
        session: SessionId,
        tag: str,
        size: int,
        contents: ev.Contents = ev.Contents.KEEP,
        *,
        claimed: bool = True,
        deadline: Instant = FAR,
        actor: ev.Peer | None = None,
        request: str | None = None,
        spare: int = 0,
    ) -> Answer | None:
        """Ask for so many MiB."""
        event = ev.Lease(
            call=self.call(actor or self.peers[session], request),
            session=session,
            tag=tag,
            contents=contents,
            size_bytes=size * MIB,
            spare_bytes=spare * MIB,
            claimed=claimed,
            deadline=deadline,
        )
        return self.answer(event)

    def lease(self, session: SessionId, tag: str, size: int, contents: ev.Contents = ev.Contents.KEEP) -> LeaseId:
        """Ask for so many MiB and get them."""
        answer = self.lend(session, tag, size, contents)
        assert isinstance(answer, ef.Leased), answer
        return answer.lease

    def pause(
        self,
        session: SessionId,
        *tags: str,
        release: bool = False,
        discard: bool = False,
        quiet: bool = True,
        actor: ev.Peer | None = None,
        deadline: Instant = FAR,
    ) -> Answer | None:
        event = ev.Pause(
            call=self.call(actor or self.peers[session]),
            session=session,
            tags=tags,
            release=release,
            discard=discard,
            quiet=quiet,
            deadline=deadline,
        )
        return self.answer(event)

    def resume(
        self,
        session: SessionId,
        *tags: str,
        wait: bool = True,
        deadline: Instant = FAR,
        actor: ev.Peer | None = None,
    ) -> Answer | None:
        event = ev.Resume(
            call=self.call(actor or self.peers[session]), session=session, tags=tags, wait=wait, deadline=deadline
        )
        return self.answer(event)

    def ask_free(self, session: SessionId) -> int:
        """Ask how much a lease would be lent at once, in MiB."""
        answer = self.answer(ev.AskFree(call=self.call(self.peers[session]), session=session))
        assert isinstance(answer, ef.Free), answer
        return answer.free_bytes // MIB

    def prioritize(self, session: SessionId, *tags: str, priority: int, actor: ev.Peer | None = None) -> Answer | None:
        call = self.call(actor or self.peers[session])
        return self.answer(ev.Prioritize(call=call, session=session, tags=tags, priority=priority))

    def hold(self, session: SessionId, size: int, *, wait: bool = True, deadline: Instant = FAR) -> Answer | None:
        """Ask for so many MiB to be set aside."""
        call = self.call(self.peers[session])
        event = ev.SetAside(call=call, session=session, size_bytes=size * MIB, wait=wait, deadline=deadline)
        return self.answer(event)

    def cancel(self, ticket: TicketId, actor: ev.Peer) -> Answer | None:
        return self.answer(ev.Cancel(call=self.call(actor), ticket=ticket))

    def set_plan(
        self,
        phases: Mapping[str, tuple[str, ...]],
        *,
        actor: ev.Peer | None = None,
        order: Order = Order.DEVICE,
        priorities: tuple[Ranked, ...] = (),
    ) -> Answer | None:
        """Set a plan of phases, each with its tags as SESSION/TAG."""
        plan = PhasePlan(
            order=order,
            phases=tuple(
                Phase(name=name, tags=tuple(parse_pattern(tag, "tags") for tag in tags))
                for name, tags in phases.items()
            ),
            priorities=priorities,
        )
        return self.answer(ev.SetPlan(call=self.call(actor or peer(99)), plan=plan))

    def enter(
        self, phase: str, *, actor: ev.Peer | None = None, deadline: Instant = FAR, request: str | None = None
    ) -> Answer | None:
        return self.answer(ev.Enter(call=self.call(actor or peer(99), request), phase=phase, deadline=deadline))

    def seal(self, session: SessionId, *tags: str, actor: ev.Peer | None = None) -> Answer | None:
        return self.answer(ev.Seal(call=self.call(actor or self.peers[session]), session=session, tags=tags))

    def unseal(self, session: SessionId, *tags: str, actor: ev.Peer | None = None) -> Answer | None:
        return self.answer(ev.Unseal(call=self.call(actor or self.peers[session]), session=session, tags=tags))

    def export(
        self, session: SessionId, lease: LeaseId, slots: Iterable[int] = (), *, read_only: bool = False, key: str = "k"
    ) -> Answer | None:
        """Export slots of a lease (all of it, if none are named), side by side from the beginning of its range."""
        named = list(slots) or [slot.slot for slot in self.view(lease).slots]
        exported = tuple(
            ev.ExportedSlot(slot=SlotId(slot), offset_bytes=number * MIB) for number, slot in enumerate(named)
        )
        event = ev.Export(
            call=self.call(self.peers[session]),
            session=session,
            key=key_of(key),
            lease=lease,
            read_only=read_only,
            again=False,
            slots=exported,
        )
        return self.answer(event)

    def send_again(self, session: SessionId, lease: LeaseId, key: str = "k") -> Answer | None:
        event = ev.Export(
            call=self.call(self.peers[session]),
            session=session,
            key=key_of(key),
            lease=lease,
            read_only=False,
            again=True,
            slots=(),
        )
        return self.answer(event)

    def read(self, session: SessionId, number: int = 1, key: str = "k") -> Answer | None:
        call = self.call(self.peers[session])
        return self.answer(ev.Read(call=call, session=session, key=key_of(key), number=number))

    def end_read(self, session: SessionId, number: int = 1) -> Answer | None:
        return self.answer(ev.EndRead(call=self.call(self.peers[session]), session=session, number=number))

    def unexport(self, session: SessionId) -> Answer | None:
        return self.answer(ev.Unexport(call=self.call(self.peers[session]), session=session))

    def readers(self, lease: LeaseId) -> list[tuple[str, bool]]:
        """Return who reads a lease, and whether they may write to it."""
        return [(reader.session, reader.writable) for reader in self.view(lease).readers]

    def give(self, session: SessionId, lease: LeaseId, slots: Iterable[int] = ()) -> Answer | None:
        named = tuple(SlotId(slot) for slot in slots)
        return self.answer(ev.Return(call=self.call(self.peers[session]), session=session, lease=lease, slots=named))

    def at(self, now: int) -> list[ef.Effect]:
        """Let the time come, and with it the deadlines."""
        self.now = Instant(now)
        return self.do(ev.DeadlineReached())

    def view(self, lease: LeaseId) -> LeaseView:
        found = [one for session in self.broker.snapshot().sessions for one in session.leases if one.lease == lease]
        return found[0]

    def queue(self) -> tuple[TicketView, ...]:
        return self.broker.snapshot().queue

    @property
    def free(self) -> int:
        """Return what is free, in MiB."""
        return self.broker.snapshot().free_bytes // MIB

    def sent(self, kind: type[Wanted]) -> list[Wanted]:
        """Return every effect of a kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]
