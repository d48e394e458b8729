"""What came out of it: the figures, all of them measured, as JSON and as a table, and whether they prove the point."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from vrambroker.client.demo.loop import REWARD_PROVEN
from vrambroker.client.timeline.history import History, Track
from vrambroker.client.timeline.scale import bytes_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`peak_bytes`: the most that the daemon had lent at once. `need_together_bytes`: the sum of each tag's most.

    `arrived_bytes`: what was lent anew to either side; `copied_*_bytes`: contents parked on the host and brought back.
    """

    device: str
    size: str
    steps: int
    reward_first: float
    reward_last: float
    rewards: tuple[float, ...]
    capacity_bytes: int
    peak_bytes: int
    need_together_bytes: int
    arrived_bytes: int
    copied_out_bytes: int
    copied_in_bytes: int
    addresses: int
    addresses_changed: int
    contents_changed: int
    logprob_gap_max: float
    seconds: float
    setup_seconds: float
    timeline: str
    trace: str


def most_by_tag(history: History) -> dict[str, int]:
    """Return the most that each `session/tag` had on the device."""
    return {
        f"{track.session}/{track.tag}": max((step.device_bytes for step in track.steps), default=0)
        for track in history.tracks
    }


def arrived_bytes(history: History) -> int:
    """Return how much memory was given to anybody, over the whole time."""
    return sum(_gains(track) for track in history.tracks)


def _gains(track: Track) -> int:
    before = gained = 0
    for step in track.steps:
        gained += max(0, step.device_bytes - before)
        before = step.device_bytes
    return gained


def failings(report: Report, *, judge_reward: bool) -> Sequence[str]:
    """Return everything that the demo was to show and did not."""
    found: list[str] = []
    if judge_reward and report.reward_last <= REWARD_PROVEN:
        found.append(f"the last reward is {report.reward_last:.2f}, and more than {REWARD_PROVEN} was to be learned")
    if report.addresses_changed:
        found.append(f"{report.addresses_changed} addresses changed")
    if report.contents_changed:
        found.append(f"{report.contents_changed} tensors came back with other contents than they had")
    if report.peak_bytes > report.capacity_bytes:
        found.append(f"{report.peak_bytes} bytes were lent of {report.capacity_bytes}")
    if report.need_together_bytes <= report.capacity_bytes:
        found.append(f"both sides fit together: {report.need_together_bytes} bytes of {report.capacity_bytes}")
    return found


def write(report: Report, path: Path) -> None:
    """Write the report as a JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


def table(report: Report) -> RenderableType:
    """Return the report as a table for a person."""
    drawn = Table(title="one device, two sides that don't fit on it together", title_justify="left", show_header=False)
    drawn.add_column(style="bold")
    drawn.add_column(justify="right")
    drawn.add_column(style="dim")
    addresses = "none" if not report.addresses_changed else str(report.addresses_changed)
    contents = "none" if not report.contents_changed else str(report.contents_changed)
    rows = (
        ("reward", f"{report.reward_first:.2f} → {report.reward_last:.2f}", "share of digits right, first and last"),
        ("steps", str(report.steps), f"of GRPO, model size {report.size}"),
        ("needed together", bytes_text(report.need_together_bytes), "both sides at once"),
        ("capacity", bytes_text(report.capacity_bytes), f"lent by the daemon of {report.device}"),
        ("peak", bytes_text(report.peak_bytes), "lent at once, as the daemon saw it"),
        ("changed hands", bytes_text(report.arrived_bytes), "device memory lent anew to either side"),
        ("parked", bytes_text(report.copied_out_bytes), "contents copied to host memory"),
        ("restored", bytes_text(report.copied_in_bytes), "and back"),
        ("addresses changed", addresses, f"of {report.addresses} tensors, checked at every step"),
        ("contents changed", contents, "of what was kept, compared at every resume"),
        ("log-prob. gap", f"{report.logprob_gap_max:.1e}", "the most that the two copies of the policy differed"),
        ("seconds", f"{report.seconds:.1f}", f"and {report.setup_seconds:.1f} to set up"),
        ("timeline", report.timeline, f"for Perfetto: {report.trace}"),
    )
    for row in rows:
        drawn.add_row(*row)
    return drawn
