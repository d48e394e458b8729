"""Findings for people and for scripts."""

from collections.abc import Sequence

from vrambroker.broker.doctor.finding import Finding, Level


def findings_text(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and one below it for what mends it; at last, what it comes to."""
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.level.value:<6}  {finding.check:<14}  {finding.text}")
        if finding.mend:
            lines.append(f"{'':<24}→ {finding.mend}")
    counts = {level: sum(one.level is level for one in findings) for level in Level}
    lines.append(", ".join(f"{count} {level.value}" for level, count in counts.items() if count))
    return "\n".join(lines)


def findings_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return them as values; the keys are a contract with scripts."""
    return [{"check": one.check, "level": one.level.value, "text": one.text, "mend": one.mend} for one in findings]
