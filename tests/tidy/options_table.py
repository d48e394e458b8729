"""The table of options in docs/operations.md, made from the model that reads them. `--check` only compares."""

import sys
from enum import Enum
from pathlib import Path

from vrambroker.broker.settings import PREFIX, RELOADED, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->\n"


def table() -> str:
    """Return the table in Markdown: an option a row, in the order of the model."""
    rows = ["| key | variable | unless said | SIGHUP | |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default.value if isinstance(field.default, Enum) else field.default
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        again = "read again" if name in RELOADED else ""
        rows.append(f"| `{name}` | `{PREFIX}{name.upper()}` | {shown} | {again} | {field.description} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> int:
    """Write the table into the page, or tell whether it is there."""
    page = PAGE.read_text()
    if "--check" in sys.argv:
        return int(renewed(page) != page)
    PAGE.write_text(renewed(page))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
