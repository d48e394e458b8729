"""Write the figures into docs/figures.md, and those that decide into README.md; with --check, fail if they differ."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
OPEN, CLOSE = "<!-- figures -->\n", "<!-- /figures -->"
# README's rows: what the incumbent does as well, by file.
DECIDING = {
    "gpu.json": (
        "16 GiB kept, 64 tensors: first pause with release",
        "the same: first resume",
        "16 GiB dropped: pause with release, and resume",
    ),
    "gpu_swap.json": (
        "16 GiB kept out of A and 16 GiB kept into B, on a full device",
        "32 GiB dropped from A to B, on a full device",
    ),
    "gpu_arbiter.json": ("train → update → generate, a rank of a 7B trainer sharded by 8: both changes",),
    "gpu_process_default.json": (
        "pause with release and resume of a whole trainer of 1.5B parameters, 24 GB "
        "(torch_memory_saver: as it is by default)",
    ),
}

OTHERS = {"floor": "bare", "incumbent": "torch_memory_saver"}
MIB = 1 << 20


def text(value: float | None, unit: str) -> str:
    """Return a figure with three digits that mean something, in a unit that suits it; a dash if there is none."""
    if value is None:
        return "–"
    if unit == "s" and value < 1:
        return f"{_digits(value * 1e3)} ms" if value >= 1e-3 else f"{_digits(value * 1e6)} µs"
    if unit == "bytes" and value >= MIB:
        return f"{_digits(value / MIB)} MiB"
    return _digits(value) if unit == "ratio" else f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tables() -> str:
    """Return a table for each file of results."""
    parts: list[str] = []
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        parts.append(f"Measured on {content['device']} ({content['driver']}), {content['date']}; medians, one run.\n")
        others = [column for column in OTHERS if any(result[column] is not None for result in content["results"])]
        rows = [
            f"| figure | measured |{''.join(f' {OTHERS[column]} |' for column in others)} predicted |",
            f"|---|{'---|' * (len(others) + 2)}",
        ]
        for result in content["results"]:
            shown = [result["value"], *(result[column] for column in others), result["prediction"]]
            rows.append(f"| {result['what']} | {' | '.join(text(value, result['unit']) for value in shown)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def deciding() -> str:
    """Return README's table: a few rows, against the incumbent alone."""
    rows = ["| figure | measured | torch_memory_saver |", "|---|---|---|"]
    for name, chosen in DECIDING.items():
        results = {result["what"]: result for result in json.loads((RESULTS / name).read_text())["results"]}
        for what in chosen:
            found = results[what]
            rows.append(
                f"| {what} | {text(found['value'], found['unit'])} | {text(found['incumbent'], found['unit'])} |"
            )
    return "\n".join(rows) + "\n"


def renewed(page: str, table: str) -> str:
    """Return a page's text with this table between its marks."""
    head, rest = page.split(OPEN)
    return head + OPEN + table + rest[rest.index(CLOSE) :]


def main() -> int:
    """Rewrite the pages, or compare."""
    differing = 0
    for path, table in ((ROOT / "README.md", deciding()), (ROOT / "docs" / "figures.md", tables())):
        page = path.read_text()
        wanted = renewed(page, table)
        differing += wanted != page
        if "--check" not in sys.argv:
            path.write_text(wanted)
    return int(differing > 0 and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
