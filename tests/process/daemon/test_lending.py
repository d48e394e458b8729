"""The life of a lease over the real sockets: lend, pause, recall, park, restore, return."""

import pytest

from tests.process.daemon.conftest import StartDaemon
from tests.process.daemon.harness import DEADLINE_S, MIB, Daemon, typed_errors
from tests.process.daemon.raw_client import DROP, KEEP, ZERO, Refused
from vrambroker.broker.adapters import records
from vrambroker.broker.core.errors import UnknownSession
from vrambroker.v1 import broker_pb2 as v1

CAPACITY_BYTES = 64 * MIB


def _everything_is_free(status: v1.Status) -> bool:
    return status.device.free_bytes == status.device.capacity_bytes


def test_a_session_is_welcomed_with_what_it_needs(shared: Daemon) -> None:
    client = shared.client("trainer")
    welcome = client.welcome
    assert (welcome.name, welcome.device, welcome.capacity_bytes) == ("trainer", shared.device, CAPACITY_BYTES)
    assert welcome.session > 0
    assert any(welcome.token)
    assert welcome.frame_sizes_bytes[0] == 2 * MIB
    assert shared.client("trainer").welcome.name == "trainer-2"


def test_lease_and_return(shared: Daemon) -> None:
    client = shared.client("trainer")
    lease = client.lease("weights", 40 * MIB)
    assert client.leases[lease].mapped_bytes == 40 * MIB
    client.fill(lease, 1)
    status = shared.operator.status()
    assert status.device.lent_bytes == 40 * MIB
    (session,) = status.sessions
    (tag,) = session.tags
    assert (session.name, tag.tag, tag.state, tag.device_bytes) == (
        "trainer",
        "weights",
        v1.LEASE_STATE_RESIDENT,
        40 * MIB,
    )
    slot = next(iter(client.leases[lease].slots))
    size_bytes = client.leases[lease].slots[slot].size_bytes
    client.give_back(lease, slot)
    assert shared.operator.status().device.lent_bytes == 40 * MIB - size_bytes
    client.give_back(lease)
    shared.operator.wait_until(_everything_is_free)


def test_many_frames_come_in_small_batches(start_daemon: StartDaemon) -> None:
    client = start_daemon(capacity="96MiB").client()
    lease = client.lease("weights", 94 * MIB)
    grants = [record for record in client.seen if isinstance(record, records.Grant)]
    assert [len(grant.slots) for grant in grants] == [16, 1]
    assert client.leases[lease].mapped_bytes == 94 * MIB


def test_pause_costs_nothing_until_somebody_needs_the_room(shared: Daemon) -> None:
    client = shared.client()
    lease = client.lease("weights", 40 * MIB)
    client.fill(lease, 1)
    client.pause("weights")
    assert client.leases[lease].paused
    assert client.intact(lease, 1)
    (session,) = shared.operator.status().sessions
    assert session.tags[0].state == v1.LEASE_STATE_IDLE
    assert client.resume("weights") == {"weights": True}
    assert client.intact(lease, 1)
    assert not [record for record in client.seen if isinstance(record, records.Recall)]


def test_contents_come_back_through_the_arena(shared: Daemon) -> None:
    trainer, rollout = shared.client("trainer"), shared.client("rollout")
    weights = trainer.lease("weights", 40 * MIB)
    trainer.fill(weights, 1)
    trainer.pause("weights")
    cache = rollout.lease("cache", 48 * MIB, DROP)
    rollout.fill(cache, 1_000)
    assert trainer.leases[weights].mapped_bytes < 40 * MIB
    status = shared.operator.status()
    assert status.device.lent_bytes <= CAPACITY_BYTES
    assert status.host.used_bytes > 0
    rollout.pause("cache")
    assert trainer.resume("weights", timeout_ms=10_000) == {"weights": False}
    assert trainer.intact(weights, 1)
    assert rollout.leases[cache].mapped_bytes <= CAPACITY_BYTES - 40 * MIB
    trainer.pause("weights")
    assert rollout.resume("cache", timeout_ms=10_000) == {"cache": False}
    assert rollout.leases[cache].mapped_bytes == 48 * MIB


def test_zeroed_contents_are_zero_after_they_were_away(shared: Daemon) -> None:
    first, second = shared.client("first"), shared.client("second")
    lease = first.lease("scratch", 64 * MIB, ZERO)
    first.fill(lease, 1)
    first.pause("scratch", release=True)
    assert first.leases[lease].mapped_bytes == 0
    other = second.lease("dirt", 64 * MIB, DROP)
    second.fill(other, 7)
    second.give_back(other)
    first.resume("scratch")
    for slot in first.leases[lease].slots.values():
        assert slot.memory is not None
        assert not slot.memory[:].strip(b"\0")


def test_a_resume_waits_for_room_and_tells_who_has_it(shared: Daemon) -> None:
    first, second = shared.client("first"), shared.client("second")
    first.lease("a", 48 * MIB)
    first.pause("a", release=True)
    held = second.lease("b", 48 * MIB)
    with pytest.raises(Refused, match="second/b") as caught:
        first.resume("a")
    assert caught.value.name == "OutOfDeviceMemory"
    detail = v1.ErrorDetail.FromString(caught.value.detail)
    assert [(holder.session, holder.tag) for holder in detail.holders] == [("second", "b")]
    waiting = first.begin(lambda number: records.Resume(request=number, timeout_ms=15_000, tags=("a",)))
    shared.operator.wait_until(lambda status: len(status.queue) == 1)
    second.give_back(held)
    assert [one.tag for one in first.answer(waiting).leases] == ["a"]


def test_a_claim_fetches_what_grpc_leased(shared: Daemon) -> None:
    client = shared.client()
    stub, metadata = shared.operator.stub, (("vrambroker-token-bin", client.token),)
    request = v1.LeaseRequest(request_id="r1", tag="weights", contents=v1.CONTENTS_KEEP, size_bytes=8 * MIB)
    leased = stub.Lease(request, metadata=metadata, timeout=20)
    assert leased.claim
    assert leased.lease not in client.leases
    assert client.claim(leased.claim) == leased.lease
    assert client.leases[leased.lease].mapped_bytes == 8 * MIB
    with pytest.raises(Refused) as caught:
        client.claim(leased.claim)
    assert caught.value.name == "UnknownLease"


def test_an_operator_pauses_what_has_scopes_and_nothing_else(shared: Daemon) -> None:
    client = shared.client("rollout")
    for tag in ("cache", "weights", "graphs"):
        client.lease(tag, 2 * MIB)
    client.scopes.update(cache="quiet", graphs="decode")
    assert len(shared.operator.pause("rollout", "cache").leases) == 1
    client.wait_for(lambda: any(lease.paused for lease in client.leases.values()))
    with pytest.raises(Exception, match="weights") as refused:
        shared.operator.pause("rollout", "weights")
    assert type(refused.value).__name__ == "NotQuiescent"
    with pytest.raises(Exception, match="decode") as late:
        shared.operator.pause("rollout", "graphs", timeout_ms=200)
    assert type(late.value).__name__ in ("WaitExpired", "NotQuiescent")
    assert [one.same_pages for one in shared.operator.resume("rollout", "cache").leases] == [True]


def test_the_arena_is_let_go_of_when_the_last_of_a_domain_leaves(shared: Daemon) -> None:
    client = shared.client()
    lease = client.lease("weights", 8 * MIB)
    client.fill(lease, 1)
    client.pause("weights", release=True)
    assert len(client.arena) == 1
    assert shared.operator.status().host.file_bytes > 0
    client.bye()
    shared.wait_for_status(lambda status: status.host.file_bytes == 0)


def test_a_pause_that_cannot_be_kept_is_refused(shared: Daemon) -> None:
    """The arena has 64 MiB in all, so the second tag has no place left."""
    first = shared.client("first")
    first.lease("a", 40 * MIB)
    first.lease("b", 24 * MIB)
    first.pause("a")
    with pytest.raises(Refused) as caught:
        first.lease("c", 64 * MIB + 2 * MIB)
    assert caught.value.name == "InvalidArgument"
    first.pause("b")
    second = shared.client("second")
    lease = second.lease("c", 8 * MIB)
    with pytest.raises(Refused) as full:
        second.pause("c")
    assert full.value.name == "OutOfHostMemory"
    assert not second.leases[lease].paused


def test_two_clients_swap_again_and_again(shared: Daemon) -> None:
    """They want 96 of 64 MiB and take turns; the contents of both survive every swap."""
    one, two = shared.client("one"), shared.client("two")
    first = one.lease("data", 48 * MIB)
    one.fill(first, 1)
    one.pause("data")
    second = two.lease("data", 16 * MIB)
    two.fill(second, 1_000)
    burst = two.lease("burst", 32 * MIB, DROP)
    two.pause("data", "burst")
    for _ in range(3):
        one.resume("data", timeout_ms=10_000)
        assert one.intact(first, 1)
        one.pause("data")
        two.resume("data", "burst", timeout_ms=10_000)
        assert two.intact(second, 1_000)
        assert two.leases[burst].mapped_bytes == 32 * MIB
        two.pause("data", "burst")


def test_typed_errors_need_no_text(shared: Daemon) -> None:
    client = shared.client()
    with pytest.raises(Refused) as caught:
        client.pause("nothing")
    assert caught.value.name == "UnknownTag"
    with pytest.raises(Exception, match="nobody") as unknown, typed_errors():
        shared.operator.pause("nobody", "x")
    assert type(unknown.value).__name__ == "UnknownSession"


@pytest.mark.parametrize("contents", [KEEP, DROP, ZERO])
def test_every_policy_survives_a_pause_nobody_needed(shared: Daemon, contents: int) -> None:
    client = shared.client()
    lease = client.lease("x", 2 * MIB, contents)
    client.fill(lease, 5)
    client.pause("x")
    assert client.resume("x") == {"x": True}
    assert client.intact(lease, 5)


@pytest.mark.parametrize("plane", ["handle", "grpc"])
def test_a_sealed_lease_is_parked_once_and_asked_for_on_either_plane(shared: Daemon, plane: str) -> None:
    client, stub = shared.client("trainer"), shared.operator.stub
    metadata = (("vrambroker-token-bin", client.token),)
    lease = client.lease("weights", 4 * MIB)
    client.fill(lease, 1)
    for _ in range(2):
        if plane == "handle":
            client.ask(lambda number: records.Seal(request=number, tags=("weights",)))
        else:
            stub.Seal(v1.SealRequest(request_id="s", tags=["weights"]), timeout=DEADLINE_S, metadata=metadata)
    for _ in range(3):
        client.pause("weights", release=True)
        client.resume("weights", timeout_ms=10_000)
        assert client.intact(lease, 1)
    parks = [
        bool(slot.flags & records.SLOT_PARK)
        for record in client.seen
        if isinstance(record, records.Recall)
        for slot in record.slots
    ]
    assert parks == [True] * (len(parks) // 3) + [False] * (2 * len(parks) // 3)
    (tag,) = shared.operator.status().sessions[0].tags
    assert (tag.sealed, tag.state, tag.host_bytes) == (True, v1.LEASE_STATE_RESIDENT, 4 * MIB)
    if plane == "handle":
        client.ask(lambda number: records.Unseal(request=number, tags=("weights",)))
    else:
        stub.Unseal(v1.UnsealRequest(request_id="u", tags=["weights"]), timeout=DEADLINE_S, metadata=metadata)
    (tag,) = shared.operator.status().sessions[0].tags
    assert (tag.sealed, tag.host_bytes) == (False, 0)


def test_only_the_process_itself_seals(shared: Daemon) -> None:
    client, operator = shared.client("trainer"), shared.operator
    client.lease("weights", 2 * MIB)
    with pytest.raises(UnknownSession), typed_errors():
        request = v1.SealRequest(request_id="s", tags=["weights"])
        operator.stub.Seal(request, timeout=DEADLINE_S, metadata=operator.metadata)
    with pytest.raises(Refused, match="UnknownTag"):
        client.ask(lambda number: records.Seal(request=number, tags=("nothing",)))
