"""The seconds of replicas: any cut of an interval bills each second once, and costs what the whole costs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from manylora.control.billing.seconds import stretches
from manylora.control.calendar import bounds_of, month_of

BEGIN_S = 1_764_547_190  # ten seconds before December 2025


@given(cuts=st.sets(st.integers(0, 40 * 86_400), max_size=8), hourly=st.integers(0, 10**11))
def test_any_cut_costs_what_the_whole_costs(cuts: set[int], hourly: int) -> None:
    places = sorted({0, 40 * 86_400, *cuts})
    parts = [
        part for begin, end in pairwise(places) for part in stretches(BEGIN_S, BEGIN_S + begin, BEGIN_S + end, hourly)
    ]
    assert [part.begin_s for part in parts[1:]] == [part.end_s for part in parts[:-1]]
    assert (parts[0].begin_s, parts[-1].end_s) == (BEGIN_S, BEGIN_S + 40 * 86_400)
    assert sum(part.nanousd for part in parts) == 40 * 86_400 * hourly // 3_600
    for part in parts:
        begin_ms, end_ms = bounds_of(month_of(1000 * part.begin_s))
        assert begin_ms <= 1000 * part.begin_s < 1000 * part.end_s <= end_ms


def test_an_empty_interval_has_no_part() -> None:
    assert stretches(5, 7, 7, 100) == stretches(5, 9, 7, 100) == []
