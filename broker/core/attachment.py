"""Attach, reattach, detach, and the end of a process: who is there, and what becomes of what they held."""

from vrambroker.broker.core import background, files, gathering, pausing, reading, recall
from vrambroker.broker.core.book import Book, Clearing, PauseOrder, Release
from vrambroker.broker.core.effects import (
    Attached,
    CloseConnection,
    Done,
    Kind,
    Reply,
    SendDraining,
    SendGrant,
    SendLeaseState,
    SendPauseCancelled,
    SendPauseOrder,
    WatchFence,
)
from vrambroker.broker.core.errors import BrokerError, Draining, UnknownSession, invariant
from vrambroker.broker.core.events import Attach, ConnectionLost, Detach, FencePassed, ProcessEnded, Reattach
from vrambroker.broker.core.grant import break_promise, granted_slot
from vrambroker.broker.core.ids import ConnectionId, SessionId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import Frame
from vrambroker.broker.core.lending import after_return, detach_slot, end_demands, return_lease, withdraw
from vrambroker.broker.core.session import Session, require_word
from vrambroker.broker.core.snapshot import SlotState
from vrambroker.broker.core.ticket import Ticket


def attach(book: Book, event: Attach) -> None:
    """Make a session of the caller's process."""
    if book.draining:
        raise Draining(message="the daemon is shutting down and takes nobody in")
    require_word("name", event.name, book.limits.name_length_max)
    book.sessions.require_room()
    session = Session(
        session=SessionId(book.draw_id()),
        name=book.sessions.name_like(event.name),
        peer=event.call.actor,
        token=event.token,
        connection=event.connection,
    )
    book.sessions.add(session)
    book.requests.adopt(session.peer)
    why = f"pid {session.peer.pid} of uid {session.peer.uid} attached"
    book.publish(Kind.SESSION_ATTACHED, why, session=session.name)
    book.reply(event.call.call, _attached(session))


def _attached(session: Session) -> Attached:
    return Attached(session=session.session, name=session.name, token=session.token)


def reattach(book: Book, event: Reattach) -> None:
    """Put another connection in the place of the session's old one and send what is outstanding anew."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    _close_connection(book, session, event.connection)
    book.emit(Reply(call=event.call.call, outcome=_attached(session)))
    connect(book, session, event.connection)


def reattach_replayed(book: Book, outcome: Attached, connection: ConnectionId | None) -> None:
    """Let the connection over which an attach was repeated take the place of the one that lost its answer."""
    session = book.sessions.live.get(outcome.session)
    if session is None or connection is None or session.connection == connection:
        return
    _close_connection(book, session, connection)
    connect(book, session, connection)


def _close_connection(book: Book, session: Session, connection: ConnectionId) -> None:
    if session.connection not in (None, connection):
        assert session.connection is not None
        book.emit(CloseConnection(connection=session.connection))


def connect(book: Book, session: Session, connection: ConnectionId) -> None:
    """Send over a new connection, out of state alone, everything that the agent may have missed."""
    if session.connection is None:
        book.publish(Kind.SESSION_CONNECTED, "its agent can be reached", session=session.name)
    session.connection = connection
    for lease in (book.leases[number] for number in session.leases):
        granted = tuple(granted_slot(slot) for slot in lease.in_state(SlotState.GRANTED))
        if granted:
            grant = SendGrant(
                session=session.session, lease=lease.lease, tag=lease.tag, contents=lease.contents, slots=granted
            )
            book.emit(grant)
        book.emit(SendLeaseState(session=session.session, lease=lease.lease, paused=lease.paused))
        leaving = list(lease.in_state(SlotState.LEAVING))
        if leaving:
            book.emit(recall.resend(lease, leaving))
    background.resend(book, session)
    for order in book.orders.values():
        if order.session == session.session:
            book.emit(SendPauseOrder(session=session.session, order=order.order, tags=order.asked))
    gathering.resend(book, session)
    reading.resend(book, session)
    for number in session.ended_orders:
        book.emit(SendPauseCancelled(session=session.session, order=number))
    if book.draining:
        book.emit(SendDraining(session=session.session))


def connection_lost(book: Book, event: ConnectionLost) -> None:
    session = book.sessions.live.get(event.session)
    if session is not None and session.connection == event.connection:
        session.connection = None
        gathering.distrust(book, session)
        pausing.distrust(book, session)
        book.publish(Kind.SESSION_DISCONNECTED, "its agent can't be reached", session=session.name)


def detach(book: Book, event: Detach) -> None:
    """Take everything back from a process that says goodbye; it has let go, so nothing is fenced."""
    session = book.sessions.get(event.session)
    session.require_process(event.call.actor)
    _end_calls(book, session)
    reading.end_session(book, session, died=False)
    for number in tuple(session.leases):
        return_lease(book, book.leases[number])
    background.end(book, session.session)
    book.reply(event.call.call, Done())
    _end(book, session, "detached")


def process_ended(book: Book, event: ProcessEnded) -> None:
    """Take everything from a process that is gone; its frames count as used until nobody can reach them."""
    session = book.sessions.live.get(event.session)
    if session is None:
        return
    _end_calls(book, session)
    reading.end_session(book, session, died=True)
    fenced: list[Frame] = []
    for number in tuple(session.leases):
        fenced.extend(_confiscate(book, book.leases[number]))
    if fenced:
        book.sessions.fence(session, ((frame.frame, frame.size_bytes) for frame in fenced))
        book.emit(WatchFence(session=session.session, frames=tuple(frame.frame for frame in fenced)))
    else:
        background.end(book, session.session)
    _end(book, session, f"pid {session.peer.pid} ended")
    if not book.sessions.has_process(session.peer):
        book.requests.forget(session.peer)


def _confiscate(book: Book, lease: Lease) -> list[Frame]:
    """Take a dead owner's lease apart; returns its frames, fenced."""
    end_demands(book, lease)
    frames = [book.frame_of(slot) for slot in lease.slots.values() if slot.frame is not None]
    for frame in frames:
        break_promise(book, frame)
    for frame in frames:
        book.ledger.fence(frame)
    for slot in list(lease.slots.values()):
        slot.frame = None
        detach_slot(book, lease, slot, wipe=True)
    after_return(book, lease)
    reading.leave_lease(book, lease)
    book.drop_lease(lease)
    return frames


def _end_calls(book: Book, session: Session) -> None:
    """Refuse every call that waits for something about this session."""
    error = UnknownSession(message=f"{session.name!r} is gone", session=session.name)
    for ticket in [book.tickets[number] for number in session.tickets]:
        withdraw(book, ticket, error)
    for what in [book.waits[call] for call in session.waits]:
        _end_wait(book, what, error)


def _end_wait(book: Book, what: Ticket | PauseOrder | Release | Clearing, error: BrokerError) -> None:
    match what:
        case PauseOrder():
            pausing.cancel(book, what, error)
        case Release():
            recall.end_release(book, what, error)
        case Clearing():
            book.refuse(what.call, error, session=book.name_of(what.session))
        case Ticket():
            invariant(False, "an ended session's tickets were withdrawn")


def _end(book: Book, session: Session, why: str) -> None:
    book.sessions.end(session)
    book.publish(Kind.SESSION_ENDED, f"{session.name}: {why}", session=session.name)
    if session.connection is not None:
        book.emit(CloseConnection(connection=session.connection))
    if not book.sessions.has_process(session.peer):
        book.requests.disown(session.peer)
    files.give_up_if_deserted(book, session.peer.domain)


def fence_passed(book: Book, event: FencePassed) -> None:
    """Count frames of an ended process as free capacity; the adapter has closed them."""
    ended = book.sessions.ended.get(event.session)
    invariant(ended is not None, "only an ended session's fence is passed")
    assert ended is not None
    for number in event.frames:
        invariant(number in ended.frames, "a fence is passed by the frames behind it")
        del ended.frames[number]
        book.ledger.vanish(book.frame(number))
    book.supply_grew = True
    book.publish(Kind.FENCE_PASSED, "nobody can reach its frames any more", session=ended.session.name)
    if not ended.frames:
        del book.sessions.ended[event.session]
        background.end(book, event.session)
