"""Shares of an alias: moved points, the draw and the header."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.rollouts.draw import ArmDraw, nonce_of, point_of
from manylora.rollouts.rollout import MAX_ARMS, POINTS, Rollout, moved, plain, without

CHI_SQUARE_99_9 = {1: 10.83, 2: 13.82, 99: 148.23}
"""Values of chi-square that a right draw exceeds once in 1,000 times, by degrees of freedom."""


@st.composite
def shares(draw: st.DrawFn) -> dict[int, int]:
    versions = draw(st.lists(st.integers(1, 12), min_size=1, max_size=MAX_ARMS, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, POINTS - 1), min_size=len(versions) - 1, max_size=len(versions) - 1)))
    sizes = (end - begin for begin, end in zip([0, *cuts], [*cuts, POINTS], strict=True))
    return dict(zip(versions, sizes, strict=True))


def chi_square(seen: Counter[int], expected: dict[int, float]) -> float:
    return sum((seen[arm] - count) ** 2 / count for arm, count in expected.items())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_draw_for_each_request_has_the_shares(seed: int) -> None:
    rule = Rollout(parts=moved(None, {3: 90, 4: 8, 5: 2}))
    nonces, total = random.Random(seed), 20_000
    seen = Counter(
        rule.version_at(ArmDraw(nonce=nonces.getrandbits(64)).point("acme", "triage/prod"), rule.shares) or 0
        for _ in range(total)
    )
    expected = {version: total * share / POINTS for version, share in rule.shares.items()}
    assert chi_square(seen, expected) < CHI_SQUARE_99_9[2]


def test_the_values_of_a_header_spread_evenly_over_the_points() -> None:
    total = 20_000
    seen = Counter(point_of("acme", "triage/prod", f"user-{number}") for number in range(total))
    assert chi_square(seen, dict.fromkeys(range(POINTS), total / POINTS)) < CHI_SQUARE_99_9[99]
    assert point_of("acme", "triage/prod", "user-1") == 61, "a later release must not move a caller"


@given(shares(), shares())
def test_a_change_moves_only_the_points_that_it_must(before: dict[int, int], after: dict[int, int]) -> None:
    old = Rollout(parts=moved(None, before))
    new = Rollout(parts=moved(old, after))
    assert (old.shares, new.shares) == (dict(sorted(before.items())), dict(sorted(after.items())))
    changed = sum(old.version_at(point, before) != new.version_at(point, after) for point in range(POINTS))
    assert changed == sum(max(0, share - before.get(version, 0)) for version, share in after.items())


@given(shares(), st.data())
def test_an_unusable_version_moves_its_own_points_alone(given_shares: dict[int, int], data: st.DataObject) -> None:
    rule = Rollout(parts=moved(None, given_shares))
    usable: set[int] = data.draw(st.sets(st.sampled_from(sorted(given_shares))))
    for point in range(POINTS):
        version, found = rule.version_at(point, given_shares), rule.version_at(point, usable)
        assert found == version if version in usable else found in usable or (found is None and not usable)
    main = rule.main_of(usable)
    assert main in usable if usable else main is None


@given(st.text(max_size=20), st.text(max_size=20), shares())
def test_a_value_has_one_point_whatever_server_and_attempt(
    value: str, other: str, given_shares: dict[int, int]
) -> None:
    rule = Rollout(parts=moved(None, given_shares), sticky="x-user")
    draws = [ArmDraw({"x-user": value}.get), ArmDraw({"x-user": value, "x-other": other}.get)]
    assert len({draw.point("acme", "triage/prod", rule.sticky) for draw in draws for _ in range(2)}) == 1
    drawn = ArmDraw(lambda name: None)
    assert drawn.point("acme", "a/b", "x-user") == drawn.point("acme", "a/b", "x-user"), "an attempt is no new draw"


def test_a_deleted_version_leaves_its_points_to_the_others() -> None:
    rule = Rollout(parts=moved(None, {3: 60, 4: 20, 5: 20}), sticky="x-user", shadow=6)
    left = without(rule, 4)
    assert left is not None
    assert (left.shares, left.sticky, left.shadow) == ({3: 75, 5: 25}, "x-user", 6)
    gone = without(rule, 6)
    assert gone is not None
    assert gone.shadow is None
    assert without(plain(3), 3) is None


def test_a_line_of_a_batch_is_drawn_by_its_id() -> None:
    assert nonce_of("line-1") == nonce_of("line-1") != nonce_of("line-2")
