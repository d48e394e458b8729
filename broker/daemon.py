"""The daemon: puts the core, the runtime and the adapters together, runs them, and takes them apart again.

The only file that knows everybody. It ends in one of two ways: a signal drains it (new work is refused, the sessions
are told, what is under way gets a moment), or a bug ends it at once, after it has written down what it knew.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import uvloop

from vrambroker.broker.adapters.arena import HostArena
from vrambroker.broker.adapters.calls import Calls, Tell
from vrambroker.broker.adapters.clock import MonotonicClock
from vrambroker.broker.adapters.device_lock import DeviceLock
from vrambroker.broker.adapters.dump import write_dump
from vrambroker.broker.adapters.fd_reserve import FdReserve
from vrambroker.broker.adapters.handles import Greeting, HandleServer
from vrambroker.broker.adapters.history import History
from vrambroker.broker.adapters.history_files import HistoryFiles
from vrambroker.broker.adapters.journal import Journal
from vrambroker.broker.adapters.messages import Here, status_of
from vrambroker.broker.adapters.metrics.address import listener, remove
from vrambroker.broker.adapters.metrics.metered_core import MeteredCore
from vrambroker.broker.adapters.metrics.page import Given, Page
from vrambroker.broker.adapters.metrics.server import MetricsServer
from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.adapters.notify import notify
from vrambroker.broker.adapters.outside_meter import OutsideMeter
from vrambroker.broker.adapters.roster import Roster
from vrambroker.broker.adapters.rpc import BrokerService
from vrambroker.broker.adapters.rpc_server import RpcServer
from vrambroker.broker.adapters.run_dir import DeviceFolder
from vrambroker.broker.adapters.spill_files import NoSpill, SpillFile, SpillFiles
from vrambroker.broker.adapters.status_line import StatusLine
from vrambroker.broker.adapters.watchdog import Watchdog, watchdog_period_s
from vrambroker.broker.adapters.workers import Workers
from vrambroker.broker.config import Config, Reread
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.core.events import Call, Drain, Peer, Reconfigure, SetPlan
from vrambroker.broker.core.ids import Domain, RequestId
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.core.snapshot import Snapshot
from vrambroker.broker.ports import Core, Deliver, Frames, Spill
from vrambroker.broker.runtime import Bug, Runtime, World
from vrambroker.broker.version import VERSION
from vrambroker.v1 import broker_pb2 as v1

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_GRACE_S = 5.0
STOP_GRACE_S = 0.5


Reload = Callable[[Config], Reread]


def serve(config: Config, reload: Reload | None = None) -> None:
    """Serve a device until SIGTERM or SIGINT; on SIGHUP, if there is a `reload`, go on as that says.

    Raises `DeviceBusy` if another daemon has it, `InvalidArgument` if the run directory can't be used, and
    SystemExit(1) after a bug.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _raise_fd_limit()
    with ExitStack() as stack:
        lock = DeviceLock(config.device)
        stack.callback(lock.close)
        folder = DeviceFolder(config.run_dir, config.device)
        stack.callback(folder.remove)
        opened = _Opened(
            folder=folder, lock=lock, spill_file=_open_spill_file(config, stack), metrics=_listen(config, stack)
        )
        bug = uvloop.run(_Daemon(config, opened, reload).run())
    if bug is not None:
        raise SystemExit(1)


def _open_spill_file(config: Config, stack: ExitStack) -> SpillFile | None:
    """Return where contents are spilled, until the stack is closed; None if that is not wanted."""
    if config.spill is None:
        return None
    file = SpillFile(config.spill.folder, config.spill.budget_bytes)
    stack.callback(file.close)
    log.info("up to %d bytes are spilled to %s", config.spill.budget_bytes, config.spill.folder)
    return file


def _listen(config: Config, stack: ExitStack) -> socket.socket | None:
    """Return where metrics are told, until the stack is closed; None if that is not wanted."""
    if config.metrics is None:
        return None
    made = listener(config.metrics)
    stack.callback(remove, config.metrics)
    stack.callback(made.close)
    return made


def _raise_fd_limit() -> None:
    """Allow as many fds as we may have: each frame is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Everything that has to be taken apart, in this order."""

    rpc: RpcServer
    handles: HandleServer
    roster: Roster
    runtime: Runtime
    meter: OutsideMeter
    watchdog: Watchdog | None
    metrics: MetricsServer | None
    frames: Frames
    arena: HostArena
    spill: Spill
    calls: Calls
    history: History
    history_files: HistoryFiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What is had before there is a loop, and given up after it; `metrics` is a listening socket."""

    folder: DeviceFolder
    lock: DeviceLock
    spill_file: SpillFile | None
    metrics: socket.socket | None


class _Daemon:
    def __init__(self, config: Config, opened: _Opened, reload: Reload | None) -> None:
        self._config = config
        self._reload = reload
        self._reloads = 0
        self._tally = Tally(capacity_bytes=config.capacity_bytes)
        self._status_line = StatusLine(self._tally, device=config.device, capacity_bytes=config.capacity_bytes)
        self._spill_file = opened.spill_file
        self._folder = opened.folder
        self._lock = opened.lock
        self._metrics = opened.metrics
        self._reserve = FdReserve()
        self._version = VERSION
        self._stop = asyncio.Event()
        self._bug: Bug | None = None

    async def run(self) -> Bug | None:
        """Run until told to stop; returns the bug that ended it, if one did."""
        loop = asyncio.get_running_loop()
        parts = self._compose()
        loop.set_exception_handler(lambda _, context: self._unexpected(parts.runtime, context))
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        if self._reload is not None:
            loop.add_signal_handler(signal.SIGHUP, self._read_again, parts, self._reload)
        loop.add_reader(self._lock.fileno(), self._answer_lock)
        try:
            await parts.rpc.start(self._folder.rpc, self._folder.admit)
            if parts.metrics is not None:
                await parts.metrics.start()
            log.info("serving %s in %s", self._config.device, self._folder.path)
            notify("READY=1")
            self._status_line.start()
            if parts.watchdog is not None:
                parts.watchdog.start()
            await self._stop.wait()
            notify("STOPPING=1")
            if self._bug is None:
                await self._drain(parts)
        finally:
            await self._close(parts)
        return self._bug

    def _compose(self) -> _Parts:
        config, clock = self._config, MonotonicClock()
        limits = _limits_of(config)
        core = Broker(limits) if self._metrics is None else MeteredCore(Broker(limits))
        runtime = Runtime(core=core, clock=clock, on_bug=lambda bug: self._ended_by(runtime, bug))
        frames = config.place.frames(runtime.deliver)
        arena = HostArena(deliver=runtime.deliver)
        spill = self._spill(runtime.deliver, arena)
        workers = Workers(frames=frames, arena=arena)
        roster = Roster(submit=runtime.submit, on_gone=workers.gone)
        calls, journal = Calls(), Journal(clock.now)
        history_files = self._history_files(runtime)
        history = History(config.history.memory_bytes, None if history_files is None else history_files.add)
        here = Here(device=config.device, version=self._version, pid=os.getpid())

        def status() -> v1.Status:
            return status_of(runtime.snapshot(), here=here, foreign_bytes=frames.foreign_bytes(), now=clock.now())

        rpc = BrokerService(
            roster=roster,
            calls=calls,
            history=history,
            submit=runtime.submit,
            now=clock.now,
            status=status,
            broken=runtime.broken,
        )
        handles = HandleServer(
            listener=self._folder.listen(),
            reserve=self._reserve,
            journal=journal,
            greeting=Greeting(
                device=config.device,
                version=self._version,
                capacity_bytes=config.capacity_bytes,
                frame_sizes_bytes=frames.sizes_bytes(),
            ),
            may_connect=self._folder.may_connect,
            roster=roster,
            workers=workers,
            calls=calls,
            submit=runtime.submit,
            now=clock.now,
        )
        meter = OutsideMeter(
            read=frames.foreign_bytes, deliver=runtime.deliver, step_bytes=config.place.frame_sizes_bytes[0]
        )
        observers = (history, journal, self._tally, self._status_line)
        period_s = watchdog_period_s()
        runtime.start(World(frames=frames, arena=arena, spill=spill, peers=workers, answers=calls, observers=observers))
        if limits.device_bytes is not None:
            meter.start()
        if config.plan is not None:
            runtime.submit(_set_plan(calls, config.plan, "serve --plan", _raise))
        return _Parts(
            rpc=RpcServer(rpc),
            handles=handles,
            roster=roster,
            runtime=runtime,
            meter=meter,
            metrics=self._metrics_server(core, frames, clock, history_files),
            watchdog=None if period_s is None else Watchdog(period_s=period_s, pulse=runtime.pulse),
            frames=frames,
            arena=arena,
            spill=spill,
            calls=calls,
            history=history,
            history_files=history_files,
        )

    def _history_files(self, runtime: Runtime) -> HistoryFiles | None:
        config, loop = self._config, asyncio.get_running_loop()
        if config.history.folder is None:
            return None
        about = v1.Status(
            device=v1.Device(id=config.device, capacity_bytes=config.capacity_bytes),
            host=v1.Host(budget_bytes=config.host_budget_bytes),
            version=self._version,
            pid=os.getpid(),
        )
        return HistoryFiles(
            config.history.folder,
            config.history.disk_bytes,
            about,
            broken=lambda bug: _soon(loop, partial(runtime.broken, bug)),
        )

    def _metrics_server(
        self, core: Core, frames: Frames, clock: MonotonicClock, history_files: HistoryFiles | None
    ) -> MetricsServer | None:
        if self._metrics is None or not isinstance(core, MeteredCore):
            return None
        config = self._config
        given = Given(
            device=config.device,
            version=self._version,
            capacity_bytes=config.capacity_bytes,
            host_budget_bytes=config.host_budget_bytes,
            spill_budget_bytes=0 if config.spill is None else config.spill.budget_bytes,
            outside_bytes=frames.foreign_bytes,
            history_missing_lines=lambda: 0 if history_files is None else history_files.missing_lines,
            now=clock.now,
        )
        return MetricsServer(self._metrics, Page(given, self._tally, core).text)

    def _spill(self, deliver: Deliver, arena: HostArena) -> Spill:
        if self._spill_file is None:
            return NoSpill()
        return SpillFiles(deliver=deliver, fd_of=arena.fd_of, file=self._spill_file)

    def _read_again(self, parts: _Parts, reload: Reload) -> None:
        """Go on as the operator's files say now; if they make no sense, as before."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            read = reload(self._config)
        except (BrokerError, OSError) as error:
            log.error("reload: nothing is changed: %s", error)
        else:
            self._take_up(parts, read)
        notify("READY=1")

    def _take_up(self, parts: _Parts, read: Reread) -> None:
        before, self._config = self._config, read.config
        parts.runtime.submit(
            Reconfigure(
                keep_free_bytes=read.config.outside.keep_free_bytes or 0,
                outside_per_session_bytes=read.config.outside.per_session_bytes,
                eager=read.config.outside.eager,
                copy_ahead_ns=read.config.copy_ahead_ns,
            )
        )
        if read.config.plan is not None and read.config.plan != before.plan:
            self._reloads += 1
            name = f"reload {self._reloads}"
            parts.runtime.submit(_set_plan(parts.calls, read.config.plan, name, partial(self._keep_plan, before.plan)))
        for name in read.left:
            log.warning("reload: %s is another one now, and stays as it was until the daemon is started again", name)
        log.info("reload: done")

    def _keep_plan(self, before: PhasePlan | None, error: BrokerError) -> None:
        log.error("reload: the plan stays as it was: %s", error)
        self._config = replace(self._config, plan=before)

    async def _drain(self, parts: _Parts) -> None:
        """Refuse new work, tell everybody, and let what is under way finish, within bounds."""
        log.info("draining: %d calls under way", len(parts.calls))
        parts.runtime.submit(Drain())
        await parts.rpc.drain()
        try:
            await asyncio.wait_for(parts.calls.idle(), DRAIN_GRACE_S)
        except TimeoutError:
            log.warning("%d calls are cut off", len(parts.calls))

    async def _close(self, parts: _Parts) -> None:
        parts.history.close()
        self._status_line.close()
        await parts.rpc.stop(STOP_GRACE_S)
        parts.runtime.stop()
        parts.meter.close()
        if parts.metrics is not None:
            parts.metrics.close()
        if parts.watchdog is not None:
            parts.watchdog.close()
        parts.handles.close()
        parts.roster.close()
        parts.frames.close()
        parts.spill.close()
        parts.arena.close()
        if parts.history_files is not None:
            parts.history_files.close()
        asyncio.get_running_loop().remove_reader(self._lock.fileno())
        self._reserve.close()
        for number in (*SIGNALS, signal.SIGHUP):
            # A second signal must not cut the last steps short: the loop would set the default handlers again.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _answer_lock(self) -> None:
        try:
            with self._reserve.lent():
                self._lock.answer()
        except OSError as error:
            # Who asks from now on may find the line full, and won't be told our pid.
            log.warning("can't answer who asks for the device's lock: %s", error.strerror)
            asyncio.get_running_loop().remove_reader(self._lock.fileno())

    def _ended_by(self, runtime: Runtime, bug: Bug) -> None:
        """Write down what is known, and end."""
        self._bug = bug
        self._stop.set()
        log.critical("a bug ends the daemon, while handling %r", bug.event, exc_info=bug.error)
        try:
            with self._reserve.lent():
                path = write_dump(self._folder.path, event=bug.event, error=bug.error, snapshot=_last_words(runtime))
        except OSError as error:
            log.critical("what it knew can't be written down: %s", error)
        else:
            log.critical("what it knew is in %s", path)

    def _unexpected(self, runtime: Runtime, context: dict[str, Any]) -> None:
        """End the daemon for whatever a callback raised."""
        error = context.get("exception")
        if error is None or isinstance(error, BlockingIOError):
            # grpc.aio's poller reports a spurious wake-up this way (grpc issue 25364); nothing was lost.
            log.debug("the loop reports: %s", context.get("message"))
            return
        runtime.broken(error)


def _limits_of(config: Config) -> Limits:
    return Limits(
        capacity_bytes=config.capacity_bytes,
        frame_sizes_bytes=config.place.frame_sizes_bytes,
        host_budget_bytes=config.host_budget_bytes,
        arena_file_bytes=config.arena_file_bytes,
        pool_ns=config.place.pool_ns,
        arena_ahead=config.place.arena_ahead,
        spill_budget_bytes=0 if config.spill is None else config.spill.budget_bytes,
        staging_bytes=0 if config.spill is None else config.spill.staging_bytes,
        device_bytes=None if config.place.keep_free_bytes is None else config.place.device_bytes,
        keep_free_bytes=config.outside.keep_free_bytes or 0,
        outside_per_session_bytes=config.outside.per_session_bytes,
        eager=config.outside.eager,
        copy_ahead_ns=config.copy_ahead_ns,
    )


def _soon(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> None:
    """Have something done on the loop, from another thread; a loop that is closed does nothing more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(act)


def _set_plan(calls: Calls, plan: PhasePlan, name: str, on_refusal: Callable[[BrokerError], None]) -> SetPlan:
    """Return a call that sets an operator's plan, in the name of the daemon's own user."""
    itself = Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid(), domain=Domain("daemon"))
    number = calls.open(Tell(on_reply=lambda _: None, on_refusal=on_refusal))
    return SetPlan(call=Call(call=number, actor=itself, request=RequestId(name)), plan=plan)


def _raise(error: BrokerError) -> None:
    raise error


def _last_words(runtime: Runtime) -> Snapshot | None:
    """Return what the core knows, if it can still say."""
    try:
        return runtime.snapshot()
    except Exception:  # noqa: BLE001  the ledger is broken already; the traceback of that bug is what matters
        return None
