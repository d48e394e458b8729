"""`broker install-systemd`: the files of deploy/systemd, for this machine or for a package, and a first file of settings.

The unit's own file is never edited, by us or by an administrator: what is to be different goes into a drop-in. Settings are
the administrator's, so a file of them that is there already is left alone.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.options import OPTIONS

PACKAGED_COMMAND: Final = "/usr/bin/broker"
SETTINGS_FILE: Final = Path("/etc/vrambroker/vrambroker.toml")
FILE_MODE: Final = 0o644
# An instance names its device, and all instances share a run directory.
_OF_THE_UNIT: Final = ("device", "run_dir")
# ProtectHome= hides these from the service.
_HIDDEN: Final = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A file and where it goes. `kept`: one that is there already stays as it is."""

    path: Path
    text: str
    kept: bool = False


def service_files(command: Path | None, root: Path | None) -> tuple[Placed, ...]:
    """Return the files, for this machine or, with `root`, for a package that is made under it.

    `command` is the path that `broker` will have; this one's, unless given. Raises `InvalidArgument` if a service could not
    start it.
    """
    units = Path("/etc/systemd/system") if root is None else Path("/usr/lib/systemd/system")
    others = Path("/etc") if root is None else Path("/usr/lib")
    asked = command if command is not None or root is None else Path(PACKAGED_COMMAND)
    unit = _text_of("vrambroker@.service").replace(PACKAGED_COMMAND, str(_startable(asked)))
    placed = (
        Placed(path=units / "vrambroker@.service", text=unit),
        Placed(path=others / "tmpfiles.d/vrambroker.conf", text=_text_of("vrambroker.tmpfiles.conf")),
        Placed(path=others / "sysusers.d/vrambroker.conf", text=_text_of("vrambroker.sysusers.conf")),
        Placed(path=SETTINGS_FILE, text=settings_text(), kept=True),
    )
    return tuple(Placed(path=_under(root, one.path), text=one.text, kept=one.kept) for one in placed)


def settings_text() -> str:
    """Return a file of settings in which nothing is set yet and everything is named."""
    lines = [
        "# Settings of every daemon of this machine; of one GPU alone, in /etc/vrambroker/0.env, such as",
        "# VRAMBROKER_CAPACITY=70GiB",
    ]
    for name, meaning in OPTIONS.items():
        if name not in _OF_THE_UNIT:
            lines += ["", f"# {meaning}", f"# {name} ="]
    return "\n".join(lines) + "\n"


def install(files: Sequence[Placed]) -> list[Path]:
    """Write them, each in one step, and return those that were; OSError, with nothing half written."""
    written: list[Path] = []
    for file in files:
        if file.kept and file.path.exists():
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        _replace(file.path, file.text)
        written.append(file.path)
    return written


def next_steps() -> str:
    """Return what is to be done after files were installed on this machine, as commands."""
    return "\n".join(
        (
            "systemd-sysusers vrambroker.conf",
            "systemd-tmpfiles --create vrambroker.conf",
            "systemctl daemon-reload",
            "systemctl enable --now vrambroker@0        # or vrambroker@GPU-8a2b5a3e-...",
            "usermod -aG vrambroker USER                # whoever is to use it",
        )
    )


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        unfinished.chmod(FILE_MODE)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _under(root: Path | None, path: Path) -> Path:
    return path if root is None else root / path.relative_to("/")


def _text_of(name: str) -> str:
    return (resources.files("vrambroker") / "deploy" / "systemd" / name).read_text()


def _startable(command: Path | None) -> Path:
    """Return the command's path, which a service that sees no homes must be able to run."""
    path = Path(sys.prefix) / "bin" / "broker" if command is None else command
    if not path.is_absolute() or any(letter.isspace() or letter in "%$\"'\\;" for letter in str(path)):
        raise InvalidArgument(message=f"{path} is no absolute path that a unit can name as it is", argument="command")
    _require_seen(path)
    if command is None:
        # A virtual environment's interpreter is a link to another's.
        _require_seen(Path(sys.executable).resolve())
    return path


def _require_seen(path: Path) -> None:
    hidden = next((folder for folder in _HIDDEN if path.is_relative_to(folder)), None)
    if hidden is not None:
        raise InvalidArgument(
            message=f"{path} is in {hidden}, which the service does not see: install it elsewhere, such as in /opt",
            argument="command",
        )
