"""That docs/protocol.md tells of the records that really go to and fro, in the order in which they do."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.process.daemon.harness import Daemon
from tests.process.daemon.raw_client import RawClient
from tests.process.page import FENCE
from vrambroker.broker.adapters import records

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
NAMES = {
    int(number): name
    for number, name in re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "proto" / "HANDLES.md").read_text(), re.MULTILINE)
}

FROM_CLIENT = {number for number in NAMES if number < records.Welcome.TYPE}


class Walk:
    """What a client sends and receives, section by section of the page: all of it, or what the page says of one party."""

    def __init__(self, client: RawClient, party: str = "") -> None:
        self._client = client
        self._party = party
        self._page = (ROOT / "docs" / "protocol.md").read_text()
        self._told = 0

    def is_as_in(self, section: str) -> None:
        """Require what either side has said since the last section to be what the page shows of this one, in the order of
        first times. Who was first to speak is not compared: the two threads of the client note it down when they can.
        """
        shown = self._shown(section)
        self._client.wait_for(lambda: set(self._said()) >= set(shown))
        said = self._said()
        self._told = len(self._client.seen)
        for side in (FROM_CLIENT, NAMES.keys() - FROM_CLIENT):
            names = [NAMES[number] for number in side]
            assert _first_times(said, names) == _first_times(shown, names)

    def skip(self) -> None:
        """Leave out what was said since the last section."""
        self._told = len(self._client.seen)

    def _said(self) -> list[str]:
        return [NAMES[record.TYPE] for record in self._client.seen[self._told :]]

    def _shown(self, section: str) -> list[str]:
        text = self._page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        (block,) = [body for language, body in FENCE.findall(text) if language == "text"]
        if self._party:
            # A line without a name goes on with the party of the line before.
            (block,) = re.findall(rf"^{self._party} .*\n(?: .*\n|agent .*\n|{self._party} .*\n)*", block, re.MULTILINE)
        return re.findall(r"[→←] ([A-Z_]+)", block)


def _first_times(said: list[str], names: list[str]) -> list[str]:
    return list(dict.fromkeys(name for name in said if name in names))


def test_a_lease_goes_away_and_comes_back_as_the_page_tells(daemon: Daemon) -> None:
    client, other = daemon.client("rollout"), daemon.client("other")
    walk = Walk(client)
    walk.is_as_in("Attach")
    lease = client.lease("weights", 64 * MIB)
    client.fill(lease, 7)
    walk.is_as_in("Lease")
    client.pause("weights")
    walk.is_as_in("Pause, from within")
    client.resume("weights")
    walk.skip()
    client.scopes["weights"] = "forward"
    with ThreadPoolExecutor() as threads:
        pause = threads.submit(daemon.operator.pause, "rollout", "weights", timeout_ms=10_000)
        client.wait_for(lambda: isinstance(client.seen[-1], records.Busy))
        (order,) = [record.order for record in client.seen if isinstance(record, records.PauseOrder)]
        client.send(records.Quiet(order=order))
        pause.result()
    walk.is_as_in("Pause, from outside")
    taken = other.lease("kv_cache", 64 * MIB, timeout_ms=10_000)
    walk.is_as_in("Recall")
    other.give_back(taken)

    def resume(number: int) -> records.Record:
        return records.Resume(request=number, timeout_ms=10_000, tags=("weights",))

    asked = client.begin(resume)
    assert [one.same_pages for one in client.answer(asked).leases] == [0]
    assert client.intact(lease, 7)
    walk.is_as_in("Resume")
    client.reconnect()
    client.wait_for(lambda: isinstance(client.seen[-1], records.PauseCancelled))
    client.ask(resume, asked)
    walk.is_as_in("Reconnect")


def test_a_tensor_travels_as_the_page_tells(daemon: Daemon) -> None:
    owner, reader = daemon.client("trainer"), daemon.client("rollout")
    lease = owner.lease("weights", 64 * MIB)
    owner.fill(lease, 7)
    sent, received = Walk(owner, "sender"), Walk(reader, "receiver")
    sent.skip()
    received.skip()
    key = os.urandom(16)
    slots = tuple(records.ExportSlot(slot=slot, offset_bytes=0) for slot in sorted(owner.leases[lease].slots))
    owner.ask(lambda number: records.Export(request=number, key=key, lease=lease, flags=0, slots=slots))
    sent.is_as_in("Tensors that travel")
    asked = reader.begin(lambda number: records.Read(request=number, key=key))
    done = reader.answer(asked)
    assert done.lease == lease
    assert done.claim == next(record.reader for record in reader.seen if isinstance(record, records.ReadGrant))
    assert reader.read_words == owner.first_words(lease)
    reader.ask(lambda number: records.EndRead(request=number, read=asked))
    received.is_as_in("Tensors that travel")
