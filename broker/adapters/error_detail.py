"""Expected errors on the wire: `BrokerError` to `vrambroker.v1.ErrorDetail` and back, and the table of gRPC statuses.

The fields travel under their own names, so a class needs nothing here but its line in the table.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

import grpc

from vrambroker.broker.core import errors
from vrambroker.broker.core.errors import BrokerError, Holder
from vrambroker.v1 import broker_pb2 as v1

# An error repeats what the caller sent; it must fit a packet and gRPC's metadata whatever that was.
TEXT_MAX = 160
MESSAGE_MAX = 480
HOLDERS_MAX = 32

STATUS_OF: Mapping[type[BrokerError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
        errors.UnknownSession: grpc.StatusCode.NOT_FOUND,
        errors.UnknownTag: grpc.StatusCode.NOT_FOUND,
        errors.UnknownLease: grpc.StatusCode.NOT_FOUND,
        errors.UnknownTicket: grpc.StatusCode.NOT_FOUND,
        errors.UnknownPhase: grpc.StatusCode.NOT_FOUND,
        errors.NotOwner: grpc.StatusCode.PERMISSION_DENIED,
        errors.PeerUnidentified: grpc.StatusCode.UNAUTHENTICATED,
        errors.OutOfDeviceMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.OutOfHostMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
        errors.VersionMismatch: grpc.StatusCode.FAILED_PRECONDITION,
        errors.NotQuiescent: grpc.StatusCode.FAILED_PRECONDITION,
        errors.WaitExpired: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.Cancelled: grpc.StatusCode.CANCELLED,
        errors.Draining: grpc.StatusCode.UNAVAILABLE,
        errors.Starting: grpc.StatusCode.UNAVAILABLE,
        errors.BrokerUnavailable: grpc.StatusCode.UNAVAILABLE,
        errors.BrokerLost: grpc.StatusCode.UNAVAILABLE,
        errors.RequestConflict: grpc.StatusCode.ALREADY_EXISTS,
        errors.DriverFailed: grpc.StatusCode.INTERNAL,
    }
)
_CLASS_OF: Mapping[str, type[BrokerError]] = MappingProxyType({error.__name__: error for error in STATUS_OF})


def to_detail(error: BrokerError) -> v1.ErrorDetail:
    """Return the error's name and fields; texts longer than a name can be are cut."""
    detail = v1.ErrorDetail(error=type(error).__name__)
    for one in fields(error):
        value = getattr(error, one.name)
        if one.name == "holders":
            detail.holders.extend(_holder_to_wire(holder) for holder in value[:HOLDERS_MAX])
        elif isinstance(value, str):
            setattr(detail, one.name, _cut(value, MESSAGE_MAX if one.name == "message" else TEXT_MAX))
        else:
            setattr(detail, one.name, value)
    return detail


def from_detail(detail: v1.ErrorDetail) -> BrokerError:
    """Return the error; of a class that this version doesn't know, a plain `BrokerError` with the message."""
    known = _CLASS_OF.get(detail.error)
    if known is None:
        return BrokerError(message=f"{detail.error}: {detail.message}")
    values: dict[str, object] = {one.name: getattr(detail, one.name) for one in fields(known)}
    if "holders" in values:
        values["holders"] = tuple(_holder_from_wire(holder) for holder in detail.holders)
    build: type = known
    made: BrokerError = build(**values)
    return made


def message_of(error: BrokerError) -> str:
    """Return the error's line for a person, no longer than a status may carry."""
    return _cut(error.message, MESSAGE_MAX)


def _cut(text: str, length_max: int) -> str:
    # A surrogate can't be encoded; none comes from the wire, but a path given to the daemon may have one.
    clean = text.encode(errors="replace").decode()
    return clean if len(clean) <= length_max else clean[: length_max - 1] + "…"


def _holder_to_wire(holder: Holder) -> v1.Holder:
    return v1.Holder(session=holder.session, tag=holder.tag, state=holder.state, size_bytes=holder.size_bytes)


def _holder_from_wire(holder: v1.Holder) -> Holder:
    return Holder(session=holder.session, tag=holder.tag, state=holder.state, size_bytes=holder.size_bytes)
