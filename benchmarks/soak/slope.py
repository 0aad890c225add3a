"""The trend of a quantity over time, robust against outliers, over one process or several that follow each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from manylora.bench.statistics import median

Series = Sequence[tuple[float, float]]
"""Pairs of a time in seconds and a value, in the order of time."""
Z_95 = 1.959964
TO_DEVIATION = 1.4826
"""Factor from the median absolute deviation to the standard deviation of a normal distribution."""
BLOCKS = 12
"""Points of one series at most: neighbouring samples depend on each other, their medians hardly do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """The growth of a value a second with its 95 % interval.

    grown  growth over the longest series by the slope
    noise  twice the standard deviation of the values about their trend
    """

    per_s: float
    low_per_s: float
    high_per_s: float
    grown: float
    noise: float

    @property
    def is_flat(self) -> bool:
        """Return whether the growth is within the noise, or its interval has no growth."""
        return self.low_per_s <= 0.0 or self.grown <= self.noise


def slope_of(series: Sequence[Series]) -> Slope:
    """Return the median of the slopes of all pairs of points of the same series.

    Semantics:  the interval counts Kendall's statistic, whose variances add up over series
    Raises:     ValueError, if no series has two points of different times
    Source:     Sen, JASA 63 (1968), 1379-1389; for several series: Hirsch, Slack and Smith, Water Resources Research 18
                (1982), 107-121
    """
    points = [in_blocks(each) for each in series]
    slopes = sorted((b - a) / (t - s) for each in points for (s, a), (t, b) in combinations(each, 2) if t > s)
    if not slopes:
        raise ValueError("a slope needs two samples at different times")
    variance = sum(len(each) * (len(each) - 1) * (2 * len(each) + 5) / 18 for each in points)
    skipped = (len(slopes) - Z_95 * math.sqrt(variance)) / 2
    lowest, highest = math.floor(skipped), math.ceil(len(slopes) - 1 - skipped)
    per_s = median(slopes)
    rests: list[float] = []
    for each in points:
        rest = [value - per_s * at for at, value in each]
        rests += [abs(value - median(rest)) for value in rest] if rest else []
    return Slope(
        per_s=per_s,
        low_per_s=slopes[max(0, lowest)] if lowest >= 0 else -math.inf,
        high_per_s=slopes[min(len(slopes) - 1, highest)] if lowest >= 0 else math.inf,
        grown=per_s * max(each[-1][0] - each[0][0] for each in points if each),
        noise=2 * TO_DEVIATION * median(rests),
    )


def in_blocks(series: Series) -> list[tuple[float, float]]:
    """Return the medians of time and value of at most `BLOCKS` blocks of neighbouring samples."""
    size = max(1, math.ceil(len(series) / BLOCKS))
    blocks = [series[first : first + size] for first in range(0, len(series), size)]
    return [(median([at for at, _ in block]), median([value for _, value in block])) for block in blocks]
