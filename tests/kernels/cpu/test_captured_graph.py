"""A recorded forward gives the bits of its operations called one by one, for every shape of step and in any order."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.linear import Bf16Linear
from manylora.kernels.interface import CompiledForward
from manylora.kernels.lora_batch import LoraSegment
from manylora.kernels.operands import KvCache, Packed, StepInput
from manylora.kernels.projections import LoraTarget, Projection, expert_index, table_width
from manylora.kernels.sampling import SAMPLING_RULE
from manylora.kernels.table_of_operations import OPERATIONS, Operations, Rows
from tests.kernels.cases import BACK_ENDS, NATIVE, PagedSequences, add_extras, make_adapter, native, random, rope_table
from tests.kernels.eager import EagerKernels, eager

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WIDE, VOCAB, LAYERS = 4, 2, 24, 40, 56, 203, 2
LENGTHS = (40, 23, 65, 9)
QKV_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
TARGETS = (LoraTarget(Projection.Q, 0, HEADS * HEAD_DIM), LoraTarget(Projection.V, QKV_WIDTH - 48, 48))
EXPERTS, CHOSEN = 3, 2
EXPERT_TARGETS = (LoraTarget(expert_index(Projection.UP, 0), WIDE, WIDE),)
ALL_TARGETS = (*TARGETS, *(LoraTarget(expert_index(Projection.UP, expert), WIDE, WIDE) for expert in range(EXPERTS)))
RunStep = Callable[[StepInput, KvCache], Tensor]


class Block:
    """A forward that uses every operation, some of them on the sampled rows alone."""

    def __init__(self, kernels: EagerKernels) -> None:
        self.rope = rope_table(max(LENGTHS), HEAD_DIM)
        self.table = kernels.pack(random(1, VOCAB, HIDDEN))
        self.qkv, self.o = self.pack(kernels, 2, QKV_WIDTH, HIDDEN), self.pack(kernels, 3, HIDDEN, HEADS * HEAD_DIM)
        self.up, self.down = self.pack(kernels, 4, 2 * WIDE, HIDDEN), self.pack(kernels, 5, HIDDEN, WIDE)
        self.norm = random(6, HIDDEN).abs()
        self.bias, self.head_norm = random(7, QKV_WIDTH), random(8, HEAD_DIM).abs()
        self.router = random(7, EXPERTS, HIDDEN)
        self.experts = tuple(self.pack(kernels, 8 + expert, 2 * WIDE, HIDDEN) for expert in range(EXPERTS))

    @staticmethod
    def pack(kernels: EagerKernels, seed: int, outputs: int, inputs: int) -> Packed:
        return kernels.pack(random(seed, outputs, inputs, scale=0.1))

    def __call__(self, ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        residual = ops.embed(step.token_ids, self.table)
        ops.adapt_embedding(residual, step)
        x = ops.norm(residual, self.norm, 1e-5)
        ops.adapt_norm(x, residual, step.lora, 0, 1e-5, is_sampled=False)
        for layer in range(LAYERS):
            qkv = ops.linear(x, self.qkv)
            ops.add_bias(qkv, self.bias)
            ops.norm_heads(qkv, self.head_norm, 0, HEADS, HEAD_DIM, 1e-5)
            ops.add_lora(qkv, x, step.lora, layer, TARGETS)
            q = ops.rotate_and_store(qkv, self.rope, kv, layer, HEADS, step.attention)
            delta = ops.linear(ops.attend(q, kv, layer, 17, step.attention), self.o)
            x = ops.add_norm(residual, delta, self.norm, 1e-5)
            routes = ops.route(ops.score_experts(x, self.router), CHOSEN, is_normed=True)
            picks = ops.send_to_experts(routes, x)
            wide = ops.expert_linear(routes, picks, self.experts)
            ops.add_expert_lora(routes, wide, picks, step.lora, layer, EXPERT_TARGETS)
            wide = ops.gather_from_experts(routes, ops.gated_silu(wide))
            x = ops.linear(ops.gated_silu(ops.linear(x, self.up)), self.down)
            x = ops.add_norm(x, ops.linear(wide, self.down), self.norm, 1e-5)
        ops.keep_hidden(residual, x, self.norm, 2 * LAYERS, 1e-5, step)
        taken, last = ops.take_rows(residual, step.logit_rows), ops.take_rows(x, step.logit_rows)
        x = ops.add_norm(taken, last, self.norm, 1e-5)
        ops.adapt_norm(x, taken, step.lora, 2 * LAYERS, 1e-5, is_sampled=True)
        return ops.adapt_logits(ops.logits(x, self.table), x, step.lora)


@pytest.fixture(params=[*NATIVE, "int8", "int4", "native-bf16"], scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[EagerKernels, CompiledForward, RunStep]:
    """The kernels, the forward compiled and the same forward called operation by operation."""
    own = {
        "int8": lambda: eager(native(2), Int8Linear(native(2))),
        "int4": lambda: eager(native(2), Int4Linear(native(2))),
        "native-bf16": lambda: eager(native(2), Bf16Linear(native(2))),
    }
    kernels = (BACK_ENDS | own)[request.param]()
    forward = Block(kernels)
    return kernels, kernels.compile(forward), functools.partial(forward, kernels)


def new_kv(kernels: EagerKernels, paged: PagedSequences) -> KvCache:
    return kernels.new_kv(
        layers=LAYERS, num_blocks=paged.num_blocks, block_size=16, kv_heads=KV_HEADS, head_dim=HEAD_DIM
    )


def make_step(
    kernels: EagerKernels,
    paged: PagedSequences,
    spans: list[tuple[int, int, int]],
    sampled: list[int],
    with_lora: bool,
    with_extras: bool = False,
) -> StepInput:
    batch = paged.batch(spans)
    rows = batch.positions.shape[0]
    adapter = make_adapter(
        3,
        ranks=(8, 5, 6, 0, 3),
        width=HIDDEN,
        targets=ALL_TARGETS,
        dtype=kernels.lora_dtype,
        table_width=table_width(EXPERTS),
    )
    own_ids = torch.arange(rows) % VOCAB
    first = len([row for row in sampled if row < rows // 2])
    tail: tuple[LoraSegment, ...] = ()
    if with_extras:
        outs = {(layer, int(target.projection)): target.out for layer in range(LAYERS) for target in ALL_TARGETS}
        adapter = add_extras(adapter, 20, hidden=HIDDEN, vocab=VOCAB, outs=outs)
        own_ids[rows - 1] = VOCAB + 1
        tail = (LoraSegment(first, len(sampled), adapter),) if first < len(sampled) else ()
    segments = (LoraSegment(rows // 2, rows, adapter),) if with_lora or with_extras else ()
    return StepInput(
        token_ids=torch.where(own_ids < VOCAB, own_ids, 0),
        own_ids=own_ids,
        logit_rows=torch.tensor(sampled, dtype=torch.int64),
        attention=batch,
        lora=kernels.prepare_lora(segments, tail, adapter.vocabulary if tail else 0),
        hidden_rows=torch.arange(0, rows, 2),
        hidden=torch.empty((-(-rows // 2), HIDDEN)),
    )


@given(data=st.data())
@settings(max_examples=settings().max_examples // 4)
def test_a_compiled_forward_has_the_same_bits(
    pair: tuple[EagerKernels, CompiledForward, RunStep], data: st.DataObject
) -> None:
    kernels, compiled, plain = pair
    paged = PagedSequences(LENGTHS)
    ours, theirs = new_kv(kernels, paged), new_kv(kernels, paged)
    done = [0] * len(LENGTHS)
    for _ in range(4):
        spans = []
        for index, length in enumerate(LENGTHS):
            count = data.draw(st.integers(0, length - done[index]))
            if count:
                spans.append((index, done[index], done[index] + count))
                done[index] += count
        if not spans:
            continue
        rows = sum(stop - start for _, start, stop in spans)
        sampled = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
        with_lora, with_extras = data.draw(st.booleans()), data.draw(st.booleans())
        step = make_step(kernels, paged, spans, sampled, with_lora, with_extras)
        assert step.hidden is not None
        found, hidden = compiled(step, ours), step.hidden.clone()
        expected = plain(step, theirs)
        assert found.shape == (len(sampled), max(VOCAB, step.lora.vocabulary))
        assert torch.equal(found, expected)
        assert torch.equal(hidden, step.hidden)


def test_a_result_outlives_the_next_step(pair: tuple[EagerKernels, CompiledForward, RunStep]) -> None:
    kernels, compiled, _ = pair
    paged = PagedSequences(LENGTHS)
    kv = new_kv(kernels, paged)
    first = compiled(make_step(kernels, paged, [(0, 0, 9)], [8], False), kv)
    kept = first.clone()
    compiled(make_step(kernels, paged, [(1, 0, 23), (2, 0, 60)], [22, 82], True), kv)
    assert torch.equal(first, kept)


def test_a_result_takes_the_memory_of_one_that_is_given_up_if_it_fits(
    pair: tuple[EagerKernels, CompiledForward, RunStep],
) -> None:
    kernels, compiled, _ = pair
    paged = PagedSequences(LENGTHS)
    kv = new_kv(kernels, paged)
    step = make_step(kernels, paged, [(0, 0, 9)], [8], False)
    first = compiled(step, kv)
    kept = first.clone()
    other = compiled(make_step(kernels, paged, [(1, 0, 23), (2, 0, 60)], [22, 82], True), kv, first)
    assert other.data_ptr() != first.data_ptr()
    again = compiled(step, kv, first)
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, kept)


def test_a_token_outside_the_table_is_an_error_and_the_next_step_runs(
    pair: tuple[EagerKernels, CompiledForward, RunStep],
) -> None:
    kernels, compiled, plain = pair
    paged = PagedSequences(LENGTHS)
    kv = new_kv(kernels, paged)
    step = make_step(kernels, paged, [(0, 0, 9)], [8], False)
    step.token_ids[4] = VOCAB
    with pytest.raises(IndexError, match=str(VOCAB)):
        compiled(step, kv)
    step.token_ids[4] = 0
    assert torch.equal(compiled(step, kv), plain(step, new_kv(kernels, paged)))


def test_a_profile_says_where_the_time_went() -> None:
    kernels = BACK_ENDS["native-1"]()
    compiled, paged = kernels.compile(Block(kernels)), PagedSequences(LENGTHS)
    step = make_step(kernels, paged, [(2, 0, 65)], [64], True, True)
    kv = new_kv(kernels, paged)
    profile = kernels.start_profile()
    assert profile is not None
    assert not any(profile.seconds().values())
    compiled(step, kv)
    assert {kind for kind, seconds in profile.seconds().items() if seconds > 0} == {
        row.name for row in OPERATIONS if not row.result.is_collective
    }
    kernels.sample(random(1, 2, VOCAB), np.zeros(2, dtype=SAMPLING_RULE))
    assert all(seconds > 0 for seconds in profile.seconds().values())


def test_a_back_end_that_calls_torch_has_no_profile() -> None:
    assert BACK_ENDS["reference"]().start_profile() is None
