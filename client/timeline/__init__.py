"""The event stream as a page (`.html`), as a picture (`.svg`), and as a trace that opens in Perfetto (`.json`)."""

import os
from collections.abc import Sequence
from pathlib import Path

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.status import Status, StreamEvent
from vrambroker.client.timeline import page, picture, trace
from vrambroker.client.timeline.history import History, history_of

__all__ = ["History", "history_of", "write_timeline"]


def write_timeline(out: Path, status: Status, events: Sequence[StreamEvent]) -> None:
    """Write what happened to `out`: a page if it ends in `.html`, a picture if in `.svg`, a Chrome trace if in `.json`.

    Raises `InvalidArgument` for another ending, if there is nothing to show, and OSError; then what was there
    stays as it is.
    """
    writers = {".html": page.render, ".svg": picture.draw, ".json": trace.render}
    writer = writers.get(out.suffix)
    if writer is None:
        raise InvalidArgument(message=f"{out} ends in none of {', '.join(writers)}", argument="out")
    if not events:
        raise InvalidArgument(message=f"nothing has happened on {status.device.id} yet", argument="out")
    text = writer(history_of(status, events))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _replace(out.resolve(), text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error


def _replace(out: Path, text: str) -> None:
    """Write the whole of a file, or leave the one that is there as it is."""
    new = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(out)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
