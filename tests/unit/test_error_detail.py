"""Every expected error crosses the wire with its class and its fields, and has a status."""

from dataclasses import MISSING, fields

import pytest

from vrambroker.broker.adapters.error_detail import STATUS_OF, from_detail, message_of, to_detail
from vrambroker.broker.core import errors
from vrambroker.broker.core.errors import BrokerError, Holder, InvalidArgument, OutOfDeviceMemory
from vrambroker.v1 import broker_pb2 as v1

CLASSES = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, BrokerError) and found is not BrokerError
]
HOLDERS = (Holder(session="trainer", tag="params", state="resident", size_bytes=1 << 40),)


def _filled(error: type[BrokerError]) -> BrokerError:
    """Return an instance in which no field has its default."""
    values: dict[str, object] = {}
    for number, one in enumerate(fields(error), start=1):
        if one.name == "holders":
            values[one.name] = HOLDERS
        elif one.type in (int, "int"):
            values[one.name] = number
        else:
            values[one.name] = f"{one.name} of it"
        assert one.default is MISSING or values[one.name] != one.default
    build: type = error
    made: BrokerError = build(**values)
    return made


CONTRACT = {
    "INVALID_ARGUMENT": ("InvalidArgument",),
    "NOT_FOUND": ("UnknownSession", "UnknownTag", "UnknownLease", "UnknownTicket", "UnknownPhase"),
    "PERMISSION_DENIED": ("NotOwner",),
    "UNAUTHENTICATED": ("PeerUnidentified",),
    "RESOURCE_EXHAUSTED": ("OutOfDeviceMemory", "OutOfHostMemory", "QuotaExceeded"),
    "FAILED_PRECONDITION": ("WrongState", "VersionMismatch", "NotQuiescent"),
    "CANCELLED": ("Cancelled",),
    "DEADLINE_EXCEEDED": ("WaitExpired",),
    "UNAVAILABLE": ("Draining", "Starting", "BrokerUnavailable", "BrokerLost"),
    "ALREADY_EXISTS": ("RequestConflict",),
    "INTERNAL": ("DriverFailed",),
}
"""What clients in other languages tell errors apart by, if they don't read the detail."""


def test_each_error_has_the_status_that_clients_know_it_by() -> None:
    statuses: dict[str, set[str]] = {}
    for error, status in STATUS_OF.items():
        statuses.setdefault(status.name, set()).add(error.__name__)
    assert {name: set(errors) for name, errors in CONTRACT.items()} == statuses
    assert set(STATUS_OF) == set(CLASSES)


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_comes_back_as_it_was(error: type[BrokerError]) -> None:
    sent = _filled(error)
    received = from_detail(v1.ErrorDetail.FromString(to_detail(sent).SerializeToString()))
    assert type(received) is error
    for one in fields(error):
        assert getattr(received, one.name) == getattr(sent, one.name), one.name


def test_an_error_of_a_later_version_is_still_an_error() -> None:
    received = from_detail(v1.ErrorDetail(error="TooHot", message="92 degrees"))
    assert type(received) is BrokerError
    assert received.message == "TooHot: 92 degrees"


def test_what_the_caller_sent_cannot_make_an_error_too_long() -> None:
    silly = InvalidArgument(message="\N{PILE OF POO}" * 50_000, argument="x" * 50_000)
    assert len(to_detail(silly).SerializeToString()) < 4_096
    assert len(message_of(silly)) <= 480
    crowd = OutOfDeviceMemory(message="no room", holders=HOLDERS * 1_000)
    assert len(to_detail(crowd).SerializeToString()) < 4_096


def test_a_text_that_is_no_unicode_is_still_sent() -> None:
    assert to_detail(InvalidArgument(message="run dir \udcff")).message == "run dir ?"
