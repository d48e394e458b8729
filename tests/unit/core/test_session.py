"""Who is there: words, names, who may do what."""

import pytest

from tests.unit.core.desk import HOME, limits, peer
from vrambroker.broker.core.errors import InvalidArgument, NotOwner, QuotaExceeded, UnknownSession
from vrambroker.broker.core.ids import Domain, FrameId, SessionId
from vrambroker.broker.core.session import Ended, Session, Sessions, require_word


def session(number: int, name: str, *, pid: int = 1, uid: int = 1) -> Session:
    return Session(session=SessionId(number), name=name, peer=peer(pid, uid=uid), token=b"", connection=None)


@pytest.mark.parametrize("word", ["a", "A-z_0.9:@+", "x" * 64])
def test_a_word_is_made_of_plain_characters(word: str) -> None:
    require_word("tag", word, 64)


@pytest.mark.parametrize("word", ["", "a/b", "a b", "ä", "a\n", "x" * 65, "\0", "a" * 10_000])
def test_anything_else_is_no_word(word: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        require_word("tag", word, 64)
    assert refused.value.argument == "tag"
    assert len(refused.value.message) < 250


def test_names_are_unique_among_the_living() -> None:
    sessions = Sessions(limits())
    first = session(1, sessions.name_like("a"))
    sessions.add(first)
    sessions.add(session(2, sessions.name_like("a")))
    sessions.add(session(3, sessions.name_like("a")))
    assert [one.name for one in sessions.live.values()] == ["a", "a-2", "a-3"]
    sessions.end(first)
    assert sessions.name_like("a") == "a"


def test_a_numbered_name_is_no_longer_than_a_name_may_be() -> None:
    sessions = Sessions(limits())
    sessions.add(session(1, "x" * 64))
    assert sessions.name_like("x" * 64) == "x" * 62 + "-2"


def test_there_is_a_limit_on_sessions() -> None:
    sessions = Sessions(limits(sessions=1))
    sessions.require_room()
    sessions.add(session(1, "a"))
    with pytest.raises(QuotaExceeded) as refused:
        sessions.require_room()
    assert (refused.value.limit, refused.value.limit_value) == ("sessions_max", 1)


def test_the_ended_are_unknown() -> None:
    sessions = Sessions(limits())
    one = session(1, "a")
    sessions.add(one)
    assert sessions.get(SessionId(1)) is one
    sessions.end(one)
    with pytest.raises(UnknownSession):
        sessions.get(SessionId(1))


def test_a_domain_and_a_process_are_there_as_long_as_one_session_of_theirs_is() -> None:
    sessions = Sessions(limits())
    one, other = session(1, "a"), session(2, "b")
    sessions.add(one)
    sessions.add(other)
    sessions.end(one)
    assert sessions.lives_in(HOME)
    assert sessions.has_process(peer(1))
    sessions.end(other)
    assert not sessions.lives_in(HOME)
    assert not sessions.has_process(peer(1))
    assert not sessions.lives_in(Domain("away"))


def test_who_may_act() -> None:
    one = session(1, "a", pid=7, uid=5)
    one.require_authority(peer(9, uid=5))
    one.require_authority(peer(9, uid=0))
    with pytest.raises(NotOwner) as refused:
        one.require_authority(peer(7, uid=6))
    assert (refused.value.session, refused.value.uid) == ("a", 6)
    one.require_process(peer(7, uid=5))
    for other in (peer(8, uid=5), peer(7, uid=0)):
        with pytest.raises(NotOwner):
            one.require_process(other)


def test_fenced_bytes_are_those_still_behind_the_fence() -> None:
    ended = Ended(session=session(1, "a"), frames={FrameId(1): 4, FrameId(2): 8})
    del ended.frames[FrameId(1)]
    assert ended.fenced_bytes == 8
