"""Who is who: tokens, names and pidfds of sessions and operators, so that both planes can name the caller.

The core knows the sessions and gave their names; this is an index of what it said, with the one thing that it can't
have: a pidfd for each, whose firing is reported as `ProcessEnded`. An operator is known for as long as its connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.quota import Quota
from vrambroker.broker.core.effects import Attached
from vrambroker.broker.core.errors import PeerUnidentified, UnknownSession
from vrambroker.broker.core.events import Peer, ProcessEnded
from vrambroker.broker.core.ids import RequestId, SessionId
from vrambroker.broker.ports import Deliver

DEPARTED_MAX = 256
SESSIONS_PER_PROCESS = 64
SESSIONS_PER_USER = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A session, as the core answered it; `process` is owned by the roster, `request` is the call that made it."""

    session: SessionId
    name: str
    token: bytes = field(repr=False)
    process: Process
    request: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a token names. An operator has no `session`; who said goodbye has no `process` any more.

    `attached_by`: the call that made a session with this token.
    """

    token: bytes = field(repr=False)
    peer: Peer
    process: Process | None = None
    session: SessionId | None = None
    attached_by: RequestId | None = None

    def require_session(self) -> SessionId:
        """Return the caller's own session; raises `UnknownSession`."""
        if self.session is None:
            raise UnknownSession(message="the caller has no session of its own: attach first")
        return self.session

    def require_process(self) -> Process:
        """Return the caller's process; raises `PeerUnidentified`."""
        if self.process is None:
            raise PeerUnidentified(message="the caller has said goodbye")
        return self.process


class Roster:
    """The index. `on_gone` hears of each session that is over, before the core hears of its process."""

    def __init__(self, *, submit: Deliver, on_gone: Callable[[SessionId], None]) -> None:
        self._submit = submit
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._quota = Quota("sessions", per_process=SESSIONS_PER_PROCESS, per_user=SESSIONS_PER_USER)
        self._members: dict[SessionId, Member] = {}
        self._newest = SessionId(0)
        self._by_token: dict[bytes, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._second_tokens: dict[SessionId, bytes] = {}
        self._unheard: set[SessionId] = set()
        self._operators: dict[bytes, Process] = {}
        self._departed: dict[bytes, Caller] = {}

    def enlist(self, process: Process) -> Process:
        """Return a pidfd for a session about to be made of a process, so that nothing can fail once it is made.

        Ownership: the caller's, until `attached` takes it. Raises `QuotaExceeded`.
        """
        self._quota.require(process.peer)
        return process.duplicate()

    def attached(self, answer: Attached, process: Process, request: RequestId, token: bytes) -> None:
        """Take in a session that the core has made, with the process that was enlisted for it, and watch that.

        The answer may be a repeated one: then the session stays as it is, and the token of whoever repeated the call
        names it, too; or it is over meanwhile, which raises `UnknownSession`.
        """
        if answer.session <= self._newest:
            process.close()
            self._attached_again(answer, token)
            return
        member = Member(session=answer.session, name=answer.name, token=answer.token, process=process, request=request)
        self._newest = member.session
        self._members[member.session] = member
        self._by_token[member.token] = member
        self._by_name[member.name] = member
        self._quota.take(process.peer)
        self._loop.add_reader(process.pidfd, self.process_ended, member.session)

    def _attached_again(self, answer: Attached, token: bytes) -> None:
        member = self._members.get(answer.session)
        if member is None:
            raise UnknownSession(message=f"the session {answer.name!r} of this call is over", session=answer.name)
        if token != member.token:
            # The latest is enough: whoever repeats a call has lost what it had before.
            self._by_token.pop(self._second_tokens.get(member.session, b""), None)
            self._second_tokens[member.session] = token
            self._by_token[token] = member

    def await_word(self, session: SessionId) -> None:
        """Take note that nobody has shown yet to have got the session's token."""
        self._unheard.add(session)

    def heard(self, session: SessionId) -> None:
        """Take note that a session's token has arrived."""
        self._unheard.discard(session)

    def is_unheard(self, session: SessionId) -> bool:
        """Tell whether nobody has shown yet to have got a session's token."""
        return session in self._unheard

    def operator_came(self, token: bytes, process: Process) -> None:
        """Take in an operator; the process stays owned by its connection."""
        self._operators[token] = process

    def operator_left(self, token: bytes) -> None:
        """Forget an operator. A session that was made with its token keeps the token."""
        self._operators.pop(token, None)

    def departed(self, session: SessionId) -> None:
        """Forget a session that has said goodbye, except that its token still names it to a repeated goodbye."""
        member = self._members.get(session)
        if member is not None:
            self._remember(member)
            self.forget(session)

    def forget(self, session: SessionId) -> None:
        """Forget a session."""
        member = self._members.pop(session, None)
        if member is None:
            return
        self._unheard.discard(session)
        self._by_token.pop(self._second_tokens.pop(session, b""), None)
        del self._by_token[member.token]
        del self._by_name[member.name]
        self._quota.give(member.process.peer)
        self._loop.remove_reader(member.process.pidfd)
        member.process.close()
        self._on_gone(session)

    def process_ended(self, session: SessionId) -> None:
        """Report the end of a session's process."""
        self.forget(session)
        self._submit(ProcessEnded(session=session))

    def member_of(self, token: bytes) -> Member:
        """Return the session with this token, its process alive; raises `PeerUnidentified`."""
        member = self._alive(token)
        if member is None:
            raise PeerUnidentified(message="no session has this token")
        return member

    def caller_of(self, token: bytes) -> Caller:
        """Return the live process that a token names; raises `PeerUnidentified`."""
        member = self._alive(token)
        if member is not None:
            self._unheard.discard(member.session)
            return Caller(
                token=token,
                peer=member.process.peer,
                process=member.process,
                session=member.session,
                attached_by=member.request,
            )
        process = self._operators.get(token)
        if process is None or process.ended():
            raise PeerUnidentified(message="the token is not one that this daemon gave out, or its process has left")
        departed = self._departed.get(token)
        used_by = None if departed is None else departed.attached_by
        return Caller(token=token, peer=process.peer, process=process, attached_by=used_by)

    def leaver_of(self, token: bytes) -> Caller:
        """Return whom a token names, or named until it said goodbye; raises `PeerUnidentified`."""
        departed = self._departed.get(token)
        return self.caller_of(token) if departed is None else departed

    def named(self, name: str) -> SessionId:
        """Return the session of this name; raises `UnknownSession`."""
        member = self._by_name.get(name)
        if member is None:
            raise UnknownSession(message=f"there is no session {name[:64]!r}", session=name)
        return member.session

    def close(self) -> None:
        """Watch nobody any more."""
        for member in self._members.values():
            self._loop.remove_reader(member.process.pidfd)
            member.process.close()
        self._members.clear()
        self._by_token.clear()
        self._by_name.clear()
        self._operators.clear()

    def _alive(self, token: bytes) -> Member | None:
        member = self._by_token.get(token)
        if member is not None and member.process.ended():
            # Its pid may have been given to somebody else already, who must not be taken for it.
            self.process_ended(member.session)
            return None
        return member

    def _remember(self, member: Member) -> None:
        departed = Caller(
            token=member.token, peer=member.process.peer, session=member.session, attached_by=member.request
        )
        for token in (member.token, self._second_tokens.get(member.session, member.token)):
            self._departed[token] = departed
        while len(self._departed) > DEPARTED_MAX:
            del self._departed[next(iter(self._departed))]
