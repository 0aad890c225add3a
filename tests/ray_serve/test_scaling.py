"""The policy of Ray Serve's scaling, with contexts as Serve makes them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from manylora.ray_serve.scaling import TokenBacklog


@dataclass
class Context:
    """The fields of Serve's context that the policy reads."""

    target_num_replicas: int
    total_queued_requests: float = 0.0
    aggregated_metrics: dict[str, dict[str, float]] | None = None
    policy_state: dict[str, Any] = field(default_factory=dict)
    current_time: float | None = 0.0


def metrics(*backlogs: float, thrash: float = 0.0, load_share: float = 0.0) -> dict[str, dict[str, float]]:
    names = [f"r{number}" for number in range(len(backlogs))]
    return {
        "backlog_tokens": dict(zip(names, backlogs, strict=True)),
        "tokens_per_s": dict.fromkeys(names, 100.0),
        "thrash": dict.fromkeys(names, thrash),
        "load_share": dict.fromkeys(names, load_share),
    }


@pytest.mark.parametrize(
    ("context", "wanted"),
    [
        (Context(0), 0),
        (Context(0, total_queued_requests=1), 1),
        (Context(1, aggregated_metrics=metrics(200)), 1),
        (Context(1, aggregated_metrics=metrics(600)), 3),
        (Context(2, aggregated_metrics=metrics(300, 300), total_queued_requests=1), 5),
        (Context(2, aggregated_metrics=metrics(1e6, 1e6)), 5),
        (Context(4, aggregated_metrics=metrics(1, 1, 1, 1, thrash=0.9, load_share=0.5)), 5),
    ],
)
def test_it_follows_waiting_tokens_and_thrash(context: Context, wanted: int) -> None:
    assert TokenBacklog(most=5)(context)[0] == wanted


def test_its_state_lets_replicas_go_after_calm_and_the_last_one_after_idleness() -> None:
    policy, replicas = TokenBacklog(least=0, most=3, calm_s=10, idle_s=30), 3
    state: dict[str, Any] = {}
    history: list[int] = []
    for second in range(60):
        load = metrics(*[0.0] * replicas)
        context = Context(replicas, 0.0, load, state, 1000.0 + second)
        replicas, state = policy(context)
        history.append(replicas)
    assert [history[second] for second in (9, 10, 19, 20, 29, 30, 59)] == [3, 2, 2, 1, 1, 0, 0]


def test_a_replica_that_is_starting_stays_wanted_after_the_burst_that_asked_for_it() -> None:
    policy = TokenBacklog(most=2, calm_s=10)
    wanted, state = policy(Context(1, aggregated_metrics=metrics(600), current_time=0.0))
    assert wanted == 2
    assert policy(Context(2, aggregated_metrics=metrics(0), policy_state=state, current_time=5.0))[0] == 2


def test_a_context_without_numbers_keeps_what_runs() -> None:
    assert TokenBacklog()(Context(2, current_time=None))[0] == 2
