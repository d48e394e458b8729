"""The demo on a GPU: the same command, the rollout decoding with a CUDA graph."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vrambroker.client.discovery import gpu_name

pytestmark = pytest.mark.gpu

DEADLINE_S = 280.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("size", "steps"), [("tiny", 20), ("1.5b", 3)])
def test_rl_runs_with_every_address_and_all_kept_contents_unchanged(
    gpu: str, tmp_path: Path, size: str, steps: int
) -> None:
    _run(gpu, tmp_path, size, steps)


@pytest.mark.timeout(300)
def test_it_runs_on_a_gpu_that_is_not_the_first(gpu: str, tmp_path: Path) -> None:
    del gpu
    if torch.cuda.device_count() < 2:
        pytest.skip("SKIPPED: torch sees one GPU on this machine, and this takes two")
    _run(gpu_name(1), tmp_path, "tiny", 5)


def _run(gpu: str, tmp_path: Path, size: str, steps: int) -> None:
    path = tmp_path / "demo.json"
    command = [sys.executable, "-m", "vrambroker.broker.cli", "demo", "--device", gpu, "--report", str(path)]
    done = subprocess.run(
        [*command, "--size", size, "--steps", str(steps)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(path.read_text())
    print(json.dumps({name: value for name, value in report.items() if name != "rewards"}))
    assert report["steps"] == steps
    assert report["addresses_changed"] == report["contents_changed"] == 0
    assert report["peak_bytes"] <= report["capacity_bytes"] < report["need_together_bytes"]
    assert report["logprob_gap_max"] < 1e-2
    assert Path(report["timeline"]).exists()
