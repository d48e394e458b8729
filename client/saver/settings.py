"""What one thread's allocations are leased under, and the environment variables that it begins with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vrambroker.broker.core.errors import InvalidArgument

NAME_VARIABLE = "VRAMBROKER_NAME"
TAG_VARIABLE = "VRAMBROKER_TAG"
CONTENTS_VARIABLE = "VRAMBROKER_CONTENTS"
PAUSE_VARIABLE = "VRAMBROKER_PAUSE"
TIMEOUT_VARIABLE = "VRAMBROKER_TIMEOUT"

DEFAULT_TAG = "default"
DEFAULT_TIMEOUT_S = 60.0
BACKENDS = ("pinned", "mmap")

_BOOLEANS = dict.fromkeys(("1", "true", "TRUE", "yes", "YES"), True) | dict.fromkeys(
    ("0", "false", "FALSE", "no", "NO"), False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where one thread's allocations go: nowhere special unless `interesting`, else under `tag`."""

    interesting: bool = False
    tag: str = DEFAULT_TAG
    cpu_backup: bool = False
    disk_backup: bool = False
    backend: str = "pinned"
    # What contents without a backup are worth.
    without_backup: Literal["zero", "drop"] = "zero"

    @property
    def contents(self) -> Literal["keep", "zero", "drop"]:
        """The policy of the lease. Contents that were to go to a disk are kept as well: in the broker's host memory."""
        return "keep" if self.cpu_backup or self.disk_backup else self.without_backup


def beginning(environment: Mapping[str, str]) -> Settings:
    """Return what a thread begins with. Raises `InvalidArgument`, which names the variable that can't be understood."""
    settings = Settings(
        interesting=boolean(environment, "TMS_INIT_ENABLE"),
        cpu_backup=boolean(environment, "TMS_INIT_ENABLE_CPU_BACKUP"),
        disk_backup=boolean(environment, "TMS_INIT_ENABLE_DISK_BACKUP"),
        backend=_one_of(environment, "TMS_INIT_CPU_BACKUP_BACKEND", BACKENDS),
    )
    contents = _one_of(environment, CONTENTS_VARIABLE, ("", "keep", "drop"))
    if contents == "drop":
        settings = replace(settings, without_backup="drop")
    if environment.get(TAG_VARIABLE):
        settings = replace(
            settings,
            interesting=True,
            tag=environment[TAG_VARIABLE],
            cpu_backup=settings.cpu_backup or contents != "drop",
        )
    return settings


def retains_backup(environment: Mapping[str, str]) -> bool:
    """Return what `retain_cpu_backup` is at first. Raises `InvalidArgument`."""
    return boolean(environment, "TMS_RETAIN_CPU_BACKUP")


def releases_at_pause(environment: Mapping[str, str]) -> bool:
    """Whether a pause waits until the memory has left. Raises `InvalidArgument`."""
    return _one_of(environment, PAUSE_VARIABLE, ("idle", "release")) == "release"


def timeout_s(environment: Mapping[str, str]) -> float:
    """Return for how long a resume waits for room. Raises `InvalidArgument`."""
    text = environment.get(TIMEOUT_VARIABLE)
    if text is None:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise InvalidArgument(
            message=f"{TIMEOUT_VARIABLE}={text!r}: expected seconds, 0 or more", argument=TIMEOUT_VARIABLE
        )
    return seconds


def boolean(environment: Mapping[str, str], name: str) -> bool:
    """Return what a variable says that is not set, or true, or false. Raises `InvalidArgument`."""
    text = environment.get(name, "0")
    if text not in _BOOLEANS:
        raise InvalidArgument(message=f"{name}={text!r}: expected one of {' '.join(_BOOLEANS)}", argument=name)
    return _BOOLEANS[text]


def _one_of(environment: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Return the variable's value; the first that is allowed if it is not set."""
    text = environment.get(name, allowed[0])
    if text not in allowed:
        raise InvalidArgument(
            message=f"{name}={text!r}: expected {' or '.join(word for word in allowed if word)}", argument=name
        )
    return text
