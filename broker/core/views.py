"""The snapshot, drawn from the book."""

from vrambroker.broker.core import hold, resuming, withheld
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.errors import Holder
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.reader import Reader
from vrambroker.broker.core.session import Session
from vrambroker.broker.core.snapshot import (
    ArenaFileView,
    FrameView,
    LeaseView,
    ReaderView,
    SessionView,
    SlotView,
    Snapshot,
    TicketView,
)
from vrambroker.broker.core.ticket import Stage, Ticket


def snapshot(book: Book) -> Snapshot:
    """Return everything that the book knows."""
    ledger = book.ledger
    frames = tuple(
        FrameView(frame=frame.frame, size_bytes=frame.size_bytes, domain=frame.domain, place=frame.place)
        for frame in ledger.frames.values()
    )
    live = [_session(book, session, ended=False) for session in book.sessions.live.values()]
    tickets = list(book.tickets.values())
    ended = [_session(book, gone.session, ended=True) for gone in book.sessions.ended.values()]
    return Snapshot(
        capacity_bytes=ledger.capacity_bytes,
        lent_bytes=ledger.lent_bytes,
        held_bytes=ledger.held_bytes,
        free_bytes=ledger.free_bytes,
        peak_lent_bytes=ledger.peak_lent_bytes,
        host_budget_bytes=book.limits.host_budget_bytes,
        host_used_bytes=book.arena.used_bytes + book.spill.staging.used_bytes,
        host_file_bytes=book.arena.size_bytes + book.spill.staging.size_bytes,
        spill_budget_bytes=book.spill.budget_bytes,
        spill_used_bytes=book.spill.used_bytes,
        outside_bytes=book.outside.used_bytes,
        withheld_bytes=book.outside.withheld_bytes,
        eager=withheld.eager_because(book),
        draining=book.draining,
        plan=book.plan,
        plan_uid=book.plan_uid,
        phase=book.phase,
        entering=book.handover.phase.name if book.handover is not None else "",
        next_id=book.next_id,
        frames=frames,
        sessions=(*live, *ended),
        queue=tuple(_ticket(book, ticket) for ticket in sorted(tickets, key=book.queue.turn_of) if ticket.waits),
        granted=tuple(_ticket(book, ticket) for ticket in tickets if not (ticket.waits or ticket.stage is Stage.KEPT)),
        kept=tuple(_ticket(book, ticket) for ticket in tickets if ticket.stage is Stage.KEPT),
        arena=tuple(
            ArenaFileView(
                file=file.file,
                domain=file.domain,
                size_bytes=file.size_bytes,
                used_bytes=file.used_bytes,
                state=file.state,
                staging=arena is book.spill.staging,
            )
            for arena in (book.arena, book.spill.staging)
            for file in arena.files.values()
        ),
    )


def _session(book: Book, session: Session, *, ended: bool) -> SessionView:
    leases = () if ended else tuple(_lease(book, book.leases[lease]) for lease in session.leases)
    return SessionView(
        session=session.session,
        name=session.name,
        peer=session.peer,
        token=session.token,
        ended=ended,
        connected=not ended and session.connection is not None,
        leases=leases,
        budgets=dict(session.budgets),
    )


def _lease(book: Book, lease: Lease) -> LeaseView:
    slots = tuple(
        SlotView(
            slot=slot.slot,
            size_bytes=slot.size_bytes,
            state=slot.state,
            frame=slot.frame,
            extent=slot.extent,
            copied=slot.copied,
            spill=slot.spill,
            spilled=slot.spilled,
        )
        for slot in lease.slots.values()
    )
    return LeaseView(
        lease=lease.lease,
        tag=lease.tag,
        contents=lease.contents,
        state=lease.state,
        paused=lease.paused,
        sealed=lease.sealed,
        discarded=lease.discarded,
        takeable=lease.takeable,
        priority=lease.priority,
        since=lease.since,
        device_bytes=lease.device_bytes,
        host_bytes=lease.host_bytes,
        spill_bytes=lease.spill_bytes,
        copied_bytes=lease.copied_bytes,
        readers=tuple(_reader(book, book.readers[reader]) for reader in lease.readers),
        slots=slots,
    )


def _reader(book: Book, reader: Reader) -> ReaderView:
    return ReaderView(
        reader=reader.reader,
        session=book.name_of(reader.session),
        writable=reader.writable,
        closing=reader.closing,
        size_bytes=reader.size_bytes,
    )


def _ticket(book: Book, ticket: Ticket) -> TicketView:
    promised = (*ticket.hold.exact, *ticket.hold.melting)
    granted_bytes = sum(book.leases[lease].slots[slot].size_bytes for slot, lease in ticket.slots.items())
    return TicketView(
        ticket=ticket.ticket,
        session=book.name_of(ticket.session),
        tags=tuple(dict.fromkeys(book.leases[lease].tag for lease in ticket.leases)),
        size_bytes=hold.needed_bytes(book, ticket) + granted_bytes,
        in_hand_bytes=ticket.hold.in_hand_bytes + ticket.hold.reserved_bytes + granted_bytes,
        promised_bytes=sum(book.frame(frame).size_bytes for frame in promised),
        stage=ticket.stage,
        priority=ticket.priority,
        since=ticket.since,
        deadline=ticket.deadline,
        waits_for=_waits_for(book, ticket),
    )


def _waits_for(book: Book, ticket: Ticket) -> tuple[Holder, ...]:
    """Return who could give what is missing: those who promised it, or else all who have any."""
    wants_room = ticket.stage is Stage.QUEUED and not hold.being_resumed(book, ticket)
    return book.holders() if wants_room else resuming.awaited(book, ticket)
