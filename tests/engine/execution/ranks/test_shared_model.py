"""A base on several ranks gives the logits of one process, for each architecture and each kind of adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from manylora.errors import ModelUnsupported
from manylora.kernels.collectives import Collectives, join_columns
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.interface import Kernels
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.select import select_kernels
from manylora.kernels.weight_groups import GroupedRows
from manylora.models.checkpoint_files import checked_entries
from manylora.models.checkpoints.stored import widened
from manylora.models.llama import LlamaModel
from manylora.models.shares import SharedFourBits, share_entries
from manylora.models.spec import read_spec
from manylora.models.tensor_parallel import Share, degrees
from manylora.models.weights import load_weights
from tests.conftest import long, thinned
from tests.engine.execution.ranks.thread_ranks import run_shared, with_ranks
from tests.models.checkpoints.test_quantized import save_quantized
from tests.models.parity.rows import ROWS
from tests.models.parity.test_parity import NAMES, PROMPT
from tests.models.parity.tiny import Tiny, make_tiny
from tests.models.test_llama import TOKENS
from tests.support.forward import Prompts, ReadyAdapter, load_model, place, run
from tests.support.mixtral import VOCAB, every, make_mixtral, random_factors, save_by_peft, save_separate
from tests.support.tiny import make_adapter, make_base

TOLERANCE = 1e-4
"""Largest difference of a logit between one process and several ranks in float32: the order of sums alone differs."""


@pytest.fixture(scope="module", params=thinned(ROWS, 3))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(ROWS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("most", [2, *long(4)])
def test_logits_are_those_of_one_process_with_adapters_mixed(tiny: Tiny, most: int) -> None:
    model = load_model(tiny.base, "reference", 1)
    size = max(degree for degree in degrees(read_spec(tiny.base)) if degree <= most)
    if size == 1:
        pytest.skip("no degree divides this base")
    placed: dict[str | None, ReadyAdapter | None] = {None: None}
    for name, folder in tiny.adapters.items():
        placed[name] = place(folder, model.spec, ReferenceKernels(), tiny.base)
    assert_equal(tiny.base, size, [(PROMPT, placed[name]) for name in NAMES])


def assert_equal(base: Path, size: int, prompts: Prompts) -> None:
    expected = run(load_model(base, "reference", 1), prompts)
    for number, (logits, wanted) in enumerate(zip(run_shared(base, size, prompts), expected, strict=True)):
        is_known = wanted.isfinite()  # a token that the row's adapter lacks has -Inf
        assert torch.equal(logits.isfinite(), is_known)
        error = (logits - wanted)[is_known].abs().max().item()
        assert error <= TOLERANCE, f"prompt {number} on {size} ranks: largest error {error}"


ENDS: dict[str, dict[str, Any]] = {
    "both ends": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "dora": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "o_proj", "down_proj"], "use_dora": True},
    "whole tables": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"r": 2, "target_modules": ["v_proj"], "trainable_token_indices": [1, 5, 104, 198]},
    "activated": {
        "r": 4,
        "target_modules": ["q_proj", "down_proj"],
        "alora_invocation_tokens": [7, 8],
        "task_type": "CAUSAL_LM",
    },
}
"""Adapters that change the embedding or the head, and one that applies to a part of its rows."""


@pytest.mark.parametrize("quantize", ["none", *long("int8", "int4")])
def test_the_kernels_of_cards_share_a_base_over_gloo(quantize: str, tmp_path: Path) -> None:
    """The same model and executor as over NCCL, with tensors of host memory in place of each rank's card."""
    base = make_base(tmp_path / "base", hidden_size=64, intermediate_size=128, num_attention_heads=8)

    def card() -> TorchKernels:
        return TorchKernels(torch.device("cpu"), torch.float32, 1 << 30, quantize)

    kernels, spec = card(), read_spec(base.directory)
    whole = LlamaModel(spec, load_weights(base.directory, spec, kernels), kernels)
    ready = place(
        make_adapter(base, tmp_path / "dora", LoraConfig(**ENDS["dora"])), spec, ReferenceKernels(), base.directory
    )
    prompts: Prompts = [(PROMPT[:9], None), (PROMPT[3:9], ready)]
    shared, single = torch.cat(run_shared(base.directory, 2, prompts, card)), torch.cat(run(whole, prompts))
    if quantize == "int8":  # each rank has scales of its own for its columns
        exact = torch.cat(run(load_model(base.directory, "reference", 1), prompts))
        assert (shared - exact).square().mean() <= 1.3 * (single - exact).square().mean()
    else:
        assert (shared - single).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("is_tied", [False, *long(True)])
@pytest.mark.parametrize("size", [2, *long(6)])  # six ranks share two key-value heads
def test_adapters_of_the_ends_give_the_logits_of_one_process(is_tied: bool, size: int, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=is_tied)
    spec, kernels = read_spec(base.directory), ReferenceKernels()
    names = [name for name in ENDS if not is_tied or name in ("both ends", "tokens", "activated")]
    placed = [
        place(make_adapter(base, tmp_path / name, LoraConfig(**ENDS[name])), spec, kernels, base.directory)
        for name in names
    ]
    prompt = [*PROMPT[:8], 7, 8, 1, 5, 104, 198]
    mixed = [(placed[-1]._replace(invocation_tokens=()), 0.5), (placed[-1]._replace(invocation_tokens=()), 2.0)]
    assert_equal(base.directory, size, [(prompt, None), *((prompt, ready) for ready in placed), (prompt, mixed)])


def test_adapters_of_experts_and_routers_give_the_logits_of_one_process(tmp_path: Path) -> None:
    base = make_mixtral(tmp_path / "base")
    spec, kernels = read_spec(base.directory), ReferenceKernels()
    single = save_separate(
        tmp_path / "single",
        random_factors(["gate", *every("w1", "w2", "w3")], 3),
        r=3,
        lora_alpha=6,
        target_modules=["gate", "w1", "w2", "w3"],
    )
    fused = save_by_peft(
        base,
        tmp_path / "fused",
        r=4,
        target_modules=["q_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    placed = [place(folder, spec, kernels, base.directory) for folder in (single, fused)]
    tokens = [token % VOCAB for token in PROMPT]
    assert_equal(base.directory, 2, [(tokens, None), *((tokens, ready) for ready in placed)])


def test_a_row_on_several_ranks_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    base = make_base(tmp_path, num_attention_heads=8, num_key_value_heads=2).directory
    prompts = [(PROMPT[start : start + 9], None) for start in range(0, 20, 4)]
    together = run_shared(base, 4, prompts, lambda: CpuKernels(NativeLibrary(1)))
    alone = run_shared(base, 4, prompts[2:3], lambda: CpuKernels(NativeLibrary(1)))
    assert torch.equal(together[2], alone[0])


@pytest.mark.parametrize("quantize", ["none", *long("int8", "int4")])
def test_native_ranks_are_as_near_to_float32_as_one_native_process(quantize: str, tmp_path: Path) -> None:
    base = make_base(tmp_path, hidden_size=64, intermediate_size=128, num_attention_heads=4).directory
    prompts: Prompts = [(PROMPT[start : start + 12], None) for start in range(0, len(PROMPT) - 12, 3)]
    exact = torch.cat(run(load_model(base, "reference", 1), prompts))

    def kernels() -> Kernels:
        return select_kernels("native", 1, quantize=quantize)

    spec, own = read_spec(base), kernels()
    single = torch.cat(run(LlamaModel(spec, load_weights(base, spec, own), own), prompts))
    shared = torch.cat(run_shared(base, 2, prompts, kernels))
    assert (shared - exact).square().mean() <= 1.3 * (single - exact).square().mean()


@pytest.mark.parametrize("case", ["awq", *long("gptq-order", "gptq-8-bits", "w4a16-zeros", "awq-one-group")])
def test_quantised_files_are_read_by_rows_and_columns(case: str, tmp_path: Path) -> None:
    save_quantized(tmp_path, case)
    assert_equal(tmp_path, 2, [(TOKENS.tolist(), None)])


OUTPUT = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(("case", "size"), [("w4a16-32", 2), *long(("awq-one-group", 2), ("gptq-32-zeros", 2))])
def test_groups_of_four_bits_stay_as_they_are_stored(case: str, size: int, tmp_path: Path) -> None:
    save_quantized(tmp_path, case)
    spec = read_spec(tmp_path)
    shares = [Share(spec, size, rank) for rank in range(size)]
    entries = checked_entries(tmp_path, spec)
    kept = [share_entries({OUTPUT: entries[OUTPUT]}, share, keeps_four_bits=True)[OUTPUT] for share in shares]
    parts = []
    for part in kept:
        assert isinstance(part, SharedFourBits)
        found = part.four_bits(0, part.shape[0])
        minima = torch.from_numpy(found.lows())
        rows = GroupedRows(torch.from_numpy(found.pairs), torch.from_numpy(found.scales), minima)
        parts.append(rows.wide(part.shape[1], part.group_size))
    whole = widened(entries[OUTPUT].rows(0, entries[OUTPUT].shape[0]))
    torch.testing.assert_close(torch.cat(parts, 1), torch.from_numpy(whole), rtol=0, atol=1e-6)


def test_a_group_of_four_bits_on_two_ranks_is_refused_by_name(tmp_path: Path) -> None:
    save_quantized(tmp_path, "w4a16-32")
    spec = read_spec(tmp_path)
    entries = checked_entries(tmp_path, spec)
    with pytest.raises(ModelUnsupported, match=r"o_proj.weight has groups of 32 inputs, and 16 inputs a rank cut one"):
        share_entries({OUTPUT: entries[OUTPUT]}, Share(spec, 4, 1), keeps_four_bits=True)


@pytest.mark.parametrize("rows", [0, 3])
def test_the_joined_columns_lie_on_rank_0_alone_in_memory_of_the_last_ones(rows: int) -> None:
    whole = torch.arange(rows * 5.0).view(rows, 5)
    kept = torch.zeros(rows, 7)

    def joined(ranks: Collectives) -> torch.Tensor | None:
        own = torch.nn.functional.pad(whole, (0, 1))[:, 3 * ranks.rank : 3 * ranks.rank + 3]
        x = torch.nn.functional.pad(own, (0, 1), value=9.0).contiguous()
        return join_columns(ranks, x, 5, 7, kept if ranks.rank == 0 else None)

    first, second = with_ranks(2, joined)
    assert first is kept
    assert second is None
    assert torch.equal(kept[:, :5], whole)
    assert torch.isneginf(kept[:, 5:]).all()
