"""Write README's table of figures from the results, or, with --check, fail if it differs from them."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
OPEN, CLOSE = "<!-- figures -->\n", "<!-- /figures -->"


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


def main() -> int:
    """Rewrite the README, or compare."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, rest = text.split(OPEN)
    tail = rest[rest.index(CLOSE) :]
    wanted = head + OPEN + tables() + tail
    if "--check" in sys.argv:
        return int(wanted != text)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
