"""The `broker` command. Exit codes: 0 done, 1 refused or failed (one line on stderr, the error's name first), 2 usage."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrambroker.broker import service_cli
from vrambroker.broker.core.errors import BrokerError, InvalidArgument, UnknownSession
from vrambroker.broker.durations import parse_duration
from vrambroker.broker.reporting import one_line, report, reported

if TYPE_CHECKING:
    from vrambroker.broker.plan.model import Plan
    from vrambroker.client.discovery import Endpoint
    from vrambroker.client.rpc import Control
    from vrambroker.client.status import Status

app = typer.Typer(
    name="broker",
    help="Lend one GPU's memory to the processes that share it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(service_cli.serve)
app.command("install-systemd")(service_cli.install_systemd)
app.command()(service_cli.doctor)
app.command()(service_cli.health)

Device = Annotated[
    str | None,
    typer.Option("--device", help="host, host:N, cuda:N, a GPU's UUID; without it, every device that has a daemon."),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the sockets are (VRAMBROKER_RUN_DIR, else /run/vrambroker).")
]
Target = Annotated[str, typer.Argument(metavar="SESSION/TAG", help="Whose tag.")]
WATCH_SECONDS = 1.0


def _seconds(value: float) -> float:
    """Refuse a time that is none, as a matter of usage."""
    if math.isnan(value) or value < 0:
        raise typer.BadParameter(f"{value} is no time: expected seconds, 0 or more")
    return value


def _use_run_dir(run_dir: Path | None) -> None:
    if run_dir is not None:
        os.environ["VRAMBROKER_RUN_DIR"] = str(run_dir)


@contextmanager
def _acting_on(endpoint: "Endpoint") -> Iterator["Control"]:
    """Connect to a daemon as an operator: a process that the kernel has named to it."""
    from vrambroker.broker.version import VERSION
    from vrambroker.client.rpc import Control, OperatorHandshake

    handshake = OperatorHandshake(endpoint, version=VERSION)
    control = Control(endpoint, token=lambda: handshake.token)
    try:
        yield control
    finally:
        control.close()
        handshake.close()


def _endpoints(device: str | None) -> tuple["Endpoint", ...]:
    from vrambroker.client.discovery import endpoints, find

    if device is not None:
        return (find(device),)
    # Where there is none, the error says where it was looked for.
    return endpoints() or (find(),)


def _one_endpoint(device: str | None) -> "Endpoint":
    found = _endpoints(device)
    if len(found) != 1:
        names = ", ".join(endpoint.device for endpoint in found)
        raise InvalidArgument(message=f"name one device with --device (there are: {names})", argument="device")
    return found[0]


def _reachable(
    stack: ExitStack, found: Iterable["Endpoint"]
) -> tuple[list["Control"], dict[str, BrokerError | OSError]]:
    """Connect to every daemon that answers, until the stack is closed; returns of the other devices what came instead."""
    controls: list[Control] = []
    dead: dict[str, BrokerError | OSError] = {}
    for endpoint in found:
        try:
            controls.append(stack.enter_context(_acting_on(endpoint)))
        except (BrokerError, OSError) as error:
            dead[endpoint.device] = error
    return controls, dead


@app.command()
def status(
    device: Device = None,
    run_dir: RunDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: a list with an entry for each device.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Renew every second; with --json a line each.")] = False,
) -> None:
    """Show who holds what, what is free, and who waits. A daemon that does not answer is reported, and the exit code is 1."""
    from rich.live import Live

    from vrambroker.broker.fitted_table import output_console
    from vrambroker.broker.status_view import status_json, status_renderable

    _use_run_dir(run_dir)
    with reported(), ExitStack() as stack:
        controls, dead = _reachable(stack, _endpoints(device))
        for error in dead.values():
            report(error)
        console = output_console(os.environ.get("COLUMNS"))

        def now() -> list["Status"]:
            return [control.status() for control in controls]

        if as_json and watch:
            _repeat(lambda: print(json.dumps([status_json(one) for one in now()]), flush=True))  # noqa: T201
        elif as_json:
            print(json.dumps([status_json(one) for one in now()], indent=2))  # noqa: T201
        elif watch and console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                _repeat(lambda: live.update(status_renderable(now()), refresh=True))
        elif watch:
            _repeat(lambda: console.print(status_renderable(now())))
        else:
            console.print(status_renderable(now()))
        if dead:
            raise typer.Exit(1)


@app.command()
def top(device: Device = None, run_dir: RunDir = None) -> None:
    """Watch one daemon on a terminal: who holds what, who waits, what happens; pause and resume tags (keys: ?)."""
    from vrambroker.broker.top.start import require_screen
    from vrambroker.broker.top.start import run as run_top

    _use_run_dir(run_dir)
    with reported():
        require_screen()
        with _acting_on(_one_endpoint(device)) as control:
            code = run_top(control)
    raise typer.Exit(code)


def _repeat(show: Callable[[], None]) -> None:
    """Show it every second until interrupted."""
    try:
        while True:
            show()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _split(target: str) -> tuple[str, str]:
    session, slash, tag = target.partition("/")
    if not (session and slash and tag):
        raise InvalidArgument(message=f"{target!r} is not SESSION/TAG", argument="target")
    return session, tag


@contextmanager
def _acting_on_session(session: str, device: str | None) -> Iterator["Control"]:
    """Connect to the daemon that has a session of this name; if none has, one error tells of those that don't answer."""
    with ExitStack() as stack:
        controls, dead = _reachable(stack, _endpoints(device))
        for control in controls:
            if any(entry.name == session and not entry.ended for entry in control.status().sessions):
                yield control
                return
    if not controls:
        raise next(iter(dead.values()))
    unsure = f", and {', '.join(dead)} did not answer" if dead else ""
    raise UnknownSession(message=f"no session named {session!r} is attached{unsure}", session=session)


@app.command()
def pause(
    target: Target,
    release: Annotated[bool, typer.Option(help="Wait until its memory has left the device.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is out of use.", callback=_seconds)] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Pause a session's tag, once it is out of use."""
    _use_run_dir(run_dir)
    with reported():
        session, tag = _split(target)
        with _acting_on_session(session, device) as control:
            control.pause(session, (tag,), release=release, timeout_s=timeout)


@app.command()
def resume(
    target: Target,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for room; 0: only for what is certain.", callback=_seconds)
    ] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Resume a session's tag."""
    _use_run_dir(run_dir)
    with reported():
        session, tag = _split(target)
        with _acting_on_session(session, device) as control:
            control.resume(session, (tag,), timeout_s=timeout)


@app.command()
def prioritize(
    target: Target,
    priority: Annotated[int, typer.Argument(help="-100 to 100; a step is worth ten seconds of waiting.")],
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Set a tag's priority: who waits goes first, and who is idle is taken last."""
    _use_run_dir(run_dir)
    with reported():
        session, tag = _split(target)
        with _acting_on_session(session, device) as control:
            control.prioritize(session, (tag,), priority)


@app.command()
def budget(
    target: Annotated[
        str, typer.Argument(metavar="SESSION[/TAG]", help="Whose; all of a session, or one of its tags.")
    ],
    soft: Annotated[str | None, typer.Option(help="A size such as 8GiB: over it, what is idle is taken first.")] = None,
    hard: Annotated[str | None, typer.Option(help="A size: over it, nothing more is lent or brought back.")] = None,
    revision: Annotated[
        int | None, typer.Option(help="Of the budget that you know; the present one if not given.", min=0)
    ] = None,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Set what a session or a tag may have in use, and print how that was taken; without sizes, lift it."""
    from vrambroker.broker.sizes import parse_size

    _use_run_dir(run_dir)
    with reported():
        soft_bytes = None if soft is None else parse_size(soft, "soft")
        hard_bytes = None if hard is None else parse_size(hard, "hard")
        session, _, tag = target.partition("/")
        with _acting_on_session(session, device) as control:
            known = revision if revision is not None else _budget_revision(control, session, tag)
            state, now = control.set_budget(session, tag, soft_bytes=soft_bytes, hard_bytes=hard_bytes, revision=known)
        print(f"{state}: revision {now.revision}, soft {now.soft_bytes}, hard {now.hard_bytes} bytes")  # noqa: T201
        if state == "conflict":
            raise typer.Exit(1)


def _budget_revision(control: "Control", session: str, tag: str) -> int:
    entries = [one for one in control.status().sessions if one.name == session]
    return next((budget.revision for one in entries for budget in one.budgets if budget.tag == tag), 0)


@app.command("make-room")
def make_room(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 2GiB.")],
    lasts: Annotated[
        float,
        typer.Option("--for", help="Seconds to keep it, unless it is used before; at most 600.", callback=_seconds),
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for room; 0: only for what is certain.", callback=_seconds)
    ] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Have room on a device for memory that is no lease, such as a process that is about to start; prints a ticket."""
    from vrambroker.broker.sizes import parse_size

    _use_run_dir(run_dir)
    with reported():
        size_bytes = parse_size(size, "size")
        with _acting_on(_one_endpoint(device)) as control:
            print(control.make_room(size_bytes, lasts_s=lasts, timeout_s=timeout))  # noqa: T201


@app.command()
def cancel(
    ticket: Annotated[int, typer.Argument(help="Its number, as `broker status` shows it.")],
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """End a ticket: what waits is refused, what is set aside is free again."""
    _use_run_dir(run_dir)
    with reported(), _acting_on(_one_endpoint(device)) as control:
        control.cancel(ticket)


@app.command()
def enter(
    phase: Annotated[str, typer.Argument(metavar="PHASE", help="A phase of the daemon's plan.")],
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for what is in use and for room.", callback=_seconds)
    ] = 10.0,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Enter a phase: what it lists is resumed and what other phases list is paused, in all sessions, or nothing is."""
    _use_run_dir(run_dir)
    with reported(), _acting_on(_one_endpoint(device)) as control:
        control.enter(phase, timeout_s=timeout)


@app.command()
def timeline(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.html|OUT.svg|OUT.json", help="A page to zoom in, a picture, or a trace for Perfetto."
        ),
    ],
    saved: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR|FILE", help="Of a daemon that is gone: what is in its --history-dir."),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How much of the end, such as 10min; else the latest 100,000 events."),
    ] = None,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Draw the device's and the host's bytes by session and tag over time, and what happened."""
    from vrambroker.client.timeline import write_timeline
    from vrambroker.client.timeline.latest import latest
    from vrambroker.client.timeline.saved import read_saved

    _use_run_dir(run_dir)
    with reported():
        last_ns = None if last is None else parse_duration(last, "last")
        if saved is not None:
            write_timeline(out, *read_saved(saved, device, last_ns))
            return
        with _acting_on(_one_endpoint(device)) as control:
            write_timeline(out, control.status(), latest(control.watch(history=True, until_now=True), last_ns))


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan of phases and tags, in TOML.")],
    capacity: Annotated[str | None, typer.Option(help="What there is on the device; else as the file says.")] = None,
    host_budget: Annotated[str | None, typer.Option(help="What there is on the host; else as the file says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Make it the daemon's plan, if it fits.")] = False,
    device: Device = None,
    run_dir: RunDir = None,
) -> None:
    """Work out what each phase and each change of phase takes, what does not fit, and how large elastic tags can be.

    What neither an option nor the file says of the device and the host is asked of the daemon, if one is running.
    """
    from vrambroker.broker.plan.read import require_sizes
    from vrambroker.broker.plan.verdict import verdict
    from vrambroker.broker.plan.view import verdict_json, verdict_text
    from vrambroker.broker.plan_file import read_plan_file

    _use_run_dir(run_dir)
    with reported():
        planned = read_plan_file(file)
        if planned.tags or not apply:
            require_sizes(planned)
            asked = planned.bounded(capacity, host_budget)
            worked_out = verdict(_as_the_daemon_has(asked, device))
            text = json.dumps(verdict_json(worked_out), indent=2) if as_json else verdict_text(worked_out)
            print(one_line(text, "\n"))  # noqa: T201
            worked_out.require_fits()
        if apply:
            _apply(planned, device)


def _apply(planned: "Plan", device: str | None) -> None:
    """Make a plan the daemon's."""
    phases = planned.phases
    with _acting_on(_one_endpoint(device)) as control:
        control.set_plan(
            {phase.name: [str(tag) for tag in phase.tags] for phase in phases.phases},
            order=phases.order.value,
            priorities={str(one.pattern): one.priority for one in phases.priorities},
        )


def _as_the_daemon_has(planned: "Plan", device: str | None) -> "Plan":
    """Return the plan, bounded by what a running daemon has where it is not bounded yet."""
    from vrambroker.client.discovery import endpoints

    known = planned.capacity_bytes is not None and planned.host_budget_bytes is not None
    if known or (device is None and len(endpoints()) != 1):
        return planned
    with _acting_on(_endpoints(device)[0]) as control:
        told = control.status()
    return planned.bounded_by(told.device.capacity_bytes, told.host.budget_bytes)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(context: typer.Context) -> None:
    """Run a program, unchanged, with its memory leased."""
    from vrambroker.broker.run_cli import main as run_program

    raise typer.Exit(run_program(context.args))


@app.command()
def demo(
    device: Annotated[str | None, typer.Option(help="Where to run it; the first GPU, or host.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    size: Annotated[str, typer.Option(help="Scale of the model.")] = "tiny",
    seconds: Annotated[float | None, typer.Option(help="Stop training after this long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop training after this many steps.")] = None,
) -> None:
    """Run real RL: a trainer and a rollout engine that don't fit on the device together."""
    from vrambroker.client.demo.run import main as run_demo

    with reported():
        raise typer.Exit(run_demo(device=device, report=report, size=size, seconds=seconds, steps=steps))


if __name__ == "__main__":
    app()
