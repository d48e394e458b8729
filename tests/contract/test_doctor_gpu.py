"""What the doctor says of GPUs, on a driver and an NVML that keep books, with nodes that are files."""

import os
import sys
from pathlib import Path
from uuid import UUID

import pytest

from tests.contract.benches import open_fds
from tests.contract.fake_driver import FakeDriver, FakeNvml, Gpu
from vrambroker.broker.core.limits import MIB
from vrambroker.broker.doctor import gpu as of_gpu
from vrambroker.broker.doctor.finding import Finding, Level

FIRST = UUID(int=1)
NAME = f"GPU-{FIRST}"


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in of_gpu.NODES:
        (tmp_path / name).touch()
    monkeypatch.setattr(of_gpu, "DEVICES", tmp_path)
    return tmp_path


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver([Gpu(uuid=FIRST)])
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


@pytest.fixture(autouse=True)
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml({NAME: 500 * MIB}, processes={NAME: {os.getpid(): 600 * MIB, 1: 300 * MIB, 2: None}})
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def found(device: str | None = None) -> dict[str, list[Finding]]:
    by_check: dict[str, list[Finding]] = {}
    for finding in of_gpu.gpus(device, frozenset({os.getpid()})):
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def test_a_gpu_that_can_be_served_and_who_else_is_on_it(nodes: Path, driver: FakeDriver, nvml: FakeNvml) -> None:
    before = open_fds()
    told = found()
    assert [one.level for one in told["foreign"]] == [Level.OK, Level.WARN, Level.WARN]
    assert told["driver"][0].text == f"CUDA 13.0: {NAME} has 80.0 GiB"
    assert {one.level for check, ones in told.items() if check != "foreign" for one in ones} == {Level.OK}
    assert (open_fds(), nvml.open, len(driver.made)) == (before, 0, 1), "nothing is left of the frame that was tried"


def test_a_driver_that_exports_no_memory_fails(nodes: Path, driver: FakeDriver) -> None:
    driver.refused = {"cuInit"}
    assert [one.level for one in found()["driver"]] == [Level.FAIL]
    driver.refused = {"cuMemRelease"}
    assert [one.level for one in found()["frames"]] == [Level.FAIL]
    driver.refused = {"cuMemCreate"}
    assert "none free" in found()["frames"][0].text


def test_what_is_missing_is_named_with_what_mends_it(nodes: Path, driver: FakeDriver) -> None:
    (nodes / "nvidia-uvm").unlink()
    (missing,) = (one for one in found()["device-nodes"] if one.level is Level.FAIL)
    assert (str(nodes / "nvidia-uvm") in missing.text, missing.mend) == (True, "nvidia-modprobe -c 0 -u")
    assert [one.level for one in found("cuda:3")["driver"]] == [Level.FAIL]
    (nodes / "nvidiactl").unlink()
    assert [one.level for one in found()["device-nodes"]] == [Level.UNSEEN]


def test_without_the_package_it_says_which(nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    (told,) = found()["driver"]
    assert (told.level, told.mend) == (Level.FAIL, "pip install '.[broker,cuda]'    # where vrambroker's source is")
