"""The cluster of one machine: the processors and cards that the first replicas need."""

from typing import Any

import pytest

from manylora.config.settings import load_config
from manylora.errors import StartupError
from manylora.ray_serve.local import refuse_too_few

ENOUGH = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("settings", "resources", "told"),
    [
        ({"ray.engine_cpus": 4.0}, {"CPU": 1.0}, r"has 1 CPU, .* ask for .* 1 replicas .* of 4 CPU"),
        ({"ray.engine_cards": 1.0}, {"CPU": 64.0}, r"has 0 GPU, .* ask for 1: .* and 1 GPU"),
        ({"ray.engines": 9, "ray.most_engines": 9, "ray.engine_cards": 1.0}, ENOUGH, r"has 8 GPU, .* ask for 9: "),
        ({"ray.edges": 1, "ray.edge_cpus": 65.0}, ENOUGH, r"has 64 CPU, .* 1 edges \(ray\.edges\) of 65 CPU"),
    ],
)
def test_more_processors_or_cards_than_a_cluster_has_are_refused_in_one_line(
    settings: dict[str, Any],
    resources: dict[str, float],
    told: str,  # values of several types
) -> None:
    config = load_config(None, settings, {})
    with pytest.raises(StartupError, match=told) as caught:
        refuse_too_few(config, resources)
    assert "\n" not in caught.value.message
    refuse_too_few(config, {"CPU": 1000.0, "GPU": 1000.0})


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"ray.engine_cpus": 8.0}, "asks for 8 CPU, .* node of the cluster has 4"), ({"ray.engine_cards": 2.0}, "2 GPU")],
)
def test_a_replica_that_no_node_can_hold_is_refused(
    settings: dict[str, Any],
    told: str,  # values of several types
) -> None:
    config = load_config(None, settings, {})
    with pytest.raises(StartupError, match=told):
        refuse_too_few(config, ENOUGH, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}])
    refuse_too_few(config, ENOUGH, [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}])
