"""The core's plain values as messages of `vrambroker.v1`, and the enums of both sides."""

from dataclasses import dataclass

from vrambroker.broker.adapters.history import Line
from vrambroker.broker.core.effects import BudgetState, Entered, EnteredTag, LeaseState
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.events import Contents
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.phase import Order, Phase, PhasePlan, Ranked, parse_pattern
from vrambroker.broker.core.snapshot import SessionView, Snapshot, TicketView
from vrambroker.v1 import broker_pb2 as v1

CONTENTS_TO_WIRE = {
    Contents.KEEP: v1.CONTENTS_KEEP,
    Contents.DROP: v1.CONTENTS_DROP,
    Contents.ZERO: v1.CONTENTS_ZERO,
}
CONTENTS_FROM_WIRE: dict[int, Contents] = {number: contents for contents, number in CONTENTS_TO_WIRE.items()}
ORDER_TO_WIRE = {Order.DEVICE: v1.ORDER_DEVICE, Order.HOST: v1.ORDER_HOST}
ORDER_FROM_WIRE: dict[int, Order] = {number: order for order, number in ORDER_TO_WIRE.items()}
STATE_TO_WIRE = {
    LeaseState.RESIDENT: v1.LEASE_STATE_RESIDENT,
    LeaseState.IDLE: v1.LEASE_STATE_IDLE,
    LeaseState.LEAVING: v1.LEASE_STATE_LEAVING,
    LeaseState.ARRIVING: v1.LEASE_STATE_ARRIVING,
    LeaseState.PARTIAL: v1.LEASE_STATE_PARTIAL,
    LeaseState.PARKED: v1.LEASE_STATE_PARKED,
}

BUDGET_STATE_TO_WIRE = {
    BudgetState.APPLIED: v1.BUDGET_STATE_APPLIED,
    BudgetState.DEFERRED: v1.BUDGET_STATE_DEFERRED,
    BudgetState.CONFLICT: v1.BUDGET_STATE_CONFLICT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What a status tells of the daemon itself."""

    device: str
    version: str
    pid: int


def contents_from_wire(contents: int) -> Contents:
    """Return the policy; raises `InvalidArgument` for none or an unknown one."""
    known = CONTENTS_FROM_WIRE.get(contents)
    if known is None:
        raise InvalidArgument(message=f"there is no policy {contents}", argument="contents")
    return known


def plan_from_wire(plan: v1.Plan) -> PhasePlan:
    """Return a plan; raises `InvalidArgument` for an unknown order or what is no pattern. The core looks at the rest."""
    order = ORDER_FROM_WIRE.get(plan.order)
    if order is None:
        raise InvalidArgument(message=f"there is no order {plan.order}", argument="order")
    return PhasePlan(
        order=order,
        phases=tuple(
            Phase(name=phase.name, tags=tuple(parse_pattern(tag, f"phase {phase.name!r}") for tag in phase.tags))
            for phase in plan.phases
        ),
        priorities=tuple(
            Ranked(pattern=parse_pattern(one.tag, "priorities"), priority=one.priority) for one in plan.priorities
        ),
    )


def plan_to_wire(plan: PhasePlan) -> v1.Plan:
    """Return a plan as it was set."""
    return v1.Plan(
        order=ORDER_TO_WIRE[plan.order],
        phases=[v1.Phase(name=phase.name, tags=[str(tag) for tag in phase.tags]) for phase in plan.phases],
        priorities=[v1.TagPriority(tag=str(one.pattern), priority=one.priority) for one in plan.priorities],
    )


def entered_to_wire(entered: Entered) -> v1.EnterResponse:
    """Return what `Enter` answers."""

    def tags(moved: tuple[EnteredTag, ...]) -> list[v1.EnteredTag]:
        return [
            v1.EnteredTag(session=one.session, tag=one.tag, lease=one.lease, same_pages=one.same_pages) for one in moved
        ]

    return v1.EnterResponse(paused=tags(entered.paused), resumed=tags(entered.resumed))


def status_of(snapshot: Snapshot, *, here: Here, foreign_bytes: int, now: Instant) -> v1.Status:
    """Return what `GetStatus` answers."""
    return v1.Status(
        device=v1.Device(
            id=here.device,
            capacity_bytes=snapshot.capacity_bytes,
            lent_bytes=snapshot.lent_bytes,
            free_bytes=snapshot.free_bytes,
            held_bytes=snapshot.held_bytes,
            foreign_bytes=foreign_bytes,
            peak_lent_bytes=snapshot.peak_lent_bytes,
            withheld_bytes=snapshot.withheld_bytes,
            eager=snapshot.eager,
        ),
        sessions=[_session(session) for session in snapshot.sessions],
        queue=[_ticket(ticket) for ticket in snapshot.queue],
        holds=[_ticket(ticket) for ticket in snapshot.kept],
        host=v1.Host(
            budget_bytes=snapshot.host_budget_bytes,
            used_bytes=snapshot.host_used_bytes,
            file_bytes=snapshot.host_file_bytes,
            spill_budget_bytes=snapshot.spill_budget_bytes,
            spill_used_bytes=snapshot.spill_used_bytes,
        ),
        draining=snapshot.draining,
        version=here.version,
        pid=here.pid,
        now_ns=now,
        plan=plan_to_wire(snapshot.plan) if snapshot.plan is not None else None,
        phase=snapshot.phase,
        entering=snapshot.entering,
    )


def event_of(line: Line) -> v1.Event:
    """Return one line of the event stream."""
    told = line.told
    return v1.Event(
        sequence=line.sequence,
        time_ns=line.time_ns,
        kind=told.kind.value,
        why=told.why,
        session=told.session,
        tag=told.tag,
        lease=told.lease,
        ticket=told.ticket,
        state=v1.LEASE_STATE_UNSPECIFIED if told.state is None else STATE_TO_WIRE[told.state],
        device_bytes=told.device_bytes,
        host_bytes=told.host_bytes,
        copied_bytes=told.copied_bytes,
        lent_bytes=told.lent_bytes,
        free_bytes=told.free_bytes,
        held_bytes=told.held_bytes,
        host_file_bytes=told.host_file_bytes,
        spill_bytes=told.spill_bytes,
        phase=told.phase,
        outside_bytes=told.outside_bytes,
        standing=line.standing,
    )


def _session(session: SessionView) -> v1.Session:
    tags = [
        v1.Tag(
            tag=lease.tag,
            lease=lease.lease,
            contents=CONTENTS_TO_WIRE[lease.contents],
            state=STATE_TO_WIRE[lease.state],
            device_bytes=lease.device_bytes,
            host_bytes=lease.host_bytes,
            spill_bytes=lease.spill_bytes,
            since_ns=lease.since,
            priority=lease.priority,
            sealed=lease.sealed,
            copied_bytes=lease.copied_bytes,
            readers=[
                v1.Reader(session=reader.session, writable=reader.writable, size_bytes=reader.size_bytes)
                for reader in lease.readers
            ],
        )
        for lease in session.leases
    ]
    return v1.Session(
        session=session.session,
        name=session.name,
        pid=session.peer.pid,
        uid=session.peer.uid,
        connected=session.connected,
        ended=session.ended,
        tags=tags,
        budgets=[
            v1.Budget(tag=tag, soft_bytes=one.soft_bytes, hard_bytes=one.hard_bytes, revision=one.revision)
            for tag, one in session.budgets.items()
        ],
    )


def _ticket(ticket: TicketView) -> v1.Ticket:
    holders = [
        v1.Holder(session=holder.session, tag=holder.tag, state=holder.state, size_bytes=holder.size_bytes)
        for holder in ticket.waits_for
    ]
    return v1.Ticket(
        ticket=ticket.ticket,
        session=ticket.session,
        tags=ticket.tags,
        size_bytes=ticket.size_bytes,
        in_hand_bytes=ticket.in_hand_bytes,
        promised_bytes=ticket.promised_bytes,
        admitted=ticket.admitted,
        since_ns=ticket.since,
        deadline_ns=ticket.deadline,
        waits_for=holders,
        priority=ticket.priority,
    )
