"""Callbacks that bring an engine to rest before a pause from outside, and back to work after a resume.

A thread of this library waits in the native client, without the GIL, for what happens, and runs the callbacks one after
the other. The native agent never runs them, so that recalls go on whatever they do.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from vrambroker.broker.core.errors import BrokerError, InvalidArgument
from vrambroker.client import native

PauseCallback = Callable[[tuple[str, ...]], bool | None]
ResumeCallback = Callable[[dict[str, bool]], None]

Callback = TypeVar("Callback")

TEXT_MAX = 160
JOIN_S = 5.0


class Decline(Exception):
    """Raised by an `on_pause` callback that will not have its tags paused now; the words go to whoever asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watcher(Generic[Callback]):
    """A callback, and the tags that it is for: all of them, if there are none."""

    call: Callback
    tags: frozenset[str]

    def concerned(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(tag for tag in tags if not self.tags or tag in self.tags)


class Callbacks:
    """The callbacks of one `Memory`, and the thread that runs them. Thread-safe."""

    def __init__(self, client: native.Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._on_pause: list[_Watcher[PauseCallback]] = []
        self._on_resume: list[_Watcher[ResumeCallback]] = []
        self._thread: threading.Thread | None = None
        self._calling = False
        self._pid = os.getpid()

    def on_pause(self, callback: PauseCallback, tags: tuple[str, ...]) -> None:
        """Run it when somebody else asks for a pause of these tags (of any, if none are named)."""
        with self._lock:
            self._watch(native.NoticeKind.PAUSE_ASKED, callback, tags)
            self._on_pause.append(_Watcher(call=callback, tags=frozenset(tags)))

    def on_resume(self, callback: ResumeCallback, tags: tuple[str, ...]) -> None:
        """Run it when one of these tags is back that somebody else has resumed."""
        with self._lock:
            self._watch(native.NoticeKind.RESUMED, callback, tags)
            self._on_resume.append(_Watcher(call=callback, tags=frozenset(tags)))

    def join(self) -> None:
        """Wait for the end of the thread, the client being closed; not for a callback, which may wait for the caller."""
        thread = self._thread
        if thread is not None and not self._calling and os.getpid() == self._pid:
            thread.join(JOIN_S)

    def _watch(self, kind: native.NoticeKind, callback: object, tags: tuple[str, ...]) -> None:
        # Everything that can be wrong comes first: a tag that is watched without its callback would be called quiet.
        if not callable(callback):
            raise InvalidArgument(message=f"{callback!r} can't be called", argument="callback")
        for tag in tags:
            native.check_label(tag, "tag")
        watched: tuple[str | None, ...] = tags or (None,)
        for one in watched:
            self._client.watch(kind, one)
        if self._thread is None:
            # A daemon, since a process may end without closing; then the native client ends with it.
            self._thread = threading.Thread(target=self._run, name="vrambroker-callbacks", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (notice := self._client.next_notice()).kind is not native.NoticeKind.CLOSED:
            self._calling = True
            try:
                if notice.kind is native.NoticeKind.PAUSE_ASKED:
                    self._ask(notice)
                else:
                    self._tell(notice)
            except BrokerError:
                # Closed meanwhile: there is nobody to answer any more.
                continue
            finally:
                self._calling = False

    def _ask(self, notice: native.Notice) -> None:
        """Run what watches the tags; the first that does not want the pause is the answer."""
        for watcher in self._snapshot(self._on_pause):
            tags = watcher.concerned(notice.tags)
            if not tags:
                continue
            name = _name_of(watcher.call)
            self._client.begin_callback(notice.order, tags[0], name)
            refusal = _refusal(watcher.call, tags)
            if refusal is not None:
                self._client.decline(notice.order, tags[0], name, refusal)
                return
        self._client.consent(notice.order)

    def _tell(self, notice: native.Notice) -> None:
        for watcher in self._snapshot(self._on_resume):
            tags = watcher.concerned(notice.tags)
            if tags:
                _run_guarded(partial(watcher.call, dict.fromkeys(tags, notice.same_pages)))

    def _snapshot(self, watchers: list[_Watcher[Callback]]) -> tuple[_Watcher[Callback], ...]:
        with self._lock:
            return tuple(watchers)


def _refusal(callback: PauseCallback, tags: tuple[str, ...]) -> str | None:
    """Return why the callback will not have the pause; None if it will. One that fails has not brought anything to rest."""
    try:
        return "it said no" if callback(tags) is False else None
    except Decline as decline:
        return _cut(str(decline))
    except Exception as error:  # noqa: BLE001  it is the application's, and the asker is told
        _report(error)
        return _cut(f"it failed with {type(error).__name__}: {error}")


def _run_guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001  it is the application's, and the thread goes on for other callbacks
        _report(error)


def _report(error: Exception) -> None:
    """Hand an exception to whom the application has it reported to, as at the end of any thread."""
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


def _name_of(callback: object) -> str:
    return _cut(str(getattr(callback, "__qualname__", None) or repr(callback)))


def _cut(text: str) -> str:
    # What can't be encoded, or ends a C string, would not get there.
    clean = text.encode(errors="replace").decode().replace("\0", "?")
    return clean if len(clean) <= TEXT_MAX else clean[: TEXT_MAX - 1] + "…"
