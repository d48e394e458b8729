"""A page of the docs as a list of its fenced blocks, each with what a reader who follows the page does with it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# All that a renderer may take for a fence, also where FENCE does not find it: titled, indented, of tildes.
FENCE_LINE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
MARKER = re.compile(r"<!-- (not run|process): (.+?) -->\n\Z")
PROMPT = "$ "
ANYTHING = "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`not_run`: why the block can't be run here, as the page says. `process`: which of the page's Python processes."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    process: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command that is typed at a prompt, and what the page says it prints."""

    command: str
    shown: str

    @property
    def is_refused(self) -> bool:
        """Whether the page shows an error in the end, which means exit code 1."""
        return re.match(r"[A-Z][A-Za-z]+: ", self.shown.rstrip().rpartition("\n")[2]) is not None


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks in order. A comment right before a block says why it is not run, or in which process it is."""
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    assert len(FENCE_LINE.findall(text)) == 2 * len(fences), (
        f"{page.name}: fences are ```LANGUAGE and ```, from the margin"
    )
    for found in fences:
        marker = MARKER.search(text, 0, found.start())
        said = {marker.group(1): marker.group(2)} if marker is not None else {}
        yield Block(
            page=page,
            line=text.count("\n", 0, found.start()) + 1,
            language=found.group(1),
            text=found.group(2),
            not_run=said.get("not run", ""),
            process=said.get("process", ""),
        )


def steps_of(text: str) -> Iterator[Step]:
    """Yield what is typed at each prompt, with the output below it."""
    assert text.startswith(PROMPT), f"what is typed begins with {PROMPT!r}"
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Step(command=command, shown=shown)


def is_shown(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows; `…` stands for anything, alone on a line for any number of lines.
    How many spaces there are does not count, since columns are as wide as what varies in them.
    """
    assert shown.strip() != ANYTHING, f"{ANYTHING} alone is shown whatever is printed, and also if nothing is"
    pattern = "".join(r"(?:.*\n)*?" if line == ANYTHING else _line_pattern(line) for line in _lines(shown))
    told = "".join(f"{line}\n" for line in _lines(printed))
    return re.fullmatch(pattern, told) is not None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.rstrip().splitlines()]


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split(ANYTHING)) + "\n"
