"""`broker run` as a command. It starts every process of a job, so it is read without typer, which takes longer than it."""

import argparse
import os
import socket
import sys

from vrambroker.broker import launch
from vrambroker.broker.core.errors import BrokerError, BrokerUnavailable
from vrambroker.broker.reporting import one_line, report
from vrambroker.client import discovery
from vrambroker.client.native import check_label

REFUSED = 1
# A daemon that is there takes a connection at once.
CONNECT_S = 10.0


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line behind `broker run`."""
    made = argparse.ArgumentParser(
        prog="broker run",
        description="Run a program, unchanged, with its memory leased; without a daemon it runs as ever, as stderr says.",
        allow_abbrev=False,
    )
    made.add_argument("--name", help="the session's name; the program's own, if not given")
    made.add_argument("--tag", help="lease all that the program allocates on the device under this tag")
    made.add_argument(
        "--contents", choices=("keep", "drop"), help="what contents are worth across a pause; keep, unless said"
    )
    made.add_argument(
        "--torch-memory-saver", action="store_true", help="be found as torch_memory_saver, in front of an installed one"
    )
    made.add_argument("--device", help="host, host:N, cuda:N, a GPU's UUID; without it, every device that has a daemon")
    made.add_argument("--run-dir", help="where the sockets are (VRAMBROKER_RUN_DIR, else /run/vrambroker)")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the program, with its arguments")
    return made


def main(words: list[str]) -> int:
    """Become the program; returns an exit code where that can't be."""
    said = parser().parse_args(words)
    command: list[str] = said.command[1:] if said.command[:1] == ["--"] else said.command
    if not command:
        parser().error("which program? broker run [OPTIONS] -- CMD ...")
    if said.run_dir is not None:
        os.environ[discovery.RUN_DIR_VARIABLE] = said.run_dir
    try:
        for label, argument in ((said.name, "name"), (said.tag, "tag")):
            if label is not None:
                check_label(label, argument)
    except BrokerError as error:
        report(error)
        return REFUSED
    wishes = launch.Wishes(
        name=said.name, tag=said.tag, contents=said.contents, torch_memory_saver=said.torch_memory_saver
    )
    environment = dict(os.environ)
    try:
        environment = launch.environment_for(wishes, answering(said.device), environment)
    except (BrokerError, OSError) as error:
        report(error)
        print(f"broker run: nothing is leased; {one_line(command[0])} runs as without it", file=sys.stderr)  # noqa: T201
    sys.stderr.flush()
    try:
        launch.become(command, environment)
    except OSError as error:
        report(error)
        return launch.exit_code_of(error)


def answering(device: str | None) -> tuple[discovery.Endpoint, ...]:
    """Return the daemons that take this user's connections; if none does, raises what the first has to say."""
    found = (discovery.find(device),) if device is not None else discovery.endpoints()
    if not found:
        raise BrokerUnavailable(message="no daemon is running: start one with `broker serve --device host`")
    dead: dict[str, BrokerUnavailable] = {}
    for endpoint in found:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(CONNECT_S)
                connection.connect(str(endpoint.handle_socket))
        except OSError as error:
            dead[endpoint.device] = discovery.unreachable(endpoint, error.strerror or str(error))
    alive = tuple(endpoint for endpoint in found if endpoint.device not in dead)
    if not alive:
        raise next(iter(dead.values()))
    return alive
