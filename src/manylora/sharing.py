"""Places that many share: one alone may have all of them, and a crowd of one leaves room for the others.

Source: the dynamic threshold of Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", IEEE/ACM Transactions on Networking 6(2), 1998: no holder may have more than a multiple of the free places.
"""

SPARE_SHARE = 8
"""An eighth of the limit is kept beside it for those who come while one holds the whole."""


def has_place(*, held: int, taken: int, wanted: int, limit: int) -> bool:
    """Return whether a holder of `held` of the `taken` places may have `wanted` more.

    Alone, a holder gets exactly `limit`. As others come, what each may hold shrinks in proportion to what is free, so
    that a newcomer finds a place however much one other, or a few, ask for. A limit of 1 leaves no place to share.
    """
    spare = _spare(limit)
    if not spare:
        return taken + wanted <= limit
    # held + wanted <= (limit / spare) × what is free afterwards: for a single holder, held + wanted <= limit.
    return (held + wanted) * spare <= limit * (limit + spare - taken - wanted)


def _spare(limit: int) -> int:
    return 0 if limit < 2 else max(2, limit // SPARE_SHARE)
