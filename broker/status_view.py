"""How a person and a script see a device's status: the `v1.Status` message as plain values and as rich tables.

The JSON keys are a contract with scripts (README, "CLI"); sizes are bytes, times seconds.
"""

from typing import TypedDict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from vrambroker.v1 import broker_pb2 as v1

MIB = 1 << 20
GIB = 1 << 30
STATE_STYLES = {
    "resident": "green",
    "idle": "cyan",
    "leaving": "yellow",
    "arriving": "yellow",
    "partial": "yellow",
    "parked": "dim",
}
BAR_CELLS = 40


class DeviceJson(TypedDict):
    id: str
    capacity_bytes: int
    lent_bytes: int
    free_bytes: int
    held_bytes: int
    foreign_bytes: int
    peak_lent_bytes: int


class TagJson(TypedDict):
    tag: str
    contents: str
    state: str
    device_bytes: int
    host_bytes: int
    since_seconds: float


class SessionJson(TypedDict):
    name: str
    pid: int
    uid: int
    connected: bool
    ended: bool
    tags: list[TagJson]


class HolderJson(TypedDict):
    session: str
    tag: str
    state: str
    size_bytes: int


class TicketJson(TypedDict):
    session: str
    tags: list[str]
    size_bytes: int
    in_hand_bytes: int
    promised_bytes: int
    admitted: bool
    since_seconds: float
    waits_for: list[HolderJson]


class HostJson(TypedDict):
    budget_bytes: int
    used_bytes: int


class StatusJson(TypedDict):
    device: DeviceJson
    sessions: list[SessionJson]
    queue: list[TicketJson]
    host: HostJson
    version: str
    pid: int
    draining: bool


def size_text(size_bytes: int) -> str:
    """Return a size for people: whole bytes below 1 MiB, one decimal above."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if size_bytes >= MIB:
        return f"{size_bytes / MIB:.1f} MiB"
    return f"{size_bytes} B"


def age_text(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"


def _state_name(state: v1.LeaseState.ValueType) -> str:
    return v1.LeaseState.Name(state).removeprefix("LEASE_STATE_").lower()


def _contents_name(contents: v1.Contents.ValueType) -> str:
    return v1.Contents.Name(contents).removeprefix("CONTENTS_").lower()


def _tag_json(tag: v1.Tag, now_ns: int) -> TagJson:
    return TagJson(
        tag=tag.tag,
        contents=_contents_name(tag.contents),
        state=_state_name(tag.state),
        device_bytes=tag.device_bytes,
        host_bytes=tag.host_bytes,
        since_seconds=max(0, now_ns - tag.since_ns) / 1e9,
    )


def _ticket_json(ticket: v1.Ticket, now_ns: int) -> TicketJson:
    return TicketJson(
        session=ticket.session,
        tags=list(ticket.tags),
        size_bytes=ticket.size_bytes,
        in_hand_bytes=ticket.in_hand_bytes,
        promised_bytes=ticket.promised_bytes,
        admitted=ticket.admitted,
        since_seconds=max(0, now_ns - ticket.since_ns) / 1e9,
        waits_for=[
            HolderJson(session=h.session, tag=h.tag, state=h.state, size_bytes=h.size_bytes) for h in ticket.waits_for
        ],
    )


def status_json(status: v1.Status) -> StatusJson:
    """Return one device's entry of `broker status --json`."""
    device = status.device
    return StatusJson(
        device=DeviceJson(
            id=device.id,
            capacity_bytes=device.capacity_bytes,
            lent_bytes=device.lent_bytes,
            free_bytes=device.free_bytes,
            held_bytes=device.held_bytes,
            foreign_bytes=device.foreign_bytes,
            peak_lent_bytes=device.peak_lent_bytes,
        ),
        sessions=[
            SessionJson(
                name=session.name,
                pid=session.pid,
                uid=session.uid,
                connected=session.connected,
                ended=session.ended,
                tags=[_tag_json(tag, status.now_ns) for tag in session.tags],
            )
            for session in status.sessions
        ],
        queue=[_ticket_json(ticket, status.now_ns) for ticket in status.queue],
        host=HostJson(budget_bytes=status.host.budget_bytes, used_bytes=status.host.used_bytes),
        version=status.version,
        pid=status.pid,
        draining=status.draining,
    )


def _bar(device: DeviceJson) -> Text:
    capacity = max(1, device["capacity_bytes"])
    lent = round(BAR_CELLS * device["lent_bytes"] / capacity)
    held = min(BAR_CELLS - lent, round(BAR_CELLS * device["held_bytes"] / capacity))
    bar = Text()
    bar.append("█" * lent, style="green")
    bar.append("▒" * held, style="yellow")
    bar.append("·" * (BAR_CELLS - lent - held), style="dim")
    return bar


def _headline(status: StatusJson) -> Text:
    device, host = status["device"], status["host"]
    line = Text.assemble((device["id"], "bold"), "  ", _bar(device), "  ")
    line.append(f"{size_text(device['lent_bytes'])} lent of {size_text(device['capacity_bytes'])}")
    line.append(f", {size_text(device['free_bytes'])} free, {size_text(device['held_bytes'])} held")
    line.append(f", {size_text(device['foreign_bytes'])} foreign")
    line.append(f"\nhost arena {size_text(host['used_bytes'])} of {size_text(host['budget_bytes'])}", style="dim")
    line.append(f" · vrambroker {status['version']}, pid {status['pid']}", style="dim")
    if status["draining"]:
        line.append(" · shutting down", style="bold red")
    return line


def _sessions_table(sessions: list[SessionJson]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for name in ("session", "pid", "tag", "contents", "state"):
        table.add_column(name)
    for name in ("on the device", "on the host", "since"):
        table.add_column(name, justify="right")
    for session in sessions:
        label = session["name"] + (" (ended)" if session["ended"] else "" if session["connected"] else " (away)")
        if not session["tags"]:
            table.add_row(label, str(session["pid"]), "–", "", "", "", "", "")
        for row, tag in enumerate(session["tags"]):
            table.add_row(
                label if row == 0 else "",
                str(session["pid"]) if row == 0 else "",
                tag["tag"],
                tag["contents"],
                Text(tag["state"], style=STATE_STYLES.get(tag["state"], "")),
                size_text(tag["device_bytes"]),
                size_text(tag["host_bytes"]),
                age_text(tag["since_seconds"]),
            )
    return table


def _queue_table(queue: list[TicketJson]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim", title="waiting", title_justify="left")
    for name in ("session", "tags", "needs", "in hand", "for", "waits for"):
        table.add_column(name)
    for ticket in queue:
        holders = ", ".join(
            f"{holder['session']}/{holder['tag']} ({holder['state']}, {size_text(holder['size_bytes'])})"
            for holder in ticket["waits_for"]
        )
        table.add_row(
            ticket["session"],
            ", ".join(ticket["tags"]),
            size_text(ticket["size_bytes"]),
            size_text(ticket["in_hand_bytes"]),
            age_text(ticket["since_seconds"]),
            holders,
        )
    return table


def status_renderable(statuses: list[StatusJson]) -> RenderableType:
    """Return what `broker status` prints: for each device a headline, who holds what, and who waits."""
    parts: list[RenderableType] = []
    for status in statuses:
        parts.append(_headline(status))
        if status["sessions"]:
            parts.append(_sessions_table(status["sessions"]))
        else:
            parts.append(Text("nobody is attached", style="dim"))
        if status["queue"]:
            parts.append(_queue_table(status["queue"]))
        parts.append(Text(""))
    return Group(*parts)
