"""Rendezvous hashing: every router gives an adapter the same order of replicas, and a change of the fleet moves few.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking 6(1), 1998. A fleet that grows from N to N + 1 replicas moves 1/(N + 1) of the adapters, all to the new one.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

CHUNK_SCORES = 1 << 17
"""Scores of adapters on replicas that are made at once: those of a whole plan would be gigabytes in a large fleet."""
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31, 11))
_UNIT = 2.0**-53


def key_of(name: str) -> np.uint64:
    """Return 64 bits of a name, the same in every process."""
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def keys_of(names: list[str]) -> NDArray[np.uint64]:
    """Return 64 bits of each name."""
    return np.array([key_of(name) for name in names], dtype=np.uint64)


def scores(adapters: NDArray[np.uint64] | np.uint64, replicas: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the score of each replica for each adapter, in [0, 1): the adapter's home has the highest.

    Args:    adapters (..., 1) or one key; replicas (replicas,); both from `key_of`
    Returns: (..., replicas)
    Source:  the finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014
    """
    mixed = (replicas ^ adapters) + _STEP
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _FIRST
    mixed ^= mixed >> _SHIFTS[1]
    mixed *= _SECOND
    mixed ^= mixed >> _SHIFTS[2]
    found: NDArray[np.float64] = (mixed >> _SHIFTS[3]).astype(np.float64) * _UNIT
    return found


def rows_at_once(replicas: int) -> int:
    """Return the number of adapters whose scores on so many replicas are made at once, within bounded memory."""
    return max(1, CHUNK_SCORES // replicas)


def first_slots(affinity: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Return the slots of the highest scores of each row, the highest first, (rows, most or all slots).

    Args:       affinity (rows, slots) of numbers above −2; it is overwritten
    Complexity: linear in `most`: the first few of a thousand are found without their whole order
    """
    count = min(most, affinity.shape[1])
    found = np.empty((len(affinity), count), np.intp)
    rows = np.arange(len(affinity))
    for place in range(count):
        found[:, place] = np.argmax(affinity, axis=1)
        affinity[rows, found[:, place]] = -2.0
    return found


def home_order(adapter: str, replicas: list[str]) -> list[str]:
    """Return the replicas by their scores for an adapter, its home first."""
    order = np.argsort(-scores(key_of(adapter), keys_of(replicas)), kind="stable")
    return [replicas[place] for place in order.tolist()]
