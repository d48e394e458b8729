"""Names of things in the ledger, one type each, so that a frame is never taken for a slot.

Every id is a positive integer from one counter of the core, and is not used again while the daemon lives.
"""

from typing import NewType

SessionId = NewType("SessionId", int)
LeaseId = NewType("LeaseId", int)
SlotId = NewType("SlotId", int)
FrameId = NewType("FrameId", int)
TicketId = NewType("TicketId", int)
OrderId = NewType("OrderId", int)
ArenaFileId = NewType("ArenaFileId", int)
TransferId = NewType("TransferId", int)
ReaderId = NewType("ReaderId", int)

ExportKey = NewType("ExportKey", bytes)
"""What an export is known by: drawn by whoever exports, and not to be guessed."""

ConnectionId = NewType("ConnectionId", int)
"""One connection on the handle socket; made by the adapter, never by the core."""

CallId = NewType("CallId", int)
"""One call that waits for its answer; made by the adapter, answered by exactly one `Reply` or `Refuse`."""

RequestId = NewType("RequestId", str)
"""The client's own name for a mutating call: the same id from the same session means the same call."""

Domain = NewType("Domain", str)
"""Who may receive whose frames and arena extents uncleaned: uid, user namespace and pid namespace, as one key."""

OUTSIDE = SessionId(0)
"""Whose tickets are that make room for memory which is no lease: no session's."""

Instant = NewType("Instant", int)
"""Nanoseconds on the runtime's monotonic clock."""
