"""Words to numbers, and clear refusals."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vrambroker.broker.config import (
    GRAIN_BYTES,
    Config,
    HistoryRules,
    OutsideRules,
    SpillConfig,
    default_run_dir,
    parse_device,
)
from vrambroker.broker.core.errors import DriverFailed, InvalidArgument
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.durations import parse_duration
from vrambroker.broker.ports import Deliver, Frames
from vrambroker.broker.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("96MiB", 96 << 20),
        ("1.5GiB", 3 << 29),
        (" 2 TiB ", 2 << 40),
        ("0.1KiB", 102),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text, "capacity") == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "1GB", "1gib", "-1MiB", "0", "0.0GiB", "1e9", "1" * 5_000, "1,5GiB", "nan"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size(text, "capacity")
    assert caught.value.argument == "capacity"


@pytest.mark.parametrize(
    ("text", "duration_ns"), [("0ms", 0), ("200ms", 200_000_000), (" 1.5 s ", 1_500_000_000), ("2min", 120_000_000_000)]
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration(text, "copy_ahead") == duration_ns


@pytest.mark.parametrize(
    "text", ["", "ms", "200", "-1s", "1h", "1e3s", "1,5s", "nan", "inf s", "1" * 5_000 + "s", "on"]
)
def test_no_durations(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Config.of(run_dir=tmp_path, copy_ahead=text)
    assert caught.value.argument == "copy_ahead"


def test_a_host_copies_ahead_only_if_told_to(tmp_path: Path) -> None:
    told = [Config.of(run_dir=tmp_path, copy_ahead=text).copy_ahead_ns for text in (None, "off", "200ms")]
    assert told == [None, None, 200_000_000]


@pytest.mark.parametrize(("text", "device"), [("host", "host:0"), ("host:0", "host:0"), ("host:17", "host:17")])
def test_devices(text: str, device: str) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["cuda:0", "cuda", "GPU-8a2b5a3e-0b5f-4d5e-9b1a-0d6c1c2f3a4b"])
def test_gpus_are_looked_up_by_the_driver(text: str) -> None:
    assert parse_device(text) == text


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver here")
def test_a_gpu_without_a_driver_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DriverFailed) as caught:
        Config.of(device="cuda:0", run_dir=tmp_path)
    assert caught.value.driver_call


@pytest.mark.parametrize(
    "text", ["", "host:", "host:-1", "host:x", "../host", "host:1/2", "cuda:", "cuda:x", "GPU-", "gpu0"]
)
def test_no_devices(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_device(text)


def test_defaults_leave_room(tmp_path: Path) -> None:
    config = Config.of(run_dir=tmp_path)
    assert config.capacity_bytes % GRAIN_BYTES == config.host_budget_bytes % GRAIN_BYTES == 0
    assert config.place.device_bytes // 4 - GRAIN_BYTES < config.capacity_bytes <= config.place.device_bytes // 4
    assert config.place.device_bytes // 2 - GRAIN_BYTES < config.host_budget_bytes <= config.place.device_bytes // 2


def test_an_arena_file_is_no_larger_than_the_budget(tmp_path: Path) -> None:
    assert Config.of(host_budget="6MiB", run_dir=tmp_path).arena_file_bytes == 6 << 20


@pytest.mark.parametrize("capacity", ["1MiB", "4096TiB"])
def test_a_capacity_beyond_reason_is_refused(capacity: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Config.of(capacity=capacity, run_dir=tmp_path)
    assert caught.value.argument == "capacity"


def test_a_spill_directory_takes_staging_room_out_of_the_budget(tmp_path: Path) -> None:
    config = Config.of(run_dir=tmp_path, host_budget="64MiB", spill_dir=tmp_path, spill_budget="65MiB")
    assert config.spill == SpillConfig(folder=tmp_path, budget_bytes=64 << 20, staging_bytes=32 << 20)
    config = Config.of(run_dir=tmp_path, host_budget="256MiB", spill_dir=tmp_path, spill_budget="64MiB")
    assert config.spill is not None
    assert config.spill.staging_bytes == 64 << 20
    assert Config.of(run_dir=tmp_path).spill is None


@pytest.mark.parametrize(
    ("folder", "budget", "host", "argument", "why"),
    [
        (".", None, "64MiB", "spill_budget", "go together"),
        (None, "64MiB", "64MiB", "spill_dir", "go together"),
        ("nowhere", "64MiB", "64MiB", "spill_dir", "is not a directory"),
        ("file", "64MiB", "64MiB", "spill_dir", "is not a directory"),
        (".", "much", "64MiB", "spill_budget", "is not a size"),
        (".", "1MiB", "64MiB", "spill_budget", "less than a frame"),
        (".", "4096TiB", "64MiB", "spill_budget", "of what is free in"),
        (".", "64MiB", "30MiB", "host_budget", "no room for 33554432 bytes"),
    ],
)
def test_what_can_not_be_spilled_to_is_refused(
    folder: str | None, budget: str | None, host: str, argument: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=why) as caught:
        Config.of(
            run_dir=tmp_path,
            host_budget=host,
            spill_dir=None if folder is None else tmp_path / folder,
            spill_budget=budget,
        )
    assert caught.value.argument == argument


def test_a_spill_directory_that_can_not_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", _refuse)
    with pytest.raises(InvalidArgument, match="is not writable"):
        Config.of(run_dir=tmp_path, host_budget="64MiB", spill_dir=tmp_path, spill_budget="64MiB")


def test_a_folder_of_histories_that_can_not_be_listed_is_refused(tmp_path: Path) -> None:
    ask = """
import os
import subprocess
import sys
from pathlib import Path
from vrambroker.broker.config import HistoryRules
os.chmod(".", 0o300)
if os.geteuid() == 0:
    os.chown(".", 65534, 65534)
    os.setuid(65534)
HistoryRules.of(memory="1MiB", folder=Path("."), budget="1MiB")
"""
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert "history_dir . can't be listed" in done.stderr


@pytest.mark.parametrize(
    ("folder", "memory", "budget", "argument", "why"),
    [
        ("nowhere", "32MiB", "1MiB", "history_dir", "is not a directory"),
        ("file", "32MiB", "1MiB", "history_dir", "is not a directory"),
        (None, "1KiB", "1MiB", "history", "less than 1 MiB"),
        (None, "much", "1MiB", "history", "is not a size"),
        (".", "32MiB", "1KiB", "history_budget", "less than 1 MiB"),
    ],
)
def test_a_history_that_can_not_be_kept_is_refused(
    folder: str | None, memory: str, budget: str, argument: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=why) as caught:
        HistoryRules.of(memory=memory, folder=None if folder is None else tmp_path / folder, budget=budget)
    assert caught.value.argument == argument


def _refuse(path: Path, mode: int) -> bool:
    return False


def test_the_run_directory_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMBROKER_RUN_DIR", "/somewhere")
    assert default_run_dir() == Path("/somewhere")


@dataclass(frozen=True)
class Measured:
    """A device whose others are measured."""

    name: str = "GPU-x"
    device_bytes: int = 80 << 30
    lent_bytes: int = 78 << 30
    keep_free_bytes: int | None = 2 << 30
    frame_sizes_bytes: tuple[int, ...] = (32 << 20,)
    arena_ahead: bool = True
    pool_ns: int = 0
    copy_ahead_ns: int | None = None

    def frames(self, deliver: Deliver) -> Frames:
        raise AssertionError(f"nobody makes frames here: {deliver}")


def rules(keep_free: str | None, per_session: str = "4GiB") -> OutsideRules:
    return OutsideRules.of(keep_free=keep_free, per_session=per_session, eager=Eager.AUTO)


def test_what_stays_free_for_others_is_the_devices_default_or_what_was_said() -> None:
    kept = [rules(text).for_place(Measured()).keep_free_bytes for text in (None, "3GiB", "0")]
    assert kept == [2 << 30, 3 << 30, 0]


@pytest.mark.parametrize("text", ["80GiB", "100GiB", "-1", "1GB", ""])
def test_what_leaves_nothing_or_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rules(text).for_place(Measured())
    assert caught.value.argument == "keep_free"


def test_on_the_host_nobody_measures_what_others_use(tmp_path: Path) -> None:
    config = Config.of(device="host", run_dir=tmp_path)
    assert config.place.keep_free_bytes is None
    with pytest.raises(InvalidArgument) as caught:
        Config.of(device="host", run_dir=tmp_path, outside=rules("1GiB"))
    assert caught.value.argument == "keep_free"
