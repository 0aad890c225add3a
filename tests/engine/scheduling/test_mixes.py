"""Requests of several adapters at once: all members are waited for, pinned together, and named where one fails."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.adapter_state import AdapterAction, AdapterHandle, HeadKind
from manylora.engine.events import FinishReason
from manylora.engine.request import Priority
from tests.adapters.fake_source import body_bytes
from tests.engine.real_store import StoredWorld
from tests.engine.simulation.model import alone, identity_of, ref_of
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import World
from tests.engine.test_laws import RequestState, Shape, play

ADAPTERS = (
    "one",
    "two",
    "one*0.5+two*-2.0",
    "two*-2.0+one*0.5",
    "one*0.5+three*1.0+two*3.0",
    "one*0.25",
    "two*1.0+broken",
)

loads = st.lists(
    st.builds(
        RequestState,
        step=st.integers(0, 12),
        prompt=st.integers(1, 30).map(lambda length: tuple(range(length))),
        adapter=st.sampled_from(ADAPTERS),
        flow=st.sampled_from("ab"),
        salt=st.just("x"),
        budget=st.integers(1, 12),
        abort_at=st.none() | st.integers(0, 20),
    ),
    min_size=1,
    max_size=14,
).map(lambda load: sorted(load, key=lambda arrival: arrival.step))
shapes = st.builds(
    Shape,
    num_blocks=st.integers(18, 24),
    max_rows=st.integers(6, 24),
    max_running=st.integers(2, 6),
    capacity=st.integers(3, 4),
    polls_to_load=st.integers(1, 5),
)


@settings(max_examples=60)
@given(shapes, loads)
def test_each_request_ends_with_the_tokens_it_gets_alone(shape: Shape, load: list[RequestState]) -> None:
    world = shape.world()
    asked = play(world, load)  # checks pins and blocks, and who wrote each position that a row reads
    for request_id, arrival in asked.items():
        end, got = world.finished[request_id], world.tokens.get(request_id, [])
        if "broken" in str(arrival.adapter):
            assert end.reason in (FinishReason.ADAPTER_FAILURE, FinishReason.DISCONNECT)
            assert end.failure is None or "'broken'" in end.failure.message
        expected = alone(arrival.prompt, identity_of(arrival.adapter), arrival.budget)
        assert got == expected[: len(got)]
        assert end.reason is not FinishReason.LENGTH or len(got) == arrival.budget


@pytest.mark.parametrize(
    ("second", "cached"),
    [
        ("one*0.5+two*2.0", 16),
        ("two*2.0+one*0.5", 0),
        ("one*0.5+two*2.5", 0),
        ("one*0.5", 0),
        ("one", 0),
    ],
)
def test_a_prefix_belongs_to_the_ordered_adapters_with_their_weights(second: str, cached: int) -> None:
    world = World()
    world.submit(range(20), adapter="one*0.5+two*2.0")
    world.run()
    again = world.submit(range(20), adapter=second)
    world.run()
    assert world.finished[again].counts.cached_tokens == cached


def test_one_adapter_of_weight_one_is_the_adapter_alone() -> None:
    assert ref_of("one*1.0") == ref_of("one")


class Unmixable(SimulatedStore):
    """A store whose adapter `dora` changes more than the projections, and whose `late` is an activated LoRA."""

    def pin(self, ref):  # type: ignore[no-untyped-def]  # as its parent
        placed = super().pin(ref)
        if placed is None:
            return None
        made: AdapterHandle = replace(
            placed,
            has_extras=ref.id == "dora",
            invocation_tokens=(5,) if ref.id == "late" else (),
            head=HeadKind.TEXT if ref.id == "judge" else None,
        )
        return made


@pytest.mark.parametrize(
    ("adapter", "words"), [("dora", "DoRA"), ("late", "activated LoRA"), ("judge", "a classification head")]
)
def test_an_adapter_that_is_not_linear_in_its_weight_is_refused_by_name(adapter: str, words: str) -> None:
    world = World(store=Unmixable())
    request = world.submit([1, 2], adapter=f"one*1.0+{adapter}*2.0")
    healthy = world.submit([1, 2], adapter="one" if adapter == "judge" else adapter)
    world.run()
    end = world.finished[request]
    assert (end.reason, world.finished[healthy].reason) == (FinishReason.REJECTED, FinishReason.LENGTH)
    assert end.failure is not None
    assert f"'{adapter}'" in end.failure.message
    assert words in end.failure.message


def test_mixes_that_need_the_same_room_run_one_after_another(tmp_path: Path) -> None:
    """Room for one mix at a time: no mix keeps a member's place while another does the same."""
    assert body_bytes("a0") + body_bytes("a1") == body_bytes("a2") == 1920
    world = StoredWorld(tmp_path, bank_bytes=2000, num_blocks=256, max_running=4)
    requests = [
        world.submit([1], adapter=adapter, flow=flow, budget=20)
        for adapter, flow in (("a0*1.0+a1*2.0", "a"), ("a5*1.0+a1*2.0", "b"), ("a0*1.0+a5*2.0", "c"), ("a2", "a"))
    ]
    for _ in range(3000):
        if len(world.finished) == len(requests):
            break
        world.step()
    assert {world.finished[request].reason for request in requests} == {FinishReason.LENGTH}
    world.close()


@pytest.mark.parametrize("priority", list(Priority))
@pytest.mark.parametrize("host_bytes", [0, 4000])
def test_a_mix_that_can_never_fit_is_refused_with_its_size(tmp_path: Path, priority: Priority, host_bytes: int) -> None:
    """Each member fits alone; both together do not."""
    world = StoredWorld(tmp_path, bank_bytes=2000, host_bytes=host_bytes, num_blocks=256)
    mix = world.submit([1], adapter="a2*1.0+a1*-2.0", priority=priority)
    others = [world.submit([1], adapter=adapter, budget=3) for adapter in ("a2", "a0*1.0+a1*1.0")]
    for _ in range(200):
        if len(world.finished) == 3:
            break
        world.step()
    end = world.finished[mix]
    assert (end.reason, end.failure and end.failure.error) == (FinishReason.ADAPTER_FAILURE, "AdapterTooLarge")
    size = body_bytes("a2") + body_bytes("a1")
    assert end.failure is not None
    assert end.failure.message == f"Adapters 'a2', 'a1' need {size} bytes together; the limit is 2000"
    assert {world.finished[request].reason for request in others} == {FinishReason.LENGTH}
    world.close()


def test_what_operators_pin_leaves_less_room_for_a_mix(tmp_path: Path) -> None:
    world = StoredWorld(tmp_path, bank_bytes=3000, num_blocks=256)
    world.adapters.manage(AdapterAction.PIN, ref_of("a2"))
    for _ in range(20):
        world.step()
    refused, with_pinned = (world.submit([1], adapter=mix, budget=3) for mix in ("a0*1.0+a1*1.0", "a2*1.0+a0*1.0"))
    for _ in range(200):
        if len(world.finished) == 2:
            break
        world.step()
    left = 3000 - body_bytes("a2")
    failure = world.finished[refused].failure
    assert failure is not None
    assert failure.message.endswith(f"the limit is {left}")
    assert world.finished[with_pinned].reason is FinishReason.LENGTH
    world.close()
