"""Write README's table of figures from the results, or, with --check, fail if it differs from them."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
OPEN, CLOSE = "<!-- figures -->\n", "<!-- /figures -->"


def number_text(value: float) -> str:
    """Return a figure with three digits that mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tables() -> str:
    """Return a table for each file of results."""
    parts: list[str] = []
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        parts.append(f"Measured on {content['device']} ({content['driver']}), {content['date']}; medians, one run.\n")
        rows = ["| figure | value | predicted |", "|---|---|---|"]
        for result in content["results"]:
            unit = "" if result["unit"] == "ratio" else f" {result['unit']}"
            value, guess = number_text(result["value"]), number_text(result["prediction"])
            rows.append(f"| {result['what']} | {value}{unit} | {guess}{unit} |")
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
