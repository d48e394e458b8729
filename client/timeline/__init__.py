"""The event stream as a picture (`.svg`) and as a trace that opens in Perfetto (`.json`)."""

from collections.abc import Sequence
from pathlib import Path

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.status import Status, StreamEvent
from vrambroker.client.timeline import picture, trace
from vrambroker.client.timeline.history import History, history_of

__all__ = ["History", "history_of", "write_timeline"]


def write_timeline(out: Path, status: Status, events: Sequence[StreamEvent]) -> None:
    """Write what happened to `out`: a picture if it ends in `.svg`, a Chrome trace if in `.json`.

    Raises `InvalidArgument` for another ending, and if there is nothing to show; then nothing is written.
    """
    writers = {".svg": picture.draw, ".json": trace.render}
    writer = writers.get(out.suffix)
    if writer is None:
        raise InvalidArgument(message=f"{out} ends neither in .svg nor in .json", argument="out")
    if not events:
        raise InvalidArgument(message=f"nothing has happened on {status.device.id} yet", argument="out")
    text = writer(history_of(status, events))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
