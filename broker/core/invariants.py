"""The named invariants: what must hold after every event, each checked against the whole book, counters and indexes
included.
"""

from vrambroker.broker.core import recall, withheld
from vrambroker.broker.core.arena import GOING, Arena, ArenaFile
from vrambroker.broker.core.book import Book, Clearing, PauseOrder, Release
from vrambroker.broker.core.errors import InvariantViolation
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import OUTSIDE, ArenaFileId, Domain, FrameId, LeaseId, SlotId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.ledger import SPOILT
from vrambroker.broker.core.reader_invariants import readers_are_recorded, readers_keep_nobody_waiting_for_ever
from vrambroker.broker.core.scheduler import Reach
from vrambroker.broker.core.session import Session
from vrambroker.broker.core.slot import WITH_FRAME, Slot
from vrambroker.broker.core.snapshot import FileState, FramePlace, SlotState
from vrambroker.broker.core.spill import STORE_FILE
from vrambroker.broker.core.ticket import Comeback, Growth, Room, Stage, Ticket, bytes_of


def check(book: Book) -> None:
    """Raise `InvariantViolation` with the name of the first invariant that does not hold."""
    capacity_is_conserved(book)
    each_frame_has_one_owner(book)
    frames_never_cross_domains(book)
    holds_name_real_frames(book)
    kept_contents_have_a_place(book)
    arena_extents_are_disjoint(book)
    spilled_contents_have_one_place(book)
    staging_is_taken_in_turns(book)
    ended_sessions_are_fenced(book)
    counters_tell_the_truth(book)
    tickets_and_leases_agree(book)
    queue_is_what_waits(book)
    calls_wait_for_something(book)
    kept_bytes_are_counted(book)
    handover_is_whole(book)
    copies_are_ordered(book)
    phases_list_leases(book)
    what_is_outside_is_withheld(book)
    readers_are_recorded(book)
    readers_keep_nobody_waiting_for_ever(book)


def _hold(claim: bool, name: str, what: object) -> None:
    if not claim:
        raise InvariantViolation(f"{name}: {what}")


def capacity_is_conserved(book: Book) -> None:
    """lent + held + free = capacity, frame by frame and in the counters."""
    ledger, name = book.ledger, "lent + held + free = capacity"
    for place in FramePlace:
        counted = sum(frame.size_bytes for frame in ledger.frames.values() if frame.place is place)
        _hold(counted == ledger.bytes_in(place), name, f"{place.value} frames come to {counted}")
    placed = sum(ledger.bytes_in(place) for place in FramePlace)
    _hold(placed == ledger.framed_bytes, name, f"frames in all places come to {placed}")
    reserved = sum(ticket.hold.reserved_bytes for ticket in book.tickets.values()) + book.outside.withheld_bytes
    _hold(reserved == ledger.reserved_bytes, name, f"{reserved} are reserved for tickets and withheld")
    _hold(ledger.unframed_bytes >= 0, name, f"more than the capacity is given out: {ledger.unframed_bytes}")
    total = ledger.lent_bytes + ledger.held_bytes + ledger.free_bytes
    _hold(total == ledger.capacity_bytes, name, f"they come to {total}")


def kept_bytes_are_counted(book: Book) -> None:
    for session in book.sessions.live.values():
        leases = (book.leases[number] for number in session.leases)
        kept = sum(lease.total_bytes for lease in leases if lease.contents is Contents.KEEP)
        _hold(kept == session.kept_bytes, "what a session may have to park is counted", f"{session.name}: {kept}")


def each_frame_has_one_owner(book: Book) -> None:
    """A slot has a lent frame in just the states that say so, and a lent frame has just one slot."""
    name = "each frame has one owner"
    owners: dict[FrameId, Slot] = {}
    for lease in book.leases.values():
        for slot in lease.slots.values():
            _hold((slot.frame is not None) == (slot.state in WITH_FRAME), name, slot)
            if slot.frame is None:
                continue
            frame = book.ledger.frames[slot.frame]
            _hold(slot.frame not in owners, name, slot)
            _hold(frame.place is FramePlace.LENT and frame.size_bytes == slot.size_bytes, name, frame)
            _hold((frame.lease, frame.session) == (lease.lease, lease.session), name, frame)
            going = slot.state is SlotState.LEAVING or slot.slot in lease.going
            _hold(frame.leaving == going, "what leaves is counted as leaving", frame)
            owners[slot.frame] = slot
    for frame in book.ledger.frames.values():
        _hold((frame.place is FramePlace.LENT) == (frame.frame in owners), name, frame)


def frames_never_cross_domains(book: Book) -> None:
    for lease in book.leases.values():
        domain = book.sessions.live[lease.session].peer.domain
        for slot in lease.slots.values():
            lent = slot.frame is None or book.ledger.frames[slot.frame].domain in (domain, SPOILT)
            _hold(lent and lease.domain == domain, "frames never cross domains", slot)


def holds_name_real_frames(book: Book) -> None:
    """Each frame of a hold is where the hold says, and a frame with a ticket is in that ticket's hold."""
    name = "a hold names real frames"
    for ticket in book.tickets.values():
        hold = ticket.hold
        for size, frames in hold.in_hand.items():
            for number in frames:
                frame = book.ledger.frames[number]
                _hold(frame.place is FramePlace.HELD and frame.size_bytes == size, name, frame)
        for number in hold.creating:
            _hold(book.ledger.frames[number].place is FramePlace.CREATING, name, number)
        for number in (*hold.exact, *hold.melting):
            frame = book.ledger.frames[number]
            coming = frame.leaving or frame.place in (FramePlace.CREATING, FramePlace.DESTROYING)
            _hold(coming, name, frame)
            fits = frame.place is not FramePlace.DESTROYING and frame.domain in (None, _domain(book, ticket))
            _hold(fits or number in hold.melting, name, frame)
        named = [*hold.frames_in_hand(), *hold.creating, *hold.exact, *hold.melting]
        _hold(len(named) == len(set(named)), name, ticket)
        _hold(all(book.ledger.frames[one].ticket == ticket.ticket for one in named), name, ticket)
        melting = sum(book.ledger.frames[one].size_bytes for one in hold.melting)
        covered = hold.reserved_bytes + melting >= bytes_of(hold.to_create) + hold.keep_bytes
        _hold(covered, "a hold covers what it is to make", ticket)
        _hold(bool(hold.to_create) or not hold.spare_bytes, "a hold reserves only what it makes or keeps", ticket)
        _keeps_what_was_asked(ticket)
        _hold_covers_need(book, ticket)
    for frame in book.ledger.frames.values():
        if frame.ticket is not None:
            hold = book.tickets[frame.ticket].hold
            among = (*hold.in_hand.get(frame.size_bytes, ()), *hold.creating, *hold.exact, *hold.melting)
            _hold(frame.frame in among, name, frame)


def _keeps_what_was_asked(ticket: Ticket) -> None:
    """Capacity is kept for who asked for it, all of it as soon as its ticket is admitted."""
    match ticket.demand:
        case Room(size_bytes=size_bytes) if ticket.stage is not Stage.QUEUED:
            _hold(ticket.hold.keep_bytes == size_bytes > 0, "what is set aside is kept", ticket)
            kept = ticket.stage is not Stage.KEPT or ticket.hold.reserved_bytes == size_bytes
            _hold(kept, "what is set aside is kept", ticket)
        case _:
            _hold(not ticket.hold.keep_bytes, "only what is set aside is kept", ticket)


def _domain(book: Book, ticket: Ticket) -> Domain:
    if ticket.session == OUTSIDE:
        return Domain("")
    return book.sessions.live[ticket.session].peer.domain


def _hold_covers_need(book: Book, ticket: Ticket) -> None:
    """An admitted ticket has, of every size, at least as many frames as it needs."""
    if ticket.stage not in (Stage.ADMITTED, Stage.CLAIMABLE):
        _hold(not ticket.hold.in_hand_bytes or ticket.stage is Stage.GRANTED, "only the admitted hold", ticket)
        return
    has: dict[int, int] = dict(ticket.hold.to_create)
    for size, frames in ticket.hold.in_hand.items():
        has[size] = has.get(size, 0) + len(frames)
    for number in (*ticket.hold.creating, *ticket.hold.exact):
        size = book.ledger.frames[number].size_bytes
        has[size] = has.get(size, 0) + 1
    for size, needed in _parts(book, ticket).items():
        _hold(has.get(size, 0) >= needed, "an admitted ticket can't fail on bytes", ticket)


def _parts(book: Book, ticket: Ticket) -> dict[int, int]:
    if isinstance(ticket.demand, Growth):
        return ticket.demand.parts
    if isinstance(ticket.demand, Room):
        smallest = book.limits.frame_sizes_bytes[0]
        return {smallest: ticket.demand.size_bytes // smallest} if ticket.stage is Stage.QUEUED else {}
    parts: dict[int, int] = {}
    for lease in (book.leases[number] for number in ticket.leases):
        for slot in lease.slots.values() if lease.paused else ():
            if lease.is_absent(slot):
                parts[slot.size_bytes] = parts.get(slot.size_bytes, 0) + 1
    return parts


def kept_contents_have_a_place(book: Book) -> None:
    """What must be kept and has left is parked; what must be kept and may be taken has its bytes in the arena set
    aside.
    """
    name = "kept contents have a place"
    for lease in book.leases.values():
        keep = lease.keeps
        _hold(not lease.discarded or (lease.paused and lease.contents is Contents.KEEP), name, lease.lease)
        for slot in lease.slots.values():
            copy_of_sealed = lease.sealed and slot.copied
            _hold(not slot.placed or (keep and (lease.paused or copy_of_sealed)), name, slot)
            _hold(slot.extent is not None or not slot.copied, name, slot)
            _hold(slot.spill is not None or not slot.spilled, name, slot)
            if slot.state is SlotState.PARKED:
                _hold(slot.saved, name, slot)
            _hold(slot.state is not SlotState.DROPPED or not keep, name, slot)
            may_leave = (lease.idle_bytes > 0 and slot.state is SlotState.MAPPED) or slot.slot in lease.going
            if keep and lease.paused and (may_leave or slot.state is SlotState.LEAVING):
                _hold(slot.placed, name, (lease.lease, slot))
            if slot.state is SlotState.LEAVING and keep and lease.paused:
                _hold(slot.saved or slot.extent is not None, name, (lease.lease, slot))
            if slot.copied or (slot.state is SlotState.LEAVING and slot.extent is not None):
                assert slot.extent is not None
                state = book.arena_of(slot.extent.file).files[slot.extent.file].state
                _hold(state is FileState.READY, "nothing is copied into a file before it is ready", slot)
    homeless = {lease.lease for lease in book.leases.values() if lease.paused and lease.unplaced()}
    _hold(homeless == book.homeless.keys(), "what has lost its place is looked after", homeless)


def arena_extents_are_disjoint(book: Book) -> None:
    """Used and free room tile every file; each use is a slot's extent, a transfer's, or being punched; all files fit the
    budget.
    """
    owned = {
        (slot.extent.file, slot.extent.offset_bytes): (lease.lease, slot.slot, slot.extent.size_bytes)
        for lease in book.leases.values()
        for slot in lease.slots.values()
        if slot.extent is not None
    }
    for one in book.spill.transfers.values():
        extent = one.extent
        owned[extent.file, extent.offset_bytes] = (one.lease, one.slot, extent.size_bytes)
    for arena in (book.arena, book.spill.staging):
        _uses_are_owned(arena, owned)
        _budget_is_kept(arena)
    _hold(not owned, "an extent is in a file", owned)
    limits = book.limits
    budget = book.arena.budget_bytes + book.spill.staging.budget_bytes
    _hold(budget == limits.host_budget_bytes, "the staging room is part of the host's budget", budget)


def spilled_contents_have_one_place(book: Book) -> None:
    """Places in the spill store don't overlap and fit its budget; each is a slot's, or that of a transfer whose slot is
    gone. What is in the store is in the arena as well only on its way, and then in the staging room.
    """
    name, spill = "what is spilled has one place", book.spill
    owned: dict[tuple[ArenaFileId, int], tuple[LeaseId, SlotId, int]] = {}
    for one in (one for one in spill.transfers.values() if one.disowned):
        owned[STORE_FILE, one.place.offset_bytes] = (one.lease, one.slot, one.place.size_bytes)
    for lease in book.leases.values():
        for slot in (slot for slot in lease.slots.values() if slot.spill is not None):
            assert slot.spill is not None
            owned[STORE_FILE, slot.spill.offset_bytes] = (lease.lease, slot.slot, slot.size_bytes)
            _hold(lease.paused and slot.spill.size_bytes == slot.size_bytes, name, slot)
            _hold((slot.extent is not None) == (slot.slot in spill.staged), name, slot)
            _hold(slot.extent is None or slot.extent.file in spill.staging.files, name, slot)
    _hold(sum(size for _, _, size in owned.values()) == spill.used_bytes <= spill.budget_bytes, name, owned)
    _uses_are_owned(spill.places, owned)
    _hold(not owned, name, owned)


def staging_is_taken_in_turns(book: Book) -> None:
    """Who needs an extent of the staging room waits for it; who has one is known to have it, and what is in it is on its
    way.
    """
    name, spill = "the staging room is taken in turns", book.spill
    for number, owner in spill.staged.items():
        staged = book.leases[owner].slots[number]
        _hold(staged.extent is not None and staged.spill is not None, name, staged)
        _hold(number not in spill.waiting, name, staged)
    for number, transfer in spill.moving.items():
        _hold(number in spill.staged and spill.transfers[transfer].slot == number, name, number)
    fetched = {slot: ticket for ticket in book.tickets.values() for slot in ticket.fetching}
    for lease in (one for one in book.leases.values() if one.spill_bytes):
        for slot in (one for one in lease.slots.values() if one.spill is not None):
            leaves = slot.slot in lease.going and slot.needs_staging
            comes = slot.slot in fetched and slot.needs_reading and slot.extent is None
            _hold(slot.slot in spill.waiting or not (leaves or comes), name, slot)
            written = slot.spilled or slot.slot in spill.moving or spill.retry_at is not None
            _hold(written or not slot.copied, "what is in the staging room is written", slot)
            _hold(slot.spilled or slot.slot not in fetched, "only what is spilled is fetched", slot)
    for ticket in book.tickets.values():
        _hold(ticket.stage is Stage.ADMITTED or not ticket.fetching, "who fetches has frames in hand", ticket)
        wanted: dict[int, int] = {}
        for number, owner in ticket.fetching.items():
            size = book.leases[owner].slots[number].size_bytes
            wanted[size] = wanted.get(size, 0) + 1
        in_hand = all(count <= len(ticket.hold.in_hand.get(size, ())) for size, count in wanted.items())
        _hold(in_hand, "what is fetched has its frame in hand", ticket)


def _uses_are_owned(arena: Arena, owned: dict[tuple[ArenaFileId, int], tuple[LeaseId, SlotId, int]]) -> None:
    """Take what is used in the arena's files out of what is owned: each use has its owner."""
    name = "arena extents are disjoint"
    for file in arena.files.values():
        _tiles(arena, file)
        for offset, use in file.uses.items():
            _hold(offset % use.size_bytes == 0, "an extent is aligned to its own size", use)
            if not use.punching:
                found = owned.pop((file.file, offset), None)
                _hold(found == (use.lease, use.slot, use.size_bytes), name, use)
        used = sum(use.size_bytes for use in file.uses.values())
        _hold(used == file.used_bytes, name, file)
    used = sum(file.used_bytes for file in arena.files.values())
    _hold(used == arena.used_bytes, "the arena's use is counted", used)


def _budget_is_kept(arena: Arena) -> None:
    """What is there fits the budget; and so will all that is planned, once what was given up for it has gone."""
    name = "the arena is within its budget"
    planned = [file for file in arena.files.values() if file.state is FileState.PLANNED]
    there = sum(file.size_bytes for file in arena.files.values() if file not in planned)
    _hold(there == arena.size_bytes <= arena.budget_bytes, name, there)
    going = sum(file.size_bytes for file in arena.files.values() if file.state in GOING)
    _hold(going == arena.going_bytes, name, going)
    to_come = sum(file.size_bytes for file in planned)
    _hold(to_come == arena.planned_bytes <= arena.budget_bytes - there + going, name, to_come)
    for file in planned:
        _hold(bool(file.uses), "a file is planned for contents", file)
        _hold(there + file.size_bytes > arena.budget_bytes, "a planned file is made as soon as there is room", file)


def _tiles(arena: Arena, file: ArenaFile) -> None:
    free = [(at, size) for number, at, size in arena.blocks_of(file.domain).all() if number == file.file]
    if file.state in GOING:
        _hold(not file.uses and not free, "a file on its way out holds nothing", file)
        return
    end = 0
    for offset, size in sorted([*free, *((at, use.size_bytes) for at, use in file.uses.items())]):
        _hold(offset == end, "arena extents are disjoint", (file.file, offset, end))
        end = offset + size
    _hold(end == file.size_bytes, "arena extents are disjoint", (file.file, end))


def ended_sessions_are_fenced(book: Book) -> None:
    """An ended session's frames count as used until its fence is passed, and nobody gets them."""
    fenced = {frame for ended in book.sessions.ended.values() for frame in ended.frames}
    for frame in book.ledger.frames.values():
        _hold((frame.place is FramePlace.FENCED) == (frame.frame in fenced), "ended sessions are fenced", frame)
    _hold(len(fenced) <= len(book.ledger.frames), "ended sessions are fenced", fenced)
    _hold(not book.sessions.ended.keys() & book.sessions.live.keys(), "the ended are not live", "")
    for ended in book.sessions.ended.values():
        _hold(bool(ended.frames), "a session whose fence is passed is forgotten", ended.session.name)


def counters_tell_the_truth(book: Book) -> None:
    """Indexes and counters say what looking at everything says."""
    ledger, name = book.ledger, "counters tell the truth"
    for shelf in (ledger.pool, ledger.coming, ledger.melting):
        standing = {frame.frame for frame in ledger.frames.values() if ledger.shelf_of(frame) is shelf}
        _hold({frame.frame for frame in shelf} == standing, name, standing)
        _hold(shelf.size_bytes == sum(ledger.frames[one].size_bytes for one in standing), name, standing)
    idle = sorted(
        (one.cost, not one.over, one.priority, one.idle_since, one.lease)
        for one in book.leases.values()
        if one.idle_bytes
    )
    _hold([lease for *_, lease in idle] == list(book.idle), "idle leases stand cheapest first", idle)
    idle_bytes = sum(lease.idle_bytes for lease in book.leases.values())
    _hold(idle_bytes == book.idle.size_bytes, name, f"{idle_bytes} idle, {book.idle.size_bytes} counted")
    for lease in book.leases.values():
        _count_slots(lease)
        session = book.sessions.live[lease.session]
        _hold(lease.over == book.is_over(session, lease.tag), name, (lease.lease, "over its soft limit"))
    for session in book.sessions.live.values():
        _count_device(book, session)
    sealed = {lease.lease for lease in book.leases.values() if lease.sealed}
    _hold(book.sealed.keys() == sealed, name, ("sealed", sealed))
    kept = book.pool_until is not None and book.now < book.pool_until
    _hold(
        kept or ledger.pool.size_bytes <= book.limits.pool_bytes_max,
        "the pool keeps to its size",
        ledger.pool.size_bytes,
    )


def _count_device(book: Book, session: Session) -> None:
    sizes: dict[str, int] = dict.fromkeys(session.by_tag, 0)
    for lease in map(book.leases.__getitem__, session.leases):
        sizes[lease.tag] += lease.device_bytes
    _hold(session.tag_bytes == sizes, "counters tell the truth", (session.name, session.tag_bytes, sizes))
    _hold(session.device_bytes == sum(sizes.values()), "counters tell the truth", session.name)


def phases_list_leases(book: Book) -> None:
    """Of each phase is known which leases it lists, in the order in which they were opened."""
    leases = [(lease.lease, book.name_of(lease.session), lease.tag) for lease in book.leases.values()]
    for phase in book.plan.phases if book.plan is not None else ():
        listed = [lease for lease, session, tag in leases if phase.lists(session, tag)]
        _hold(list(book.listing.of(phase.name)) == listed, "phases list leases", (phase.name, listed))
    for lease in book.leases.values():
        planned_priority = book.listing.priority_in(book.phase, lease.lease)
        wanted = planned_priority if lease.asked_priority is None else lease.asked_priority
        _hold(lease.priority == wanted, "priorities are what was set or planned", (lease.lease, wanted))
    planned = [lease for lease, session, tag in leases if book.plan is not None and book.plan.is_planned(session, tag)]
    _hold(len(book.listing) == len(planned), "phases list leases", planned)


def _count_slots(lease: Lease) -> None:
    for state in SlotState:
        slots = list(lease.in_state(state))
        _hold(lease.count[state] == len(slots), "counters tell the truth", (lease.lease, state))
        size_bytes = sum(slot.size_bytes for slot in slots)
        _hold(lease.size_bytes[state] == size_bytes, "counters tell the truth", (lease.lease, state))
    sizes = {state: sum(slot.size_bytes for slot in lease.in_state(state)) for state in SlotState}
    _hold(lease.total_bytes == sum(sizes.values()), "counters tell the truth", (lease.lease, "total"))
    with_frame = sum(sizes[state] for state in WITH_FRAME)
    _hold(lease.device_bytes == with_frame, "counters tell the truth", (lease.lease, "device"))
    going = [lease.slots[number] for number in lease.going]
    _hold(all(slot.state is SlotState.MAPPED for slot in going), "what is about to leave is there", lease.lease)
    _hold(lease.going_bytes == sum(slot.size_bytes for slot in going), "counters tell the truth", lease.lease)
    doubled = sum(slot.size_bytes for slot in lease.in_state(SlotState.MAPPED) if slot.saved)
    _hold(lease.doubled_bytes == doubled, "counters tell the truth", (lease.lease, "doubled"))
    extents = sum(slot.extent.size_bytes for slot in lease.slots.values() if slot.extent is not None)
    _hold(lease.host_bytes == extents, "counters tell the truth", (lease.lease, "host"))
    spilled = sum(slot.spill.size_bytes for slot in lease.slots.values() if slot.spill is not None)
    _hold(lease.spill_bytes == spilled, "counters tell the truth", (lease.lease, "spilled"))
    _hold(not lease.count[SlotState.EMPTY], "no slot is empty between events", lease.lease)


def tickets_and_leases_agree(book: Book) -> None:
    """Slots on the way name their ticket and are named by it; a lease knows every ticket that names it."""
    name = "tickets and leases agree"
    named: dict[SlotId, LeaseId] = {}
    for ticket in book.tickets.values():
        named.update(ticket.slots)
        _hold(ticket.outstanding.items() <= ticket.slots.items(), name, ticket)
        _hold(not ticket.slots or ticket.stage in (Stage.ADMITTED, Stage.GRANTED, Stage.UNDOING), name, ticket)
        waits_for_others = ticket.together and ticket.stage is Stage.GRANTED
        _hold(
            bool(ticket.slots) or waits_for_others or ticket.stage not in (Stage.GRANTED, Stage.UNDOING), name, ticket
        )
        for number in ticket.leases:
            lease = book.leases[number]
            _hold(lease.session == ticket.session, name, ticket)
            among = lease.comebacks if isinstance(ticket.demand, Comeback) else lease.growing
            _hold(ticket.ticket in among, name, ticket)
            locked = isinstance(ticket.demand, Comeback) and ticket.stage is not Stage.QUEUED
            _hold(not locked or lease.lock == ticket.ticket, "a lease is brought back by one ticket", ticket)
    for lease in book.leases.values():
        _hold(lease.lease in book.sessions.live[lease.session].leases, name, lease.lease)
        _hold(lease.lock is None or lease.lock in book.tickets, name, lease.lease)
        wanted = lease.opened or bool(lease.slots or lease.growing or lease.comebacks)
        _hold(wanted, "no lease is left behind", lease.lease)
        _hold(not (lease.paused and lease.growing), "a paused lease does not grow", lease.lease)
        _hold(not (lease.sealed and lease.growing), "a sealed lease does not grow", lease.lease)
        _hold(not lease.sealed or lease.contents is Contents.KEEP, "only kept contents are sealed", lease.lease)
        for slot in lease.slots.values():
            _hold((slot.ticket is not None) == (named.pop(slot.slot, None) == lease.lease), name, slot)
            _hold(slot.state is not SlotState.GRANTED or slot.ticket is not None, name, slot)
    _hold(not named, name, named)


def queue_is_what_waits(book: Book) -> None:
    """The queue is the queued tickets, each at its turn; and of those that nobody aged is before, none fits in what is
    free.
    """
    ageing_ns = book.limits.ageing_ns
    queued = [ticket for ticket in book.tickets.values() if ticket.stage is Stage.QUEUED]
    turns = sorted(map(book.queue.turn_of, queued))
    _hold([number for _, number in turns] == list(book.queue), "the queue is what waits", turns)
    for _, number in turns:
        ticket = book.tickets[number]
        needed = bytes_of(_parts(book, ticket))
        locked = any(book.leases[lease].lock is not None for lease in ticket.leases)
        fits = needed <= book.ledger.free_bytes and not locked
        _hold(not fits, "what fits in what is free is never kept waiting", ticket)
        if not locked and book.now - ticket.since >= ageing_ns:
            return


def calls_wait_for_something(book: Book) -> None:
    """Every call without an answer waits for a ticket, an order or a release that knows it."""
    name = "each call waits for something"
    for call, what in book.waits.items():
        known = what.session == OUTSIDE or call in book.sessions.live[what.session].waits
        _hold(what.call == call and known, name, call)
        match what:
            case PauseOrder():
                _hold(book.orders.get(what.order) is what, name, call)
            case Release():
                waited = [book.leases[lease] for lease in what.outstanding]
                _hold(all(call in lease.releases for lease in waited), name, call)
                _hold(all(lease.recalled for lease in waited) and bool(waited), name, call)
            case Clearing():
                _hold(bool(what.read), name, call)
            case Ticket():
                _hold(book.tickets.get(what.ticket) is what, name, call)
    for order in book.orders.values():
        _hold(book.waits.get(order.call) is order, name, order)
    for claim, number in book.claims.items():
        claimable = book.tickets[number]
        _hold(claimable.stage is Stage.CLAIMABLE and claimable.claim == claim, "a claim has its frames in hand", claim)
    waiting = {call for call in book.waits if call not in book.parts}
    if book.handover is not None:
        waiting.add(book.handover.call)
    for call in book.requests.first_calls():
        _hold(call in waiting, name, call)
        waiting.discard(call)
    _hold(not waiting, "what waits was asked for", waiting)


def what_is_outside_is_withheld(book: Book) -> None:
    """What others use of the device is kept out of use, as far as anything is free, leaving or idle."""
    name, smallest = "what is outside is withheld", book.limits.frame_sizes_bytes[0]
    refills = {ticket.ticket for ticket in book.tickets.values() if ticket.refill}
    _hold(refills == book.outside.refills.keys(), name, refills)
    coming = sum(book.tickets[number].hold.keep_bytes for number in refills)
    short = withheld.target_bytes(book) - book.outside.withheld_bytes - coming
    reachable = book.supply().reachable_bytes(Reach.ALL, frozenset())
    _hold(short <= 0 or reachable < smallest, name, (short, reachable))
    _hold(book.outside.withheld_bytes <= withheld.target_bytes(book), "no more is withheld than others use", short)


def handover_is_whole(book: Book) -> None:
    """What comes with a change of phase is its own until all of it opens together; without one, nothing is."""
    name, handover = "a handover is whole", book.handover
    parts = handover.tickets if handover is not None else {}
    _hold(parts.keys() == book.parts.keys(), name, book.parts)
    for call, number in parts.items():
        there = book.tickets.get(number)
        waits = there is not None and there.call == call
        _hold(waits == (book.parts[call] is None), name, number)
    for ticket in book.tickets.values():
        own = ticket.ticket in parts.values() or ticket.stage is Stage.UNDOING
        _hold(not ticket.together or own, name, ticket)
    for lease in (lease for lease in book.leases.values() if lease.seated):
        _hold(lease.paused and not lease.absent_bytes and lease.settled, "what is seated is there", lease.lease)
        _hold(
            lease.lock in parts.values() and not (lease.host_bytes or lease.spill_bytes),
            "what is seated opens with the rest",
            lease.lease,
        )
    if handover is not None:
        for order in handover.orders.values():
            _hold(order.session in book.sessions.live and order.order not in book.orders, name, order)


def copies_are_ordered(book: Book) -> None:
    """What is written to is what orders name that were not answered; and what can be ordered out does not wait."""
    name = "what is written to was ordered"
    ordered: dict[tuple[ArenaFileId, int], int] = {}
    for session, order in book.copies.items():
        _hold(
            session == order.session and (session in book.sessions.live or session in book.sessions.ended), name, order
        )
        for extent in order.slots.values():
            place = (extent.file, extent.offset_bytes)
            _hold(place not in ordered, "a place is written to by one agent", extent)
            if extent.file in book.arena.files:
                ordered[place] = extent.size_bytes
        lease = book.leases.get(order.lease)
        for slot in lease.slots.values() if lease is not None and order.is_about(lease) else ():
            named = order.slots.get(slot.slot)
            _hold(named in (None, slot.extent), "in the same pause a slot keeps its place", slot)
    written = {(file.file, at): size for file in book.arena.files.values() for at, size in file.written.items()}
    _hold(written == ordered, name, written)
    for lease in book.leases.values():
        for slot in map(lease.slots.__getitem__, lease.going):
            _hold(not recall.has_place(book, lease, slot), "what can be ordered out does not wait", slot)
            waits = slot.slot in book.spill.waiting
            if slot.park is not None:
                waits = lease.lease in book.arena_of(slot.park.file).files[slot.park.file].waiting
            _hold(waits, "what waits for its place is found again", slot)
