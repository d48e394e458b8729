"""The tables of docs/api.md and docs/commands.md, made from what they are about: docstrings, the .proto, the commands.

`python -m tests.tidy.reference_tables` writes them into the pages.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

import vrambroker.client as client
from vrambroker.broker.adapters.error_detail import STATUS_OF
from vrambroker.broker.cli import app
from vrambroker.broker.core.errors import BrokerError
from vrambroker.broker.run_cli import parser as run_parser

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto" / "vrambroker" / "v1" / "broker.proto"
RPC = re.compile(r"((?:  //.*\n)*)  rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);")
SELF = re.compile(r"\((?:self|cls)(?:, )?")
OBJECTS = (client.Memory, client.Hold, client.Room)
# For other modules of the package, as their docstrings say.
INTERNAL = {"native_client", "timeout_s"}
# Options of nearly every command, told once on the page.
EVERYWHERE = {"device", "run_dir"}


def functions() -> str:
    """Return the functions, and the methods and properties of each class, with the first paragraph about each."""
    rows = ["| call | |", "|---|---|"]
    for name in client.__all__:
        found = getattr(client, name)
        if inspect.isfunction(found):
            rows.append(_row(name + _signature(found), found))
    for owner in OBJECTS:
        for name, found in vars(owner).items():
            if not name.startswith("_") and name not in INTERNAL:
                rows.append(_row(f"{owner.__name__}.{name}{_signature(found)}", found))
    return "\n".join(rows) + "\n"


def errors() -> str:
    """Return the errors: what each means, its fields beside `message`, and its status over gRPC."""
    rows = ["| error | means | fields | gRPC |", "|---|---|---|---|"]
    for error, status in STATUS_OF.items():
        names = ", ".join(f"`{one.name}`" for one in fields(error) if one.name != "message")
        rows.append(f"| `{error.__name__}` | {_cell(_first_sentence(error))} | {names} | {status.name} |")
    return "\n".join(rows) + "\n"


def rpcs() -> str:
    """Return the calls of the service, with what the .proto says of each."""
    rows = ["| call | |", "|---|---|"]
    for comment, name, request, stream, answer in RPC.findall(PROTO.read_text()):
        words = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
        rows.append(f"| `{name}({request}) → {stream}{answer}` | {_cell(words)} |")
    return "\n".join(rows) + "\n"


def commands() -> str:
    """Return the commands with their arguments, options and first paragraph."""
    rows = ["| command | |", "|---|---|"]
    for name, command in broker_commands().items():
        usage = _run_usage() if name == "run" else " ".join(filter(None, map(_usage, command.params)))
        rows.append(
            f"| `{_cell(f'broker {name} {usage}')}` | {_cell(inspect.cleandoc(command.help or '').split(chr(10) * 2)[0])} |"
        )
    return "\n".join(rows) + "\n"


def broker_commands() -> dict[str, TyperCommand]:
    """Return the commands of `broker` by name."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {name: command for name, command in group.commands.items() if isinstance(command, TyperCommand)}


def options_of(command: str) -> set[str]:
    """Return the options that a command of `broker` takes."""
    if command == "run":
        return set(re.findall(r"--[a-z-]+", run_parser().format_help()))
    known = broker_commands()[command].params
    return {"--help", *(word for one in known for word in (*one.opts, *one.secondary_opts))}


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/api.md": {"functions": functions, "errors": errors, "rpcs": rpcs},
    "docs/commands.md": {"commands": commands},
}


def renewed(page: str, name: str) -> str:
    """Return a page's text with one of its tables as it is now."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + TABLES_BY_NAME[name]() + end + after


TABLES_BY_NAME = {name: make for tables in TABLES.values() for name, make in tables.items()}


def public_errors() -> set[str]:
    """Return the names of the errors that the client's package has."""
    kinds = {name: getattr(client, name) for name in client.__all__}
    return {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BrokerError)}


def _row(call: str, found: object) -> str:
    return f"| `{call}` | {_cell(inspect.cleandoc(found.__doc__ or '').split(chr(10) * 2)[0])} |"


def _signature(found: object) -> str:
    """Return a signature as a caller sees it; of a property, nothing."""
    if not callable(found):
        return ""
    parameters = inspect.signature(found).parameters.values()
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
    shown = str(inspect.Signature(bare))
    return SELF.sub("(", shown, count=1)


def _first_sentence(error: type[BrokerError]) -> str:
    return inspect.cleandoc(error.__doc__ or "").partition("\n\n")[0]


def _usage(parameter: object) -> str:
    if isinstance(parameter, TyperArgument):
        return parameter.metavar or str(parameter.name).upper()
    if not isinstance(parameter, TyperOption) or str(parameter.name) in EVERYWHERE:
        return ""
    option = "/".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return f"[{option}]"
    return f"[{option} {parameter.metavar or str(parameter.name).upper().replace('_', '-')}]"


def _run_usage() -> str:
    words = run_parser().format_usage().replace("...", "-- CMD ...")
    return re.sub(r"\[(-h|--device DEVICE|--run-dir RUN_DIR)\] ", "", " ".join(words.split()[3:]))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the tables into the pages."""
    for path, tables in TABLES.items():
        page = ROOT / path
        text = page.read_text()
        for name in tables:
            text = renewed(text, name)
        page.write_text(text)


if __name__ == "__main__":
    main()
