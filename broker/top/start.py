"""What `broker top` needs before it can begin: a terminal, and textual."""

import os
import sys

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.rpc import Control


def require_screen() -> None:
    """Raise `InvalidArgument`, with what to do instead, unless there is something to draw on and to draw with."""
    # textual reads keys from stdin and draws on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)) or os.environ.get("TERM") == "dumb":
        raise InvalidArgument(
            message="top needs a terminal that can be drawn on, as stdin, stdout and stderr: "
            "without one there is `broker status`, with --watch or --json",
            argument="terminal",
        )
    try:
        import textual  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise InvalidArgument(
            message="top is drawn by the package textual: pip install '.[broker,top]' where vrambroker's source is",
            argument="textual",
        ) from None


def run(control: Control) -> int:
    """Show the daemon until somebody quits; returns an exit code. Closes `control`."""
    from vrambroker.broker.top.app import Top
    from vrambroker.broker.top.feed import Feed

    app = Top(Feed(control))
    app.run()
    return app.return_code or 0
