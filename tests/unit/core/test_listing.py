"""Which leases each phase lists: the matcher against the patterns themselves, and the book's own account."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambroker.broker.core.ids import LeaseId
from vrambroker.broker.core.listing import Listing
from vrambroker.broker.core.phase import Matcher, Order, Pattern, Phase, PhasePlan

parts = st.text(alphabet="ab*?[]!-", min_size=1, max_size=4)
words = st.text(alphabet="ab-", min_size=1, max_size=3)
patterns = st.builds(Pattern, session=parts, tag=parts)


def phase(name: str, *tags: Pattern) -> Phase:
    return Phase(name=name, tags=tags)


@given(listed=st.lists(st.lists(patterns, max_size=3), max_size=3), session=words, tag=words)
def test_the_matcher_says_what_the_patterns_say(listed: list[list[Pattern]], session: str, tag: str) -> None:
    phases = [phase(str(number), *tags) for number, tags in enumerate(listed)]
    expected = {one.name for one in phases if one.lists(session, tag)}
    assert Matcher(phases).phases_of(session, tag) == expected


@pytest.mark.parametrize(
    ("session", "tag", "listed"), [("t", "ab", True), ("t", "aba", False), ("t", "a", False), ("tt", "ab", False)]
)
def test_a_pattern_is_for_whole_names(session: str, tag: str, listed: bool) -> None:
    found = Matcher([phase("one", Pattern(session="[t]", tag="a?"))]).phases_of(session, tag)
    assert bool(found) == listed


def test_a_phase_lists_leases_in_the_order_in_which_they_came_until_they_go() -> None:
    listing = Listing()
    any_a, b = Pattern(session="*", tag="a"), Pattern(session="t", tag="b")
    plan = PhasePlan(order=Order.DEVICE, phases=(phase("one", any_a), phase("two", any_a, b)))
    listing.renew(plan, [(LeaseId(1), "t", "b"), (LeaseId(2), "r", "a")])
    listing.add(LeaseId(3), "t", "a")
    listing.add(LeaseId(4), "t", "c")
    assert (list(listing.of("one")), list(listing.of("two"))) == ([2, 3], [1, 2, 3])
    assert list(listing.of_others("one")) == [1]
    assert [listing.is_for_others("one", LeaseId(lease)) for lease in (1, 2, 4)] == [True, False, False]
    listing.discard(LeaseId(2))
    assert list(listing.of("one")) == [3]
    assert len(listing) == 2


def test_only_exact_patterns_are_looked_up_as_they_are() -> None:
    exact = [Pattern(session="a", tag=tag).is_exact for tag in ("b", "b*", "b?", "[b]", "b]")]
    assert exact == [True, False, False, False, True]
