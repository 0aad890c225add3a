"""A4: the ratio of both sides of each repeat."""

from benchmarks.faults.adapters import over_in


def test_a4_is_the_median_of_the_ratios_of_each_repeat() -> None:
    found = over_in({32: [100.0, 50.0, 80.0], 64: [200.0, 200.0, 80.0]})
    assert found == {
        "min": 1.0,
        "median": 2.0,
        "max": 4.0,
        "in_cache_ms": {"min": 50.0, "median": 80.0, "max": 100.0},
        "over_ms": {"min": 80.0, "median": 200.0, "max": 200.0},
    }
