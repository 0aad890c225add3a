"""Shares of a limited number of places: a sole holder may have all, and a large holder leaves places for others.

Source: the dynamic threshold of Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", IEEE/ACM Transactions on Networking 6(2), 1998: no holder may have more than a multiple of the free places.
"""

SPARE_SHARE = 8
"""Divisor of the limit: that share of places is kept beside it for newcomers while one holder has the whole limit."""


def has_place(*, held: int, taken: int, wanted: int, limit: int) -> bool:
    """Return whether a holder of `held` of the `taken` places may have `wanted` more.

    A holder alone gets exactly `limit`. As others come, the bound of each shrinks in proportion to the free places, so
    that a newcomer finds a place while a few others ask for any number. A limit of 1 leaves no place to share.
    """
    spare = _spare(limit)
    if not spare:
        return taken + wanted <= limit
    # held + wanted <= (limit / spare) × (places free afterwards): for a single holder, held + wanted <= limit.
    return (held + wanted) * spare <= limit * (limit + spare - taken - wanted)


def _spare(limit: int) -> int:
    return 0 if limit < 2 else max(2, limit // SPARE_SHARE)
