"""The memory of mutating calls: the same request id from the same process means the same call, and is answered alike.

A replay of a finished call gets the answer it had, as long as that is remembered; a replay of one under way waits for
the same answer. Refusals are not remembered, since a refused call changed nothing: its replay is a new try.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import assert_never

from vrambroker.broker.core.effects import Outcome
from vrambroker.broker.core.errors import QuotaExceeded, RequestConflict, invariant
from vrambroker.broker.core.events import (
    AskFree,
    Attach,
    Call,
    Cancel,
    Claim,
    Detach,
    EndRead,
    Enter,
    Export,
    Lease,
    MakeRoom,
    Mark,
    Pause,
    Peer,
    Prioritize,
    Read,
    Resume,
    Return,
    Seal,
    SetAside,
    SetBudget,
    SetPlan,
    Unexport,
    Unseal,
)
from vrambroker.broker.core.ids import CallId, Domain, RequestId

Fingerprint = bytes
ActorKey = tuple[int, int, Domain]
MutatingCall = (
    Attach
    | Detach
    | Lease
    | Claim
    | Return
    | Pause
    | Resume
    | Prioritize
    | SetBudget
    | SetAside
    | MakeRoom
    | AskFree
    | Cancel
    | Seal
    | Unseal
    | Export
    | Unexport
    | Read
    | EndRead
    | Mark
    | SetPlan
    | Enter
)


def fingerprint(event: MutatingCall) -> Fingerprint:
    """Return what makes a call this call: all of it but its number, its deadline, its connection and its token; as a
    digest, since some calls are long and many are remembered.
    """
    return blake2b(repr(_contents(event)).encode(), digest_size=16).digest()


def _contents(event: MutatingCall) -> tuple[object, ...]:
    match event:
        case Attach():
            return ("attach", event.name)
        case Detach():
            return ("detach", event.session)
        case Lease():
            sizes = event.size_bytes, event.spare_bytes
            return ("lease", event.session, event.tag, event.contents, sizes, event.claimed)
        case Claim():
            return ("claim", event.session, event.claim)
        case Return():
            return ("return", event.session, event.lease, event.slots)
        case Pause():
            return ("pause", event.session, event.tags, event.release, event.discard, event.quiet)
        case Resume():
            return ("resume", event.session, event.tags, event.wait)
        case Prioritize():
            return ("prioritize", event.session, event.tags, event.priority)
        case SetBudget():
            return ("budget", event.session, event.tag, event.soft_bytes, event.hard_bytes, event.revision)
        case SetAside():
            return ("set aside", event.session, event.size_bytes, event.wait)
        case MakeRoom():
            return ("make room", event.size_bytes, event.lasts_ns, event.wait)
        case AskFree():
            return ("ask free", event.session)
        case Cancel():
            return ("cancel", event.ticket)
        case Seal():
            return ("seal", event.session, event.tags)
        case Unseal():
            return ("unseal", event.session, event.tags)
        case Export():
            again = event.read_only, event.again
            return ("export", event.session, event.key, event.lease, again, event.slots)
        case Unexport():
            return ("unexport", event.session)
        case Read():
            return ("read", event.session, event.key, event.number)
        case EndRead():
            return ("end read", event.session, event.number)
        case Mark():
            return ("mark", event.label)
        case SetPlan():
            return ("set plan", event.plan)
        case Enter():
            return ("enter", event.phase)
        case _:
            assert_never(event)


@dataclass(slots=True, kw_only=True)
class _Record:
    request: RequestId
    actor: ActorKey
    fingerprint: Fingerprint
    calls: dict[CallId, None]
    abandoned: dict[CallId, None] = field(default_factory=dict[CallId, None])
    outcome: Outcome | None = None


@dataclass(slots=True)
class _Memory:
    """What one process asked for: calls under way, and the latest finished ones, oldest first."""

    under_way: dict[RequestId, _Record] = field(default_factory=dict[RequestId, _Record])
    finished: dict[RequestId, _Record] = field(default_factory=dict[RequestId, _Record])


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The call was finished before."""

    outcome: Outcome


class Progress(Enum):
    """NEW: nobody asked for this before. JOINED: it is under way, and this call will be answered with it."""

    NEW = "new"
    JOINED = "joined"


class Requests:
    """Idempotency, per process. Of processes without a session, those heard of last are remembered."""

    def __init__(self, *, remembered_max: int, strangers_max: int, replays_max: int) -> None:
        self._remembered_max = remembered_max
        self._strangers_max = strangers_max
        self._replays_max = replays_max
        self._memories: dict[ActorKey, _Memory] = {}
        self._strangers: dict[ActorKey, None] = {}
        self._records: dict[CallId, _Record] = {}

    def begin(self, call: Call, asked: Fingerprint) -> Progress | Remembered:
        """Take note of a call; raise `RequestConflict` (nothing changed) if its id was used for another one, and
        `QuotaExceeded` if it was sent too often and is not answered yet.
        """
        invariant(call.call not in self._records, "every call has a number of its own")
        actor = _key(call.actor)
        memory = self._memories.get(actor)
        known = None
        if memory is not None:
            known = memory.under_way.get(call.request) or memory.finished.get(call.request)
        if known is not None and known.fingerprint != asked:
            raise RequestConflict(
                message=f"request {call.request!r} was used before for another call", request=call.request
            )
        if known is not None and known.outcome is not None:
            return Remembered(outcome=known.outcome)
        if known is not None:
            self._require_few(known)
            known.calls[call.call] = None
            self._records[call.call] = known
            return Progress.JOINED
        record = _Record(request=call.request, actor=actor, fingerprint=asked, calls={call.call: None})
        self._records[call.call] = record
        self._memory_of(actor).under_way[call.request] = record
        return Progress.NEW

    def _require_few(self, known: _Record) -> None:
        if len(known.calls) > self._replays_max:
            raise QuotaExceeded(
                message=f"request {known.request!r} was sent {len(known.calls)} times and is under way",
                limit="replays_max",
                limit_value=self._replays_max,
            )

    def finish(self, call: CallId, outcome: Outcome) -> tuple[CallId, ...]:
        """Remember the outcome; returns the calls to answer with it."""
        record = self._close(call)
        record.outcome = outcome
        finished = self._memory_of(record.actor).finished
        finished[record.request] = record
        if len(finished) > self._remembered_max:
            del finished[next(iter(finished))]
        self._trim()
        calls, record.calls = tuple(record.calls), {}
        return calls

    def refuse(self, call: CallId) -> tuple[CallId, ...]:
        """Forget the call; returns the calls to refuse."""
        record = self._close(call)
        self._trim()
        return tuple(record.calls)

    def abandon(self, call: CallId) -> CallId | None:
        """Note that nobody waits for this call; returns its first try if nobody waits for any of its replays either."""
        record = self._records.get(call)
        if record is None:
            return None
        record.abandoned[call] = None
        return next(iter(record.calls)) if len(record.abandoned) == len(record.calls) else None

    def forget(self, peer: Peer) -> None:
        """Drop what an ended process asked for; its pid may be given to another."""
        actor = _key(peer)
        memory = self._memories.get(actor)
        if memory is not None:
            memory.finished.clear()
            self._drop_if_empty(actor)

    def adopt(self, peer: Peer) -> None:
        """Remember a process for as long as it has a session."""
        self._strangers.pop(_key(peer), None)

    def disown(self, peer: Peer) -> None:
        """Count a process that has no session any more among the strangers."""
        actor = _key(peer)
        if actor in self._memories:
            self._strangers[actor] = None
            self._trim()

    @property
    def actors(self) -> int:
        """How many processes are remembered."""
        return len(self._memories)

    def first_calls(self) -> Iterator[CallId]:
        """Yield, for every call under way, the number of its first try."""
        for memory in self._memories.values():
            for record in memory.under_way.values():
                yield next(iter(record.calls))

    def _memory_of(self, actor: ActorKey) -> _Memory:
        memory = self._memories.get(actor)
        if memory is None:
            memory = self._memories[actor] = _Memory()
            self._strangers[actor] = None
        elif actor in self._strangers:
            del self._strangers[actor]
            self._strangers[actor] = None
        return memory

    def _close(self, call: CallId) -> _Record:
        record = self._records.get(call)
        invariant(record is not None, f"call {call} is answered once")
        assert record is not None
        for waiting in record.calls:
            del self._records[waiting]
        memory = self._memories[record.actor]
        del memory.under_way[record.request]
        self._drop_if_empty(record.actor)
        return record

    def _drop_if_empty(self, actor: ActorKey) -> None:
        memory = self._memories[actor]
        if actor in self._strangers and not memory.under_way and not memory.finished:
            del self._memories[actor]
            del self._strangers[actor]

    def _trim(self) -> None:
        """Forget the strangers that were not heard of for longest, but none with a call under way."""
        spare = len(self._strangers) - self._strangers_max
        if spare <= 0:
            return
        quiet = [actor for actor in self._strangers if not self._memories[actor].under_way]
        for actor in quiet[:spare]:
            del self._memories[actor]
            del self._strangers[actor]


def _key(peer: Peer) -> ActorKey:
    return (peer.pid, peer.uid, peer.domain)
