"""What `make setup` installs, and from where, as `make` itself says."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def plan(*variables: str) -> str:
    command = ["make", "--dry-run", "--always-make", "-C", str(ROOT), ".venv/.tools", *variables]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_machine_with_a_gpu_gets_what_its_daemon_needs() -> None:
    assert '"broker demo top dev cuda".split()' in plan("GPU=/dev/nvidiactl", "OFFLINE=")
    assert '"broker demo top dev".split()' in plan("GPU=", "OFFLINE=")


@pytest.mark.parametrize("offline", ["1", ".wheels"])
def test_offline_nothing_is_asked_of_an_index(offline: str) -> None:
    told = plan(f"OFFLINE={offline}")
    assert "--no-index" in told
    assert "pip install -q -c" not in told
