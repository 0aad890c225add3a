"""Rendezvous homes: even, the same everywhere, and few moves when the fleet changes."""

from collections import Counter

import numpy as np
import pytest

from manylora.cluster.homes import first_slots, home_order, key_of, keys_of, scores
from tests.cluster.fleets import adapter, replica

ADAPTERS = [adapter(number) for number in range(4000)]


def homes(count: int) -> list[int]:
    keys = keys_of(list(ADAPTERS))
    replicas = keys_of([replica(number) for number in range(count)])
    return [int(place) for place in np.argmax(scores(keys[:, None], replicas), axis=1)]


@pytest.mark.parametrize("count", [1, 4, 10, 99])
def test_a_new_replica_takes_its_share_and_moves_nothing_else(count: int) -> None:
    before, after = homes(count), homes(count + 1)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) <= {count}
    share = len(ADAPTERS) / (count + 1)
    assert abs(len(moved) - share) < 5 * share**0.5


def test_homes_are_even() -> None:
    counts = Counter(homes(10))
    assert len(counts) == 10
    assert max(counts.values()) < 1.2 * len(ADAPTERS) / 10


def test_the_order_does_not_depend_on_the_list_or_the_process() -> None:
    names = [str(replica(number)) for number in range(6)]
    assert home_order("triage", names) == home_order("triage", names[::-1])
    assert int(key_of("triage")) == 15034807855683252835
    assert "".join(name.removeprefix("replica-") for name in home_order("triage", names)) == "253014"


@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_the_first_slots_are_those_of_the_whole_order_ties_included(most: int) -> None:
    affinity = np.random.default_rng(0).integers(0, 4, (200, 7)) / 4 - 1.0
    whole = np.argsort(-affinity, axis=1, kind="stable")
    assert first_slots(affinity, most).tolist() == whole[:, :most].tolist()
