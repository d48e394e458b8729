"""How a command tells of an error that is expected: one line on stderr that begins with the error's name, exit code 1."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vrambroker.broker.core.errors import BrokerError


@contextmanager
def reported() -> Iterator[None]:
    """Turn an expected error into one line on stderr and exit code 1."""
    try:
        yield
    except (BrokerError, OSError) as error:
        report(error)
        # Not every command is one of typer's.
        import typer

        raise typer.Exit(1) from None


def report(error: BrokerError | OSError) -> None:
    """Write the error's one line. What others said may be in it, and is not to act on the terminal."""
    text = error.message if isinstance(error, BrokerError) else str(error)
    print(f"{type(error).__name__}: {one_line(text)}", file=sys.stderr)  # noqa: T201


def one_line(text: str, but: str = "") -> str:
    """Return the text with everything that is not printable spelled out, `but` for these."""
    return "".join(letter if letter.isprintable() or letter in but else ascii(letter)[1:-1] for letter in text)
