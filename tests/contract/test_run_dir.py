"""A run directory that can't be used, or is somebody else's: refused with whose it is, and left as it was."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vrambroker.broker.adapters.device_lock import DeviceBusy
from vrambroker.broker.adapters.run_dir import DeviceFolder
from vrambroker.broker.core.errors import InvalidArgument

DEVICE = "host:4243"
STRANGER = 65_534
DEADLINE_S = 20
AS_A_STRANGER = f"""
import os, sys
from pathlib import Path
from vrambroker.broker.adapters.run_dir import DeviceFolder
from vrambroker.broker.core.errors import InvalidArgument
os.setgroups([])
os.setgid({STRANGER})
os.setuid({STRANGER})
try:
    folder = DeviceFolder(Path(sys.argv[1]), "{DEVICE}")
    folder.listen().close()
    folder.remove()
except InvalidArgument as error:
    print(error.message)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder that a stranger can reach, as one below pytest's own can't be."""
    with TemporaryDirectory(prefix="vrb-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def _as_a_stranger(run_dir: Path) -> str:
    """Return how a daemon of another user is refused; empty if it is not."""
    done = subprocess.run(
        [sys.executable, "-c", AS_A_STRANGER, str(run_dir)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_root
def test_one_that_is_not_writable_is_refused_with_its_owner_and_mode(run_dir: Path) -> None:
    why = _as_a_stranger(run_dir)
    assert f"{run_dir} is uid 0's, mode 755; give it to uid {STRANGER}" in why
    assert f"{run_dir} is uid 0's" in _as_a_stranger(run_dir / "not" / "there")
    assert not list(run_dir.iterdir())


@needs_root
def test_one_in_which_anybody_may_write_is_used(run_dir: Path) -> None:
    run_dir.chmod(0o1777)
    assert _as_a_stranger(run_dir) == ""
    assert not list(run_dir.iterdir())


@needs_root
def test_a_devices_folder_of_roots_is_refused_and_stays(run_dir: Path) -> None:
    run_dir.chmod(0o1777)
    (run_dir / DEVICE).mkdir(mode=0o755)
    assert f"{run_dir / DEVICE} is uid 0's, mode 755" in _as_a_stranger(run_dir)
    assert (run_dir / DEVICE).is_dir()


@needs_root
def test_a_devices_folder_of_a_strangers_is_refused_even_by_root(run_dir: Path) -> None:
    (run_dir / DEVICE).mkdir()
    os.chown(run_dir / DEVICE, STRANGER, STRANGER)
    with pytest.raises(InvalidArgument, match=f"is uid {STRANGER}'s: remove it"):
        DeviceFolder(run_dir, DEVICE)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_of_its_own_is_refused(run_dir: Path, kind: str) -> None:
    other = run_dir / "other"
    other.mkdir()
    if kind == "link":
        (run_dir / DEVICE).symlink_to(other)
    else:
        (run_dir / DEVICE).touch()
    with pytest.raises(InvalidArgument) as caught:
        DeviceFolder(run_dir, DEVICE)
    assert caught.value.argument == "run_dir"
    assert not list(other.iterdir())


def test_a_stale_socket_is_replaced_and_one_that_listens_is_not(run_dir: Path) -> None:
    (run_dir / DEVICE).mkdir()
    path = run_dir / DEVICE / "handles.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        folder = DeviceFolder(run_dir, DEVICE)
        with folder.listen(), pytest.raises(DeviceBusy, match=f"process {os.getpid()}"):
            DeviceFolder(run_dir, DEVICE)
    folder.remove()
    assert not (run_dir / DEVICE).exists()


@needs_root
def test_a_full_disk_is_told_as_that(run_dir: Path) -> None:
    """On a disk of its own, in a mount namespace of its own."""
    script = f"""
from pathlib import Path
from vrambroker.broker.adapters.run_dir import DeviceFolder
from vrambroker.broker.core.errors import InvalidArgument
try:
    DeviceFolder(Path({str(run_dir)!r}), "{DEVICE}")
except InvalidArgument as error:
    print(error.message)
"""
    shell = 'mount -t tmpfs -o nr_inodes=1 tmpfs "$1" && exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", run_dir, sys.executable, script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode and "Operation not permitted" in done.stderr + done.stdout:
        pytest.skip("this needs the right to mount")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"the run directory {run_dir} can't be used: No space left on device\n"
