"""Sessions as the handle socket sees them: which connection each has, and what of the arena its process may have.

This is the `Peers` port: the core's orders go out here. An order to a session without a connection is dropped, since
the core gives it anew when the session is back.
"""

import os
from dataclasses import dataclass, field
from functools import partial

from vrambroker.broker.adapters import records
from vrambroker.broker.adapters.lendings import Grant, ReadGrant, UnsentFrames, arena_file, arena_gone
from vrambroker.broker.adapters.link import Link
from vrambroker.broker.core.effects import RecalledSlot, SendCopy, SendGrant, SendReadGrant, SendRecall
from vrambroker.broker.core.ids import ArenaFileId, ConnectionId, ExportKey, OrderId, ReaderId, SessionId
from vrambroker.broker.ports import Arena, Frames

RECALLED_PER_PACKET = 1_300


@dataclass(slots=True, kw_only=True)
class Worker:
    """`files`: what was sent of the arena, and so may be mapped; `taken`: what the process said to have received.

    `announced`: what need not be sent again over this link.
    """

    session: SessionId
    link: Link | None = None
    files: set[ArenaFileId] = field(default_factory=set[ArenaFileId])
    taken: set[ArenaFileId] = field(default_factory=set[ArenaFileId])
    announced: set[ArenaFileId] = field(default_factory=set[ArenaFileId])


class Workers:
    """The `Peers` of the runtime."""

    def __init__(self, *, frames: Frames, arena: Arena) -> None:
        self._frames = frames
        self._arena = arena
        self._workers: dict[SessionId, Worker] = {}
        self._by_connection: dict[ConnectionId, Worker] = {}
        self._unsent = UnsentFrames()
        self._forgetting: dict[ArenaFileId, set[SessionId]] = {}
        self._read_grants: dict[ReaderId, list[ReadGrant]] = {}

    def session_on(self, connection: ConnectionId) -> SessionId | None:
        """Return the session that has this connection."""
        worker = self._by_connection.get(connection)
        return None if worker is None else worker.session

    def bind(self, session: SessionId, link: Link) -> None:
        """Give a session its connection, and send what a lost one may have swallowed about the arena."""
        worker = self._workers.setdefault(session, Worker(session=session))
        if worker.link is not None:
            self.unbind(worker.link.connection)
        worker.link = link
        worker.announced = set(worker.taken)
        self._by_connection[link.connection] = worker
        for file, holders in self._forgetting.items():
            if session in holders:
                self._send_gone(worker, link, file)

    def unbind(self, connection: ConnectionId) -> SessionId | None:
        """Take note that a connection is closed; returns the session that had it."""
        worker = self._by_connection.pop(connection, None)
        if worker is None:
            return None
        worker.link = None
        return worker.session

    def gone(self, session: SessionId) -> None:
        """Take note that a session is over: it counts as having let go of the arena."""
        worker = self._workers.pop(session, None)
        if worker is None:
            return
        for file in tuple(worker.files):
            self._let_go(worker, file)
        link = worker.link
        if link is not None:
            self.unbind(link.connection)
            link.close()

    def grant(self, order: SendGrant) -> None:
        """Send frames, after the arena files that their contents are in."""
        worker = self._workers.get(order.session)
        if worker is None or worker.link is None:
            return
        for slot in order.slots:
            if slot.restore is not None:
                self._announce(worker, worker.link, slot.restore.file)
        worker.link.send(Grant(order, self._frames.fd_of, self._unsent))

    def recall(self, order: SendRecall) -> None:
        """Send the order to vacate slots, in packets of a size that fits."""
        worker = self._workers.get(order.session)
        if worker is None or worker.link is None:
            return
        for slot in order.slots:
            if slot.park is not None:
                self._announce(worker, worker.link, slot.park.file)
        for start in range(0, len(order.slots), RECALLED_PER_PACKET):
            slots = tuple(_on_wire(slot) for slot in order.slots[start : start + RECALLED_PER_PACKET])
            self._send(order.session, records.Recall(lease=order.lease, slots=slots))

    def copy(self, order: SendCopy) -> None:
        """Send the order to copy slots out, which is small enough for one packet."""
        worker = self._workers.get(order.session)
        if worker is None or worker.link is None:
            return
        for slot in order.slots:
            self._announce(worker, worker.link, slot.to.file)
        slots = tuple(
            records.CopySlot(slot=slot.slot, file=slot.to.file, offset_bytes=slot.to.offset_bytes)
            for slot in order.slots
        )
        self._send(order.session, records.Copy(order=order.order, lease=order.lease, slots=slots))

    def read_grant(self, order: SendReadGrant) -> None:
        """Send frames to a reader."""
        worker = self._workers.get(order.session)
        if worker is None or worker.link is None:
            return
        grant = ReadGrant(order, self._frames.fd_of)
        self._read_grants.setdefault(order.reader, []).append(grant)
        worker.link.send(grant)

    def close_reader(self, session: SessionId, reader: ReaderId) -> None:
        """Ask a reader to let go."""
        self._send(session, records.CloseReader(reader=reader))

    def end_reader(self, reader: ReaderId) -> None:
        """Send a reader that is no more nothing of what was not sent yet: its frames may be others' by then."""
        for grant in self._read_grants.pop(reader, ()):
            grant.end()

    def export_settled(self, session: SessionId, key: ExportKey) -> None:
        """Tell that what was sent is in use nowhere any more."""
        self._send(session, records.ExportSettled(key=key))

    def pause_order(self, session: SessionId, order: OrderId, tags: tuple[str, ...]) -> None:
        """Ask for gates to be closed."""
        self._send(session, records.PauseOrder(order=order, tags=tags))

    def pause_cancelled(self, session: SessionId, order: OrderId) -> None:
        """Ask for gates to be opened again."""
        self._send(session, records.PauseCancelled(order=order))

    def lease_state(self, session: SessionId, lease: int, paused: bool) -> None:
        """Tell the owner what its lease is now."""
        self._send(session, records.LeaseState(lease=lease, paused=int(paused)))

    def draining(self, session: SessionId) -> None:
        """Tell that the daemon is about to end."""
        self._send(session, records.Draining())

    def offer_arena(self, session: SessionId, file: ArenaFileId) -> None:
        """Send a file ahead of need, unless the process has it."""
        worker = self._workers.get(session)
        if worker is not None and worker.link is not None and file not in self._forgetting:
            self._announce(worker, worker.link, file)

    def forget_arena(self, file: ArenaFileId) -> None:
        """Have everybody who may have the file mapped let go of it, then have the arena destroy it."""
        holders = {worker.session for worker in self._workers.values() if file in worker.files}
        self._forgetting[file] = holders
        for session in tuple(holders):
            worker = self._workers[session]
            if worker.link is not None:
                self._send_gone(worker, worker.link, file)
        self._destroy_if_forgotten(file)

    def close_connection(self, connection: ConnectionId) -> None:
        """Close a connection that was replaced, or whose session is over."""
        worker = self._by_connection.get(connection)
        link = worker.link if worker is not None else None
        if link is not None:
            self.unbind(connection)
            link.close()

    def _send(self, session: SessionId, record: records.Record) -> None:
        worker = self._workers.get(session)
        if worker is not None and worker.link is not None:
            worker.link.send(records.encode(record))

    def _announce(self, worker: Worker, link: Link, file: ArenaFileId) -> None:
        """Send a file of the arena, unless the process has it."""
        fd = None if file in worker.announced else self._arena.fd_of(file)
        if fd is None:
            return
        worker.files.add(file)
        worker.announced.add(file)
        size_bytes = os.fstat(fd).st_size
        link.send(arena_file(file, size_bytes, self._arena.fd_of, partial(worker.taken.add, file)))

    def _send_gone(self, worker: Worker, link: Link, file: ArenaFileId) -> None:
        link.send(arena_gone(file, partial(self._let_go, worker, file)))

    def _let_go(self, worker: Worker, file: ArenaFileId) -> None:
        worker.files.discard(file)
        worker.taken.discard(file)
        worker.announced.discard(file)
        if file in self._forgetting:
            self._forgetting[file].discard(worker.session)
            self._destroy_if_forgotten(file)

    def _destroy_if_forgotten(self, file: ArenaFileId) -> None:
        if not self._forgetting[file]:
            del self._forgetting[file]
            self._arena.destroy(file)


def _on_wire(slot: RecalledSlot) -> records.RecallSlot:
    if slot.park is None:
        return records.RecallSlot(slot=slot.slot, flags=0, file=0, offset_bytes=0)
    return records.RecallSlot(
        slot=slot.slot, flags=records.SLOT_PARK, file=slot.park.file, offset_bytes=slot.park.offset_bytes
    )
