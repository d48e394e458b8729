"""The daemon's GPU, on a driver and an NVML that keep books: which one it is, what it makes, and what is left on failure."""

import os
import sys
from uuid import UUID

import pytest

from tests.contract.benches import open_fds
from tests.contract.fake_driver import FakeDriver, FakeNvml, Gpu
from vrambroker.broker.adapters.cuda_driver import CudaGpu, DriverRefused
from vrambroker.broker.adapters.cuda_frames import KEEP_FREE_BYTES, open_cuda
from vrambroker.broker.core.errors import DriverFailed, InvalidArgument
from vrambroker.broker.core.limits import GIB, MIB

FIRST, SECOND = UUID(int=1), UUID(int=2)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver([Gpu(uuid=FIRST), Gpu(uuid=SECOND, rdma=0, total_bytes=16 * GIB)])
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml({f"GPU-{FIRST}": 500 * MIB, f"GPU-{SECOND}": 700 * MIB})
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("cuda", FIRST),
        ("cuda:0", FIRST),
        ("cuda:1", SECOND),
        (f"GPU-{SECOND}", SECOND),
        (f"MIG-{SECOND}", SECOND),
        (str(SECOND), SECOND),
    ],
)
def test_a_gpu_is_found_by_its_number_or_its_uuid(driver: FakeDriver, name: str, uuid: UUID) -> None:
    assert CudaGpu(name).uuid == uuid
    assert not driver.made


@pytest.mark.parametrize("name", ["cuda:2", f"GPU-{UUID(int=3)}"])
def test_what_is_not_there_is_an_invalid_argument(driver: FakeDriver, name: str) -> None:
    del driver
    with pytest.raises(InvalidArgument):
        CudaGpu(name)


def test_memory_can_be_registered_with_a_nic_where_the_device_supports_that(driver: FakeDriver) -> None:
    for index in range(2):
        gpu = CudaGpu(f"cuda:{index}")
        os.close(gpu.make_frame(32 * MIB))
        assert driver.made[-1].allocFlags.gpuDirectRDMACapable == driver.gpus[index].rdma
        assert driver.made[-1].location.id == index


def test_a_frame_is_one_fd_that_no_child_inherits(driver: FakeDriver) -> None:
    gpu, fds = CudaGpu("cuda"), open_fds()
    fd = gpu.make_frame(32 * MIB)
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_size == 32 * MIB
    assert not driver.handles
    os.close(fd)
    assert open_fds() == fds


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemExportToShareableHandle", "cuMemRelease"])
def test_a_frame_that_fails_half_way_leaves_nothing(driver: FakeDriver, call: str) -> None:
    gpu, fds = CudaGpu("cuda"), open_fds()
    driver.refused = {call}
    with pytest.raises(DriverRefused) as caught:
        gpu.make_frame(32 * MIB)
    assert caught.value.call == call
    assert not driver.handles
    assert open_fds() == fds


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceTotalMem", "cuDeviceGetAttribute"])
def test_a_driver_that_refuses_is_named(driver: FakeDriver, call: str) -> None:
    driver.refused = {call}
    with pytest.raises(DriverFailed) as caught:
        CudaGpu("cuda")
    assert (caught.value.driver_call, caught.value.driver_result) == (call, "CUDA_ERROR_INVALID_DEVICE")


def test_all_but_some_is_lent_of_the_gpu_that_was_asked_for(driver: FakeDriver, nvml: FakeNvml) -> None:
    del driver
    place = open_cuda("cuda:1")
    assert place.name == f"GPU-{SECOND}"
    assert place.lent_bytes == 16 * GIB - KEEP_FREE_BYTES
    assert place.meter.used_bytes() == 700 * MIB
    assert nvml.open == 1
    place.meter.close()
    assert nvml.open == 0


def test_a_gpu_that_does_not_tell_what_it_has_in_use_keeps_no_other_from_being_served(
    driver: FakeDriver, nvml: FakeNvml
) -> None:
    del driver
    nvml.used_bytes[f"GPU-{FIRST}"] = None
    assert open_cuda("cuda:1").name == f"GPU-{SECOND}"
    with pytest.raises(DriverFailed, match="Insufficient Permissions"):
        open_cuda("cuda:0")
    assert nvml.open == 1


def test_a_part_of_a_gpu_goes_by_its_own_name(driver: FakeDriver, nvml: FakeNvml) -> None:
    del driver
    nvml.used_bytes = {f"GPU-{FIRST}": None, f"MIG-{SECOND}": 100 * MIB}
    place = open_cuda(f"MIG-{SECOND}")
    assert (place.name, place.baseline_bytes) == (f"MIG-{SECOND}", 0)
    assert place.meter.used_bytes() == 100 * MIB


def test_what_can_not_be_opened_leaves_nvml_closed(driver: FakeDriver, nvml: FakeNvml) -> None:
    driver.refused = {"cuInit"}
    with pytest.raises(DriverFailed):
        open_cuda("cuda")
    assert nvml.open == 0
