"""That docs/ tells of the code that there is: its tables, and the messages, records, tests and variables that it names."""

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

from tests.process.page import ANYTHING, FENCE
from tests.tidy.reference_tables import PROTO, ROOT, RPC, TABLES, public_errors, renewed
from vrambroker.broker.adapters.device_lock import DeviceBusy
from vrambroker.broker.adapters.error_detail import STATUS_OF
from vrambroker.broker.settings import CONFIG_VARIABLE, FOREIGN_VARIABLES, PREFIX, Settings

DOCS = ROOT / "docs"
MESSAGES = re.compile(r"(<!-- not ours: \w+ -->\n)?^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CPP_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*')
NAMED_ERROR = re.compile(r"([A-Z]\w+): (.*)")
# Short words are in the code by chance.
TELLING_LETTERS = 10


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, tables in TABLES.items() for name in tables])
def test_the_tables_are_made_from_the_code(path: str, name: str) -> None:
    page = (ROOT / path).read_text()
    assert renewed(page, name) == page, "run python -m tests.tidy.reference_tables"


def test_the_table_of_errors_has_all_that_a_client_can_catch() -> None:
    assert public_errors() - {"BrokerError"} == {error.__name__ for error in STATUS_OF}


def test_every_rpc_is_found_in_the_proto() -> None:
    assert [name for _, name, *_ in RPC.findall(PROTO.read_text())] == re.findall(r"\brpc (\w+)", PROTO.read_text())


def test_every_message_of_the_faq_is_one_of_the_codes() -> None:
    ours = [text for not_ours, text in MESSAGES.findall((DOCS / "faq.md").read_text()) if not not_ours]
    messages = [line for text in ours for line in text.splitlines()]
    assert len(messages) >= 20
    for message in messages:
        named = NAMED_ERROR.fullmatch(message)
        if named is not None:
            assert _is_error(named.group(1)), f"{message}: there is no such error"
            require_class_of_the_message(*named.groups())
            message = named.group(2)
        pieces = [piece.strip() for piece in message.split(ANYTHING) if piece.strip()]
        assert max(len(piece) for piece in pieces) >= TELLING_LETTERS, f"{message}: this could be anything"
        for piece in pieces:
            assert _is_said(piece), f"{message}: nothing says {piece!r}"


def require_class_of_the_message(name: str, message: str) -> None:
    """Require the error that a message is said to be of to be one that is made with it, where the code has it in one text."""
    pattern = re.compile(".*".join(re.escape(piece.strip()) for piece in message.split(ANYTHING)), re.DOTALL)
    made = {error for error, text in _made_errors() if pattern.search(text)}
    assert not made or name in made, f"{name}: {message}: this is {' or '.join(sorted(made))}"


def test_a_message_under_another_error_s_name_is_noticed() -> None:
    require_class_of_the_message("VersionMismatch", "libvrambroker.so has ABI …, this client needs …")
    with pytest.raises(AssertionError, match="this is VersionMismatch"):
        require_class_of_the_message("DriverFailed", "libvrambroker.so has ABI …, this client needs …")
    with pytest.raises(AssertionError, match="this is BrokerUnavailable"):
        require_class_of_the_message("DriverFailed", "libvrambroker.so can't be loaded (…): reinstall vrambroker")


def test_every_record_of_the_walk_is_one_of_the_handle_plane() -> None:
    known = set(re.findall(r"^\| \d+ \| (\w+) \|", (ROOT / "proto" / "HANDLES.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", (DOCS / "protocol.md").read_text()))
    assert named - known == {"CAPITALS", "HANDLES"}
    assert len(named) > 25


def test_every_test_named_in_the_threat_notes_is_there() -> None:
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (DOCS / "threats.md").read_text())
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in there] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_variable_named_in_the_docs_is_read_by_somebody(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE} | FOREIGN_VARIABLES
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= known


def test_links_lead_to_headings_that_are_there() -> None:
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)]+)\)", page.read_text()):
            aimed = page.parent / target if target else page
            assert anchor in _anchors(aimed), f"{page.name}: {target}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\(docs/(\w+\.md)[)#]", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")}


def _anchors(page: Path) -> set[str]:
    """Return what GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_error(name: str) -> bool:
    return name in {error.__name__ for error in (*STATUS_OF, DeviceBusy)} or hasattr(builtins, name)


def _is_said(piece: str) -> bool:
    """Whether a text of the code has it, or one ends and another begins with its parts: a message put into a message."""
    if any(piece in text for text in _texts()):
        return True
    joints = [joint for joint in range(2, len(piece) - 1) if not piece[joint - 1].isalnum()]
    return any(
        any(text.endswith(piece[:joint]) for text in _texts())
        and any(text.startswith(piece[joint:]) for text in _texts())
        for joint in joints
    )


@cache
def _texts() -> tuple[str, ...]:
    """Return every text in the code but docstrings, whole but for what is put into it."""
    found: list[str] = []
    for tree in _modules():
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        ]
    for path in (ROOT / "native" / "src").glob("*.cpp"):
        for text in CPP_TEXT.findall(path.read_text()):
            found.append("".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', text)))
    return tuple(found)


@cache
def _made_errors() -> tuple[tuple[str, str], ...]:
    """Return the name of each error that the code makes with each text in that call, `…` for what is put into it."""
    found: list[tuple[str, str]] = []
    for call in (node for tree in _modules() for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        if _is_error(name) and name[0].isupper():
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            found += [(name, text) for value in given for node in ast.walk(value) if (text := _template(node))]
    return tuple(found)


def _template(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(value) or ANYTHING for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def _modules() -> tuple[ast.Module, ...]:
    paths = [path for folder in ("broker", "client") for path in (ROOT / folder).rglob("*.py")]
    return tuple(ast.parse(path.read_text()) for path in paths)
