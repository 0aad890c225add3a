"""The cost to serve: the seconds until a replica could begin a request, and the price of one more copy.

queue ahead ÷ speed  +  load from the adapter's tier  −  cached prefix ÷ speed  +  stray

A stray is a copy away from the adapter's places, or, without places, from the replicas with it in its nearest tier.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manylora.cluster.homes import key_of, scores
from manylora.cluster.views import FleetView, Tier, Want

TIE_S = 1e-3
"""Seconds between the first and the last replica of an adapter's rendezvous order when all else is equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRates:
    """Measured times of the moves of an adapter: host → device, disk → host, store → disk.

    fixed_s      seconds of a move of no bytes
    bytes_per_s  bytes of a move in a second
    """

    fixed_s: tuple[float, float, float]
    bytes_per_s: tuple[float, float, float]

    def load_s(self, num_bytes: int) -> NDArray[np.float64]:
        """Return the seconds from each tier to the device, (4,) in the order of `Tier`."""
        moves = [fixed + num_bytes / rate for fixed, rate in zip(self.fixed_s, self.bytes_per_s, strict=True)]
        return np.cumsum([0.0, *moves])


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRules:
    """The prices of a ranking.

    rates  of loads
    stray  seconds that a stray costs, per second of its load from the disk: it drives another copy out, which is then
           loaded again
    """

    rates: TierRates
    stray: float = 2.0


def cost_to_serve(want: Want, view: FleetView, rules: CostRules) -> NDArray[np.float64]:
    """Return the cost of a request on each replica in seconds, (slots,); infinite where none may be sent.

    Complexity: linear in the number of replicas, whatever the number of adapters.
    """
    tokens = view.queue_tokens() + want.tokens
    if want.prefixes and view.prefixes:
        tokens -= _cached_tokens(want, view)
    seconds: NDArray[np.float64] = tokens / view.tokens_per_s
    if want.digest is not None:
        load = rules.rates.load_s(want.num_bytes)
        stray = rules.stray * float(load[Tier.DISK])
        affinity = scores(key_of(want.digest), view.keys)
        seconds += float(load[Tier.STORE]) + TIE_S
        seconds -= TIE_S * affinity
        seconds += stray
        seconds[_slots_without_stray(want, view, affinity)] -= stray
        spots = view.tiers.get(want.digest)
        if spots:
            slots, tiers = spots.arrays()
            seconds[slots] += (load - load[Tier.STORE])[tiers.astype(np.intp)]
    seconds[~view.is_open] = np.inf
    return seconds


def places(want: Want, view: FleetView, affinity: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the slots that the adapter is meant to be on: its places that are open, or else its rendezvous home."""
    placed = view.placed.get(want.digest) if want.digest is not None else None
    if placed is not None and view.is_open[placed].any():
        return placed
    if not len(affinity):
        return np.zeros(0, np.intp)
    return np.array([np.argmax(np.where(view.is_open, affinity, -1.0))], np.intp)


def _slots_without_stray(want: Want, view: FleetView, affinity: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the slots where a request for an adapter makes no stray copy.

    An adapter with places strays away from them, and one without places from the replicas that hold it in its nearest
    tier: a copy on a further device, or in a further host memory, drives another out there. Among these replicas its
    requests take the shortest queue. An adapter that no replica holds goes home.
    """
    spots = None if want.digest is None or want.digest in view.placed else view.tiers.get(want.digest)
    if spots:
        slots, tiers = spots.arrays()
        is_open = view.is_open[slots]
        if is_open.any():
            nearest: NDArray[np.intp] = slots[is_open & (tiers == tiers[is_open].min())]
            return nearest
    return places(want, view, affinity)


def _cached_tokens(want: Want, view: FleetView) -> NDArray[np.float64]:
    """Return the tokens of the prompt that each replica has in its prefix cache, (slots,)."""
    cached = np.zeros(len(view.replicas))
    for prefix in want.prefixes:
        spots = view.prefixes.get(prefix)
        if spots:
            slots, tokens = spots.arrays()
            cached[slots] = np.maximum(cached[slots], np.minimum(tokens, want.prompt_tokens))
    return cached
