"""What was found, a line each: how bad it is, what it means, and the command that mends it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """UNSEEN: it could not be looked at here. WARN: it works, more slowly or for fewer. FAIL: something will not work."""

    OK = "ok"
    UNSEEN = "unseen"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`check` names what was looked at, for scripts; `mend` is a command, or empty where there is nothing to mend."""

    check: str
    level: Level
    text: str
    mend: str = ""


def ok(check: str, text: str) -> Finding:
    """Return that nothing is wrong."""
    return Finding(check=check, level=Level.OK, text=text)


def unseen(check: str, text: str) -> Finding:
    """Return that it could not be looked at, and why."""
    return Finding(check=check, level=Level.UNSEEN, text=text)


def warn(check: str, text: str, mend: str) -> Finding:
    """Return that it could be better."""
    return Finding(check=check, level=Level.WARN, text=text, mend=mend)


def fail(check: str, text: str, mend: str) -> Finding:
    """Return that something will not work."""
    return Finding(check=check, level=Level.FAIL, text=text, mend=mend)


def is_bad(findings: Iterable[Finding], *, strict: bool) -> bool:
    """Tell whether anything fails; with `strict`, whether anything could be better."""
    bad = {Level.FAIL, Level.WARN} if strict else {Level.FAIL}
    return any(finding.level in bad for finding in findings)
