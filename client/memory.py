"""`Memory`: what a worker leases from its broker, as torch code sees it. Synchronous, thread-safe."""

import os
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar

from vrambroker.broker.core.errors import (
    BrokerError,
    BrokerUnavailable,
    InvalidArgument,
    NotQuiescent,
    WrongState,
)
from vrambroker.client import discovery, native
from vrambroker.client.callbacks import Callbacks
from vrambroker.client.hold import Hold

if TYPE_CHECKING:
    from types import ModuleType

    import torch

    from vrambroker.client.callbacks import PauseCallback, ResumeCallback
    from vrambroker.client.placing import Placeable
    from vrambroker.client.status import Status
    from vrambroker.client.tensors import Allocate

Contents = Literal["keep", "drop", "zero"]
Placed = TypeVar("Placed", bound="Placeable")

TIMEOUT_S = 10.0
TAGS_PER_CALL = 256


class _Tensors(Protocol):
    """What torch does with leases, on a kind of device."""

    @property
    def device(self) -> "torch.device": ...
    def region(self, lease: native.Lease, *, timeout_s: float) -> AbstractContextManager[None]: ...
    def allocator(self, lease: native.Lease, *, timeout_s: float) -> "Allocate": ...
    def graph_pool(self, lease: native.Lease) -> tuple[int, int]: ...
    def unleased(self) -> AbstractContextManager[None]: ...
    def fall_asleep(self) -> None: ...
    def wake(self) -> None: ...
    def before_pause(self, tags: tuple[str, ...]) -> None: ...
    def before_seal(self, tags: tuple[str, ...]) -> None: ...
    def wait_for_work(self) -> None: ...
    def close(self) -> None: ...


class Memory:
    """The memory that this process leases from one device's broker.

    Memory is leased under a *tag*. A tag is paused and resumed as a whole; its tensors keep their addresses throughout.
    Touching memory of a paused tag is a fault of the process: SIGSEGV on `host`, an illegal address on a GPU.

    Timeouts are in seconds; 0 means at once: only what is certain is waited for. On a GPU torch allocates, which knows of
    none: there an allocation waits for what is certain, up to ten seconds. Every method may raise `BrokerLost`
    (the daemon went away: what is resident stays usable), `WrongState` (closed, or in a child forked from the process
    that connected) and `InvalidArgument`; a method that raises has changed nothing.
    """

    def __init__(self, *, endpoint: discovery.Endpoint, client: native.Client) -> None:
        """For `connect` alone."""
        from vrambroker.client.rpc import Control

        self._endpoint = endpoint
        self._client = client
        self._info = client.info()
        self._closed = False
        self._leases: dict[tuple[str, str], native.Lease] = {}
        self._callbacks = Callbacks(client)
        # Made when torch is first needed; until then there is nothing of torch's here.
        self._torch: _Tensors | None = None
        self._torch_lock = threading.Lock()
        # How many pauses of the process's own memory are under way in this process.
        self._falling_asleep = 0
        self._sleep_lock = threading.Lock()
        self._control = Control(endpoint, token=self._token, attached=True)
        self._shared_read_only: set[str] = set()
        # So that what was sent can be received by whatever unpickles it, before anything else is done with torch here.
        if "torch" in sys.modules:
            self._travel()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<vrambroker Memory {self.name!r} on {self.device}{state}>"

    @property
    def name(self) -> str:
        """The session's name, as the daemon gave it: another than asked for if that was taken."""
        return self._info.name

    @property
    def device(self) -> str:
        """The device's id: `host:0`, or a GPU's UUID."""
        return self._endpoint.device

    @property
    def torch_device(self) -> "torch.device":
        """The device of leased tensors, as torch counts in this process. Raises `InvalidArgument` if torch has it not."""
        return self._tensors().device

    @property
    def capacity_bytes(self) -> int:
        """What the daemon lends of this device in all."""
        return self._info.capacity_bytes

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags used so far through this object, in order of first use; and those of the process's own memory."""
        return tuple(dict.fromkeys([*(tag for tag, _ in tuple(self._leases)), *self.process_tags]))

    @property
    def process_tags(self) -> tuple[str, ...]:
        """The tags of the process's own memory, that is of what it allocates outside of regions where `broker run --tag`
        has started it. A new one is taken while all of them are paused.
        """
        return self._client.process_tags() if native.is_preloaded() else ()

    def empty(
        self,
        shape: int | Sequence[int],
        *,
        dtype: "torch.dtype | None" = None,
        tag: str,
        contents: Contents = "keep",
        timeout: float = TIMEOUT_S,
    ) -> "torch.Tensor":
        """Return an uninitialised contiguous tensor in leased memory (under `zero` it reads as zero).

        `dtype` is torch's default unless given. On `host` its memory can't be resized, and goes back when torch drops
        the last tensor over it, in any state of the tag, also after `close`; on a GPU torch caches it until the tag's
        next pause. A tensor without elements has no memory.
        Raises `OutOfDeviceMemory` at once if idle memory can't cover it (on a GPU torch's own `OutOfMemoryError`, with
        a note), `WrongState` if the tag is paused or sealed.
        """
        import torch

        from vrambroker.client import tensors

        sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        lease, side = self._lease(tag, contents), self._tensors()
        allocate = side.allocator(lease, timeout_s=timeout)
        return tensors.empty(allocate, sizes, torch.get_default_dtype() if dtype is None else dtype, side.device)

    def place(
        self,
        what: Placed,
        tag: str,
        contents: Contents = "keep",
        *,
        grads: bool = False,
        timeout: float = TIMEOUT_S,
    ) -> Placed:
        """Move a module's parameters and buffers, or tensors (also in lists, tuples, dicts), to leased memory.

        It happens in place: every Parameter and tensor stays the same object with its values, strides, offset and
        `requires_grad`; those that shared a storage share the new one. Whole storages move. With `grads`, the gradients
        that are there move as well; later ones are wherever the backward pass makes them. Tensors over the same memory
        that were not given, such as an earlier `parameter.data` or a numpy view, stay over the old memory.
        Returns `what`. Raises `InvalidArgument` for a tensor without plain strided memory on this device, and what
        `empty` raises; then nothing has moved.
        """
        from vrambroker.client import placing

        lease, side = self._lease(tag, contents), self._tensors()
        allocate = side.allocator(lease, timeout_s=timeout)
        with lease.filling():
            placing.place(what, allocate, device=side.device, grads=grads)
            side.wait_for_work()
        return what

    @contextmanager
    def region(self, tag: str, contents: Contents = "keep", *, timeout: float = TIMEOUT_S) -> Generator[None]:
        """Lease what this thread's torch operators allocate in the block, under the tag; also a decorator.

        Of nested regions the innermost counts; other threads allocate as ever. On a GPU it covers what torch's
        allocator is asked for on that GPU, not what autograd's threads make; see `place`, and `graph_pool` for CUDA
        graphs. On `host` it covers the storages that operators make: parameters, results, and gradients of a backward
        pass begun in the block; not memory that torch did not allocate itself (numpy, `torch.load`, mapped files),
        `copy.deepcopy` of a plain tensor, and what has no plain strided memory; it can't be resized.
        Raises `WrongState` if the tag is paused or sealed. In the block, an operator that finds no room raises
        `OutOfDeviceMemory`, on a GPU torch's own `OutOfMemoryError` with a note that names the holders.
        """
        lease = self._lease(tag, contents)
        self._check_resident(tag, "allocating under it")
        with self._tensors().region(lease, timeout_s=timeout):
            yield

    def graph_pool(self, tag: str, contents: Contents = "keep") -> tuple[int, int]:
        """Return a pool for `torch.cuda.graph(graph, pool=…)`, whose memory is leased under the tag.

        Graphs that are given the same one share their memory, as torch has it. A graph replays as long as its tags are
        resident, whoever had their memory in between. Lives until `close`; what a graph has of it, as long as the graph.
        Memory that a capture doesn't get is torch's own error; it names the holders if the capture is in a region.
        Raises `WrongState` if the tag is paused or sealed, `InvalidArgument` on `host`.
        """
        lease = self._lease(tag, contents)
        self._check_resident(tag, "capturing under it")
        return self._tensors().graph_pool(lease)

    def pause(self, *tags: str, release: bool = False, discard: bool = False, timeout: float = TIMEOUT_S) -> None:
        """Let the broker take these tags' memory when somebody needs it (all of this object's tags, if none are named).

        At most 256 tags a call. Costs nothing until then. Waits for this process's work on a GPU; the caller has seen to it
        that no other thread gives it more. With `release`, returns when the memory has left. With `discard`, contents that
        would be kept take no host memory: what has left is zero afterwards, the rest is as it was. Pausing what is paused
        is no error, and changes nothing about its contents.
        Raises `NotQuiescent` if a `use` scope is open or a CUDA graph is being captured (in another thread, the capture
        fails as well), `OutOfHostMemory` if contents to be kept have no place, `WaitExpired` if they are paused, but have
        not left after `timeout`, `WrongState` for sealed contents that are to be discarded, `UnknownTag`.
        """
        named = tags or self.tags
        if named:
            with self._at_rest(named):
                self._client.pause(named, release=release, discard=discard, timeout_s=timeout)

    def resume(self, *tags: str, timeout: float = TIMEOUT_S) -> dict[str, bool]:
        """Bring these tags back, all or none (all of this object's tags, if none are named; at most 256 a call).

        Returns, per tag, whether its pages are the same as before the pause, so that registrations with NCCL or a NIC
        still hold. Waits for room up to `timeout`. Resuming what is resident is no error.
        Raises `OutOfDeviceMemory` or `WaitExpired`, with the holders, and `UnknownTag`.
        """
        named = tags or self.tags
        resumed = self._client.resume(named, timeout_s=timeout) if named else {}
        self._wake()
        return resumed

    def trim(self, *tags: str) -> None:
        """Give back what torch caches of these tags' memory (of all of this object's tags, if none are named).

        A pause does so, too. On a GPU that empties torch's other caches as well; on `host` torch caches nothing.
        Raises `NotQuiescent` while this thread captures a CUDA graph.
        """
        if self._torch is not None:
            self._torch.before_pause(tags or self.tags)

    def is_paused(self, tag: str) -> bool:
        """Whether the tag is paused, by whomever. Asks the daemon for nothing. Raises `UnknownTag`."""
        return self._client.is_paused(tag)

    def allocated_bytes(self, tag: str) -> int:
        """Return what is allocated under a tag, paused or not; on a GPU with what torch caches of it. Raises `UnknownTag`."""
        return self._client.allocated_bytes(tag)

    def unleased(self) -> AbstractContextManager[None]:
        """Return a block in which nothing that this thread allocates is leased, also where the process's own memory is."""
        return self._tensors().unleased()

    def read_paused(
        self, tensor: "torch.Tensor", *, zero_copy: bool = False, timeout: float = TIMEOUT_S
    ) -> "torch.Tensor | None":
        """Return what a leased, contiguous tensor of a paused tag holds, as a CPU tensor; None if its tag is not paused.

        The tag's memory leaves the device first, as by `pause(release=True)`. With `zero_copy` the result lies over the
        broker's own host memory: it is read-only (who writes to it has a SIGSEGV), and holds these contents until the tag
        is resumed; after that it is readable still, and means nothing. It is not pinned. What is on a disk comes back for
        the time that it takes to copy it, also with `zero_copy`.
        Raises `InvalidArgument` for a tensor that is not leased or not contiguous, `WrongState` if its contents are not
        kept, or if it was resumed meanwhile, and what `pause` and, from a disk, `resume` do.
        """
        from vrambroker.client import reading

        def is_spilled(tag: str) -> bool:
            session = self._control.status().session(self.name)
            return session is not None and any(one.tag == tag and one.spill_bytes for one in session.tags)

        return reading.read_paused(self._client, tensor, is_spilled=is_spilled, zero_copy=zero_copy, timeout_s=timeout)

    def seal(self, *tags: str, timeout: float = TIMEOUT_S) -> None:
        """Make these tags' memory read-only, so that their contents provably don't change.

        What is sealed is copied out once at most: its copy on the host stays while it is resident, until other contents
        need the room, and the next time its memory is taken without a copy. Who writes to it has a fault: SIGSEGV on
        `host`, a dead CUDA context on a GPU. Nothing more is allocated under a sealed tag; it is paused, resumed, used and
        freed as ever. Waits for this process's work on a GPU, as `pause` does. Sealing what is sealed is no error, and
        paused tags may be sealed.
        Raises `InvalidArgument` for contents that are not kept, `UnknownTag` where nothing is leased, `NotQuiescent` as
        `pause` does, `WrongState` if a region is open on a tag, or a CUDA graph's memory lies under it (a replay writes).
        After `BrokerLost` or `WaitExpired` the memory is read-only, as the broker may have heard it: seal or unseal again.
        """
        self._require_named(tags, "seal")
        if self._torch is not None:
            self._torch.before_seal(tags)
        self._client.seal(tags, timeout_s=timeout)

    def unseal(self, *tags: str, timeout: float = TIMEOUT_S) -> None:
        """Make these tags' memory writable again; their copies on the host are given up. In any state, and as often as
        you like. After an error they are still read-only.
        """
        self._require_named(tags, "unseal")
        self._client.unseal(tags, timeout_s=timeout)

    @contextmanager
    def use(
        self,
        *tags: str,
        name: str = "use",
        if_paused: Literal["raise", "resume"] = "raise",
        timeout: float = TIMEOUT_S,
    ) -> Generator[None]:
        """Hold these tags resident in the block (all of this object's tags, if none are named).

        A session that has such scopes can be paused from outside: that waits until no scope on the tag is open. Scopes
        nest, and any number of threads may be in them. `name` is what an operator is told while it waits. On a GPU the
        end of the block waits for this thread's current stream: work on other streams must have been joined to it.
        If a tag is paused or about to be, raises `WrongState`; with `if_paused="resume"` all of them are resumed first,
        within `timeout`, and it raises what `resume` does. Then nothing is entered.
        """
        if if_paused not in ("raise", "resume"):
            raise InvalidArgument(message=f"if_paused {if_paused!r}: expected raise or resume", argument="if_paused")
        named = tags or self.tags
        if not named:
            yield
            return
        if if_paused == "resume":
            self._client.use_enter_resuming(named, name, timeout_s=timeout)
        else:
            self._client.use_enter(named, name)
        try:
            yield
        finally:
            try:
                if self._torch is not None:
                    self._torch.wait_for_work()
            finally:
                self._client.use_exit(named, name)

    def prioritize(self, *tags: str, priority: int) -> None:
        """Set these tags' priority (of all of this object's tags, if none are named): -100 to 100, 0 unless set.

        Of resumes that wait for room, the one of higher priority goes first; a step is worth ten seconds of waiting. Of
        idle memory that others need, what has lower priority goes first. Raises `UnknownTag`.
        """
        named = tags or self.tags
        if named:
            self._check_open()
            self._control.prioritize(self.name, named, priority)

    def hold(self, size_bytes: int, *, timeout: float = TIMEOUT_S) -> "Hold":
        """Set capacity aside for what this process leases and resumes later, under any tag: that uses it up.

        Nobody else gets it, and it is free on the device meanwhile. Waits for room up to `timeout`. Returns what gives the
        rest of it back: at the end of a `with` block, or by `release`; the session's end does as well.
        Raises `OutOfDeviceMemory` or `WaitExpired`, with the holders, `InvalidArgument` for more than the device has.
        """
        self._check_open()
        return Hold(self._control, self._control.hold(self.name, size_bytes, timeout_s=timeout))

    def enter(self, phase: str, *, timeout: float = TIMEOUT_S) -> dict[str, bool]:
        """Enter a phase of the broker's plan, in all sessions, as one change; returns what `resume` does, for this
        process's tags that came with it.

        This process's tags that leave are paused first, as by `pause`; other sessions' are waited for up to `timeout`:
        until no `use` scope is open, or, if a session has no scopes, until it pauses them itself. Then all that the phase
        lists comes, and opens together. If that fails, all is as it was; dropped contents stay dropped.
        Raises `UnknownPhase`, `NotQuiescent` with the session and scope, `OutOfDeviceMemory`, `OutOfHostMemory`,
        `WaitExpired`, and `WrongState` while another phase is entered.
        """
        self._check_open()
        aside: list[str] = []
        try:
            self._stand_aside(phase, timeout, aside)
            entered = self._control.enter(phase, timeout_s=timeout)
        except BrokerError as error:
            self._come_back(aside, timeout, error)
            raise
        own = f"{self.name}/"
        resumed = {name.removeprefix(own): same for name, same in entered.resumed.items() if name.startswith(own)}
        for some in _batches(tuple(resumed)):
            # The answer may come before the agent has heard of it.
            self._client.resume(some, timeout_s=timeout)
        self._wake()
        return resumed

    @contextmanager
    def _at_rest(self, tags: tuple[str, ...]) -> Generator[None]:
        """Have torch hand out nothing of these tags; if they are not paused in the block after all, it may again."""
        if self._torch is not None:
            self._travel().collect(self)
            self._torch.before_pause(tags)
        if set(tags).isdisjoint(self.process_tags):
            yield
            return
        with self._sleep_lock:
            self._falling_asleep += 1
        try:
            self._client.divert_process(elsewhere=True)
            self._tensors().fall_asleep()
            yield
        finally:
            with self._sleep_lock:
                self._falling_asleep -= 1
            self._wake()

    def _wake(self) -> None:
        """Have the process allocate in its own memory again, once none of it is paused."""
        if not native.is_preloaded():
            return
        with self._sleep_lock:
            # Another thread's pause may be about to take effect.
            if self._falling_asleep or any(self._client.is_paused(tag) for tag in self.process_tags):
                return
            if self._torch is not None:
                self._torch.wake()
            self._client.divert_process(elsewhere=False)

    def _stand_aside(self, phase: str, timeout: float, paused: list[str]) -> None:
        """Pause this process's own tags that leave: nobody else knows when a session without scopes is quiet. What is in
        a scope is left to the broker, which waits for it.
        """
        leaving = self._control.status().leaving(self.name, phase)
        if leaving:
            with self._at_rest(leaving):
                for tag in leaving:
                    with suppress(NotQuiescent):
                        self._client.pause((tag,), release=False, timeout_s=timeout)
                        paused.append(tag)

    def _come_back(self, tags: list[str], timeout: float, error: BrokerError) -> None:
        for some in _batches(tuple(tags)):
            try:
                self._client.resume(some, timeout_s=timeout)
            except BrokerError as late:
                error.add_note(f"what was paused for it did not come back: {late}")
        self._wake()

    def share_read_only(self, *tags: str) -> None:
        """Have tensors of these tags that are sent to other processes from now on be read-only there.

        Who writes to them has a fault: SIGSEGV on `host`, a dead CUDA context on a GPU. Without this, who receives a leased
        tensor writes to the sender's own memory, as torch has it; but for tags that are sealed.
        """
        self._require_named(tags, "share read-only")
        for tag in tags:
            native.check_label(tag, "tag")
        self._shared_read_only.update(tags)

    def is_shared_read_only(self, tag: str) -> bool:
        """Whether tensors of this tag are sent read-only by `share_read_only`."""
        return tag in self._shared_read_only

    def forget_sent(self, *, timeout: float = TIMEOUT_S) -> None:
        """Let go of what was sent to other processes and nobody has received: it can't be received any more.

        A leased tensor that is sent is kept alive until it was received as often as it was sent, and what was received is
        in use nowhere any more; that is looked at whenever something is sent, at a pause, and here.
        """
        self._travel().forget_sent(self, timeout_s=timeout)

    def on_pause(self, callback: "PauseCallback", *tags: str) -> None:
        """Have `callback(tags)` run when somebody else asks for a pause of these tags (of any, if none are named).

        It brings the engine to rest, in a thread of this library, one callback after the other; it may use the tags and
        open `use` scopes on them. When it returns (None or True), the pause takes effect, once this process's work on a
        GPU is done and no scope is open any more. If it returns False, or raises `Decline("why")` or anything else,
        whoever asked gets `NotQuiescent` with the reason; their deadline holds meanwhile, and then the error names the
        callback. If the pause comes to nothing after all, `on_resume` callbacks are told so. A tag with a callback can
        be paused from outside without `use` scopes. Callbacks stay until `close`. Not called for pauses of this object.
        """
        self._callbacks.on_pause(callback, tags)

    def on_resume(self, callback: "ResumeCallback", *tags: str) -> None:
        """Have `callback({tag: same_pages})` run when one of these tags is back that somebody else has resumed.

        Called for each tag by itself. `same_pages` is as `resume` tells it. Not called for resumes of this object.
        """
        self._callbacks.on_resume(callback, tags)

    def status(self) -> "Status":
        """Return what the broker knows of everybody: device, sessions, queue, host memory."""
        self._check_open()
        return self._control.status()

    def mark(self, label: str) -> None:
        """Write a stage's name into the broker's event stream, for the timeline."""
        self._check_open()
        self._control.mark(label)

    def stats(self) -> native.Stats:
        """Return the native client's own books; asks the daemon for nothing."""
        return self._client.stats()

    def is_lost(self, *, timeout: float = 0) -> bool:
        """Whether the daemon went away, or was started again: what is resident stays usable, and nothing else will do.

        Then `connect` attaches this process anew, as another `Memory`. While the daemon is being looked for, this waits
        for up to `timeout`, and is true without an answer.
        """
        return self._client.is_lost(timeout_s=timeout)

    def close(self) -> None:
        """End the use of this object, as often as `connect` returned it.

        Tensors that are alive stay valid and resident as they were; their memory goes back as they die (on a GPU, as torch
        next empties its caches), and the session ends with the last. Closing too often, or in a forked child, is no error.
        """
        if _attachments.release(self):
            self._closed = True
            if self._torch is not None:
                self._travel().leave(self)
                self._torch.close()
            self._control.close()
            self._client.close()
            self._callbacks.join()

    def __enter__(self) -> Self:
        """Return itself; the end of the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lease(self, tag: str, contents: str) -> native.Lease:
        # Opened anew each time, though it is the same lease: a closed client and a forked child are refused here.
        lease = self._client.open_lease(tag, contents)
        return self._leases.setdefault((tag, contents), lease)

    def _require_named(self, tags: tuple[str, ...], what: str) -> None:
        if not tags:
            raise InvalidArgument(message=f"name the tags to {what}", argument="tags")

    def _check_resident(self, tag: str, what_for: str) -> None:
        if self._client.is_paused(tag):
            raise WrongState(
                message=f"tag {tag} is paused: resume it before {what_for}",
                session=self.name,
                tag=tag,
                state="paused",
            )
        if self._client.is_sealed(tag):
            raise WrongState(
                message=f"tag {tag} is sealed: unseal it before {what_for}",
                session=self.name,
                tag=tag,
                state="sealed",
            )

    def _tensors(self) -> _Tensors:
        with self._torch_lock:
            if self._torch is None:
                self._torch = self._make_tensors()
                self._travel()
            return self._torch

    def _travel(self) -> "ModuleType":
        """Have torch send and receive leased tensors in this process, and return what does that."""
        from vrambroker.client import sharing

        sharing.install()
        return sharing

    def native_client(self) -> native.Client:
        """Return the native client, for the other modules of this package."""
        return self._client

    @property
    def timeout_s(self) -> float:
        """How long a call waits whose caller can't say so."""
        return TIMEOUT_S

    def _make_tensors(self) -> _Tensors:
        if discovery.is_host(self.device):
            from vrambroker.client.torch_host import HostTensors

            return HostTensors()
        from vrambroker.client.torch_cuda import CudaTensors

        def room_bytes() -> int:
            return self.capacity_bytes - self._client.stats().mapped_bytes

        return CudaTensors(self.device, room_bytes=room_bytes)

    def _token(self) -> bytes:
        return self._info.token

    def _check_open(self) -> None:
        # The control plane would answer anybody; the native client knows whether this object is closed or not ours.
        self._client.info()
        if self._closed:
            raise WrongState(message=f"{self!r} is closed: connect again", session=self.name, state="closed")


def _batches(tags: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield no more tags at a time than a call may name."""
    return (tags[begin : begin + TAGS_PER_CALL] for begin in range(0, len(tags), TAGS_PER_CALL))


@dataclass(slots=True, kw_only=True)
class _Attachment:
    """One Memory of this process, under the name that was asked for, and how often `connect` returned it."""

    memory: Memory
    asked_name: str
    users: int = 1


class _Attachments:
    """What this process is attached to: one a device, and those whose daemon went away until they are closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In the order in which they were made: a device's last one is the one in use.
        self._all: list[_Attachment] = []
        os.register_at_fork(after_in_child=self._forget)

    def attach(self, name: str, device: str | None, timeout_s: float) -> Memory:
        endpoint = discovery.find(device)
        with self._lock:
            there = next((one for one in reversed(self._all) if one.memory.device == endpoint.device), None)
            if there is None or there.memory.is_lost(timeout=timeout_s):
                memory = Memory(endpoint=endpoint, client=_open_client(endpoint, name, timeout_s))
                there = _Attachment(memory=memory, asked_name=name, users=0)
                self._all.append(there)
            if there.asked_name != name:
                raise _attached_otherwise(there, name)
            there.users += 1
            return there.memory

    def release(self, memory: Memory) -> bool:
        """Whether this was the last use of a Memory of this process."""
        with self._lock:
            there = next((one for one in self._all if one.memory is memory), None)
            if there is None:
                return False
            there.users -= 1
            if there.users == 0:
                self._all.remove(there)
            return there.users == 0

    def memories(self) -> tuple[Memory, ...]:
        """Return what this process is attached to, latest first."""
        with self._lock:
            return tuple(one.memory for one in reversed(self._all))

    def _forget(self) -> None:
        # A lock held by another thread at the fork would stay locked here, and the parent's sessions are not ours.
        self._lock = threading.Lock()
        self._all = []


_attachments = _Attachments()


def attached_memories() -> tuple[Memory, ...]:
    """Return what this process is attached to just now, latest first."""
    return _attachments.memories()


def _attached_otherwise(there: _Attachment, name: str) -> WrongState:
    return WrongState(
        message=f"this process is attached to {there.memory.device} as {there.asked_name!r} already: "
        f"it can't be {name!r} as well",
        session=there.asked_name,
        state="attached",
    )


def _open_client(endpoint: discovery.Endpoint, name: str, timeout_s: float) -> native.Client:
    # Asking for the installed version costs as much as the rest of this import.
    from vrambroker.broker.version import VERSION

    # A library that is not there is another matter than a daemon that is not, and says so by itself.
    native.library()
    before = native.Client.attached(str(endpoint.handle_socket)) if native.is_preloaded() else None
    if before is not None and not before.is_lost(timeout_s=timeout_s):
        return before
    try:
        return native.Client(
            socket_path=str(endpoint.handle_socket),
            name=name,
            device="host" if discovery.is_host(endpoint.device) else "cuda",
            version=VERSION,
            timeout_s=timeout_s,
        )
    except BrokerUnavailable as error:
        raise discovery.unreachable(endpoint, error.message) from error


def connect(name: str, device: str | None = None, *, timeout: float = TIMEOUT_S) -> Memory:
    """Attach this process, as `name`, to the broker of a device; `Memory.close` ends it.

    `device`: `host` (= `host:0`), `host:N`, `cuda:N`, a GPU's UUID; None for the only one there, or torch's current
    GPU. A process is one session a device: connecting again with the same name returns the same object, to be closed as
    often; unless its daemon was lost, then it attaches anew, under any name.
    Raises `BrokerUnavailable` (no daemon: says how to start one), `VersionMismatch`, `InvalidArgument`, and
    `WrongState` for another name than this process has on that device.
    """
    return _attachments.attach(name, device, timeout)
