"""The memory plan: what is derived, and what is refused."""

import pytest
import torch

from manylora.adapters.store.loads import INGEST_FACTOR
from manylora.config.groups.adapters import MIB
from manylora.config.settings import load_config
from manylora.errors import MemoryPlanImpossible
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.storage_form import BFLOAT16
from manylora.models.sizes import weight_bytes
from manylora.models.spec import parse_spec
from manylora.wiring.memory_plan import BaseSizes, MemoryPlan, base_sizes, plan_memory
from tests.kernels.cases import native
from tests.models.test_spec import LLAMA

SMOLLM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
}
"""The default base's config.json."""


def plan(
    available_mib: int, *, max_positions: int = 8192, sliding_window: int | None = None, **flags: int
) -> MemoryPlan:
    config = load_config(flags={key.replace("__", "."): value for key, value in flags.items()}, environ={})
    sizes = BaseSizes(
        name="tiny",
        weight_bytes=269 * MIB,
        kv_block_bytes=16 * 23_040,
        max_positions=max_positions,
        sliding_window=sliding_window,
    )
    return plan_memory(config, sizes, available_bytes=available_mib * MIB)


def test_the_derived_plan_holds_two_windows_and_fits() -> None:
    made = plan(24_000)
    assert made.kv_blocks * made.block_size == 16_384
    assert made.max_model_len == 8192
    assert made.weight_bytes + made.kv_bytes + made.bank_bytes + made.process_bytes <= made.available_bytes
    assert any("16384 positions" in line for line in made.lines())


def test_a_small_machine_gets_a_smaller_cache() -> None:
    made = plan(1_100, engine__max_model_len=2048)
    assert 2048 <= made.kv_blocks * made.block_size < 16_384


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(MemoryPlanImpossible, match=r"weights +269\.0 MiB \+ KV cache .* = .* available +900\.0 MiB"):
        plan(900)


def test_a_cache_below_one_window_is_refused() -> None:
    with pytest.raises(MemoryPlanImpossible, match="less than one window of 8192"):
        plan(24_000, engine__kv_bytes=10 * MIB)


@pytest.mark.parametrize("max_positions", [32_768, 1_000_000])
def test_a_sequence_of_a_sliding_window_needs_that_window_a_step_and_a_block(max_positions: int) -> None:
    made = plan(24_000, max_positions=max_positions, sliding_window=4096)
    assert made.blocks_per_sequence == (4096 + 256) // 16 + 1
    assert made.kv_blocks == 64 * 16, "256 positions for each running sequence, more than two sliding windows"
    assert made.max_model_len == max_positions
    assert any("sliding window 4096" in line for line in made.lines())


def test_a_sliding_window_of_the_whole_context_changes_nothing() -> None:
    assert plan(24_000, sliding_window=8192) == plan(24_000)


def test_a_cache_below_one_sliding_window_is_refused_with_it() -> None:
    block = 16 * 23_040
    assert plan(24_000, sliding_window=1024, engine__kv_bytes=81 * block).kv_blocks == 81
    with pytest.raises(MemoryPlanImpossible, match=r"less than the 1296 .* with its sliding window of 1024"):
        plan(24_000, sliding_window=1024, engine__kv_bytes=80 * block)


def test_the_window_is_never_more_than_the_models() -> None:
    assert plan(24_000, engine__max_model_len=100_000).max_model_len == 8192


def test_on_a_cpu_the_smaller_of_the_two_adapter_budgets_counts() -> None:
    assert plan(24_000, adapters__host_bytes=50 * MIB).bank_bytes == 50 * MIB
    assert plan(24_000, adapters__host_bytes=50 * MIB, adapters__bank_bytes=20 * MIB).bank_bytes == 20 * MIB


def test_the_default_base_fits_a_container_of_one_and_a_half_gigabytes_with_its_whole_window() -> None:
    config = load_config(environ={})
    sizes = base_sizes(config, parse_spec(SMOLLM, {}), BFLOAT16)
    made = plan_memory(config, sizes, available_bytes=1_500_000_000)
    assert (sizes.weight_bytes, sizes.kv_block_bytes) == (269_030_016, 16 * 23_040)
    assert made.max_model_len == 8192
    assert made.bank_bytes >= 64 * MIB
    assert made.ingest_bytes >= INGEST_FACTOR * 6_549_448  # the largest demo adapter


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_bytes_of_int8_weights_are_those_that_are_packed(is_tied: bool) -> None:
    spec = parse_spec({**LLAMA, "tie_word_embeddings": is_tied}, {})
    kernels = CpuKernels(native(1), Int8Linear(native(1)))
    outputs = (spec.heads + 2 * spec.kv_heads) * spec.head_dim + 2 * spec.hidden + 2 * spec.intermediate
    tables = (1 if is_tied else 2) * spec.vocab
    assert weight_bytes(spec, kernels.form) == spec.parameters + 4 * (spec.num_layers * outputs + tables)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_bytes_of_int4_weights_are_those_that_are_packed(is_tied: bool) -> None:
    spec = parse_spec({**SMOLLM, "tie_word_embeddings": is_tied}, {})
    kernels = CpuKernels(native(1), Int4Linear(native(1)))
    shapes = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
    layers = sum(kernels.pack(torch.zeros(shape)).num_bytes - 64 for shape in shapes)  # type: ignore[attr-defined]  # Panels
    table = kernels.pack_table(torch.zeros(spec.vocab, 576)).num_bytes  # type: ignore[attr-defined]  # as above
    norms = (2 * 30 + 1) * 576 * 5 / 8
    assert weight_bytes(spec, kernels.form) == 30 * layers + (1 if is_tied else 2) * table + norms
