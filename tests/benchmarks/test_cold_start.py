"""A7 without a server: the percentiles of its times."""

from benchmarks.faults.cold_start import summary


def test_the_99th_percentile_of_a_hundred_leaves_one_out() -> None:
    assert summary([float(ms) for ms in range(1, 101)]) == {"count": 100, "median": 50.5, "p99": 99.0, "max": 100.0}
    assert summary([3.0, 1.0, 2.0]) == {"count": 3, "median": 2.0, "p99": 3.0, "max": 3.0}
