"""One connection on the handle socket: packets in, packets out, in order, never waiting for the peer.

A packet with fds goes out only while fewer than two of them are unacknowledged, and everything behind it waits, so
order is kept and a peer that stops reading costs 32 fds and nobody else anything. What carries fds is not a packet but
a `Lending`, cut into packets when they can be sent: an fd is looked up at the last moment, never kept.

Received fds never exist here: with no room for control data the kernel drops them and says so (`MSG_CTRUNC`).
"""

import array
import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vrambroker.broker.adapters.identity import Process
from vrambroker.broker.adapters.records import PACKET_BYTES_MAX
from vrambroker.broker.core.ids import ConnectionId

UNTAKEN_MAX = 2
QUEUE_MAX = 4_096
PACKETS_PER_TURN = 32
FDS_IN_FLIGHT_RETRY_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet ready to go, and the fds that go with it; they stay their owner's."""

    data: bytes
    fds: tuple[int, ...]


class Lending(Protocol):
    """Something that is sent in acknowledged packets."""

    def next_packet(self, batch: int) -> Packet | None:
        """Return what is to be sent next under this batch number; None if nothing is left."""
        ...

    def sent(self, batch: int) -> None:
        """Note that the latest packet is with the kernel."""
        ...

    def taken(self, batch: int) -> None:
        """Note that the peer has imported (or refused) a packet and closed its fds."""
        ...

    def dropped(self) -> None:
        """Note that the connection closed before all of it was sent."""
        ...


class Link:
    """A connection and its queue. Owns its socket and its peer's pidfd. On the loop's thread only.

    `on_packet` gets each packet; `on_closed` is called once, whoever closed it.
    """

    def __init__(
        self,
        *,
        connection: ConnectionId,
        peer_socket: socket.socket,
        process: Process,
        on_packet: Callable[["Link", bytes], None],
        on_closed: Callable[["Link"], None],
    ) -> None:
        self.connection = connection
        self.process = process
        self.closed = False
        self._socket = peer_socket
        self._fd = peer_socket.fileno()
        self._on_packet = on_packet
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes | Lending] = deque()
        self._untaken: dict[int, Lending] = {}
        self._untaken_with_fds: set[int] = set()
        self._last_batch = 0
        self._waits_for_room = False
        self._waits_for_taken = False
        self._retry: asyncio.TimerHandle | None = None
        self._buffer = bytearray(PACKET_BYTES_MAX + 1)
        peer_socket.setblocking(False)
        self._loop.add_reader(self._fd, self._readable)
        self._loop.add_reader(process.pidfd, self.close)

    def send(self, item: bytes | Lending) -> None:
        """Send a packet, or all packets of a lending, as soon as those before it are out."""
        if self.closed:
            return
        self._queue.append(item)
        if len(self._queue) > QUEUE_MAX:
            self.close()
        elif not self._blocked:
            self._pump()

    def taken(self, batch: int) -> None:
        """Take the peer's acknowledgement; one for a batch of an earlier connection means nothing."""
        lending = self._untaken.pop(batch, None)
        if lending is None:
            return
        self._untaken_with_fds.discard(batch)
        self._waits_for_taken = False
        lending.taken(batch)
        if not self._blocked:
            self._pump()

    def close(self) -> None:
        """Close the connection and drop what was not sent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self.process.pidfd)
        if self._waits_for_room:
            self._loop.remove_writer(self._fd)
        if self._retry is not None:
            self._retry.cancel()
        self._socket.close()
        self.process.close()
        unsent = [item for item in self._queue if not isinstance(item, bytes)]
        self._queue.clear()
        self._untaken.clear()
        for lending in unsent:
            lending.dropped()
        self._on_closed(self)

    @property
    def _blocked(self) -> bool:
        return self._waits_for_room or self._waits_for_taken or self._retry is not None

    def _readable(self) -> None:
        for _ in range(PACKETS_PER_TURN):
            try:
                size, _, flags, _ = self._socket.recvmsg_into([self._buffer], 0, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if size == 0 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self.close()
                return
            self._on_packet(self, bytes(self._buffer[:size]))
            if self.closed:
                return

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._waits_for_room = False
        self._pump()

    def _retry_now(self) -> None:
        self._retry = None
        self._pump()

    def _pump(self) -> None:
        """Send from the front of the queue until it is empty, the peer is full, or an acknowledgement is owed."""
        while self._queue and not self.closed:
            item = self._queue[0]
            if isinstance(item, bytes):
                if not self._write(item, ()):
                    return
                self._queue.popleft()
            elif not self._pump_lending(item):
                return

    def _pump_lending(self, lending: Lending) -> bool:
        """Send the next packet of a lending, which is first in the queue; returns whether the queue may go on."""
        batch = self._last_batch + 1
        packet = lending.next_packet(batch)
        if packet is None:
            self._queue.popleft()
            return True
        if packet.fds and len(self._untaken_with_fds) >= UNTAKEN_MAX:
            self._waits_for_taken = True
            return False
        if not self._write(packet.data, packet.fds):
            return False
        self._last_batch = batch
        self._untaken[batch] = lending
        if packet.fds:
            self._untaken_with_fds.add(batch)
        lending.sent(batch)
        return True

    def _write(self, data: bytes, fds: tuple[int, ...]) -> bool:
        """Hand a packet to the kernel; returns whether it took it."""
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                self._socket.sendmsg([data], [rights])
            else:
                self._socket.send(data)
        except BlockingIOError:
            self._waits_for_room = True
            self._loop.add_writer(self._fd, self._writable)
            return False
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                # Too many fds of this user are under way (unix(7)); nothing tells when that is over.
                self._retry = self._loop.call_later(FDS_IN_FLIGHT_RETRY_S, self._retry_now)
            else:
                self.close()
            return False
        return True
