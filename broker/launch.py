"""`broker run`: start a program as it is, with the environment that has its memory leased."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from vrambroker.client.discovery import DEVICE_VARIABLE, RUN_DIR_VARIABLE, Endpoint
from vrambroker.client.native import preload_path
from vrambroker.client.saver import SHIM_FOLDER, STARTUP_FOLDER
from vrambroker.client.saver.settings import CONTENTS_VARIABLE, NAME_VARIABLE, TAG_VARIABLE

# As a shell answers for a program that is not there, or can't be run.
NOT_FOUND = 127
NOT_RUNNABLE = 126


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be leased of the program, and under which names; None leaves it to the program."""

    name: str | None
    tag: str | None
    contents: str | None
    torch_memory_saver: bool


def environment_for(wishes: Wishes, endpoints: tuple[Endpoint, ...], before: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program whose memory comes from these daemons; with one of them, it names the device."""
    found = dict(before)
    run_dirs = {str(endpoint.directory.parent) for endpoint in endpoints}
    if len(run_dirs) == 1:
        found[RUN_DIR_VARIABLE] = run_dirs.pop()
    if len(endpoints) == 1:
        found[DEVICE_VARIABLE] = endpoints[0].device
    for variable, value in (
        (NAME_VARIABLE, wishes.name),
        (TAG_VARIABLE, wishes.tag),
        (CONTENTS_VARIABLE, wishes.contents),
    ):
        if value is not None:
            found[variable] = value
    folders = [STARTUP_FOLDER, *([SHIM_FOLDER] if wishes.torch_memory_saver else [])]
    already = [folder for folder in before.get("PYTHONPATH", "").split(os.pathsep) if folder]
    ours = [str(folder) for folder in folders if str(folder) not in already]
    found["PYTHONPATH"] = os.pathsep.join([*ours, *already])
    found["LD_PRELOAD"] = _in_front(preload_path(), before.get("LD_PRELOAD", ""))
    return found


def _in_front(library: str, already: str) -> str:
    """Return the libraries to preload, this one first; the loader takes colons and spaces between them."""
    libraries = already.replace(":", " ").split()
    return ":".join([library, *(one for one in libraries if one != library)])


def become(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by the program, so that signals and the exit code are its own. Raises `OSError`."""
    try:
        os.execvpe(command[0], command, dict(environment))
    except OSError as error:
        # Of a bare name it would be where that was looked for last.
        error.filename = command[0]
        raise


def exit_code_of(error: OSError) -> int:
    """Return what a shell answers for a program that could not be started."""
    return NOT_FOUND if error.errno == errno.ENOENT else NOT_RUNNABLE
