"""What the console script `broker` calls: it goes by the command's name before it reads what not every command needs."""

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["run"]:
        from vrambroker.broker.run_cli import main as run

        sys.exit(run(sys.argv[2:]))
    from vrambroker.broker.cli import app

    app()


if __name__ == "__main__":
    main()
