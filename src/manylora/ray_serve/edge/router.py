"""The router of Ray Serve: the order of `routing.py` for Serve's handles. Serve imports the class by its name."""

import secrets

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from manylora.clock import SystemClock
from manylora.ids import ReplicaId
from manylora.ray_serve.edge.routing import CallRouting


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray is an extra, and its types are not followed
    """Sends each call to the replica with the least cost to serve it, and to the next one if that is full.

    Three traps of Serve's interface:
    - a full fleet makes the loop of retries spin, unless the call's context asks for back-off;
    - within one list of replicas Serve takes the one with the fewest calls, so that each list has one replica;
    - `FIFOMixin` would give the chosen replica to the oldest call that waits, which needs another adapter.
    """

    def initialize_state(self, stray: float = 2.0, edges: int = 1) -> None:
        """Begin with no replica. Args: stray  as in `CostRules`; edges  as in `CallRouting`."""
        self._routing = CallRouting(secrets.token_hex(4), SystemClock(), stray=stray, edges=edges)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._routing.observe({_name(each.replica_id): each.routing_stats for each in replicas})
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the candidates in their order, each in a list of its own."""
        if pending_request is None:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True
        by_name = {_name(each.replica_id): each for each in candidate_replicas}
        order = self._routing.order(pending_request.metadata.multiplexed_model_id, by_name)
        return [[by_name[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        metadata = pending_request.metadata
        self._routing.routed(metadata.internal_request_id, _name(replica_id), metadata.multiplexed_model_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._routing.ended(internal_request_id)


def _name(replica_id: ReplicaID) -> ReplicaId:
    return ReplicaId(replica_id.unique_id)
