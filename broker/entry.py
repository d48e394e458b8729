"""What the console script `broker` calls: it goes by the command's name before it reads what not every command needs."""

import sys

PACKAGE = "vrambroker"
FAILED = 1


def main() -> None:
    """Run the command line. Where what it needs is not installed, as with a worker alone, one line says so, and the exit
    code is 1.
    """
    if sys.argv[1:2] == ["run"]:
        from vrambroker.broker.run_cli import main as run

        sys.exit(run(sys.argv[2:]))
    try:
        from vrambroker.broker.cli import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", PACKAGE):
            raise
        print(f"ModuleNotFoundError: {missing} is not installed: pip install '{PACKAGE}[broker]'", file=sys.stderr)  # noqa: T201
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
