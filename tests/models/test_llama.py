"""The forward pass against transformers in float32, whole and in chunks, for odd shapes of models."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.kernels.reference import ReferenceKernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from tests.models.test_rope import SCALINGS

TOLERANCE = 1e-4  # float32 on both sides; measured: 4e-6 on these, 4e-5 on the default base, whose logits reach 28
BLOCK_SIZE = 4
TOKENS = torch.randint(0, 101, (40,), generator=torch.Generator().manual_seed(3))

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi_head": {"num_key_value_heads": 6},
    "one_kv_head": {"num_key_value_heads": 1},
    "wide_heads": {"head_dim": 16},
    "tied": {"tie_word_embeddings": True},
    **{f"rope_{name}": {"rope_parameters": {"rope_theta": 1e4, **fields}} for name, fields in SCALINGS.items()},
}
MISTRALS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 7},
    "window_of_one": {"sliding_window": 1},
    "no_window": {"sliding_window": None},
}


def save_random(directory: Path, oracle: Any, **saving: Any) -> Any:  # transformers is not type-checked here
    """Give a model weights large enough that every part of it shows in the logits, and save it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in oracle.parameters():
            spread = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(spread + (1.0 if parameter.ndim == 1 else 0.0))
    oracle.save_pretrained(directory, **saving)
    return oracle.eval()


def load(directory: Path) -> LlamaModel:
    spec, kernels = read_spec(directory), ReferenceKernels()
    return LlamaModel(spec, load_weights(directory, spec, kernels), kernels)


def run_in_chunks(model: LlamaModel, tokens: Tensor, sizes: list[int]) -> Tensor:
    """Return the logits of every row, computed `sizes` rows at a time over one cache; blocks in a shuffled order."""
    spec, kernels = model.spec, model.kernels
    num_blocks = -(-len(tokens) // BLOCK_SIZE)
    table = torch.arange(num_blocks, dtype=torch.int32).flip(0)[None]
    kv = kernels.new_kv(
        layers=spec.num_layers,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )
    found, start = [], 0
    for size in sizes:
        positions = torch.arange(start, start + size)
        slots = table[0, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        rows = torch.zeros(size, dtype=torch.int32)
        step = StepInput(
            token_ids=tokens[start : start + size],
            logit_rows=torch.arange(size),
            attention=AttentionBatch(positions.int(), slots, rows, table),
            lora=kernels.prepare_lora(()),
        )
        found.append(model.forward(step, kv))
        start += size
    return torch.cat(found)


def expected_logits(oracle: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = oracle(tokens[None]).logits[0]
    return logits


@pytest.mark.parametrize("name", LLAMAS)
def test_a_llamas_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    oracle = save_random(tmp_path, LlamaForCausalLM(LlamaConfig(**{**SMALL, **LLAMAS[name]})))
    found = run_in_chunks(load(tmp_path), TOKENS, [len(TOKENS)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MISTRALS)
def test_a_mistrals_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = MistralConfig(**{**SMALL, "head_dim": None, **MISTRALS[name]})
    oracle = save_random(tmp_path, MistralForCausalLM(config))
    found = run_in_chunks(load(tmp_path), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaModel, Tensor]:
    directory = tmp_path_factory.mktemp("windowed")
    oracle = save_random(directory, MistralForCausalLM(MistralConfig(**{**SMALL, "sliding_window": 9})))
    return load(directory), expected_logits(oracle, TOKENS)


@given(data=st.data())
@settings(max_examples=15)
def test_a_prompt_cut_anywhere_gives_the_same_logits(windowed: tuple[LlamaModel, Tensor], data: st.DataObject) -> None:
    model, expected = windowed
    cuts = data.draw(st.sets(st.integers(1, len(TOKENS) - 1)))
    edges = [0, *sorted(cuts), len(TOKENS)]
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    torch.testing.assert_close(run_in_chunks(model, TOKENS, sizes), expected, rtol=0, atol=TOLERANCE)


def test_only_the_wanted_rows_get_logits(windowed: tuple[LlamaModel, Tensor]) -> None:
    model, expected = windowed
    spec = model.spec
    kv = model.kernels.new_kv(
        layers=spec.num_layers, num_blocks=3, block_size=4, kv_heads=spec.kv_heads, head_dim=spec.head_dim
    )
    rows = torch.arange(10)
    attention = AttentionBatch(
        rows.int(), rows, torch.zeros(10, dtype=torch.int32), torch.tensor([[0, 1, 2]], dtype=torch.int32)
    )
    for wanted in ([], [3], [2, 9]):
        step = StepInput(
            TOKENS[:10], torch.tensor(wanted, dtype=torch.int64), attention, model.kernels.prepare_lora(())
        )
        found = model.forward(step, kv)
        assert found.shape == (len(wanted), spec.vocab)
        torch.testing.assert_close(found, expected[wanted], rtol=0, atol=TOLERANCE)


@pytest.mark.base
@pytest.mark.long
def test_the_default_bases_logits_equal_those_of_transformers(base_dir: Path) -> None:
    tokens = torch.tensor([1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198])
    found = run_in_chunks(load(base_dir), tokens, [10, 1, 5])
    oracle = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    torch.testing.assert_close(found, expected_logits(oracle, tokens), rtol=0, atol=2 * TOLERANCE)
