"""The router of Ray Serve, with Serve's own base class and stand-ins for its replicas: the three traps."""

import asyncio
import importlib.util
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from manylora.cluster.signals import Signal, routing_key, want_text
from manylora.cluster.views import Tier, Want
from tests.conftest import missing

pytestmark = pytest.mark.long  # imports Ray


@pytest.fixture(scope="module", autouse=True)
def ray_is_here() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic tells Ray of deprecations
        importlib.import_module("ray.serve")


def replica(name: str, tier: Tier = Tier.STORE) -> Any:
    """The fields of `RunningReplica` that the router reads."""
    signal = Signal(epoch=2, backlog_tokens=0.0, tokens_per_s=100.0, tiers={routing_key("a"): tier})
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=signal.values())


def call(text: str = "") -> Any:
    return SimpleNamespace(
        metadata=SimpleNamespace(multiplexed_model_id=text, internal_request_id="call-1"),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def router(replicas: list[Any]) -> Any:
    """A router without Serve's own state: what it keeps for Serve is Serve's."""
    from manylora.ray_serve.edge.router import AffinityRouter

    found = AffinityRouter.__new__(AffinityRouter)
    found.initialize_state()
    found._routing.observe({each.replica_id.unique_id: each.routing_stats for each in replicas})
    return found


def test_each_list_has_one_replica_in_the_order_of_the_ranking_and_a_full_fleet_backs_off() -> None:
    replicas = [replica("r0"), replica("r1", Tier.DEVICE), replica("r2")]
    pending = call(want_text(Want(digest=routing_key("a"), num_bytes=1 << 20, tokens=10.0)))
    lists = asyncio.run(router(replicas).choose_replicas(replicas, pending))
    assert [len(each) for each in lists] == [1, 1, 1]
    assert lists[0][0].replica_id.unique_id == "r1"
    assert pending.routing_context.should_backoff
    assert asyncio.run(router(replicas).choose_replicas(replicas, None)) == [replicas]


def test_no_call_gets_the_replica_that_was_chosen_for_another() -> None:
    from ray.serve.request_router import FIFOMixin

    from manylora.ray_serve.edge.router import AffinityRouter

    assert not issubclass(AffinityRouter, FIFOMixin)


def test_a_call_on_its_way_counts_until_its_end() -> None:
    replicas = [replica("r0", Tier.DEVICE), replica("r1", Tier.DEVICE)]
    pending = call(want_text(Want(digest=routing_key("a"), num_bytes=1, tokens=1e6)))
    found = router(replicas)

    def first() -> str:
        return str(asyncio.run(found.choose_replicas(replicas, pending))[0][0].replica_id.unique_id)

    home = first()
    found.on_request_routed(pending, SimpleNamespace(unique_id=home), None)
    assert first() != home
    found.on_request_completed(SimpleNamespace(unique_id=home), "call-1")
    assert first() == home
