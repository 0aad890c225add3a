"""Statistics for results of measurements."""

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def extremes(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the least value, the median and the largest value."""
    return {
        "min": round(min(values), digits),
        "median": round(median(values), digits),
        "max": round(max(values), digits),
    }


def median_with_interval(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the median, and the two order statistics that enclose the true median with at least 95 % confidence.

    With fewer than six values no such pair exists, and the interval is that of all values. The number of values below
    the true median is binomial: https://en.wikipedia.org/wiki/Order_statistic#Confidence_intervals_for_quantiles
    """
    ordered = sorted(values)
    count = len(ordered)
    skipped, tail = 0, 1 / 2**count
    while skipped + 1 < count / 2 and tail + math.comb(count, skipped + 1) / 2**count <= 0.025:
        skipped += 1
        tail += math.comb(count, skipped) / 2**count
    if tail > 0.025:
        skipped = 0
    return {
        "median": round(median(ordered), digits),
        "low": round(ordered[skipped], digits),
        "high": round(ordered[count - 1 - skipped], digits),
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the least value, the median and the 90th percentile of times given in seconds, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "min_ms": round(1e3 * ordered[0], 3),
        "median_ms": round(1e3 * ordered[len(ordered) // 2], 3),
        "p90_ms": round(1e3 * ordered[int(0.9 * (len(ordered) - 1))], 3),
    }
