"""What adapters change of embedding, norms, head and outputs agrees with the reference, and touches no other row."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manylora.kernels.adapter_layout import EMBED_ROWS, HEAD_ROWS
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.kernels.projections import LoraTarget, Projection
from tests.kernels.cases import BACK_ENDS, NATIVE, TOLERANCE, add_extras, error, make_adapter, oracle_of, random
from tests.kernels.eager import EagerKernels

HIDDEN, VOCAB, ADDED, ROWS = 72, 331, 3, 23
TARGETS = (LoraTarget(Projection.Q, 0, 40), LoraTarget(Projection.V, 40, 19))
NOTHING = torch.empty(0)
NO_ATTENTION = AttentionBatch(NOTHING, NOTHING, NOTHING, NOTHING)


def adapter_with_extras(kernels: EagerKernels, seed: int = 1) -> PlacedAdapter:
    plain = make_adapter(seed, ranks=(8, 3), width=HIDDEN, targets=TARGETS, dtype=kernels.lora_dtype)
    outs = {(layer, int(target.projection)): target.out for layer in range(2) for target in TARGETS}
    return add_extras(plain, seed, hidden=HIDDEN, vocab=VOCAB, outs=outs, added=ADDED)


def poisoned(adapter: PlacedAdapter) -> PlacedAdapter:
    """Nothing but NaN, but for the token ids, which are checked when an adapter is packed."""
    image = torch.full_like(adapter.image, float("nan"))
    for entry in (adapter.extras[HEAD_ROWS], adapter.extras[EMBED_ROWS]):
        ids = slice(int(entry[0]), int(entry[0]) + int(entry[2]) * 4 // image.element_size())
        image[ids] = adapter.image[ids]
    return dataclasses.replace(adapter, image=image)


def step_of(kernels: EagerKernels, *, is_poisoned: bool = False) -> StepInput:
    """Rows 0 to 3 are the base's, then an adapter with extras, one without, and another with."""
    plain = make_adapter(9, ranks=(2, 2), width=HIDDEN, targets=TARGETS, dtype=kernels.lora_dtype)
    last = adapter_with_extras(kernels, 2)
    segments = (
        LoraSegment(4, 5, adapter_with_extras(kernels)),
        LoraSegment(5, 9, plain),
        LoraSegment(9, ROWS, poisoned(last) if is_poisoned else last),
    )
    sampled = tuple(segment for segment in segments if segment.adapter.extras.size)
    lora = kernels.prepare_lora(segments, sampled, VOCAB + ADDED)
    ids = token_ids()
    return StepInput(torch.where(ids < VOCAB, ids, 0), torch.arange(ROWS), NO_ATTENTION, lora, own_ids=ids)


def token_ids() -> Tensor:
    ids = (torch.arange(ROWS) * 7) % VOCAB
    ids[9:14] = torch.tensor([0, 7, 9, VOCAB, VOCAB + ADDED - 1])
    return ids


def embedded(kernels: EagerKernels, step: StepInput) -> Tensor:
    y = random(3, ROWS, HIDDEN)
    kernels.adapt_embedding(y, step)
    return y


def normed(kernels: EagerKernels, step: StepInput) -> Tensor:
    y, x = random(3, ROWS, HIDDEN), random(4, ROWS, HIDDEN)
    kernels.adapt_norm(y, x, step.lora, 2, 1e-5, is_sampled=False)
    return y


def normed_last(kernels: EagerKernels, step: StepInput) -> Tensor:
    y, x = random(3, ROWS, HIDDEN), random(4, ROWS, HIDDEN)
    kernels.adapt_norm(y, x, step.lora, 4, 1e-5, is_sampled=True)
    return y


def kept(kernels: EagerKernels, step: StepInput) -> Tensor:
    hidden = torch.full((ROWS, HIDDEN), float("nan"))
    step = dataclasses.replace(step, hidden_rows=torch.arange(ROWS), hidden=hidden)
    kernels.keep_hidden(random(3, ROWS, HIDDEN), random(4, ROWS, HIDDEN), random(5, HIDDEN), 2, 1e-5, step)
    return hidden


def logits(kernels: EagerKernels, step: StepInput) -> Tensor:
    return kernels.adapt_logits(random(3, ROWS, VOCAB), random(4, ROWS, HIDDEN), step.lora)


def projected(kernels: EagerKernels, step: StepInput) -> Tensor:
    y = random(3, ROWS, 59)
    kernels.add_lora(y, random(4, ROWS, HIDDEN), step.lora, 1, TARGETS)
    return y


OPERATIONS: dict[str, Callable[[EagerKernels, StepInput], Tensor]] = {
    "embedding": embedded,
    "norm": normed,
    "final norm": normed_last,
    "hidden states": kept,
    "logits": logits,
    "projections": projected,
}


@pytest.mark.parametrize("name", [name for name in BACK_ENDS if name != "reference"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_extra_agrees_with_the_reference(name: str, operation: str) -> None:
    kernels = BACK_ENDS[name]()
    oracle = oracle_of(kernels)
    found = OPERATIONS[operation](kernels, step_of(kernels))
    expected = OPERATIONS[operation](oracle, step_of(oracle))
    infinite = torch.isinf(expected)
    assert torch.equal(infinite, torch.isinf(found))
    assert error(found.masked_fill(infinite, 0), expected.masked_fill(infinite, 0)) < TOLERANCE["lora"]


@pytest.mark.parametrize("name", BACK_ENDS)
def test_rows_without_extras_keep_their_bits(name: str) -> None:
    kernels = BACK_ENDS[name]()
    step, others = step_of(kernels), [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(embedded(kernels, step)[others], random(3, ROWS, HIDDEN)[others])
    assert torch.equal(normed(kernels, step)[others], random(3, ROWS, HIDDEN)[others])
    found = logits(kernels, step)
    assert found.shape == (ROWS, VOCAB + ADDED)
    assert torch.equal(found[others, :VOCAB], random(3, ROWS, VOCAB)[others])
    assert torch.isneginf(found[others, VOCAB:]).all()
    assert torch.isfinite(found[[4, *range(9, ROWS)]]).all()


@pytest.mark.parametrize("name", BACK_ENDS)
def test_some_rows_hidden_states_are_those_of_all(name: str) -> None:
    kernels = BACK_ENDS[name]()
    step, rows = step_of(kernels), torch.tensor([1, 4, 5, 10, 11, ROWS - 1])
    hidden = torch.empty((len(rows), HIDDEN))
    residual, delta, weight = random(3, ROWS, HIDDEN), random(4, ROWS, HIDDEN), random(5, HIDDEN)
    some = dataclasses.replace(step, hidden_rows=rows, hidden=hidden)
    kernels.keep_hidden(residual, delta, weight, 2, 1e-5, some)
    assert torch.equal(hidden, kept(kernels, step)[rows])
    kernels.keep_hidden(residual, delta, weight, 2, 1e-5, step)  # a step that keeps none
    assert torch.equal(residual, random(3, ROWS, HIDDEN))


@pytest.mark.parametrize("name", NATIVE)
def test_a_row_has_the_same_bits_alone(name: str) -> None:
    kernels = BACK_ENDS[name]()
    step = step_of(kernels)
    whole_embedded, whole_logits = embedded(kernels, step), logits(kernels, step)
    last = step.lora.segments[-1]
    for row in range(last.start, last.stop):
        alone = (LoraSegment(0, 1, last.adapter),)
        lora = kernels.prepare_lora(alone, alone, VOCAB + ADDED)
        y, ids = random(3, ROWS, HIDDEN)[row : row + 1].clone(), token_ids()[row : row + 1]
        kernels.adapt_embedding(y, StepInput(ids, ids, NO_ATTENTION, lora, own_ids=ids))
        assert torch.equal(y[0], whole_embedded[row])
        own, x = random(3, ROWS, VOCAB)[row : row + 1].clone(), random(4, ROWS, HIDDEN)[row : row + 1]
        assert torch.equal(kernels.adapt_logits(own, x, lora)[0], whole_logits[row])


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_nan_in_one_adapter_changes_no_bit_of_the_others(name: str, operation: str) -> None:
    kernels = BACK_ENDS[name]()
    clean = OPERATIONS[operation](kernels, step_of(kernels))
    dirty = OPERATIONS[operation](kernels, step_of(kernels, is_poisoned=True))
    assert torch.equal(clean[:9], dirty[:9])
    assert dirty[9:].isnan().any()
