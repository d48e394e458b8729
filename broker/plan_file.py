"""A plan of phases, read from its file."""

from pathlib import Path

from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.plan.model import Plan
from vrambroker.broker.plan.read import read_plan_of


def read_plan_file(file: Path) -> Plan:
    """Return what a plan file says; raises `InvalidArgument`, and OSError if it can't be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(message=f"{file}: this is no UTF-8: {error.reason}", argument="plan") from None
    return read_plan_of(str(file), text)
