"""The memory plan of a base on a card: two memories, each with its own parts."""

from dataclasses import replace

import pytest

from manylora.config.declaration import Setting
from manylora.config.groups.adapters import MIB
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid, MemoryPlanImpossible
from manylora.kernels.storage_form import CARD, CARDS, FLOAT32, expected_form
from manylora.models.spec import parse_spec
from manylora.wiring.memory_plan import CARD_BYTES, PROCESS_BYTES, MemoryPlan
from manylora.wiring.planning import available_bytes, plan_card, planned_form
from tests.wiring.test_memory_plan import SMOLLM

GIB = 1024 * MIB


def plan(card_bytes: int, host_bytes: int = 16 * GIB, **flags: Setting) -> MemoryPlan:
    given = {"model.device": "cuda", **{key.replace("__", "."): value for key, value in flags.items()}}
    config = load_config(flags=given, environ={})
    return plan_card(config, parse_spec(SMOLLM, {}), planned_form(config), card_bytes, host_bytes)


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_card_holds_weights_keys_and_adapters_and_the_host_the_rest(device: str) -> None:
    made = plan(24 * GIB, model__device=device)
    assert list(made.parts) == ["weights", "KV cache", "adapters", "step buffers", "captured steps", "processes"]
    assert any("18 graphs" in line for line in made.lines())
    assert made.process_bytes == CARD_BYTES
    assert sum(made.parts.values()) <= made.available_bytes == 24 * GIB
    assert made.host_parts["processes"] == PROCESS_BYTES
    assert sum(made.host_parts.values()) <= 16 * GIB
    assert made.bank_bytes > 1024 * MIB  # the bound of a CPU
    assert made.lines()[0].startswith("card memory available")
    assert any("host tier" in line for line in made.lines())


def test_captured_steps_take_no_memory_without_graphs() -> None:
    assert "captured steps" not in plan(24 * GIB, model__kernels="torch").parts


def test_the_budgets_of_bank_and_host_tier_are_their_own() -> None:
    made = plan(8 * GIB, adapters__bank_bytes=100 * MIB, adapters__host_bytes=700 * MIB)
    assert (made.bank_bytes, made.host_tier_bytes) == (100 * MIB, 700 * MIB)


def test_a_base_beyond_a_memory_is_refused_with_that_memory() -> None:
    with pytest.raises(MemoryPlanImpossible, match=r"available +1000\.0 MiB"):
        plan(1000 * MIB)
    with pytest.raises(MemoryPlanImpossible, match=r"of host memory, available +800\.0 MiB"):
        plan(24 * GIB, 800 * MIB, adapters__host_bytes=700 * MIB)
    with pytest.raises(MemoryPlanImpossible, match=r"cuda has .* free"):
        plan(8 * GIB, engine__memory_bytes=9 * GIB)


def test_a_plan_before_the_start_needs_the_bytes_of_the_card() -> None:
    config = load_config(flags={"model.device": "cuda"}, environ={})
    with pytest.raises(ConfigInvalid, match=r"give engine\.memory_bytes \(--device-memory\)"):
        available_bytes(config)
    assert available_bytes(load_config(flags={"model.device": "cuda", "engine.memory_bytes": 5}, environ={})) == 5


def test_the_expected_form_follows_from_the_device() -> None:
    assert expected_form("auto", "none", "cuda:1") == CARD
    assert expected_form("torch", "none") == replace(FLOAT32, keeps_four_bits=True)
    assert expected_form("auto", "int4", "cuda") == CARDS["int4"]


def test_a_quantised_base_takes_its_bits_and_one_widened_matrix() -> None:
    spec = parse_spec(SMOLLM, {})
    plain, eight, four = (plan(24 * GIB, model__quantize=quantize) for quantize in ("none", "int8", "int4"))
    assert plain.weight_bytes == 2 * spec.parameters
    assert eight.weight_bytes == spec.parameters + 4 * spec.output_channels
    assert four.weight_bytes < 0.8 * eight.weight_bytes
    largest = 2 * 2 * spec.intermediate * spec.hidden
    assert [made.step_bytes - plain.step_bytes for made in (eight, four)] == [largest, largest]
