"""The engines' call sequences on a GPU: the scenarios of tests/process/test_engines.py, with 32 times the memory."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.conftest import RunningBroker
from tests.process.test_engines import (
    sides,
    test_areal,
    test_miles,
    test_nemo_rl,
    test_sglang_alone,
    test_slime,
    test_verl,
)

__all__ = [
    "shared_broker",
    "sides",
    "test_areal",
    "test_miles",
    "test_nemo_rl",
    "test_sglang_alone",
    "test_slime",
    "test_verl",
]

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def shared_broker(gpu: str) -> Iterator[RunningBroker]:
    """A daemon that lends less of the GPU than both sides want."""
    run_dir = Path(tempfile.mkdtemp(prefix="vrb-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCENARIO_DEVICE", "cuda")
        broker = RunningBroker(device=gpu, run_dir=run_dir, options=["--capacity", "2GiB", "--host-budget", "8GiB"])
        yield broker
    code, log = broker.stop(), broker.log()
    shutil.rmtree(run_dir)
    assert code == 0, log
