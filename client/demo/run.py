"""The demo from beginning to end: daemon, trainer, rollout, the loop, and what came of it.

Exit code 0 if everything that it is to show came true; else 1, and a line on stderr that begins with the error's name.
"""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from vrambroker.broker.core.errors import BrokerError, InvalidArgument
from vrambroker.client.demo import report as reports
from vrambroker.client.demo.ensemble import Ensemble
from vrambroker.client.demo.failure import DemoFailed, NotProven
from vrambroker.client.demo.loop import Course, Limits, learn
from vrambroker.client.demo.plan import plan_for
from vrambroker.client.demo.progress import Progress
from vrambroker.client.demo.report import Report
from vrambroker.client.demo.sizes import DEFAULT_SIZE, SIZES, Size
from vrambroker.client.discovery import device_id, is_host
from vrambroker.client.timeline import history_of, write_timeline

LIMITS = Limits(steps=1_000_000, seconds=140.0)
SEED = 7
OUT = Path("out") / "demo.json"
GPU_DRIVER = Path("/dev/nvidiactl")
INTERRUPTED = 130


def main(
    *,
    device: str | None = None,
    report: Path | None = None,
    size: str = DEFAULT_SIZE,
    seconds: float | None = None,
    steps: int | None = None,
) -> int:
    """Run the demo; returns the exit code.

    `device`: `host`, `host:N`, `cuda:N` or a GPU's UUID; None for the first GPU, or `host` where there is none.
    The pictures lie beside the report (without one, in `out/`). A run that is cut short by `steps` or `seconds` is not
    judged by its reward. Call it from the main thread: it handles signals.
    """
    try:
        with _interruptible():
            _require_writable(OUT if report is None else report)
            _run(_device_of(device), report, _size_of(size), _limits_of(steps, seconds))
    except (DemoFailed, BrokerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("Interrupted: everything that was started has ended", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return 0


def _run(device: str, path: Path | None, size: Size, limits: Limits) -> None:
    console, plan = Console(), plan_for(size, on_gpu=not is_host(device))
    with (
        Progress(console, capacity_bytes=plan.capacity_bytes) as progress,
        Ensemble(device, size, plan, seed=SEED, say=progress.say) as ensemble,
    ):
        progress.follow(lambda: ensemble.watcher.lent_bytes)
        with ensemble.blaming_the_daemon():
            course = learn(ensemble.trainer, ensemble.rollout, size, limits, seed=SEED, tell=progress.stage)
            found = _conclude(ensemble, size, course, OUT if path is None else path)
    if path is not None:
        reports.write(found, path)
    console.print(reports.table(found))
    failings = reports.failings(found, judge_reward=limits is LIMITS)
    if failings:
        raise NotProven("; ".join(failings))


def _conclude(ensemble: Ensemble, size: Size, course: Course, path: Path) -> Report:
    """Look at everything once more, ask the daemon what it saw, and draw it."""
    trainer, rollout = ensemble.trainer.ask("finish"), ensemble.rollout.ask("finish")
    status, events = ensemble.watcher.status(), ensemble.watcher.all_events()
    picture, trace = path.with_suffix(".svg"), path.with_suffix(".trace.json")
    for out in (picture, trace):
        write_timeline(out, status, events)
    history = history_of(status, events)
    return Report(
        device=ensemble.device,
        size=size.name,
        steps=len(course.rewards),
        reward_first=course.rewards[0],
        reward_last=course.recent,
        rewards=tuple(course.rewards),
        capacity_bytes=status.device.capacity_bytes,
        peak_bytes=max(status.device.peak_lent_bytes, history.peak_lent_bytes),
        need_together_bytes=sum(reports.most_by_tag(history).values()),
        arrived_bytes=reports.arrived_bytes(history),
        copied_out_bytes=trainer["copied_out_bytes"] + rollout["copied_out_bytes"],
        copied_in_bytes=trainer["copied_in_bytes"] + rollout["copied_in_bytes"],
        addresses=ensemble.addresses,
        addresses_changed=trainer["addresses_changed"] + rollout["addresses_changed"],
        contents_changed=trainer["contents_changed"] + rollout["contents_changed"],
        logprob_gap_max=course.logprob_gap_max,
        seconds=course.seconds,
        setup_seconds=ensemble.setup_seconds,
        timeline=str(picture),
        trace=str(trace),
    )


def _require_writable(path: Path) -> None:
    """Raise `InvalidArgument` if nothing can be written there: now, rather than after minutes of training."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(message=f"{path.parent} can't be made: {error.strerror}", argument="report") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidArgument(message=f"a report can't be written to {path}", argument="report")


def _device_of(named: str | None) -> str:
    """Return `host`, a device's id, or, if none is named, the first GPU where there is one."""
    if named is None:
        named = "cuda:0" if GPU_DRIVER.exists() else "host"
    return named if named == "host" else device_id(named)


def _size_of(name: str) -> Size:
    if name not in SIZES:
        raise InvalidArgument(message=f"size {name!r} is none of {', '.join(SIZES)}", argument="size")
    return SIZES[name]


def _limits_of(steps: int | None, seconds: float | None) -> Limits:
    """Return when to stop; `LIMITS` itself unless told otherwise."""
    if steps is None and seconds is None:
        return LIMITS
    for argument, value in (("steps", steps), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise InvalidArgument(message=f"{argument} must be more than 0", argument=argument)
    return Limits(
        steps=LIMITS.steps if steps is None else steps, seconds=LIMITS.seconds if seconds is None else seconds
    )


@contextmanager
def _interruptible() -> Generator[None]:
    """Treat SIGTERM like Ctrl-C, so that both clean up; a second one must not cut that short, as it is bounded."""
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # The handler stays: one that is replaced while its signal is on the way makes Python complain of a race.
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
