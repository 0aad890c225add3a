"""The policies of a comparison, and the settings that the sweep of each tries."""

from typing import Any

from benchmarks.fleet.affinity import Affinity
from benchmarks.fleet.baselines import BoundedHashing, Multiplexing, PowerOfChoices, Random
from benchmarks.fleet.load_share import LoadShare
from benchmarks.fleet.policy import Policy
from benchmarks.fleet.profile import Profile

Settings = dict[str, Any]  # attributes of a policy, of several types

OWN = "manylora"
KINDS: dict[str, type[Policy]] = {
    OWN: Affinity,
    "load share + min-cost flow": LoadShare,
    "bounded consistent hashing": BoundedHashing,
    "power of two": PowerOfChoices,
    "Ray multiplexing": Multiplexing,
    "random": Random,
}


def sweep(name: str, profile: Profile, mean_bytes: float) -> list[Settings]:
    """Return the settings to try. A bank has `places` for adapters of the mean size, and fewer for ones of rank 64."""
    places = profile.bank_bytes / mean_bytes
    match name:
        case "load share + min-cost flow":
            padded = profile.bank_bytes / (64 * profile.rank_bytes)
            return [{"slots": round(slots)} for slots in (padded, *(share * places for share in (0.5, 0.75, 1.0, 1.5)))]
        case "bounded consistent hashing":
            return [{"slack": slack} for slack in (0.1, 0.25, 0.5, 1.0, 2.0)]
        case "power of two":
            return [{"choices": choices} for choices in (2, 3, 4)]
        case "Ray multiplexing":
            return [
                {"models": round(share * places), "most_per_row": most}
                for share in (0.5, 1.0, 2.0)
                for most in (1.0, 2.0)
            ]
        case "random":
            return [{}]
    return [
        *({"stray": stray, "copy_share": share} for stray in (2.0, 8.0, 30.0) for share in (0.1, 0.03)),
        {"stray": 8.0, "copy_share": 0.1, "spares": 0},
        *({"stray": stray, "copy_share": 0.05, "spares": 2} for stray in (16.0, 30.0)),
    ]
