"""A mirror of the broker, made of nothing but the lines it publishes: `status` never says what no line has told."""

from dataclasses import dataclass

from tests.simulation.machine import require
from vrambroker.broker.core import effects as ef
from vrambroker.broker.core.ids import LeaseId, TicketId
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.core.ticket import Stage

ENDS_OF_TICKETS = (ef.Kind.TICKET_DONE, ef.Kind.TICKET_REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    lent_bytes: int
    free_bytes: int
    held_bytes: int
    host_used_bytes: int
    host_file_bytes: int
    spill_used_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """What is known of one lease."""

    session: str
    tag: str
    state: ef.LeaseState
    device_bytes: int
    host_bytes: int
    spill_bytes: int
    copied_bytes: int


class Mirror:
    """Who has watched from the start."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._totals = Totals(
            lent_bytes=0, free_bytes=capacity_bytes, held_bytes=0, host_used_bytes=0, host_file_bytes=0
        )
        self._peak_lent_bytes = 0
        self._leases: dict[LeaseId, Residency] = {}
        self._sealed: set[LeaseId] = set()
        self._tickets: set[TicketId] = set()

    def hear(self, line: ef.Publish) -> None:
        if line.kind is ef.Kind.DEVICE_CHANGED:
            self._hear_totals(line)
        if line.kind is ef.Kind.TICKET_QUEUED:
            self._tickets.add(line.ticket)
        if line.kind in ENDS_OF_TICKETS and line.ticket:
            require(line.ticket in self._tickets, f"ticket {line.ticket} ends twice: {line}")
            self._tickets.remove(line.ticket)
        if line.kind is ef.Kind.LEASE_SEALED:
            require(line.lease not in self._sealed, f"lease {line.lease} is sealed twice")
            self._sealed.add(line.lease)
        if line.kind is ef.Kind.LEASE_UNSEALED:
            self._sealed.remove(line.lease)
        if line.kind is not ef.Kind.LEASE_CHANGED:
            return
        if line.state is None:
            del self._leases[line.lease]
            self._sealed.discard(line.lease)
        else:
            self._leases[line.lease] = Residency(
                session=line.session,
                tag=line.tag,
                state=line.state,
                device_bytes=line.device_bytes,
                host_bytes=line.host_bytes,
                spill_bytes=line.spill_bytes,
                copied_bytes=line.copied_bytes,
            )

    def _hear_totals(self, line: ef.Publish) -> None:
        heard = Totals(
            lent_bytes=line.lent_bytes,
            free_bytes=line.free_bytes,
            held_bytes=line.held_bytes,
            host_used_bytes=line.host_bytes,
            host_file_bytes=line.host_file_bytes,
            spill_used_bytes=line.spill_bytes,
        )
        total = heard.lent_bytes + heard.free_bytes + heard.held_bytes
        require(total == self._capacity_bytes, "the published totals make up the device")
        require(heard != self._totals, "a line about the totals says something new")
        self._totals = heard
        self._peak_lent_bytes = max(self._peak_lent_bytes, heard.lent_bytes)

    def compare(self, seen: Snapshot) -> None:
        """Raise `Wronged` where the broker's own account differs from what it has published."""
        totals = Totals(
            lent_bytes=seen.lent_bytes,
            free_bytes=seen.free_bytes,
            held_bytes=seen.held_bytes,
            host_used_bytes=seen.host_used_bytes,
            host_file_bytes=seen.host_file_bytes,
            spill_used_bytes=seen.spill_used_bytes,
        )
        require(totals == self._totals, f"published {self._totals}, and it is {totals}")
        peak = seen.peak_lent_bytes
        require(peak == self._peak_lent_bytes, f"a peak of {self._peak_lent_bytes} was published, and it is {peak}")
        granted = {one.ticket for one in seen.granted if one.stage is not Stage.UNDOING}
        tickets = {one.ticket for one in seen.queue} | granted
        require(tickets == self._tickets, f"tickets {self._tickets} were published, and there are {tickets}")
        sealed = {lease.lease for session in seen.sessions for lease in session.leases if lease.sealed}
        require(sealed == self._sealed, f"published as sealed {self._sealed}, and {sealed} are")
        leases = {
            lease.lease: Residency(
                session=session.name,
                tag=lease.tag,
                state=lease.state,
                device_bytes=lease.device_bytes,
                host_bytes=lease.host_bytes,
                spill_bytes=lease.spill_bytes,
                copied_bytes=lease.copied_bytes,
            )
            for session in seen.sessions
            for lease in session.leases
        }
        untold = {
            number for number in leases.keys() | self._leases.keys() if leases.get(number) != self._leases.get(number)
        }
        require(not untold, f"published {self._leases}, and of {untold} that is not so: {leases}")
