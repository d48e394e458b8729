"""The rules of the house that a test can hold: sizes of files and functions, first lines, links, words that don't belong."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 80
PYTHON = sorted(path for folder in ("broker", "client", "tests") for path in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in {".h", ".cpp"})
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "proto").rglob("*.md")])
ENDS_THE_PROCESS = re.compile(
    r"(?<!\w)(?:std)?::exit\s*\(|^\s*exit\s*\(|\b(?:_exit|abort|quick_exit)\s*\(", re.MULTILINE
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_python_file_is_readable(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES_MAX, f"{lines} lines: something in it wants a name"
    tree = ast.parse(text)
    if text.strip():
        assert ast.get_docstring(tree), "the file does not say what it is"
    for function in _functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= FUNCTION_LINES_MAX, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", NATIVE, ids=_name)
def test_native_file_is_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    if path.suffix == ".h":
        assert text.startswith(("//", "/*")), "the file does not say what it is"
    assert not ENDS_THE_PROCESS.search(text) or "tests" in path.parts, "nothing that a worker loads may end it"


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{target} is not there"


def test_makefile_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name} names make {target}"


def test_figures_in_the_readme_are_those_measured() -> None:
    script = ROOT / "tests" / "bench" / "readme_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], timeout=60, check=False)
    assert done.returncode == 0, "run tests/bench/readme_table.py"


def test_the_peaks_of_the_timeline_page_are_those_of_its_runs() -> None:
    script = ROOT / "tests" / "bench" / "awake.py"
    done = subprocess.run([sys.executable, str(script), "--check"], timeout=60, check=False)
    assert done.returncode == 0, "run make pictures"
