"""Contents on their way to the spill store and back, each through an extent of the staging room, in turn.

Who holds an extent waits for nothing that another extent is needed for: what leaves has only to be copied and written,
and what comes back has its frame in hand before it is read. So every turn ends, as far as the disk and the clients go.
"""

from vrambroker.broker.core import files, grant, homeless, places, recall
from vrambroker.broker.core.book import Book
from vrambroker.broker.core.effects import Kind, SpillIn, SpillOut
from vrambroker.broker.core.errors import DriverFailed
from vrambroker.broker.core.events import TransferFailed, Transferred
from vrambroker.broker.core.ids import TransferId
from vrambroker.broker.core.lease import Lease
from vrambroker.broker.core.slot import Slot
from vrambroker.broker.core.snapshot import FileState, SlotState
from vrambroker.broker.core.spill import Transfer


def go_on(book: Book) -> bool:
    """Begin the transfers that can begin, and hand the staging room on; tells whether anything was done."""
    if not (book.spill.staged or book.spill.waiting):
        return False
    staged = [(book.leases[lease], slot) for slot, lease in book.spill.staged.items()]
    looked_after = [_look_after(book, lease, lease.slots[slot]) for lease, slot in staged]
    return _take_turns(book) or any(looked_after)


def _look_after(book: Book, lease: Lease, slot: Slot) -> bool:
    """Do what is next for a slot with an extent of the staging room; tells whether that was anything."""
    spill = book.spill
    if slot.slot in spill.moving:
        return False
    if slot.copied and not slot.spilled:
        if spill.retry_at is None:
            _begin(book, lease, slot, outwards=True)
        return False
    if slot.copied:
        needed = slot.state is SlotState.GRANTED or _is_fetched(book, lease, slot)
    elif slot.spilled:
        needed = _is_fetched(book, lease, slot)
        if needed and _is_ready(book, slot):
            _begin(book, lease, slot, outwards=False)
    else:
        needed = slot.state is SlotState.LEAVING or slot.slot in lease.going
    if not needed:
        _unstage(book, lease, slot)
    return not needed


def _is_fetched(book: Book, lease: Lease, slot: Slot) -> bool:
    ticket = book.tickets.get(lease.lock) if lease.lock is not None else None
    return ticket is not None and slot.slot in ticket.fetching


def _is_ready(book: Book, slot: Slot) -> bool:
    return slot.extent is not None and book.spill.staging.files[slot.extent.file].state is FileState.READY


def _unstage(book: Book, lease: Lease, slot: Slot) -> None:
    extent = lease.displace(slot)
    del book.spill.staged[slot.slot]
    places.give(book, extent, None, wipe=False)
    book.touch(lease, "in the spill store" if slot.spilled else "not leaving any more")


def _begin(book: Book, lease: Lease, slot: Slot, *, outwards: bool) -> None:
    assert slot.extent is not None and slot.spill is not None, "what is staged has both places"
    transfer = Transfer(
        transfer=TransferId(book.draw_id()),
        lease=lease.lease,
        slot=slot.slot,
        extent=slot.extent,
        place=slot.spill,
        outwards=outwards,
    )
    book.spill.begin(transfer)
    order = SpillOut if outwards else SpillIn
    book.emit(order(transfer=transfer.transfer, extent=transfer.extent, place=transfer.place))


def _take_turns(book: Book) -> bool:
    """Give extents to those whose turn it is, as long as there is room; tells whether anybody has got one. Who came
    first goes first, so that nobody is overtaken for ever, but for the share of a session that has one already.
    """
    spill, leaving, served = book.spill, dict[Lease, None](), False
    for number, owner in tuple(spill.waiting.items()) if spill.staging.retry_at is None else ():
        lease = book.leases[owner]
        slot = lease.slots[number]
        if not _wants_staging(book, lease, slot):
            del spill.waiting[number]
        elif not _is_beyond_its_share(book, lease, slot):
            if not files.make_staging(book, lease.domain, slot.size_bytes):
                break
            _stage(book, lease, slot)
            served = True
            if slot.slot in lease.going:
                leaving[lease] = None
    for lease in leaving:
        recall.send_if_ready(book, lease)
    return served


def _is_beyond_its_share(book: Book, lease: Lease, slot: Slot) -> bool:
    """Tell whether a slot would take its session past half of the staging room, which is all that one stopped process
    can keep from others of its domain. From other domains it can keep the files that it has mapped.
    """
    spill, has_bytes = book.spill, 0
    for number, owner in spill.staged.items():
        other = book.leases[owner]
        has_bytes += other.slots[number].size_bytes if other.session == lease.session else 0
    return has_bytes > 0 and 2 * (has_bytes + slot.size_bytes) > spill.staging.budget_bytes


def _stage(book: Book, lease: Lease, slot: Slot) -> None:
    spill = book.spill
    del spill.waiting[slot.slot]
    lease.place(slot, spill.staging.take(lease.domain, slot.size_bytes, lease.lease, slot.slot))
    spill.staged[slot.slot] = lease.lease
    book.touch(lease, "its turn in the staging room")


def _wants_staging(book: Book, lease: Lease, slot: Slot) -> bool:
    leaves = slot.needs_staging and slot.slot in lease.going
    return leaves or (slot.extent is None and slot.needs_reading and _is_fetched(book, lease, slot))


def transferred(book: Book, event: Transferred) -> None:
    """Count contents as being where they were brought."""
    transfer = book.spill.end(event.transfer)
    if transfer.outwards:
        book.spill.succeed()
    if transfer.disowned:
        _free(book, transfer)
        return
    lease = book.leases[transfer.lease]
    lease.note(lease.slots[transfer.slot], copied=True, spilled=True)
    book.touch(lease, "written to the spill store" if transfer.outwards else "read from the spill store")
    book.stir(lease.lock)


def transfer_failed(book: Book, event: TransferFailed) -> None:
    """Leave contents where they are: in the staging room, to be written again later; or in the spill store, and what
    was to bring them back is refused.
    """
    transfer = book.spill.end(event.transfer)
    lease = book.leases.get(transfer.lease)
    why = f"{event.driver_call} failed: {event.reason}"
    if transfer.outwards:
        book.spill.fail(book.now, why)
        label = book.label_of(lease) if lease is not None else "somebody who is gone"
        book.publish(Kind.SPILL_FAILED, f"{label}: {why}; what is not written yet stays in memory")
        _call_off_what_counts_on_it(book, why)
    if transfer.disowned:
        _free(book, transfer)
    elif not transfer.outwards and lease is not None:
        _refuse(book, lease, transfer, event)


def _refuse(book: Book, lease: Lease, transfer: Transfer, event: TransferFailed) -> None:
    ticket = book.tickets.get(lease.lock) if lease.lock is not None else None
    if ticket is None or transfer.slot not in ticket.fetching:
        return
    error = DriverFailed(
        message=f"{book.label_of(lease)} can't be read back: {event.driver_call} failed: {event.reason}",
        driver_call=event.driver_call,
        driver_result=event.reason,
    )
    grant.undo(book, ticket, error)


def _free(book: Book, transfer: Transfer) -> None:
    domain = book.spill.staging.files[transfer.extent.file].domain
    places.give(book, transfer.extent, transfer.place, wipe=transfer.wipe)
    files.give_up_if_deserted(book, domain)


def _call_off_what_counts_on_it(book: Book, why: str) -> None:
    """Take their places in the spill store from contents that are on the device and nowhere else."""
    for lease in [one for one in book.leases.values() if one.spill_bytes]:
        lost = [slot for slot in lease.in_state(SlotState.MAPPED) if slot.needs_staging]
        for slot in lost:
            places.let_go(book, lease, slot)
        if lost:
            homeless.call_off(book, lease, why, sum(slot.size_bytes for slot in lost))


def try_again_if_due(book: Book) -> None:
    """Try again what has failed, once it has been given time."""
    for arena in (book.arena, book.spill.staging):
        if arena.retry_at is not None and arena.retry_at <= book.now:
            arena.try_again()
    if book.spill.retry_at is not None and book.spill.retry_at <= book.now:
        book.spill.retry_at = None
        book.arena.roomier = True
