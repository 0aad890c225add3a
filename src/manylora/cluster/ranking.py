"""The order in which a request tries replicas: a pure function of the request and of the edge's view."""

import numpy as np

from manylora.cluster.cost import CostRules, cost_to_serve
from manylora.cluster.views import FleetView, Want
from manylora.ids import ReplicaId


def rank(want: Want, view: FleetView, rules: CostRules, most: int | None = None) -> list[ReplicaId]:
    """Return the open replicas by their cost to serve a request, the cheapest first.

    Args:    most  the number of replicas to return; None: all. The first ones are the same either way
    Returns: no replica if the adapter is revoked, or if none is open
    Complexity: n log n in the number of replicas for all of them, linear for a few; independent of the adapters'
    """
    if want.digest is not None and want.digest in view.revoked:
        return []
    seconds = cost_to_serve(want, view, rules)
    if most is not None and most < len(seconds):
        # Replicas of equal cost beyond the last are cut by slot, as the stable sort of all would.
        bound = np.partition(seconds, most)[most]
        near = np.flatnonzero(seconds <= bound)
        order = near[np.argsort(seconds[near], kind="stable")][:most]
    else:
        order = np.argsort(seconds, kind="stable")
    is_open = view.is_open
    return [view.replicas[slot] for slot in order.tolist() if is_open[slot]]
