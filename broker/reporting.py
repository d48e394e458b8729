"""How a command tells of an error that is expected: one line on stderr that begins with the error's name, exit code 1."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vrambroker.broker.core.errors import BrokerError


@contextmanager
def reported() -> Iterator[None]:
    """Turn an expected error into one line on stderr and exit code 1; none, if nobody reads what is printed any more."""
    try:
        yield
        # What nobody can be told is to fail here, and not when Python ends.
        print(end="", flush=True)  # noqa: T201
    except (BrokerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            _print_nothing_more()
        else:
            report(error)
        # Not every command is one of typer's.
        import typer

        raise typer.Exit(1) from None


def _print_nothing_more() -> None:
    """Have what is left in stdout's buffer go nowhere: Python would fail on it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(error: BrokerError | OSError) -> None:
    """Write the error's one line. What others said may be in it, and is not to act on the terminal."""
    text = error.message if isinstance(error, BrokerError) else os_error_text(error)
    print(f"{type(error).__name__}: {one_line(text)}", file=sys.stderr)  # noqa: T201


def os_error_text(error: OSError) -> str:
    """Return what went wrong, and with which file, without the number that stands for it."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"


def one_line(text: str, but: str = "") -> str:
    """Return the text with everything that is not printable spelled out, `but` for these."""
    return "".join(letter if letter.isprintable() or letter in but else ascii(letter)[1:-1] for letter in text)
