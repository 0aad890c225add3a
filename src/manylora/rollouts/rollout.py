"""Rollouts: the rule by which an alias stands for several versions, each with a share of the requests."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

POINTS = 100
"""Points over which the shares of a rule lie: a share is a whole number of percent."""
MAX_ARMS = 8
Parts = tuple[tuple[int, int], ...]
"""(first point, version) of each part, ascending from point 0; a part ends where the next one begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The rule of one alias.

    parts   the points of each version. They are kept, and not computed from the shares, so that a change of shares
            moves only as many points as it has to
    sticky  name of the request's header whose value decides the point, in lower case; empty: each request is drawn
    shadow  version that runs each request too and whose reply nothing reads; None: there is none
    """

    parts: Parts
    sticky: str = ""
    shadow: int | None = None

    @property
    def shares(self) -> dict[int, int]:
        """Return the percent of each version, ascending by version."""
        versions = _spread(self.parts)
        return {version: versions.count(version) for version in sorted(set(versions))}

    @property
    def main(self) -> int:
        """Return the version with the largest share; of equal ones the lower."""
        return _largest(self.shares)

    @property
    def is_plain(self) -> bool:
        """Return whether the alias stands for one version, without a shadow."""
        return len(self.parts) == 1 and self.shadow is None

    def version_at(self, point: int, usable: Container[int]) -> int | None:
        """Return the version of a point, 0 ≤ point < `POINTS`; None: no version of the rule is usable.

        The points of an unusable version fall evenly to the others. No other point moves.
        """
        versions = _spread(self.parts)
        if versions[point] in usable:
            return versions[point]
        rest = [version for version in versions if version in usable]
        lost = [each for each, version in enumerate(versions) if version not in usable]
        return rest[lost.index(point) * len(rest) // len(lost)] if rest else None

    def main_of(self, usable: Container[int]) -> int | None:
        """Return the usable version with the largest share; None: there is none."""
        found = {version: share for version, share in self.shares.items() if version in usable}
        return _largest(found) if found else None


def plain(version: int) -> Rollout:
    """Return the rule of an alias that stands for one version."""
    return Rollout(parts=((0, version),))


def moved(old: Rollout | None, shares: Mapping[int, int]) -> Parts:
    """Return parts with new shares that keep as many points of the old rule as these shares allow.

    A version that shrinks gives its last points; one that grows takes the points that become free, in ascending order.
    Args:  shares  percent of each version, at least 1, `POINTS` together
    """
    assert sum(shares.values()) == POINTS, "the shares are checked where they come in"
    left = dict(shares)
    chosen: list[int | None] = []
    for version in [] if old is None else _spread(old.parts):
        is_kept = left.get(version, 0) > 0
        chosen.append(version if is_kept else None)
        if is_kept:
            left[version] -= 1
    chosen += [None] * (POINTS - len(chosen))
    wanted = iter([version for version in sorted(left) for _ in range(left[version])])
    return _parts([next(wanted) if version is None else version for version in chosen])


def without(rollout: Rollout, version: int) -> Rollout | None:
    """Return a rule without a version, whose points fall to the others; None: no version is left."""
    usable = set(rollout.shares) - {version}
    if not usable:
        return None
    parts = _parts([rollout.version_at(point, usable) or 0 for point in range(POINTS)])
    return Rollout(parts=parts, sticky=rollout.sticky, shadow=None if rollout.shadow == version else rollout.shadow)


def _spread(parts: Parts) -> list[int]:
    """Return the version of each point."""
    ends = [*(begin for begin, _ in parts[1:]), POINTS]
    return [version for (begin, version), end in zip(parts, ends, strict=True) for _ in range(begin, end)]


def _parts(versions: Iterable[int]) -> Parts:
    parts: list[tuple[int, int]] = []
    for point, version in enumerate(versions):
        if not parts or parts[-1][1] != version:
            parts.append((point, version))
    return tuple(parts)


def _largest(shares: Mapping[int, int]) -> int:
    return max(sorted(shares), key=lambda version: shares[version])
