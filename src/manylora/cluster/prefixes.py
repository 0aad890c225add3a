"""The beginnings of prompts: their keys, and the replicas that have computed them lately."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from manylora.cluster.views import FleetView, Want
from manylora.ids import ReplicaId

SIZES = tuple(size for power in range(5, 15) for size in (1 << power, 3 << (power - 1)))[:-1]
"""Tokens of the beginnings that have a key: 32, 48, 64, 96 and so on to 16,384."""
KEY_BYTES = 6
MOST_SPOTS = 1 << 16
"""Pairs of a prefix and a replica that a memory has; the oldest go first."""


def prefix_keys(adapter: str, salt: str, tokens: Sequence[int]) -> tuple[int, ...]:
    """Return a key for each beginning of a prompt that has one of `SIZES`, the shortest first.

    Equal keys mean the same adapter by its name, the same salt and the same tokens. A version of the adapter is not
    told from the next one: the keys are hints.
    """
    digest = blake2b(f"{adapter}\0{salt}\0".encode(), digest_size=KEY_BYTES)
    found, done = [], 0
    for size in SIZES:
        if size > len(tokens):
            break
        digest.update(array("I", tokens[done:size]).tobytes())
        found.append(int.from_bytes(digest.digest(), "little"))
        done = size
    return tuple(found)


class PrefixMemory:
    """Enters in a view which replica has computed which prefixes, as far as one router has sent them there.

    An engine may have dropped a prefix from its cache, or have others of other edges: a wrong entry costs a wait.
    """

    def __init__(self, view: FleetView, most: int = MOST_SPOTS) -> None:
        self._view = view
        self._most = most
        self._spots: dict[tuple[ReplicaId, int], None] = {}  # the oldest first

    def note(self, replica: ReplicaId, want: Want) -> None:
        """Note that a replica gets a request."""
        for key in want.prefixes:
            self._spots.pop((replica, key), None)
            self._spots[replica, key] = None
        self._view.cached(replica, dict(zip(want.prefixes, SIZES, strict=False)))
        while len(self._spots) > self._most:
            oldest, key = next(iter(self._spots))
            del self._spots[oldest, key]
            self._view.cached(oldest, {key: 0})
