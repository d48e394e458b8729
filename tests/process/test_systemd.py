"""systemd's files: what `broker install-systemd` writes is what systemd's own tools accept, and how exposed they call it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.test_house import ROOT
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.settings import Settings, Sources
from vrambroker.broker.systemd import service_files, settings_text

DEADLINE_S = 60.0
UNIT = "usr/lib/systemd/system/vrambroker@.service"
COMMAND = "/bin/true"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: nothing looked at the unit"
)


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def broker(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, "-m", "vrambroker.broker.cli", *words)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The root of a package, with the files in it."""
    done = broker("install-systemd", "--root", tmp_path, "--command", COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path


def test_a_package_gets_four_files_and_nothing_else(package: Path) -> None:
    found = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    others = {"usr/lib/tmpfiles.d/vrambroker.conf", "usr/lib/sysusers.d/vrambroker.conf"}
    assert found == {UNIT, "etc/vrambroker/vrambroker.toml", *others}
    assert {(package / path).stat().st_mode & 0o777 for path in found} == {0o644}


def test_a_dry_run_prints_the_files_and_writes_none(tmp_path: Path) -> None:
    done = broker("install-systemd", "--dry-run", "--root", tmp_path)
    assert done.returncode == 0
    assert f"# {tmp_path / UNIT}\n" in done.stdout
    assert "\nExecStart=/usr/bin/broker serve --device %i " in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_units_file_is_renewed_and_the_settings_are_not(package: Path) -> None:
    settings = package / "etc/vrambroker/vrambroker.toml"
    settings.write_text('capacity = "1GiB"\n')
    (package / UNIT).write_text("")
    done = broker("install-systemd", "--root", package, "--command", "/opt/broker")
    assert settings.read_text() == 'capacity = "1GiB"\n'
    assert "ExecStart=/opt/broker serve" in (package / UNIT).read_text()
    assert str(settings) not in done.stdout


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/home/somebody/venv/bin/broker", "the service does not see"),
        ("/root/broker", "the service does not see"),
        ("broker", "no absolute path"),
        ("/opt/my broker", "no absolute path"),
        ("/opt/%i/broker", "no absolute path"),
    ],
)
def test_a_command_that_no_service_could_start_is_refused(command: str, why: str, tmp_path: Path) -> None:
    done = broker("install-systemd", "--root", tmp_path, "--command", command)
    assert done.returncode == 1
    assert done.stderr.startswith("InvalidArgument: ")
    assert why in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interpreter_that_no_service_could_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment in /opt has a link to an interpreter that may be in somebody's home."""
    monkeypatch.setattr(sys, "prefix", "/opt/vrambroker")
    interpreter = tmp_path / "python3"
    interpreter.touch()
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(InvalidArgument, match=re.escape(f"{interpreter}")):
        service_files(None, None)
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    assert "ExecStart=/opt/vrambroker/bin/broker serve" in service_files(None, None)[0].text


def test_a_root_that_can_not_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = broker("install-systemd", "--root", tmp_path / "file")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("NotADirectoryError: ")


def test_the_settings_name_every_option_but_those_of_the_unit_and_set_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = set(re.findall(r"^# (\w+) =$", settings_text(), re.MULTILINE))
    assert named == set(Settings.model_fields) - {"device", "run_dir"}
    file = tmp_path / "vrambroker.toml"
    file.write_text(settings_text())
    assert Sources.of({}, file).read().capacity is None


def test_the_nodes_of_all_gpus_are_made_and_may_be(package: Path, tmp_path: Path) -> None:
    """The device filter is a control group's, so it holds for root's commands as well."""
    text = (package / UNIT).read_text()
    assert "\nDeviceAllow=char-nvidia* rwm\n" in text
    for number, bus in enumerate(("0000:17:00.0", "0000:65:00.0")):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(f"Model: \t\t NVIDIA\nDevice Minor: \t {number}\n")
    (command,) = re.findall(r"^ExecStartPre=-\+/bin/sh -c '(.*)'$", text, re.MULTILINE)
    command = command.replace("$$", "$").replace("/usr/bin/nvidia-modprobe", "echo")
    done = run("/bin/sh", "-c", command.replace("/proc/driver/nvidia/gpus", str(tmp_path / "gpus")))
    assert (done.stdout, done.stderr) == ("-c 255 -c 0 -c 1\n", "")
    assert "\nExecStartPre=-+/usr/bin/nvidia-modprobe -u -c 0\n" in text, "with -u the numbers are nvidia-uvm's"


def test_an_index_is_that_of_nvidia_smi(package: Path) -> None:
    assert "\nEnvironment=CUDA_DEVICE_ORDER=PCI_BUS_ID\n" in (package / UNIT).read_text()


@needs_systemd
@pytest.mark.parametrize("instance", ["0", "GPU-8a2b5a3e-0b5f-4d5e-9b1a-0d6c1c2f3a4b", "host"])
def test_systemd_verifies_an_instance(package: Path, instance: str) -> None:
    unit = (package / UNIT).with_name(f"vrambroker@{instance}.service")
    shutil.copy(package / UNIT, unit)
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _expanded(words: list[str]) -> set[str]:
    """Return the system calls of a filter, those of its sets included."""
    found: set[str] = set()
    for word in words:
        if word.startswith("@"):
            told = run("systemd-analyze", "syscall-filter", "--no-pager", word).stdout.splitlines()[1:]
            found |= _expanded([line.strip() for line in told if line.strip() and line.strip()[0] not in "#"])
        else:
            found.add(word)
    return found


@needs_systemd
def test_the_daemon_reaches_into_no_other_process(package: Path) -> None:
    """Its capability would let it."""
    allowed: set[str] = set()
    for filters in re.findall(r"^SystemCallFilter=(.*)$", (package / UNIT).read_text(), re.MULTILINE):
        words = filters.removeprefix("~").split()
        allowed = allowed - _expanded(words) if filters.startswith("~") else allowed | _expanded(words)
    assert {"openat", "chown", "sendmsg", "memfd_create"} <= allowed
    reaching = {"ptrace", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp"}
    assert not allowed & (reaching | {"perf_event_open", "mount", "bpf"})


@needs_systemd
def test_a_wrong_directive_would_be_noticed(package: Path) -> None:
    unit = (package / UNIT).with_name("vrambroker@0.service")
    unit.write_text((package / UNIT).read_text().replace("WatchdogSec=30", "WatchdogSecs=30\nExecReload=kill"))
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert "WatchdogSecs" in done.stderr


@needs_systemd
def test_the_exposure_is_the_one_in_the_docs(package: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", package / UNIT)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d) ", done.stdout)
    assert found is not None, done.stdout + done.stderr
    told = re.search(r"exposure (\d+\.\d)", (ROOT / "docs" / "operations.md").read_text())
    assert told is not None
    assert abs(float(found[1]) - float(told[1])) <= 0.3, f"systemd says {found[1]}, the docs {told[1]}"


@needs_systemd
def test_systemd_makes_the_user_and_the_folder(package: Path) -> None:
    made = run("systemd-sysusers", f"--root={package}", "vrambroker.conf")
    assert made.returncode == 0, made.stderr
    (entry,) = (line for line in (package / "etc/passwd").read_text().splitlines() if line.startswith("vrambroker:"))
    uid, gid = map(int, entry.split(":")[2:4])
    made = run("systemd-tmpfiles", f"--root={package}", "--create", "vrambroker.conf")
    assert made.returncode == 0, made.stderr
    folder = (package / "run/vrambroker").stat()
    assert (folder.st_mode & 0o777, folder.st_uid, folder.st_gid) == (0o755, uid, gid)
