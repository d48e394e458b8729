"""What a worker uses: a synchronous facade over the native client and the control plane.

Importing this imports neither torch nor gRPC, loads no library and talks to nobody; `connect` does.
"""

if __name__ != "vrambroker.client":
    raise ImportError("import vrambroker.client: the folder client/ is not a package of its own")

from vrambroker.broker.core.errors import (
    BrokerError,
    BrokerLost,
    BrokerUnavailable,
    Cancelled,
    Draining,
    DriverFailed,
    Holder,
    InvalidArgument,
    NotOwner,
    NotQuiescent,
    OutOfDeviceMemory,
    OutOfHostMemory,
    PeerUnidentified,
    QuotaExceeded,
    RequestConflict,
    Starting,
    UnknownLease,
    UnknownPhase,
    UnknownSession,
    UnknownTag,
    UnknownTicket,
    VersionMismatch,
    WaitExpired,
    WrongState,
)
from vrambroker.client.callbacks import Decline
from vrambroker.client.hold import Hold
from vrambroker.client.memory import Memory, connect
from vrambroker.client.room import Room, make_room

__all__ = [
    "BrokerError",
    "BrokerLost",
    "BrokerUnavailable",
    "Cancelled",
    "Decline",
    "Draining",
    "DriverFailed",
    "Hold",
    "Holder",
    "InvalidArgument",
    "Memory",
    "NotOwner",
    "NotQuiescent",
    "OutOfDeviceMemory",
    "OutOfHostMemory",
    "PeerUnidentified",
    "QuotaExceeded",
    "RequestConflict",
    "Room",
    "Starting",
    "UnknownLease",
    "UnknownPhase",
    "UnknownSession",
    "UnknownTag",
    "UnknownTicket",
    "VersionMismatch",
    "WaitExpired",
    "WrongState",
    "connect",
    "make_room",
]
