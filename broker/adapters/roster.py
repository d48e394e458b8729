"""Who is who: tokens, names and pidfds of sessions and operators, so that both planes can name the caller.

The core knows the sessions and gave their names; this is an index of what it said, with the one thing that it can't
have: a pidfd for each, whose firing is reported as `ProcessEnded`. An operator is known for as long as its connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.core.effects import Attached
from vrambroker.broker.core.errors import PeerUnidentified, UnknownSession
from vrambroker.broker.core.events import Peer, ProcessEnded
from vrambroker.broker.core.ids import RequestId, SessionId
from vrambroker.broker.ports import Deliver

DEPARTED_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A session, as the core answered it; `process` is owned by the roster, `request` is the call that made it."""

    session: SessionId
    name: str
    token: bytes
    process: Process
    request: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a token names. An operator has no `session`; who said goodbye has no `process` to attach again.

    `attached_by`: the call that made the session.
    """

    token: bytes
    peer: Peer
    process: Process | None = None
    session: SessionId | None = None
    attached_by: RequestId | None = None

    def require_session(self) -> SessionId:
        """Return the caller's own session; raises `UnknownSession`."""
        if self.session is None:
            raise UnknownSession(message="the caller has no session of its own: attach first")
        return self.session


class Roster:
    """The index. `on_gone` hears of each session that is over, before the core hears of its process."""

    def __init__(self, *, submit: Deliver, on_gone: Callable[[SessionId], None]) -> None:
        self._submit = submit
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._members: dict[SessionId, Member] = {}
        self._by_token: dict[bytes, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._operators: dict[bytes, Process] = {}
        self._departed: dict[bytes, Caller] = {}

    def attached(self, answer: Attached, process: Process, request: RequestId) -> Member:
        """Take in a session that the core has made, and watch its process; a session known already stays as it is."""
        known = self._members.get(answer.session)
        if known is not None:
            return known
        member = Member(
            session=answer.session, name=answer.name, token=answer.token, process=process.duplicate(), request=request
        )
        self._members[member.session] = member
        self._by_token[member.token] = member
        self._by_name[member.name] = member
        self._loop.add_reader(member.process.pidfd, self.process_ended, member.session)
        return member

    def operator_came(self, token: bytes, process: Process) -> None:
        """Take in an operator; the process stays owned by its connection."""
        self._operators[token] = process

    def operator_left(self, token: bytes) -> None:
        """Forget an operator. A session that was made with its token keeps the token."""
        self._operators.pop(token, None)

    def forget(self, session: SessionId) -> None:
        """Forget a session that has said goodbye, except that its token still names it to a repeated call."""
        member = self._members.pop(session, None)
        if member is None:
            return
        del self._by_token[member.token]
        # The name may have been given to another session since.
        if self._by_name.get(member.name) is member:
            del self._by_name[member.name]
        self._remember(member)
        self._loop.remove_reader(member.process.pidfd)
        member.process.close()
        self._on_gone(session)

    def process_ended(self, session: SessionId) -> None:
        """Report the end of a session's process."""
        self.forget(session)
        self._submit(ProcessEnded(session=session))

    def member_of(self, token: bytes) -> Member:
        """Return the session with this token, its process alive; raises `PeerUnidentified`."""
        member = self._by_token.get(token)
        if member is not None and member.process.ended():
            # Its pid may have been given to somebody else already, who must not be taken for it.
            self.process_ended(member.session)
            member = None
        if member is None:
            raise PeerUnidentified(message="no session has this token")
        return member

    def caller_of(self, token: bytes) -> Caller:
        """Return whom a token names; raises `PeerUnidentified`."""
        member = self._by_token.get(token)
        if member is not None:
            return Caller(
                token=token,
                peer=member.process.peer,
                process=member.process,
                session=member.session,
                attached_by=member.request,
            )
        departed = self._departed.get(token)
        if departed is not None:
            return departed
        process = self._operators.get(token)
        if process is None:
            raise PeerUnidentified(message="the token is not one that this daemon gave out, or its process has left")
        return Caller(token=token, peer=process.peer, process=process)

    def named(self, name: str) -> SessionId:
        """Return the session of this name; raises `UnknownSession`."""
        member = self._by_name.get(name)
        if member is None:
            raise UnknownSession(message=f"there is no session {name[:64]!r}", session=name)
        return member.session

    def _remember(self, member: Member) -> None:
        self._departed[member.token] = Caller(
            token=member.token, peer=member.process.peer, session=member.session, attached_by=member.request
        )
        if len(self._departed) > DEPARTED_MAX:
            del self._departed[next(iter(self._departed))]

    def close(self) -> None:
        """Watch nobody any more."""
        for member in self._members.values():
            self._loop.remove_reader(member.process.pidfd)
            member.process.close()
        self._members.clear()
        self._by_token.clear()
        self._by_name.clear()
        self._operators.clear()
