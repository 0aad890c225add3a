"""The order of replicas for a call, from signals: affinity, load, and calls between two signals."""

import json

import pytest

from manylora.clock import ManualClock
from manylora.cluster.signals import MOST_ADAPTERS, Signal, heartbeat_of, routing_key, want_of, want_text
from manylora.cluster.views import Tier, Want
from manylora.ids import Digest, ReplicaId
from manylora.ray_serve.edge.routing import CallRouting

NAMES = [ReplicaId(f"r{number}") for number in range(4)]


def signal(
    epoch: int = 2, backlog: float = 0.0, tiers: dict[Digest, Tier] | None = None, is_draining: bool = False
) -> Signal:
    return Signal(epoch=epoch, backlog_tokens=backlog, tokens_per_s=100.0, tiers=tiers or {}, is_draining=is_draining)


def routing(**signals: Signal) -> CallRouting:
    found = CallRouting("edge", ManualClock())
    found.observe({name: signals[name].values() if name in signals else {} for name in NAMES})
    return found


def text(adapter: str, tokens: float = 10.0) -> str:
    return want_text(Want(digest=routing_key(adapter), num_bytes=1 << 20, tokens=tokens, prompt_tokens=tokens))


def test_each_adapter_has_one_first_replica_and_all_replicas_are_first_for_some() -> None:
    orders = {f"a{number}": routing().order(text(f"a{number}"), NAMES) for number in range(40)}
    assert orders == {name: routing().order(text(name), NAMES) for name in orders}
    assert {order[0] for order in orders.values()} == {*NAMES}
    assert all(sorted(order) == NAMES for order in orders.values())


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.DISK])
def test_a_replica_that_has_the_adapter_comes_first_until_it_is_busy(tier: Tier) -> None:
    home = routing().order(text("a"), NAMES)[0]
    other = next(name for name in NAMES if name != home)
    has_it = {routing_key("a"): tier}
    busy_home = routing(**{home: signal(backlog=50.0), other: signal(tiers=has_it)})
    assert busy_home.order(text("a"), NAMES)[0] == other
    assert routing(**{home: signal(tiers=has_it), other: signal(tiers=has_it)}).order(text("a"), NAMES)[0] == home
    all_busy = {name: signal(backlog=1000.0 if name == home else 0.0) for name in NAMES}
    assert routing(**all_busy).order(text("a"), NAMES)[-1] == home


def test_calls_between_two_signals_count_and_an_ended_call_does_not() -> None:
    found = routing(**{name: signal() for name in NAMES})
    first = found.order(text("a"), NAMES)[0]
    found.routed("call-1", first, text("a", tokens=1e6))
    assert found.order(text("a"), NAMES)[0] != first
    found.ended("call-1")
    found.ended("call-1")
    assert found.order(text("a"), NAMES)[0] == first
    found.routed("call-2", first, text("a", tokens=1e6))
    found.observe({name: signal(epoch=3).values() for name in NAMES})
    assert found.order(text("a"), NAMES)[0] == first


def test_a_repeated_signal_settles_no_call() -> None:
    signals = {name: signal() for name in NAMES}
    found = routing(**signals)
    first = found.order(text("a"), NAMES)[0]
    found.routed("call", first, text("a", tokens=1e6))
    found.observe({name: (signal(epoch=3) if name != first else each).values() for name, each in signals.items()})
    assert found.order(text("a"), NAMES)[0] != first
    found.observe({name: signal(epoch=3).values() for name in NAMES})
    assert found.order(text("a"), NAMES)[0] == first


def test_a_replica_that_drains_or_is_new_is_tried_last_and_one_that_left_is_forgotten() -> None:
    home = routing().order(text("a"), NAMES)[0]
    found = routing(**{name: signal(is_draining=name == home) for name in NAMES})
    assert found.order(text("a"), NAMES)[-1] == home
    assert found.order(text("a"), [*NAMES, ReplicaId("new")])[-1] == "new"
    rest = [name for name in NAMES if name != home]
    found.observe({name: signal(epoch=4).values() for name in rest})
    found.routed("call", home, text("a"))
    assert found.order(text("a"), rest) == [name for name in found.order(text("a"), rest) if name != home]


@pytest.mark.parametrize(
    "other",
    [
        "",
        "model",
        "a|b|c|d|",
        "zz|1|1|1|",
        "-|1|nan|1|",
        "-|-1|1|1|",
        "-|1|inf|0|",
        "-|1|1|1|x",
        "-|1|1|1|1|1",
        "-|1|1|1",
    ],
)
def test_a_call_without_needs_keeps_the_order(other: str) -> None:
    assert routing().order(other, NAMES) == NAMES
    with pytest.raises(ValueError, match="r"):
        want_of(other)


def test_needs_survive_their_text() -> None:
    for want in (
        Want(digest=None, num_bytes=0, tokens=0.0),
        Want(digest=routing_key("local:a"), num_bytes=1 << 40, tokens=12.5, prompt_tokens=12.5, prefixes=(0, 1 << 47)),
    ):
        assert want_of(want_text(want)) == want


def test_a_signal_is_small_and_names_the_nearest_adapters() -> None:
    tiers = {routing_key(f"a{number}"): Tier(number % 3) for number in range(1000)}
    values = signal(epoch=10**12, backlog=1e12, tiers=tiers).values()
    assert len(json.dumps(values)) < 2048
    assert len(values["tiers"]) == MOST_ADAPTERS
    assert {*values["tiers"].values()} == {0}
    assert heartbeat_of(NAMES[0], values).tiers == {Digest(key): Tier.DEVICE for key in values["tiers"]}


@pytest.mark.parametrize(
    "values", [{"epoch": 1}, {**signal().values(), "tiers": 1}, {**signal().values(), "tiers": {"a": 9}}]
)
def test_values_that_are_no_signal_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"r0|Tier"):
        heartbeat_of(NAMES[0], values)


def test_a_hot_adapter_gets_a_second_replica_within_two_signals() -> None:
    clock = ManualClock()
    found = CallRouting("edge", clock)
    sized = {"bank_bytes": 1 << 30, "adapter_bytes": 1 << 20}
    found.observe({name: {**signal().values(), **sized} for name in NAMES})
    (home, *_) = found.order(text("hot"), NAMES)
    for number in range(20):
        found.routed(f"call-{number}", home, text("hot", tokens=50.0))
        found.ended(f"call-{number}")
    clock.advance(0.5)
    found.observe({name: {**signal(epoch=3).values(), **sized} for name in NAMES})
    places = found._steering.placement.places[routing_key("hot")]
    assert home in places
    assert len(places) >= 2
    assert {*found.order(text("hot"), NAMES)[: len(places)]} == {*places}


def test_a_longer_prompt_goes_where_its_beginning_was_computed() -> None:
    found = routing(**{name: signal() for name in NAMES})
    needs = Want(digest=None, num_bytes=0, tokens=500.0, prompt_tokens=500.0, prefixes=(1, 2, 3))
    found.routed("first", NAMES[2], want_text(needs))
    found.ended("first")
    assert found.order(want_text(needs), NAMES)[0] == NAMES[2]
    assert found.order(want_text(Want(digest=None, num_bytes=0, tokens=500.0)), NAMES)[0] == NAMES[0]
