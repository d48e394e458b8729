"""The `broker` command. Exit codes: 0 done, 1 refused or failed (one line on stderr, the error's name first), 2 usage."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrambroker.broker.core.errors import BrokerError, InvalidArgument

if TYPE_CHECKING:
    from vrambroker.broker.status_view import StatusJson
    from vrambroker.client.rpc import Operator

app = typer.Typer(
    name="broker",
    help="Lend one GPU's memory to the processes that share it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Device = Annotated[
    str | None, typer.Option("--device", help="host, host:N; without it, every device that has a daemon.")
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the sockets are (VRAMBROKER_RUN_DIR, else /run/vrambroker).")
]
Target = Annotated[str, typer.Argument(metavar="SESSION/TAG", help="Whose tag.")]
WATCH_SECONDS = 1.0


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an expected error into one line on stderr and exit code 1."""
    try:
        yield
    except BrokerError as error:
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(1) from None


def _use_run_dir(run_dir: Path | None) -> None:
    if run_dir is not None:
        os.environ["VRAMBROKER_RUN_DIR"] = str(run_dir)


@contextmanager
def _operators(device: str | None) -> Iterator[list["Operator"]]:
    """Connect to the named device's daemon, or to every daemon of the run directory."""
    from vrambroker.client.discovery import find_device, list_devices
    from vrambroker.client.rpc import Operator

    places = [find_device(device)] if device is not None else list_devices()
    operators: list[Operator] = []
    try:
        for place in places:
            operators.append(Operator(place))
        yield operators
    finally:
        for operator in operators:
            operator.close()


@app.command()
def serve(
    device: Annotated[str, typer.Option(help="host or host:N.")] = "host",
    capacity: Annotated[
        str | None, typer.Option(help="Bytes to lend, such as 24GiB; on host a quarter of the memory limit.")
    ] = None,
    host_budget: Annotated[
        str | None, typer.Option(help="Host memory for parked contents; half of the smallest memory limit.")
    ] = None,
    run_dir: RunDir = None,
) -> None:
    """Run the daemon of one device until SIGTERM."""
    from vrambroker.broker.config import Config
    from vrambroker.broker.daemon import serve as serve_device

    with _reported():
        serve_device(Config.of(device=device, capacity=capacity, host_budget=host_budget, run_dir=run_dir))


@app.command()
def status(
    device: Device = None,
    run_dir: RunDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: a list with an entry for each device.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Renew every second until interrupted.")] = False,
) -> None:
    """Show who holds what, what is free, and who waits."""
    from rich.console import Console
    from rich.live import Live

    from vrambroker.broker.status_view import status_json, status_renderable

    _use_run_dir(run_dir)
    with _reported(), _operators(device) as operators:

        def now() -> list["StatusJson"]:
            return [status_json(operator.status()) for operator in operators]

        if as_json:
            print(json.dumps(now(), indent=2))  # noqa: T201
            return
        console = Console()
        if not watch:
            console.print(status_renderable(now()))
            return
        with Live(status_renderable(now()), console=console, auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(WATCH_SECONDS)
                    live.update(status_renderable(now()), refresh=True)
            except KeyboardInterrupt:
                return


def _split(target: str) -> tuple[str, str]:
    session, slash, tag = target.partition("/")
    if not (session and slash and tag):
        raise InvalidArgument(message=f"{target!r} is not SESSION/TAG", argument="target")
    return session, tag


@contextmanager
def _operator_of(session: str, device: str | None) -> Iterator["Operator"]:
    """Connect to the daemon that has a session of this name."""
    from vrambroker.broker.core.errors import UnknownSession

    with _operators(device) as operators:
        for operator in operators:
            if any(entry.name == session and not entry.ended for entry in operator.status().sessions):
                yield operator
                return
        raise UnknownSession(message=f"no session named {session!r} is attached", session=session)


@app.command()
def pause(
    target: Target,
    release: Annotated[bool, typer.Option(help="Wait until its memory has left the device.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is out of use.")] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Pause a session's tag, once it is out of use."""
    _use_run_dir(run_dir)
    with _reported():
        session, tag = _split(target)
        with _operator_of(session, device) as operator:
            operator.pause(session, (tag,), release=release, timeout=timeout)


@app.command()
def resume(
    target: Target,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for room; 0: only for what is certain.")] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Resume a session's tag."""
    _use_run_dir(run_dir)
    with _reported():
        session, tag = _split(target)
        with _operator_of(session, device) as operator:
            operator.resume(session, (tag,), timeout=timeout)


@app.command()
def timeline(
    out: Annotated[Path, typer.Argument(metavar="OUT.svg|OUT.json", help="A picture, or a trace for Perfetto.")],
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Draw the device's and the host's bytes by session and tag over time."""
    from vrambroker.client.timeline import write_timeline

    _use_run_dir(run_dir)
    with _reported(), _operators(device) as operators:
        if len(operators) != 1:
            names = ", ".join(operator.device for operator in operators) or "none"
            raise InvalidArgument(message=f"name one device with --device (there are: {names})", argument="device")
        operator = operators[0]
        write_timeline(out, operator.status(), list(operator.history()))


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="Where to run it.")] = "host",
    report: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    size: Annotated[str, typer.Option(help="Scale of the model.")] = "tiny",
    seconds: Annotated[float | None, typer.Option(help="Stop training after this long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop training after this many steps.")] = None,
) -> None:
    """Run real RL: a trainer and a rollout engine that don't fit on the device together."""
    from vrambroker.client.demo.run import main as run_demo

    with _reported():
        raise typer.Exit(run_demo(device=device, report=report, size=size, seconds=seconds, steps=steps))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
