"""The door of the handle socket: who gets in, told apart by the kernel, and how those are refused that don't.

A refusal is an `ERROR` in answer to the `HELLO`, so whoever is refused is kept until it has said that, or has had the
time to. Only of very many at once are some closed unheard, and when there is no fd left, all that have not spoken yet.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from vrambroker.broker.adapters.fd_reserve import FdReserve
from vrambroker.broker.adapters.identity import Process, identify, no_fd_left
from vrambroker.broker.adapters.quota import Quota
from vrambroker.broker.adapters.records import PACKET_BYTES_MAX
from vrambroker.broker.adapters.requests import packet_of_error
from vrambroker.broker.core.errors import BrokerError, PeerUnidentified, QuotaExceeded
from vrambroker.broker.core.events import Peer

log = logging.getLogger(__name__)

HELLO_WITHIN_S = 5.0
CONNECTIONS_MAX = 1_024
CONNECTIONS_PER_PROCESS = 80
CONNECTIONS_PER_USER = 256
REFUSED_MAX = 64
ACCEPTED_PER_TURN = 64
ACCEPT_AGAIN_S = 0.1


class Doorway:
    """Accepts on a listening socket, which it owns.

    `admit` gets each connection with its process, and owns both from then on; `left` tells when it is over.
    """

    def __init__(
        self, *, listener: socket.socket, reserve: FdReserve, admit: Callable[[socket.socket, Process], None]
    ) -> None:
        self._listener = listener
        self._reserve = reserve
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self._quota = Quota("connections", per_process=CONNECTIONS_PER_PROCESS, per_user=CONNECTIONS_PER_USER)
        self._inside = 0
        self._refused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._accept_again: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def left(self, peer: Peer) -> None:
        """Take note that a connection that was let in is over."""
        self._inside -= 1
        self._quota.give(peer)

    def close(self) -> None:
        """Close the listener, and whoever was refused and has not heard of it."""
        self._loop.remove_reader(self._listener.fileno())
        if self._accept_again is not None:
            self._accept_again.cancel()
        self._listener.close()
        for refused in tuple(self._refused):
            self._close_refused(refused)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                peer_socket, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._cannot_accept(error)
                return
            self._take_in(peer_socket)

    def _cannot_accept(self, error: OSError) -> None:
        """Refuse one for whom there is no fd. For anything else, the backlog stays readable, so look again later."""
        if error.errno == errno.EMFILE:
            with self._reserve.lent():
                try:
                    peer_socket, _ = self._listener.accept()
                except OSError:
                    pass  # somebody else's thread was faster
                else:
                    _tell(peer_socket, no_fd_left())
                    peer_socket.close()
                    return
        log.warning("can't accept: %s", error.strerror)
        self._loop.remove_reader(self._listener.fileno())
        self._accept_again = self._loop.call_later(ACCEPT_AGAIN_S, self._listen_again)

    def _listen_again(self) -> None:
        self._accept_again = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _take_in(self, peer_socket: socket.socket) -> None:
        peer_socket.setblocking(False)
        try:
            if self._inside >= CONNECTIONS_MAX:
                raise QuotaExceeded(
                    message=f"{CONNECTIONS_MAX} connections are open already",
                    limit="connections",
                    limit_value=CONNECTIONS_MAX,
                )
            process = identify(peer_socket)
            try:
                self._quota.require(process.peer)
            except QuotaExceeded:
                process.close()
                raise
        except (PeerUnidentified, QuotaExceeded) as error:
            self._refuse(peer_socket, error)
            return
        self._inside += 1
        self._quota.take(process.peer)
        self._admit(peer_socket, process)

    def _refuse(self, peer_socket: socket.socket, error: BrokerError) -> None:
        """Answer the `HELLO` when it comes: an answer that comes first would be lost if we closed before it is sent."""
        log.debug("a connection is refused: %s", error)
        if len(self._refused) >= REFUSED_MAX:
            self._close_refused(next(iter(self._refused)))
        self._refused[peer_socket] = self._loop.call_later(HELLO_WITHIN_S, self._close_refused, peer_socket)
        self._loop.add_reader(peer_socket.fileno(), partial(self._answer_refused, peer_socket, error))

    def _answer_refused(self, peer_socket: socket.socket, error: BrokerError) -> None:
        _tell(peer_socket, error)
        self._close_refused(peer_socket)

    def _close_refused(self, peer_socket: socket.socket) -> None:
        self._refused.pop(peer_socket).cancel()
        self._loop.remove_reader(peer_socket.fileno())
        peer_socket.close()


def _tell(peer_socket: socket.socket, error: BrokerError) -> None:
    """Send an `ERROR`, as far as there is somebody to hear it. What was sent to us goes first: closing a socket with
    something unread breaks the connection, and the other end might not read the answer.
    """
    peer_socket.setblocking(False)
    with suppress(OSError):
        peer_socket.recv(PACKET_BYTES_MAX)
    with suppress(OSError):
        peer_socket.send(packet_of_error(0, error))
