"""Who may do what to whose session: memory is its own process's affair, and a pause its user's and root's."""

import pytest

from tests.unit.core.desk import FAR, MIB, Desk, peer
from vrambroker.broker.core import events as ev
from vrambroker.broker.core.effects import Leased
from vrambroker.broker.core.errors import NotOwner
from vrambroker.broker.core.ids import ConnectionId

OWNER = peer(1, uid=5)
STRANGERS = [peer(2, uid=5), peer(1, uid=6), peer(2, uid=6), peer(3, uid=0)]


@pytest.mark.parametrize("stranger", STRANGERS, ids=["same user", "same pid", "another", "root"])
@pytest.mark.parametrize("verb", ["lease", "claim", "return", "return a slot", "quiet pause", "reattach", "detach"])
def test_what_is_a_processs_own_affair_is_refused_to_everybody_else(verb: str, stranger: ev.Peer) -> None:
    desk = Desk()
    session = desk.attach(OWNER)
    lease = desk.lease(session, "weights", 2)
    unclaimed = desk.lend(session, "later", 1, claimed=False)
    assert isinstance(unclaimed, Leased)
    slot = desk.view(lease).slots[0].slot
    call = desk.call(stranger)
    events: dict[str, ev.Event] = {
        "lease": ev.Lease(
            call=call,
            session=session,
            tag="more",
            contents=ev.Contents.KEEP,
            size_bytes=MIB,
            claimed=True,
            deadline=FAR,
        ),
        "claim": ev.Claim(call=call, session=session, claim=unclaimed.claim),
        "return": ev.Return(call=call, session=session, lease=lease, slots=()),
        "return a slot": ev.Return(call=call, session=session, lease=lease, slots=(slot,)),
        "quiet pause": ev.Pause(
            call=call, session=session, tags=("weights",), release=False, discard=False, quiet=True, deadline=FAR
        ),
        "reattach": ev.Reattach(call=call, session=session, connection=ConnectionId(9)),
        "detach": ev.Detach(call=call, session=session),
    }
    before = desk.broker.snapshot()
    assert isinstance(desk.answer(events[verb]), NotOwner)
    assert desk.broker.snapshot() == before
