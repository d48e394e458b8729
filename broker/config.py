"""What a daemon is told: which device, how much of it, how much host memory to park contents in, where to listen, and
which plan of phases to begin with.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from vrambroker.broker.adapters.memory_limit import memory_limit_bytes
from vrambroker.broker.adapters.metrics.address import MetricsAddress
from vrambroker.broker.adapters.places import Place, open_place
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.limits import GIB, MIB, Eager
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.durations import parse_duration
from vrambroker.broker.sizes import parse_size, size_text

# What host memory is counted in; a device's capacity is counted in its smallest frame.
GRAIN_BYTES = 2 * MIB
# A file is made whole before anything is parked in it, and nothing lies across two of them: as large as the largest frame,
# and on a machine without a GPU not larger than it must be.
ARENA_FILE_BYTES_MIN = 64 * MIB
RUN_DIR_VARIABLE = "VRAMBROKER_RUN_DIR"
SYSTEM_RUN_DIR = Path("/run/vrambroker")

_HOST = re.compile(r"host(?::(\d{1,9}))?")
_NUMBER = re.compile(r"\d{1,4}")
_CUDA = re.compile(r"cuda(?::\d{1,4})?|(?:GPU|MIG)-[0-9a-fA-F-]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def parse_device(text: str) -> str:
    """Return a device as `open_place` takes it: `host:N` (`host` is `host:0`), or a GPU (a bare number is an index, as in
    `vrambroker@0`); raises `InvalidArgument`.
    """
    match = _HOST.fullmatch(text)
    if match is not None:
        return f"host:{int(match[1] or 0)}"
    if _NUMBER.fullmatch(text) is not None:
        return f"cuda:{int(text)}"
    if _CUDA.fullmatch(text) is not None:
        return text
    raise InvalidArgument(
        message=f"device {text!r} is not host, host:N, cuda, cuda:N, N or a GPU's UUID", argument="device"
    )


def default_run_dir() -> Path:
    """Return where the node's daemons put their sockets, unless told otherwise; raises `InvalidArgument`."""
    named = os.environ.get(RUN_DIR_VARIABLE)
    if named:
        return Path(named)
    place = SYSTEM_RUN_DIR if SYSTEM_RUN_DIR.exists() else SYSTEM_RUN_DIR.parent
    if os.access(place, os.W_OK | os.X_OK):
        return SYSTEM_RUN_DIR
    of_user = os.environ.get("XDG_RUNTIME_DIR")
    if not of_user:
        raise InvalidArgument(
            message=f"{SYSTEM_RUN_DIR} is not writable and XDG_RUNTIME_DIR is not set: name a run directory",
            argument="run_dir",
        )
    return Path(of_user) / "vrambroker"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """`staging_bytes`: how much of the host's budget is for contents on their way to the folder and back."""

    folder: Path
    budget_bytes: int
    staging_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideRules:
    """What becomes of memory that is no lease. `keep_free_bytes`: how much is left free for it; as the device has it, if
    None.
    """

    keep_free_bytes: int | None = None
    per_session_bytes: int = 4 * GIB
    eager: Eager = Eager.AUTO

    @staticmethod
    def of(*, keep_free: str | None, per_session: str, eager: Eager) -> "OutsideRules":
        """Return the rules that these words mean; raises `InvalidArgument`."""
        return OutsideRules(
            keep_free_bytes=_size_or_nothing(keep_free),
            per_session_bytes=parse_size(per_session, "outside_per_session"),
            eager=eager,
        )

    def for_place(self, place: Place) -> "OutsideRules":
        """Return them with the device's own defaults; raises `InvalidArgument` where nobody measures, or for all there is."""
        if place.keep_free_bytes is None and self.keep_free_bytes is not None:
            raise InvalidArgument(
                message=f"nothing can be kept free on {place.name}: nobody measures what others use of it",
                argument="keep_free",
            )
        keep_free_bytes = self.keep_free_bytes if self.keep_free_bytes is not None else place.keep_free_bytes or 0
        if keep_free_bytes >= place.device_bytes:
            raise InvalidArgument(
                message=f"keep_free of {size_text(keep_free_bytes)} leaves nothing of {size_text(place.device_bytes)}",
                argument="keep_free",
            )
        return replace(self, keep_free_bytes=keep_free_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRules:
    """What the lines of the latest events may take of the daemon's memory, and of a disk in `folder`; None: no disk."""

    memory_bytes: int = 32 * MIB
    folder: Path | None = None
    disk_bytes: int = 256 * MIB

    @staticmethod
    def of(*, memory: str, folder: Path | None, budget: str) -> "HistoryRules":
        """Return the rules that these words mean; raises `InvalidArgument`."""
        if folder is not None:
            _require_writable(folder, "history_dir")
            # What is to be removed has to be found first.
            if not os.access(folder, os.R_OK):
                raise InvalidArgument(message=f"history_dir {folder} can't be listed", argument="history_dir")
        sizes = {"history": parse_size(memory, "history"), "history_budget": parse_size(budget, "history_budget")}
        for argument, size_bytes in sizes.items():
            if size_bytes < MIB:
                raise InvalidArgument(message=f"{argument} of {size_bytes} bytes is less than 1 MiB", argument=argument)
        return HistoryRules(memory_bytes=sizes["history"], folder=folder, disk_bytes=sizes["history_budget"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes in bytes: the capacity in whole frames, host memory in whole grains of 2 MiB.

    `copy_ahead_ns`: how long kept contents are idle before they are copied out in the background; None: they never are.
    """

    place: Place
    capacity_bytes: int
    host_budget_bytes: int
    arena_file_bytes: int
    run_dir: Path
    plan: PhasePlan | None = None
    spill: SpillConfig | None = None
    outside: OutsideRules = OutsideRules()
    copy_ahead_ns: int | None = None
    metrics: MetricsAddress | None = None
    history: HistoryRules = HistoryRules()

    @property
    def device(self) -> str:
        """The device's id: `host:N`, or a GPU's UUID with its prefix."""
        return self.place.name

    @staticmethod
    def of(
        *,
        device: str = "host",
        capacity: str | None = None,
        host_budget: str | None = None,
        run_dir: Path | None = None,
        plan: PhasePlan | None = None,
        spill_dir: Path | None = None,
        spill_budget: str | None = None,
        outside: OutsideRules = OutsideRules(),
        copy_ahead: str | None = None,
        metrics: MetricsAddress | None = None,
        history: HistoryRules = HistoryRules(),
    ) -> "Config":
        """Return the configuration that these words mean, defaults filled in.

        Raises `InvalidArgument`, and `DriverFailed` where the GPU can't be used. Opens the device.
        """
        place = open_place(parse_device(device))
        limit_bytes = memory_limit_bytes()
        host = _Bounds(default_bytes=limit_bytes // 2, most_bytes=limit_bytes, of="the memory limit")
        rules = outside.for_place(place)
        lent_bytes = min(place.lent_bytes, place.device_bytes - (rules.keep_free_bytes or 0))
        of_device = _Bounds(default_bytes=lent_bytes, most_bytes=place.device_bytes, of=f"device {place.name}")
        sizes_bytes = place.frame_sizes_bytes
        budget_bytes = _whole(host_budget, "host_budget", host, GRAIN_BYTES)
        return Config(
            place=place,
            capacity_bytes=_whole(capacity, "capacity", of_device, sizes_bytes[0]),
            host_budget_bytes=budget_bytes,
            arena_file_bytes=min(max(ARENA_FILE_BYTES_MIN, sizes_bytes[-1]), budget_bytes),
            run_dir=default_run_dir() if run_dir is None else run_dir,
            plan=plan,
            spill=_spill(spill_dir, spill_budget, sizes_bytes, budget_bytes),
            outside=rules,
            copy_ahead_ns=place.copy_ahead_ns if copy_ahead is None else _duration_or_off(copy_ahead),
            metrics=metrics,
            history=history,
        )


def _spill(
    folder: Path | None, budget: str | None, sizes_bytes: tuple[int, ...], host_bytes: int
) -> SpillConfig | None:
    """Return where contents are spilled, if they are at all; raises `InvalidArgument` for what can't be."""
    if folder is None and budget is None:
        return None
    if folder is None or budget is None:
        missing = "spill_dir" if folder is None else "spill_budget"
        raise InvalidArgument(message=f"spill_dir and spill_budget go together: {missing} is not set", argument=missing)
    _require_writable(folder, "spill_dir")
    disk = os.statvfs(folder)
    bounds = _Bounds(default_bytes=0, most_bytes=disk.f_bavail * disk.f_frsize, of=f"what is free in {folder}")
    return SpillConfig(
        folder=folder,
        budget_bytes=_whole(budget, "spill_budget", bounds, sizes_bytes[0]),
        staging_bytes=_staging_bytes(sizes_bytes, host_bytes),
    )


def _require_writable(folder: Path, argument: str) -> None:
    """Raise `InvalidArgument` if no files can be made there."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "is not writable" if folder.is_dir() else "is not a directory"
        raise InvalidArgument(message=f"{argument} {folder} {why}", argument=argument)


def _staging_bytes(sizes_bytes: tuple[int, ...], host_bytes: int) -> int:
    """Return room for four of the largest frames, if that is no more than a quarter of the host's budget; for one at
    least.
    """
    smallest, largest = sizes_bytes[0], sizes_bytes[-1]
    if host_bytes < largest:
        raise InvalidArgument(
            message=f"what is spilled goes through the host's memory, and host_budget has no room for {largest} bytes",
            argument="host_budget",
        )
    staging_bytes = max(largest, min(4 * largest, host_bytes // 4))
    return staging_bytes - staging_bytes % smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    default_bytes: int
    most_bytes: int
    of: str


def _size_or_nothing(text: str | None) -> int | None:
    return 0 if text == "0" else None if text is None else parse_size(text, "keep_free")


def _duration_or_off(text: str) -> int | None:
    return None if text == "off" else parse_duration(text, "copy_ahead")


def _whole(text: str | None, argument: str, bounds: _Bounds, grain_bytes: int) -> int:
    """Return a size in whole grains, rounded down; raises `InvalidArgument` for less than one or more than there is."""
    size_bytes = bounds.default_bytes if text is None else parse_size(text, argument)
    if size_bytes < grain_bytes:
        raise InvalidArgument(
            message=f"{argument} of {size_text(size_bytes)} is less than a frame of {size_text(grain_bytes)}",
            argument=argument,
        )
    if size_bytes > bounds.most_bytes:
        whole_bytes = bounds.most_bytes - bounds.most_bytes % grain_bytes
        at_most = f", which has room for {whole_bytes} bytes" if whole_bytes else ""
        raise InvalidArgument(
            message=f"{argument} of {size_text(size_bytes)} is more than the {size_text(bounds.most_bytes)} of {bounds.of}"
            + at_most,
            argument=argument,
        )
    return size_bytes - size_bytes % grain_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """A configuration read again by a running daemon. `left`: what was changed and can't be without a restart."""

    config: Config
    left: tuple[str, ...]
