"""The statistics against their definitions, and the interval against the order statistics of the binomial."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.bench.statistics import extremes, median, median_with_interval, milliseconds

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(values)
def test_half_of_the_values_lie_on_each_side_of_the_median(values: list[float]) -> None:
    middle = median(values)
    assert 2 * sum(value < middle for value in values) <= len(values)
    assert 2 * sum(value > middle for value in values) <= len(values)
    found = extremes(values)
    assert found["min"] <= found["median"] <= found["max"]


@pytest.mark.parametrize(("count", "skipped"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5)])
def test_the_interval_is_the_narrowest_with_95_percent(count: int, skipped: int) -> None:
    values = [float(value) for value in range(count)]
    random.Random(count).shuffle(values)
    found = median_with_interval(values)
    assert (found["low"], found["high"]) == (skipped, count - 1 - skipped)
    outside = 2 * sum(math.comb(count, below) for below in range(skipped + 1)) / 2**count
    assert outside <= 0.05 or skipped == 0


def test_times_are_told_in_milliseconds() -> None:
    assert milliseconds([0.003, 0.001, 0.002]) == {"min_ms": 1.0, "median_ms": 2.0, "p90_ms": 2.0}
