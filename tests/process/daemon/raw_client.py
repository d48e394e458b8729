"""A client of the handle plane in plain Python: an agent thread that maps frames, parks and restores.

It speaks `records.py` over a real socket and shares nothing with the native client, so that each is a check on the
other. Every record sent or received is counted and shown to `on_message`, where a test can kill the process; records of
the types in `held` are kept back.
"""

import array
import mmap
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vrambroker.broker.adapters import records

DEADLINE_S = 20.0
NO_TOKEN = bytes(16)
KEEP, DROP, ZERO = 1, 2, 3


@dataclass
class Slot:
    size_bytes: int
    memory: mmap.mmap | None = None


@dataclass
class Lease:
    tag: str
    contents: int
    paused: bool = False
    slots: dict[int, Slot] = field(default_factory=dict[int, Slot])

    @property
    def mapped_bytes(self) -> int:
        return sum(slot.size_bytes for slot in self.slots.values() if slot.memory is not None)


@dataclass(frozen=True)
class Received:
    record: records.Record
    fds: tuple[int, ...]


class Refused(Exception):
    """The daemon's `ERROR`; `detail` is a serialized `ErrorDetail`."""

    def __init__(self, error: records.Error) -> None:
        super().__init__(f"{error.error}: {error.message}")
        self.name = error.error
        self.detail = error.detail


class Gone(Exception):
    """The daemon closed the connection."""


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.settimeout(DEADLINE_S)
    connection.connect(str(path))
    return connection


def receive(connection: socket.socket) -> Received:
    """Return the next record with its fds, which are the caller's; raises `Gone`."""
    room = socket.CMSG_SPACE(4 * records.FDS_PER_PACKET_MAX)
    try:
        data, control, flags, _ = connection.recvmsg(records.PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    except (ConnectionResetError, BrokenPipeError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise Gone from error
    if not data:
        raise Gone
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    fds = array.array("i")
    for level, kind, rights in control:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(rights)
    return Received(records.decode(data, len(fds), records.FROM_DAEMON), tuple(fds))


def say_hello(
    connection: socket.socket, name: str, *, role: int = records.ROLE_WORKER, token: bytes = NO_TOKEN
) -> records.Welcome:
    """Return the answer to a `HELLO`; raises `Refused`."""
    hello = records.Hello(protocol=records.PROTOCOL, role=role, token=token, name=name, version="test")
    connection.send(records.encode(hello))
    answer = receive(connection).record
    if isinstance(answer, records.Error):
        raise Refused(answer)
    assert isinstance(answer, records.Welcome)
    return answer


class RawClient:
    """A session. Public methods are for the test's thread; `_obey` and below run on the agent's."""

    def __init__(
        self,
        path: Path,
        name: str = "worker",
        *,
        token: bytes = NO_TOKEN,
        on_message: Callable[[records.Record, int], None] = lambda record, count: None,
    ) -> None:
        self.path = path
        self.name = name
        self.leases: dict[int, Lease] = {}
        self.arena: dict[int, mmap.mmap] = {}
        self.scopes: dict[str, str] = {}
        self.held: set[type[records.Record]] = set()
        self.kept_back: deque[Received] = deque()
        self.seen: list[records.Record] = []
        self.read_words: list[int] = []
        self.draining = False
        self.closed = False
        self.messages = 0
        self._on_message = on_message
        self._answers: dict[int, records.Done | records.Error] = {}
        self._requests = 0
        self._changed = threading.Condition()
        self._socket = connect(path)
        self.welcome = self._greet(token)
        self._start()

    @property
    def token(self) -> bytes:
        return self.welcome.token

    def reconnect(self) -> None:
        """Connect anew with the session's token, as if the old connection had been lost."""
        old, agent = self._socket, self._agent
        self._socket = connect(self.path)
        self.welcome = self._greet(self.token)
        agent.join(DEADLINE_S)
        old.close()
        self.closed = False
        self._start()

    def drop_connection(self) -> None:
        """Lose the connection; the process lives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._agent.join(DEADLINE_S)
        self._socket.close()

    def ask(self, request: Callable[[int], records.Record], number: int | None = None) -> records.Done:
        """Send a request under the next number (or a given one) and return its `DONE`; raises `Refused` or `Gone`."""
        return self.answer(self.begin(request, number))

    def begin(self, request: Callable[[int], records.Record], number: int | None = None) -> int:
        """Send a request without waiting; returns its number."""
        if number is None:
            self._requests += 1
            number = self._requests
        with self._changed:
            self._answers.pop(number, None)
        self.send(request(number))
        return number

    def answer(self, number: int) -> records.Done:
        """Wait for the answer to a request."""
        self.wait_for(lambda: number in self._answers or self.closed)
        answer = self._answers.get(number)
        if answer is None:
            raise Gone
        if isinstance(answer, records.Error):
            raise Refused(answer)
        return answer

    def wait_for(self, claim: Callable[[], bool]) -> None:
        """Wait until a claim about this client holds."""
        with self._changed:
            assert self._changed.wait_for(claim, DEADLINE_S), f"never came true; seen: {self.seen[-5:]}"

    def lease(self, tag: str, size_bytes: int, contents: int = KEEP, timeout_ms: int = 0) -> int:
        def request(number: int) -> records.Record:
            return records.Lease(
                request=number, contents=contents, size_bytes=size_bytes, timeout_ms=timeout_ms, tag=tag
            )

        return self.ask(request).lease

    def pause(self, *tags: str, release: bool = False) -> None:
        self.ask(lambda number: records.Pause(request=number, release=int(release), discard=0, timeout_ms=0, tags=tags))

    def resume(self, *tags: str, timeout_ms: int = 0) -> dict[str, bool]:
        """Return, for each tag, whether its pages are the same."""
        done = self.ask(lambda number: records.Resume(request=number, timeout_ms=timeout_ms, tags=tags))
        return {one.tag: bool(one.same_pages) for one in done.leases}

    def claim(self, claim: int) -> int:
        return self.ask(lambda number: records.Claim(request=number, claim=claim)).lease

    def give_back(self, lease: int, *slots: int) -> None:
        """Unmap slots (all of the lease, if none are named) and return them."""
        held = self.leases[lease].slots
        for slot in slots or tuple(held):
            _unmap(held.pop(slot))
        if not held:
            del self.leases[lease]
        self.ask(lambda number: records.Return(request=number, lease=lease, slots=slots))

    def bye(self) -> None:
        """End the session; its memory is let go of first."""
        for lease in self.leases.values():
            for slot in lease.slots.values():
                _unmap(slot)
        self.ask(lambda number: records.Bye(request=number))
        self.close()

    def close(self) -> None:
        """Drop everything; the session stays until the process ends."""
        self.drop_connection()
        for held in self.arena.values():
            held.close()
        for lease in self.leases.values():
            for slot in lease.slots.values():
                _unmap(slot)

    def fill(self, lease: int, seed: int) -> None:
        """Write a pattern that no other seed or slot has."""
        for number, slot in self.leases[lease].slots.items():
            assert slot.memory is not None
            _write_pattern(slot.memory, slot.size_bytes, seed + number)

    def first_words(self, lease: int) -> list[int]:
        """Return what each slot begins with, in the order of slots."""
        held = sorted(self.leases[lease].slots.items())
        return [_WORD.unpack_from(slot.memory)[0] for _, slot in held if slot.memory is not None]

    def intact(self, lease: int, seed: int) -> bool:
        """Tell whether every slot is mapped and has the pattern."""
        return all(
            slot.memory is not None and _has_pattern(slot.memory, slot.size_bytes, seed + number)
            for number, slot in self.leases[lease].slots.items()
        )

    def send(self, record: records.Record) -> None:
        # Before it leaves: the agent may have an answer before this thread goes on.
        self.seen.append(record)
        try:
            self._socket.send(records.encode(record))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error
        self._count(record)

    def _receive(self, connection: socket.socket) -> Received:
        received = receive(connection)
        self.seen.append(received.record)
        self._count(received.record)
        return received

    def _greet(self, token: bytes) -> records.Welcome:
        hello = records.Hello(
            protocol=records.PROTOCOL, role=records.ROLE_WORKER, token=token, name=self.name, version="test"
        )
        self.send(hello)
        answer = self._receive(self._socket).record
        if isinstance(answer, records.Error):
            self._socket.close()
            raise Refused(answer)
        assert isinstance(answer, records.Welcome)
        return answer

    def _start(self) -> None:
        self._socket.settimeout(None)
        self._agent = threading.Thread(target=self._run, args=(self._socket,), name=f"agent {self.name}", daemon=True)
        self._agent.start()

    def _run(self, connection: socket.socket) -> None:
        while True:
            try:
                received = self._receive(connection)
                if type(received.record) in self.held:
                    self.kept_back.append(received)
                else:
                    self._obey(received)
            except Gone:
                break
            finally:
                with self._changed:
                    self._changed.notify_all()
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _count(self, record: records.Record) -> None:
        self.messages += 1
        self._on_message(record, self.messages)

    def _obey(self, received: Received) -> None:
        match received.record:
            case records.Grant() as grant:
                self._map(grant, received.fds)
            case records.ArenaFile() as file:
                self._map_arena(file, received.fds[0])
            case records.ArenaGone() as gone:
                held = self.arena.pop(gone.file, None)
                if held is not None:
                    held.close()
                self.send(records.Taken(batch=gone.batch))
            case records.ReadGrant() as grant:
                self._look_at(grant, received.fds)
            case records.Recall() as recall:
                self._vacate(recall)
            case records.PauseOrder() as order:
                self._close_gates(order)
            case records.LeaseState() as state if state.lease in self.leases:
                self.leases[state.lease].paused = bool(state.paused)
            case records.Draining():
                self.draining = True
            case records.Done() | records.Error() as answer:
                self._answers[answer.request] = answer
            case _:
                pass

    def _map(self, grant: records.Grant, fds: tuple[int, ...]) -> None:
        lease = self.leases.setdefault(grant.lease, Lease(tag=grant.tag, contents=grant.contents))
        for told, fd in zip(grant.slots, fds, strict=True):
            slot = lease.slots.setdefault(told.slot, Slot(size_bytes=told.size_bytes))
            if slot.memory is None:
                slot.memory = _import(fd, told.size_bytes)
                self._bring_contents(lease, slot.memory, told)
            _close(fd)
        self.send(records.Taken(batch=grant.batch))
        self.send(records.Arrived(lease=grant.lease, slots=tuple(told.slot for told in grant.slots), failure=""))

    def _look_at(self, grant: records.ReadGrant, fds: tuple[int, ...]) -> None:
        """Map what another session has sent, note each slot's first word, and let go of it."""
        for told, fd in zip(grant.slots, fds, strict=True):
            memory = _import(fd, told.size_bytes)
            self.read_words.append(_WORD.unpack_from(memory)[0])
            memory.close()
            _close(fd)
        self.send(records.Taken(batch=grant.batch))

    def _bring_contents(self, lease: Lease, memory: mmap.mmap, told: records.GrantSlot) -> None:
        if told.flags & records.SLOT_RESTORE:
            start = told.offset_bytes
            memory[:] = self.arena[told.file][start : start + told.size_bytes]
        elif told.flags & records.SLOT_DIRTY and lease.contents == ZERO:
            memory[:] = bytes(told.size_bytes)

    def _map_arena(self, file: records.ArenaFile, fd: int) -> None:
        if file.file not in self.arena:
            self.arena[file.file] = _import(fd, file.size_bytes)
        _close(fd)
        self.send(records.Taken(batch=file.batch))

    def _vacate(self, recall: records.Recall) -> None:
        lease = self.leases.get(recall.lease)
        if lease is None:
            return
        for told in recall.slots:
            slot = lease.slots[told.slot]
            if slot.memory is not None and told.flags & records.SLOT_PARK:
                start = told.offset_bytes
                self.arena[told.file][start : start + slot.size_bytes] = slot.memory[:]
            _unmap(slot)
        self.send(records.Left(lease=recall.lease, slots=tuple(told.slot for told in recall.slots), failure=""))

    def _close_gates(self, order: records.PauseOrder) -> None:
        """Answer by what `scopes` says of the tags: "quiet", or the name of a scope in use; nothing: no scopes."""
        for tag in order.tags:
            scope = self.scopes.get(tag)
            if scope is None:
                self.send(records.Busy(order=order.order, final=1, tag=tag, scope=""))
                return
            if scope != "quiet":
                self.send(records.Busy(order=order.order, final=0, tag=tag, scope=scope))
                return
        self.send(records.Quiet(order=order.order))


def _import(fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(fd, size_bytes)


def _close(fd: int) -> None:
    socket.close(fd)


def _unmap(slot: Slot) -> None:
    if slot.memory is not None:
        slot.memory.close()
        slot.memory = None


_WORD = struct.Struct("<Q")
_STRIDE_BYTES = 4096


def _write_pattern(memory: mmap.mmap, size_bytes: int, seed: int) -> None:
    for at in range(0, size_bytes, _STRIDE_BYTES):
        _WORD.pack_into(memory, at, seed * 1_000_003 + at)


def _has_pattern(memory: mmap.mmap, size_bytes: int, seed: int) -> bool:
    return all(_WORD.unpack_from(memory, at)[0] == seed * 1_000_003 + at for at in range(0, size_bytes, _STRIDE_BYTES))
