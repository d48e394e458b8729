"""How a person and a script see the status of a node's devices: rich tables, and values for JSON.

The JSON keys are a contract with scripts (docs/commands.md): they are the fields of `vrambroker.client.status`, sizes in bytes
and instants in nanoseconds on the daemon's clock, of which `now_ns` is the present.
"""

import dataclasses
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from vrambroker.broker.fitted_table import FittedTable
from vrambroker.broker.sizes import size_text
from vrambroker.client.status import DeviceStatus, SessionStatus, Status, TagStatus, TicketStatus

READERS_SHOWN = 3

STATE_STYLES = {
    "resident": "green",
    "idle": "cyan",
    "leaving": "yellow",
    "arriving": "yellow",
    "partial": "yellow",
    "parked": "dim",
}
BAR_CELLS = 40


def age_text(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"


def status_json(status: Status) -> dict[str, object]:
    """Return one device's entry of `broker status --json`."""
    return dataclasses.asdict(status)


def _bar(device: DeviceStatus) -> Text:
    capacity = max(1, device.capacity_bytes)
    lent = round(BAR_CELLS * device.lent_bytes / capacity)
    held = min(BAR_CELLS - lent, round(BAR_CELLS * device.held_bytes / capacity))
    bar = Text()
    bar.append("█" * lent, style="green")
    bar.append("▒" * held, style="yellow")
    bar.append("·" * (BAR_CELLS - lent - held), style="dim")
    return bar


def _headline(status: Status) -> Text:
    device, host = status.device, status.host
    line = Text.assemble((device.id, "bold"), "  ", _bar(device), "  ")
    line.append(f"{size_text(device.lent_bytes)} lent of {size_text(device.capacity_bytes)}")
    line.append(f", {size_text(device.free_bytes)} free, {size_text(device.held_bytes)} held")
    line.append(f", {size_text(device.foreign_bytes)} foreign")
    if device.withheld_bytes:
        line.append(f", {size_text(device.withheld_bytes)} of the held kept out of use for that")
    if device.eager:
        line.append(f"\nidle memory is taken at once: outside of leases, {device.eager}", style="yellow")
    arena = f"\nhost arena {size_text(host.used_bytes)} in files of {size_text(host.file_bytes)}"
    line.append(f"{arena}, at most {size_text(host.budget_bytes)}", style="dim")
    if host.spill_budget_bytes:
        spilled = f", {size_text(host.spill_used_bytes)} of {size_text(host.spill_budget_bytes)} spilled"
        line.append(spilled, style="dim")
    line.append(f" · vrambroker {status.version}, pid {status.pid}", style="dim")
    if status.phase:
        line.append(f" · phase {status.phase}", style="dim")
    if status.entering:
        line.append(f" · entering {status.entering}", style="yellow")
    if status.draining:
        line.append(" · shutting down", style="bold red")
    return line


def _session_label(session: SessionStatus) -> str:
    if session.ended:
        return f"{session.name} (ended)"
    return session.name if session.connected else f"{session.name} (away)"


def host_text(tag: TagStatus) -> str:
    """Return what is set aside for a lease's contents outside of the device."""
    spilled = f" + {size_text(tag.spill_bytes)} spilled" if tag.spill_bytes else ""
    return f"{size_text(tag.host_bytes)}{spilled}"


def _sessions_table(status: Status) -> FittedTable:
    sizes = ("on the device", "on the host", "since")
    table = FittedTable("session", "pid", "tag", "contents", "state", *sizes, right=sizes)
    for session in status.sessions:
        head = (_session_label(session), str(session.pid))
        if not session.tags:
            table.add_row(*head, "–")
        for tag in session.tags:
            table.add_row(
                *head,
                tag.tag,
                f"{tag.contents}, sealed" if tag.sealed else tag.contents,
                Text(state_text(tag), style=STATE_STYLES.get(tag.state, "")),
                size_text(tag.device_bytes),
                host_text(tag),
                age_text((status.now_ns - tag.since_ns) / 1e9),
            )
            head = ("", "")
    return table


def state_text(tag: TagStatus) -> str:
    """Return the state, how much of what is idle can be taken without a copy, and who else has it mapped."""
    copied = f", {size_text(tag.copied_bytes)} copied" if tag.copied_bytes else ""
    names = list(dict.fromkeys(reader.session for reader in tag.readers))
    more = f" and {len(names) - READERS_SHOWN} more" if len(names) > READERS_SHOWN else ""
    readers = f", read by {', '.join(names[:READERS_SHOWN])}{more}" if names else ""
    return f"{tag.state}{copied}{readers}"


def _ticket_row(ticket: TicketStatus, now_ns: int) -> tuple[str, ...]:
    holders = (f"{h.session}/{h.tag} ({h.state}, {size_text(h.size_bytes)})" for h in ticket.waits_for)
    return (
        str(ticket.ticket),
        ticket.session,
        ", ".join(ticket.tags) or "for later",
        str(ticket.priority or ""),
        size_text(ticket.size_bytes),
        size_text(ticket.in_hand_bytes),
        age_text((now_ns - ticket.since_ns) / 1e9),
        ", ".join(holders),
    )


def _holds_table(status: Status) -> FittedTable:
    table = FittedTable("ticket", "session", "bytes", "for", right=("ticket", "bytes", "for"))
    for ticket in status.holds:
        age = age_text((status.now_ns - ticket.since_ns) / 1e9)
        table.add_row(str(ticket.ticket), ticket.session, size_text(ticket.size_bytes), age)
    return table


def status_renderable(statuses: Sequence[Status]) -> RenderableType:
    """Return what `broker status` prints: for each device a headline, who holds what, and who waits."""
    parts: list[RenderableType] = []
    for status in statuses:
        parts.append(_headline(status))
        parts.append(_sessions_table(status) if status.sessions else Text("nobody is attached", style="dim"))
        if status.queue:
            parts.append(Text("waiting", style="bold"))
            columns = ("ticket", "session", "tags", "priority", "needs", "in hand", "for", "waits for")
            queue = FittedTable(*columns, right=("ticket", "priority", "needs", "in hand", "for"))
            for ticket in status.queue:
                queue.add_row(*_ticket_row(ticket, status.now_ns))
            parts.append(queue)
        if status.holds:
            parts.append(Text("set aside for later", style="bold"))
            parts.append(_holds_table(status))
        parts.append(Text(""))
    return Group(*parts) if parts else Text("no daemon is running", style="dim")
