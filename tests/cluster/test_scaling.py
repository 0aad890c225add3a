"""The number of replicas for histories of load."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.cluster.scaling import FleetLoad, ScalingRules, ScalingState, wanted_replicas

RULES = ScalingRules(most=10)


def load(replicas: int, backlog: float, thrash: float = 0.0, load_share: float = 0.0) -> FleetLoad:
    return FleetLoad(
        replicas=replicas, backlog_tokens=backlog, tokens_per_s=100.0, thrash=thrash, load_share=load_share
    )


def after(seconds: float, backlog: float, replicas: int) -> int:
    """Return the number of replicas after a constant backlog, asked once a second."""
    state = ScalingState()
    for _ in range(int(seconds)):
        replicas, state = wanted_replicas(load(replicas, backlog), state, 1.0, RULES)
    return replicas


@pytest.mark.parametrize(
    ("replicas", "backlog", "expected"), [(1, 0, 1), (1, 200, 1), (1, 201, 2), (2, 1000, 5), (0, 1, 1), (2, 1e9, 10)]
)
def test_it_grows_at_once_to_the_target_backlog(replicas: int, backlog: float, expected: int) -> None:
    assert wanted_replicas(load(replicas, backlog), ScalingState(), 1.0, RULES)[0] == expected


def test_it_shrinks_one_by_one_after_calm() -> None:
    assert after(59, 150, 3) == 3
    assert after(60, 150, 3) == 2
    assert after(1000, 150, 3) == 1


def test_it_comes_to_zero_without_work_and_back_with_any() -> None:
    assert after(299, 0.0, 1) == 1
    assert after(300, 0.0, 1) == 0
    assert wanted_replicas(load(0, 0.5), ScalingState(), 1.0, RULES)[0] == 1
    assert wanted_replicas(load(1, 0.0), ScalingState(0.0, 1e9), 1.0, ScalingRules(least=1))[0] == 1


def test_thrash_asks_for_banks_only_where_loads_take_time() -> None:
    assert wanted_replicas(load(4, 100, thrash=0.9, load_share=0.2), ScalingState(), 1.0, RULES)[0] == 5
    assert wanted_replicas(load(4, 100, thrash=0.9, load_share=0.01), ScalingState(), 1.0, RULES)[0] == 4


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), max_size=30), st.integers(0, 3), st.integers(3, 20))
@settings(max_examples=50, deadline=None)
def test_the_bounds_hold_for_every_history(history: list[tuple[float, float]], least: int, most: int) -> None:
    rules, state, replicas = ScalingRules(least=least, most=most), ScalingState(), least
    for backlog, thrash in history:
        before = replicas
        replicas, state = wanted_replicas(load(replicas, backlog, thrash, thrash), state, 20.0, rules)
        assert least <= replicas <= most
        assert replicas >= before - 1 or backlog == 0.0
