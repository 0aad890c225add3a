"""The demand for each adapter: its tokens in a second, as a recent burst and as a long average show it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manylora.ids import Digest

CONFIDENCE = 1.64
"""Standard deviations of a Poisson count that a burst must exceed: one request is no demand for a second copy."""
FORGOTTEN = 1e-3
"""Requests, in the long average's window, below which an adapter is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The requests for one adapter between two heartbeats, from all edges."""

    requests: float
    tokens: float
    num_bytes: int


class DemandEstimate:
    """Two decaying averages of each adapter's requests: a short one that follows bursts, and a long one for places.

    Args: burst_s and average_s, the time constants in seconds
    """

    def __init__(self, *, burst_s: float = 1.0, average_s: float = 1800.0) -> None:
        self.burst_s, self.average_s = burst_s, average_s
        self.digests: list[Digest] = []
        self.num_bytes: NDArray[np.float64] = np.zeros(0)
        self._rows: dict[Digest, int] = {}
        self._requests: NDArray[np.float64] = np.zeros((2, 0))
        self._tokens: NDArray[np.float64] = np.zeros((2, 0))
        self._ages = np.zeros(2)

    def observe(self, arrivals: Mapping[Digest, Arrivals], elapsed_s: float) -> None:
        """Take over the requests of the last `elapsed_s` seconds."""
        decay = np.exp(-elapsed_s / np.array([self.burst_s, self.average_s]))
        self._requests *= decay[:, None]
        self._tokens *= decay[:, None]
        self._ages += elapsed_s
        self._admit([digest for digest in arrivals if digest not in self._rows])
        for digest, arrived in arrivals.items():
            row = self._rows[digest]
            self._requests[:, row] += arrived.requests
            self._tokens[:, row] += arrived.tokens
            self.num_bytes[row] = arrived.num_bytes
        if len(self.digests) > 1024 and self._requests[1].min() < FORGOTTEN:
            self._forget()

    def drop(self, digest: Digest) -> None:
        """Forget the requests for an adapter."""
        if (row := self._rows.get(digest)) is not None:
            self._requests[:, row] = self._tokens[:, row] = 0.0

    def burst_tokens_per_s(self) -> NDArray[np.float64]:
        """Return the recent demand that is no chance, (adapters,): the lower bound of a Poisson count's interval."""
        requests = np.maximum(self._requests[0], 1e-12)
        sure = np.maximum(0.0, 1.0 - CONFIDENCE / np.sqrt(requests))
        burst: NDArray[np.float64] = self._tokens[0] * sure / self._window(0)
        return burst

    def average_tokens_per_s(self) -> NDArray[np.float64]:
        """Return the long average, (adapters,)."""
        average: NDArray[np.float64] = self._tokens[1] / self._window(1)
        return average

    def average_requests(self) -> NDArray[np.float64]:
        """Return the requests in the long average's window, the older ones decayed, (adapters,)."""
        requests: NDArray[np.float64] = self._requests[1].copy()
        return requests

    def _window(self, which: int) -> float:
        """Return the seconds that an average covers: less than its constant while it is young."""
        constant = (self.burst_s, self.average_s)[which]
        return constant * -math.expm1(-max(self._ages[which], 1e-9) / constant)

    def _admit(self, digests: list[Digest]) -> None:
        if digests:
            self._rows |= {digest: len(self.digests) + place for place, digest in enumerate(digests)}
            self.digests += digests
            self.num_bytes = np.append(self.num_bytes, np.zeros(len(digests)))
            fresh = np.zeros((2, len(digests)))
            self._requests = np.hstack([self._requests, fresh])
            self._tokens = np.hstack([self._tokens, fresh])

    def _forget(self) -> None:
        kept = np.flatnonzero(self._requests[1] >= FORGOTTEN)
        self.digests = [self.digests[row] for row in kept.tolist()]
        self._rows = {digest: row for row, digest in enumerate(self.digests)}
        self.num_bytes = self.num_bytes[kept]
        self._requests, self._tokens = self._requests[:, kept], self._tokens[:, kept]
