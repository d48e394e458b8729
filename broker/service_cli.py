"""The commands of whoever runs a daemon, rather than uses one."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from vrambroker.broker.core.limits import Eager
from vrambroker.broker.options import OPTIONS
from vrambroker.broker.reporting import one_line, reported


def serve(
    device: Annotated[str | None, typer.Option(help=OPTIONS["device"])] = None,
    capacity: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["capacity"])] = None,
    host_budget: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["host_budget"])] = None,
    spill_dir: Annotated[Path | None, typer.Option(metavar="DIR", help=OPTIONS["spill_dir"])] = None,
    spill_budget: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["spill_budget"])] = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help=OPTIONS["plan"])] = None,
    keep_free: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["keep_free"])] = None,
    outside_per_session: Annotated[
        str | None, typer.Option(metavar="SIZE", help=OPTIONS["outside_per_session"])
    ] = None,
    eager: Annotated[Eager | None, typer.Option(help=OPTIONS["eager"])] = None,
    copy_ahead: Annotated[str | None, typer.Option(metavar="TIME|off", help=OPTIONS["copy_ahead"])] = None,
    metrics: Annotated[str | None, typer.Option(metavar="ADDRESS", help=OPTIONS["metrics"])] = None,
    metrics_anywhere: Annotated[
        bool | None, typer.Option("--metrics-anywhere/--no-metrics-anywhere", help=OPTIONS["metrics_anywhere"])
    ] = None,
    history: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["history"])] = None,
    history_dir: Annotated[Path | None, typer.Option(metavar="DIR", help=OPTIONS["history_dir"])] = None,
    history_budget: Annotated[str | None, typer.Option(metavar="SIZE", help=OPTIONS["history_budget"])] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help=OPTIONS["run_dir"])] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file in TOML with any of these (or VRAMBROKER_CONFIG).")
    ] = None,
) -> None:
    """Run the daemon of one device until SIGTERM; SIGHUP has it read its file and its plan again.

    Each option may be in the file and the environment (VRAMBROKER_HOST_BUDGET) as well; the command line goes first, then
    the environment.
    """
    said = {name: value for name, value in locals().items() if name != "config"}
    from vrambroker.broker.core.errors import InvalidArgument
    from vrambroker.broker.daemon import serve as serve_device
    from vrambroker.broker.settings import Rereading, Sources, config_of

    with reported():
        sources = Sources.of(said, config)
        settings = sources.read()
        try:
            serve_device(config_of(settings), Rereading(sources, settings))
        except InvalidArgument as error:
            raise sources.located(error) from error


def install_systemd(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files instead.")] = False,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For a package: write them under DIR, in usr/lib.")
    ] = None,
    command: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where `broker` will be; where this one is, unless given.")
    ] = None,
) -> None:
    """Write systemd's files for a daemon of each GPU (vrambroker@0), and print what to do next."""
    from vrambroker.broker import systemd

    with reported():
        files = systemd.service_files(command, root)
        if dry_run:
            print("\n".join(f"# {file.path}\n{file.text}" for file in files), end="")  # noqa: T201
            return
        for path in systemd.install(files):
            print(path)  # noqa: T201
        if root is None:
            print(f"\n{systemd.next_steps()}")  # noqa: T201


def doctor(
    device: Annotated[str | None, typer.Option(help="Only this one; else every device that has a daemon.")] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the sockets are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for a warning as well.")] = False,
) -> None:
    """Look at what a daemon and its workers need of this node, and name what mends the rest; exit code 1 if it fails."""
    from vrambroker.broker.doctor.examine import examine
    from vrambroker.broker.doctor.finding import is_bad
    from vrambroker.broker.doctor.view import findings_json, findings_text

    if run_dir is not None:
        os.environ["VRAMBROKER_RUN_DIR"] = str(run_dir)
    with reported():
        findings = examine(device)
        text = json.dumps(findings_json(findings), indent=2) if as_json else findings_text(findings)
        print(one_line(text, "\n"))  # noqa: T201
    if is_bad(findings, strict=strict):
        raise typer.Exit(1)


def health(
    device: Annotated[str | None, typer.Option(help="Only this one; else every device that has a daemon.")] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the sockets are.")] = None,
    service: Annotated[
        str, typer.Option(metavar="NAME", help="A gRPC service by its full name; else all of them.")
    ] = "",
    own: Annotated[bool, typer.Option("--own", help="Only the daemon of this container.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.001)] = 5.0,
) -> None:
    """Ask a daemon whether it serves, by gRPC's standard health service; exit code 0 if it does."""
    from vrambroker.broker import health
    from vrambroker.client.discovery import endpoints, find

    if run_dir is not None:
        os.environ["VRAMBROKER_RUN_DIR"] = str(run_dir)
    with reported():
        # No daemon at all is an error with the places that were searched.
        found = (find(device),) if device is not None else endpoints() or (find(),)
        for endpoint in health.own(found) if own else found:
            health.require_serving(endpoint, service=service, timeout_s=timeout)
