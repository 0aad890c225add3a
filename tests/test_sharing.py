"""Places that many share: one alone has all of them, and none keeps the others out."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manylora.sharing import has_place

LIMITS = st.integers(1, 600)


def fill(limit: int, holders: Counter[str], name: str) -> None:
    """Take places one by one until there is none for this holder."""
    while has_place(held=holders[name], taken=holders.total(), wanted=1, limit=limit):
        holders[name] += 1


@given(LIMITS)
def test_alone_one_has_exactly_the_limit(limit: int) -> None:
    holders: Counter[str] = Counter()
    fill(limit, holders, "alone")
    assert holders["alone"] == limit
    assert has_place(held=0, taken=0, wanted=limit, limit=limit)
    assert not has_place(held=0, taken=0, wanted=limit + 1, limit=limit)


@given(LIMITS.filter(lambda limit: limit > 1))
def test_beside_one_that_floods_there_is_a_place(limit: int) -> None:
    holders = Counter({"flood": limit})
    assert has_place(held=0, taken=limit, wanted=1, limit=limit)
    fill(limit, holders, "other")
    assert holders["other"] >= 1


@given(LIMITS, st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-8, 8)), max_size=200))
def test_there_are_never_more_than_are_there(limit: int, moves: list[tuple[str, int]]) -> None:
    holders: Counter[str] = Counter()
    for name, change in moves:
        if change <= 0:
            holders[name] = max(0, holders[name] + change)
        elif has_place(held=holders[name], taken=holders.total(), wanted=change, limit=limit):
            holders[name] += change
        assert holders.total() <= limit + limit // 8 + 2
        assert max(holders.values(), default=0) <= limit


def test_a_limit_of_one_is_shared_with_nobody() -> None:
    assert has_place(held=0, taken=0, wanted=1, limit=1)
    assert not has_place(held=0, taken=1, wanted=1, limit=1)
