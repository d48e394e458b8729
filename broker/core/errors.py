"""What can go wrong and is expected: the errors that cross the wire, with their fields.

A `BrokerError` leaves the ledger as it was. Its class and its fields travel in `vrambroker.v1.ErrorDetail`
(`broker/adapters/error_detail.py`), so that the client raises the same class with the same fields and nobody parses
text. Whatever is not a `BrokerError` is a bug: the daemon writes down its snapshot and ends.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds memory that somebody else asked for."""

    session: str
    tag: str
    state: str
    size_bytes: int


@dataclass(kw_only=True, eq=False)
class BrokerError(Exception):
    """The root of every expected error; `message` is one line for a person."""

    message: str

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


@dataclass(kw_only=True, eq=False)
class InvalidArgument(BrokerError):
    """The call can't be right in any state: a size of zero, a tag with odd characters, more than the device has."""

    argument: str = ""


@dataclass(kw_only=True, eq=False)
class UnknownSession(BrokerError):
    """No session has this name or token."""

    session: str = ""


@dataclass(kw_only=True, eq=False)
class UnknownTag(BrokerError):
    """The session holds nothing under this tag."""

    session: str = ""
    tag: str = ""


@dataclass(kw_only=True, eq=False)
class UnknownLease(BrokerError):
    """No lease, slot or claim has this number."""

    lease: int = 0


@dataclass(kw_only=True, eq=False)
class UnknownTicket(BrokerError):
    """No ticket has this number: it was met or refused, or there never was one."""

    ticket: int = 0


@dataclass(kw_only=True, eq=False)
class UnknownPhase(BrokerError):
    """The plan has no phase of this name, or there is no plan."""

    phase: str = ""


@dataclass(kw_only=True, eq=False)
class NotOwner(BrokerError):
    """The caller may not act on this session: it has neither its uid nor root's."""

    session: str = ""
    uid: int = 0


@dataclass(kw_only=True, eq=False)
class PeerUnidentified(BrokerError):
    """The call carries no token, or one that the daemon did not give out."""


@dataclass(kw_only=True, eq=False)
class OutOfDeviceMemory(BrokerError):
    """The device can't give this much now; `holders` says who has it."""

    requested_bytes: int = 0
    free_bytes: int = 0
    capacity_bytes: int = 0
    holders: tuple[Holder, ...] = field(default_factory=tuple[Holder, ...])


@dataclass(kw_only=True, eq=False)
class OutOfHostMemory(BrokerError):
    """Contents that must be kept have no place in the arena."""

    requested_bytes: int = 0
    free_bytes: int = 0
    capacity_bytes: int = 0
    holders: tuple[Holder, ...] = field(default_factory=tuple[Holder, ...])


@dataclass(kw_only=True, eq=False)
class QuotaExceeded(BrokerError):
    """A limit of the daemon's own is reached: leases, slots or waiting calls of one session."""

    limit: str = ""
    limit_value: int = 0


@dataclass(kw_only=True, eq=False)
class WrongState(BrokerError):
    """The call makes no sense in the state that the lease is in."""

    session: str = ""
    tag: str = ""
    state: str = ""


@dataclass(kw_only=True, eq=False)
class VersionMismatch(BrokerError):
    """Client and daemon speak different versions of the protocol."""

    client_version: str = ""
    broker_version: str = ""


@dataclass(kw_only=True, eq=False)
class NotQuiescent(BrokerError):
    """The memory may be in use: a `use` scope is open, or the session never said when it is not."""

    session: str = ""
    tag: str = ""
    scope: str = ""


@dataclass(kw_only=True, eq=False)
class WaitExpired(BrokerError):
    """The deadline passed while a peer had yet to let go; `holders` names it."""

    requested_bytes: int = 0
    holders: tuple[Holder, ...] = field(default_factory=tuple[Holder, ...])


@dataclass(kw_only=True, eq=False)
class Cancelled(BrokerError):
    """Somebody has cancelled the ticket that this call was waiting for."""

    ticket: int = 0


@dataclass(kw_only=True, eq=False)
class Draining(BrokerError):
    """The daemon is shutting down and takes no new work."""


@dataclass(kw_only=True, eq=False)
class Starting(BrokerError):
    """The daemon is not ready yet."""


@dataclass(kw_only=True, eq=False)
class RequestConflict(BrokerError):
    """This request id was used before for another call."""

    request: str = ""


@dataclass(kw_only=True, eq=False)
class DriverFailed(BrokerError):
    """The driver (or the kernel, on `host`) refused a call that should have worked."""

    driver_call: str = ""
    driver_result: str = ""


@dataclass(kw_only=True, eq=False)
class BrokerUnavailable(BrokerError):
    """No daemon answers at the socket (client's side only)."""

    path: str = ""


@dataclass(kw_only=True, eq=False)
class BrokerLost(BrokerError):
    """The daemon went away while the client was attached (client's side only)."""


class InvariantViolation(Exception):
    """The ledger contradicts itself. Never caught below the daemon's outermost frame."""


def invariant(claim: bool, what: str) -> None:
    """Raise `InvariantViolation(what)` unless the claim holds; unlike `assert`, also under `-O`."""
    if not claim:
        raise InvariantViolation(what)
