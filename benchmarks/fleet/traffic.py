"""The requests of a simulation: when they come, for which adapter, of which length. All drawn from one seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.profile import Profile
from manylora.bench.workloads import MIXED_RANKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """A flash crowd: from `start_s` on, `rate` requests a second more, all for one adapter."""

    start_s: float
    end_s: float
    rate: float
    adapter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The adapters: their shares of the requests and their sizes, each (adapters,), the most wanted first."""

    shares: NDArray[np.float64]
    num_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests by arrival, each array (requests,)."""

    at_s: NDArray[np.float64]
    adapters: NDArray[np.int64]
    prompts: NDArray[np.int64]
    outputs: NDArray[np.int64]


def catalogue(number: int, zipf: float, profile: Profile, seed: int, *, mixed: bool = True) -> Catalogue:
    """Return adapters of Zipf's popularity and of mixed ranks in equal parts, drawn apart from each other."""
    ranks = np.array(MIXED_RANKS if mixed else [23])
    weights = np.arange(1, number + 1, dtype=np.float64) ** -zipf
    drawn = np.random.default_rng([seed, 1]).choice(ranks, number)
    return Catalogue(shares=weights / weights.sum(), num_bytes=drawn.astype(np.int64) * profile.rank_bytes)


def traffic(
    adapters: Catalogue,
    profile: Profile,
    rate: float,
    seconds: float,
    seed: int,
    *,
    swing: float = 0.0,
    crowd: Crowd | None = None,
    spread: float = 0.0,
) -> Traffic:
    """Return a Poisson stream of `rate` requests a second.

    `swing` is the share by which the rate of a day, here of the whole run, rises above and falls below its mean.
    `spread` is the standard deviation of the logarithms of prompt and output lengths; 0: all have the mean's.
    """
    rng = np.random.default_rng([seed, 2])
    at = _poisson(rng, rate * (1 + swing), 0.0, seconds)
    if swing:
        now = 1 - swing * np.cos(2 * np.pi * at / seconds)
        at = at[rng.random(len(at)) < now / (1 + swing)]
    chosen = np.searchsorted(np.cumsum(adapters.shares), rng.random(len(at))).clip(max=len(adapters) - 1)
    if crowd is not None:
        more = _poisson(rng, crowd.rate, crowd.start_s, crowd.end_s)
        at, chosen = np.append(at, more), np.append(chosen, np.full(len(more), crowd.adapter))
        order = np.argsort(at, kind="stable")
        at, chosen = at[order], chosen[order]
    return Traffic(
        at_s=at,
        adapters=chosen,
        prompts=_lengths(rng, profile.prompt, spread, len(at)),
        outputs=_lengths(rng, profile.output, spread, len(at)),
    )


def _poisson(rng: np.random.Generator, rate: float, start_s: float, end_s: float) -> NDArray[np.float64]:
    return np.sort(rng.uniform(start_s, end_s, rng.poisson(rate * (end_s - start_s))))


def _lengths(rng: np.random.Generator, mean: int, spread: float, number: int) -> NDArray[np.int64]:
    drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, number) + 1e-6
    return np.maximum(1, np.minimum(drawn, 8.0 * mean)).astype(np.int64)
