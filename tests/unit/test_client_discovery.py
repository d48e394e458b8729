"""Where the client looks for a broker, and what it says when there is none."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vrambroker.broker.core.errors import BrokerUnavailable, InvalidArgument
from vrambroker.client import discovery


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(discovery.RUN_DIR_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(discovery, "SYSTEM_RUN_DIR", tmp_path / "system")


@pytest.fixture
def listening() -> Iterator["Listening"]:
    with ExitStack() as stack:
        yield Listening(stack)


class Listening:
    """Makes device folders with a handle socket in them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def at(self, run_dir: Path, *devices: str) -> None:
        for device in devices:
            (run_dir / device).mkdir(parents=True)
            server = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            server.bind(str(run_dir / device / discovery.HANDLE_SOCKET))


def test_the_variable_is_the_only_place_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listening: Listening
) -> None:
    listening.at(tmp_path / "system", "host:0")
    listening.at(tmp_path / "named", "host:1")
    monkeypatch.setenv(discovery.RUN_DIR_VARIABLE, str(tmp_path / "named"))
    assert [endpoint.device for endpoint in discovery.endpoints()] == ["host:1"]


def test_the_system_comes_before_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listening: Listening
) -> None:
    listening.at(tmp_path / "system", "host:0")
    listening.at(tmp_path / "session" / "vrambroker", "host:0", "host:1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "session"))
    found = discovery.find("host:0")
    assert found.handle_socket == tmp_path / "system" / "host:0" / "handles.sock"
    assert found.rpc_socket == tmp_path / "system" / "host:0" / "rpc.sock"
    assert discovery.find("host:1").directory == tmp_path / "session" / "vrambroker" / "host:1"


def test_no_device_means_the_only_one(tmp_path: Path, listening: Listening) -> None:
    listening.at(tmp_path / "system", "host:3")
    assert discovery.find().device == "host:3"


def test_no_device_among_several_is_ambiguous(tmp_path: Path, listening: Listening) -> None:
    listening.at(tmp_path / "system", "host:0", "host:1")
    with pytest.raises(InvalidArgument, match="host:0, host:1") as caught:
        discovery.find()
    assert caught.value.argument == "device"


def test_host_is_host_0(tmp_path: Path, listening: Listening) -> None:
    listening.at(tmp_path / "system", "host:0", "host:1")
    assert discovery.find("host").device == "host:0"


def test_a_broker_that_is_not_there_says_how_to_start_one(tmp_path: Path, listening: Listening) -> None:
    with pytest.raises(BrokerUnavailable, match="broker serve --device host`") as caught:
        discovery.find()
    assert caught.value.path == str(tmp_path / "system")
    listening.at(tmp_path / "system", "host:0")
    with pytest.raises(BrokerUnavailable, match=r"broker serve --device host:7`") as caught:
        discovery.find("host:7")
    assert "host:0" in caught.value.message


def test_a_folder_without_a_socket_is_no_broker(tmp_path: Path) -> None:
    (tmp_path / "system" / "host:0").mkdir(parents=True)
    (tmp_path / "system" / "host:0" / discovery.HANDLE_SOCKET).write_text("")
    assert discovery.endpoints() == ()


def test_a_run_directory_that_can_not_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may be in it all the same."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(discovery.RUN_DIR_VARIABLE, str(file))
    with pytest.raises(BrokerUnavailable, match=rf"at {file} \(Not a directory\)"):
        discovery.find()


@pytest.mark.parametrize(
    "device", ["", "a/b", "..", "x\0y", "bogus", "GPU-", "GPU-a/b", "GPU-" + "a" * 5000, "cuda:" + "9" * 5000]
)
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidArgument):
        discovery.find(device)


@pytest.mark.parametrize("prefix", ["GPU-", "MIG-"])
def test_a_gpu_or_a_part_of_one_is_found_by_its_uuid(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"
    devices = (prefix + uuid, "GPU-00000000-0000-0000-0000-000000000000")
    there = tuple(discovery.Endpoint(device=device, directory=Path("/run/b") / device) for device in devices)
    monkeypatch.setattr(discovery, "endpoints", lambda: there)
    for name in (prefix + uuid, uuid, uuid.upper(), f"GPU-{uuid}", f"GPU-{uuid.upper()}"):
        assert discovery.find(name).device == prefix + uuid
    monkeypatch.setattr(discovery, "_current_cuda_uuid", lambda: f"GPU-{uuid}")
    assert discovery.find().device == prefix + uuid
    with pytest.raises(BrokerUnavailable):
        discovery.find("GPU-00000000-0000-0000-0000-000000000001")


@pytest.mark.parametrize("device", ["cuda:x", "cuda:99", "cuda"])
def test_a_gpu_that_torch_does_not_see_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InvalidArgument):
        discovery.find(device)


@pytest.mark.parametrize("device", [208, b"host", ["host"]])
def test_what_is_no_text_is_no_device(device: object) -> None:
    with pytest.raises(InvalidArgument, match="expected host"):
        discovery.device_id(device)


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = discovery.Endpoint(device="host:0", directory=tmp_path / ("d" * 120) / "host:0")
    monkeypatch.setattr(discovery, "endpoints", lambda: (long,))
    with pytest.raises(InvalidArgument, match="shorter run directory"):
        discovery.find("host:0")


def test_a_number_without_end_is_no_device() -> None:
    with pytest.raises(InvalidArgument, match="expected host, host:N"):
        discovery.device_id("host:" + "9" * 5000)
