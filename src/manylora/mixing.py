"""Names and weights of the adapters that one request applies together, checked; `adapter_ref.Mix` has the result."""

from collections.abc import Sequence

from manylora.errors import InvalidParameter
from manylora.merging import MAX_WEIGHT

WeightedNames = tuple[tuple[str, float], ...]
"""(name, weight) pairs in the order in which their deltas are added."""


def read_mix(pairs: Sequence[tuple[str, float]], most: int) -> WeightedNames:
    """Check the adapters of a request and return them.

    A weight may be negative, which subtracts the adapter's delta. Two names of one adapter are refused once they are
    resolved.

    Args:    most  largest number of adapters
    Raises:  `InvalidParameter` with the field `adapters`
    """
    if not pairs:
        raise _wrong("`adapters` must name at least one adapter; leave it out for the base model")
    if len(pairs) > most:
        raise _wrong(f"`adapters` may name at most {most} adapters (server.max_adapters). Given: {len(pairs)}")
    for index, (name, weight) in enumerate(pairs):
        if not name:
            raise _wrong(f"`adapters[{index}].id` cannot be empty")
        if not abs(weight) <= MAX_WEIGHT:  # nor is NaN
            raise _wrong(
                f"`adapters[{index}].weight` must be between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}. Given: {weight:g}"
            )
    return tuple((name, float(weight)) for name, weight in pairs)


def _wrong(message: str) -> InvalidParameter:
    return InvalidParameter(message, parameter="adapters")
