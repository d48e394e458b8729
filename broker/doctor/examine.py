"""Everything that is looked at, in the order in which it is told."""

from collections.abc import Iterable

from vrambroker.broker.config import parse_device
from vrambroker.broker.core.errors import DriverFailed
from vrambroker.broker.doctor.bounds import bounds
from vrambroker.broker.doctor.daemons import daemons, run_directories
from vrambroker.broker.doctor.finding import Finding
from vrambroker.broker.doctor.gpu import gpus, name_of
from vrambroker.broker.doctor.kernel import kernel


def examine(device: str | None) -> list[Finding]:
    """Look at the node, and at one device or all that have a daemon; raises `InvalidArgument` for what is no device."""
    named = None if device is None else parse_device(device)
    told, statuses = daemons(_folder_of(named))
    sessions = frozenset(session.pid for status in statuses for session in status.sessions)
    of_gpu: Iterable[Finding] = () if named is not None and named.startswith("host:") else gpus(named, sessions)
    return [*kernel(), *bounds(), *of_gpu, *run_directories(), *told]


def _folder_of(device: str | None) -> str | None:
    """Return the name that a device's daemon has in a run directory; None, for all, where the driver can't tell."""
    try:
        return None if device is None else name_of(device)
    except DriverFailed:
        return None
