"""Captured steps: a replay has the bits of the same operations one by one, whatever the step at the capture had."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits, captured_rows, items_of
from manylora.kernels.cuda.graphs import StepCapture
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import Packed, StepInput
from manylora.kernels.projections import NUM_PROJECTIONS, expert_targets, lora_targets, table_width
from manylora.kernels.weight_rows import WeightRows
from manylora.models.experts import ExpertSpec
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec, parse_spec
from tests.conftest import long
from tests.kernels.cases import PagedSequences, add_extras, make_adapter
from tests.kernels.cuda.interpreted import HOST, require_triton
from tests.models.random_model import random_model
from tests.models.test_spec import LLAMA

require_triton()
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.chunks import LoraChunks, StagedLora  # noqa: E402
from manylora.kernels.cuda.jit.static_inputs import StaticInputs  # noqa: E402
from tests.kernels.cuda.recorder import RecordedGraphs  # noqa: E402 - it imports Triton
from tests.kernels.cuda.test_packed_weights import weight as weight_in_four_bits  # noqa: E402 - as above

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 40}
SIZES |= {"num_key_value_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64, "head_dim": 8}
SPEC = parse_spec({**LLAMA, **SIZES}, {})
LIMITS = CaptureLimits(
    max_rows=4, max_positions=64, block_size=4, vocab=40, layers=1, width=NUM_PROJECTIONS, max_rank=20
)
MIXTURE = dataclasses.replace(SPEC, experts=ExpertSpec(count=3, chosen=2, is_normed=True))
MIXED_WIDTH = table_width(3)
Spans = tuple[tuple[int, int, int], ...]
"""(first row, stop, adapter)."""


class Decoding:
    """A model in two forms, captured and not, which decode the same sequences with the same keys and values."""

    def __init__(self, spec: ModelSpec = SPEC, own: type[TritonKernels] = TritonKernels) -> None:
        self.graphs = RecordedGraphs()
        self.models = [self.model(graphs, spec, own) for graphs in (None, self.graphs)]
        qkv, o = lora_targets("qkv", SPEC), lora_targets("o", SPEC)
        self.adapters = [
            make_adapter(seed, ranks=ranks, width=32, targets=(*qkv, *o), dtype=torch.float32, layers=1)
            for seed, ranks in enumerate([(4, 0, 3, 17), (0, 0, 1, 0), (20, 16, 8, 0), (3, 3, 3, 3)])
        ]
        self.paged = PagedSequences([40, 33, 9, 1], block_size=4)
        self.kv = [self.cache(model) for model in self.models]

    @staticmethod
    def model(graphs: RecordedGraphs | None, spec: ModelSpec, own: type[TritonKernels]) -> LlamaModel:
        torch.manual_seed(3)
        width = table_width(0 if spec.experts is None else spec.experts.count)
        limits = dataclasses.replace(LIMITS, width=width)
        return random_model(spec, own(HOST, torch.float32, capture=graphs), scale=0.2, captured=limits)

    def cache(self, model: LlamaModel) -> Any:
        torch.manual_seed(4)
        made: Any = model.kernels.new_kv(
            layers=1, num_blocks=self.paged.num_blocks, block_size=4, kv_heads=2, head_dim=8
        )
        made.keys.normal_()
        made.values.normal_()
        return made

    def step(self, rows: int, spans: Spans = (), seed: int = 0, shift: int = 0) -> StepInput:
        """The last position of each of the first sequences, `shift` before it, with adapters of some rows."""
        ends = [max(1, length - shift) for length in self.paged.lengths[:rows]]
        batch = self.paged.batch([(index, end - 1, end) for index, end in enumerate(ends)])
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(40, (rows,), generator=generator)
        segments = tuple(LoraSegment(start, stop, self.adapters[number]) for start, stop, number in spans)
        own = tuple(segment for segment in segments if segment.adapter.extras.size)
        lora = self.models[0].kernels.prepare_lora(segments, own)
        attention = dataclasses.replace(batch, block_tables=batch.block_tables[:rows])
        return StepInput(ids, torch.arange(rows), attention, lora)

    def both(self, step: StepInput) -> tuple[Tensor, Tensor]:
        """The logits of operations one by one, and those of the captured model."""
        eager, captured = (model.forward(step, kv) for model, kv in zip(self.models, self.kv, strict=True))
        return eager, captured

    @property
    def counts(self) -> tuple[int, int]:
        """Steps that the captured model has replayed, and others."""
        return self.models[1].kernels.steps.replayed, self.models[1].kernels.steps.eager


@pytest.fixture
def decoding() -> Decoding:
    return Decoding()


def test_a_replay_with_more_segments_ranks_and_positions_than_at_the_capture_skips_none(decoding: Decoding) -> None:
    for number, (spans, shift) in enumerate([(((1, 2, 1),), 9), (((0, 1, 2), (1, 2, 0)), 0)]):
        eager, captured = decoding.both(decoding.step(2, spans, number, shift))
        assert torch.equal(eager, captured)
    assert decoding.counts == (2, 0)
    [launches] = decoding.graphs.captures
    grids = {launch.kernel: launch.grid for launch in launches}
    assert grids["shrink_kernel"][0] == items_of(2)
    assert grids["expand_kernel"][0] == 2
    assert grids["attend_kernel"] == (2, 2, 1)


def test_rows_beyond_the_step_write_no_key_and_change_no_row(decoding: Decoding) -> None:
    before = decoding.kv[1].keys.clone()
    eager, captured = decoding.both(decoding.step(3))
    torch.testing.assert_close(eager, captured, rtol=1e-5, atol=1e-5)  # torch multiplies four rows in another order
    assert int((decoding.kv[1].keys != before).any(-1).any(-1).sum()) == 3
    assert torch.equal(decoding.kv[0].values.isfinite(), decoding.kv[1].values.isfinite())
    assert decoding.counts == (1, 0)


@pytest.mark.parametrize(("adapters", "replayed"), [*long((9, 1)), (10, 0)])
def test_a_mix_of_more_adapters_than_a_captured_row_has_is_not_replayed(adapters: int, replayed: int) -> None:
    """Both have no more items than a step of two rows, whose other row is the base's here."""
    decoding, experts = Decoding(MIXTURE), expert_targets("gate_up", SPEC)
    mix = [
        make_adapter(
            seed, ranks=(1, 2), width=32, targets=experts, dtype=torch.float32, layers=1, table_width=MIXED_WIDTH
        )
        for seed in range(adapters)
    ]
    segments = tuple(LoraSegment(0, 1, adapter, 0.5) for adapter in mix)
    lora = decoding.models[0].kernels.prepare_lora(segments)
    eager, captured = decoding.both(dataclasses.replace(decoding.step(2), lora=lora))
    assert torch.equal(eager, captured)
    assert decoding.counts == (replayed, 1 - replayed)


@pytest.mark.parametrize("rows", [1, *long(4)])
def test_all_sizes_and_kinds_are_captured_before_the_first_step(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dataclasses.replace(LIMITS, max_rows=rows)
    monkeypatch.setattr(sys.modules[__name__], "LIMITS", limits)
    decoding = Decoding()
    before = [part.clone() for part in (decoding.kv[1].keys, decoding.kv[1].values)]
    assert decoding.models[1].prepare(decoding.kv[1]) == limits.num_graphs == len(decoding.graphs.captures)
    assert all(map(torch.equal, before, (decoding.kv[1].keys, decoding.kv[1].values)))
    for number, spans in enumerate([(), ((0, 1, 2),)]):
        eager, captured = decoding.both(decoding.step(min(rows, 2), spans, number))
        assert torch.equal(eager, captured)
    assert decoding.counts == (2, 0)
    assert len(decoding.graphs.captures) == limits.num_graphs
    assert decoding.models[0].prepare(decoding.kv[0]) == 0


class FourBitKernels(TritonKernels):
    """Kernels that pack every weight of the blocks in four bits; with `are_mixed`, every third one has minima."""

    packed = 0
    are_mixed = False

    def __init__(self, device: torch.device, dtype: torch.dtype, *, capture: StepCapture | None) -> None:
        super().__init__(device, dtype, capture=capture)
        self._pack_wide, self.pack = self.pack, self._pack

    def _pack(self, weight: WeightRows) -> Packed:
        outputs, inputs = weight.shape
        if outputs == SPEC.vocab:
            return self._pack_wide(weight)
        self.packed += 1
        has_minima = self.are_mixed and not self.packed % 3
        return self.pack_groups(weight_in_four_bits(3, outputs, inputs, 32, has_minima=has_minima))


class MixedKernels(FourBitKernels):
    """Kernels whose experts have several forms."""

    are_mixed = True


@pytest.mark.long
def test_a_mixture_in_four_bits_is_replayed() -> None:
    decoding = Decoding(MIXTURE, FourBitKernels)
    eager, captured = decoding.both(decoding.step(2, seed=1))
    assert torch.equal(eager, captured)
    assert decoding.counts == (1, 0)


def test_a_mixture_of_experts_in_several_forms_is_never_recorded(caplog: pytest.LogCaptureFixture) -> None:
    decoding = Decoding(MIXTURE, MixedKernels)
    with caplog.at_level(logging.WARNING):
        for number, rows in enumerate((1, 2, 1), start=1):
            eager, captured = decoding.both(decoding.step(rows, seed=number))
            assert torch.equal(eager, captured)
            assert decoding.counts == (0, number)
    assert not decoding.graphs.captures
    assert [record.getMessage() for record in caplog.records] == [
        "steps.not_captured rows=1 with_adapters=False reason=experts are multiplied one by one, by numbers that the "
        "host reads"
    ]


def test_the_inputs_of_a_captured_step_keep_the_dtype_of_an_image_and_not_its_memory() -> None:
    native = StaticInputs(LIMITS, HOST).step(1, torch.ones(9, dtype=torch.bfloat16)).lora.native
    assert isinstance(native, LoraChunks)
    assert native.image.dtype is torch.bfloat16
    assert not native.image.untyped_storage().nbytes()


class CopyUnderWay:
    """An event of a copy that ends when it is waited for: until then its source must stay as it was."""

    def __init__(self, source: Tensor) -> None:
        self.source, self.sent = source, torch.empty(0, dtype=torch.uint8)
        self.is_under_way = False

    def record(self) -> None:
        assert not self.is_under_way, "the source was written before the copy before had ended"
        self.is_under_way, self.sent = True, self.source.clone()

    def synchronize(self) -> None:
        assert not self.is_under_way or torch.equal(self.source, self.sent)
        self.is_under_way = False


def test_no_number_is_written_while_a_copy_of_the_step_before_is_under_way(decoding: Decoding) -> None:
    inputs = StaticInputs(LIMITS, HOST)
    buffers = [inputs._rows, inputs._blocks, inputs._lora]
    for buffer in buffers:
        buffer._sent = CopyUnderWay(buffer._host)  # type: ignore[assignment]
    loads: list[Spans] = [((0, 1, 0),), ((0, 2, 1),), (), ((1, 2, 3),)]
    for number, spans in enumerate(loads):
        step = decoding.step(4 - number, spans, seed=number, shift=number)
        native = step.lora.native
        inputs.fill(step, native.host if isinstance(native, StagedLora) else None, 4)
    inputs.clear()
    inputs.clear()
    assert all(buffer._sent.sent.numel() for buffer in buffers), "each was sent"  # type: ignore[union-attr]


@pytest.mark.long
def test_each_of_many_steps_replays_one_of_two_graphs_a_size(decoding: Decoding) -> None:
    for number in range(4):
        for spans in ((), ((0, 1, number),)):
            eager, captured = decoding.both(decoding.step(1, spans, number, number))
            assert torch.equal(eager, captured)
    assert len(decoding.graphs.captures) == 2
    assert decoding.graphs.replays == 8


def changed(decoding: Decoding) -> Iterator[tuple[str, StepInput]]:
    """Steps that no graph has the form of."""
    step = decoding.step(2)
    yield "a row without logits", dataclasses.replace(step, logit_rows=torch.arange(1))
    two = decoding.paged.batch([(0, 38, 40)])
    yield (
        "two rows of a sequence",
        dataclasses.replace(
            step, attention=dataclasses.replace(two, block_tables=two.block_tables[:1]), logit_rows=torch.arange(2)
        ),
    )
    large = make_adapter(9, ranks=(33,), width=32, targets=lora_targets("o", SPEC), dtype=torch.float32, layers=1)
    yield "a larger rank", with_adapter(decoding, step, large)
    extras = add_extras(decoding.adapters[3], 5, hidden=32, vocab=40, outs={}, added=0)
    yield "an adapter with a norm of its own", with_adapter(decoding, step, extras)
    yield "kept hidden states", dataclasses.replace(step, hidden_rows=torch.arange(1), hidden=torch.empty(1, 32))


def with_adapter(decoding: Decoding, step: StepInput, adapter: PlacedAdapter) -> StepInput:
    own = (LoraSegment(0, 1, adapter),)
    sampled = own if adapter.extras.size else ()
    return dataclasses.replace(step, lora=decoding.models[0].kernels.prepare_lora(own, sampled))


@pytest.mark.long
def test_other_steps_are_computed_operation_by_operation(decoding: Decoding) -> None:
    for number, (name, step) in enumerate(changed(decoding)):
        eager, captured = decoding.both(step)
        assert torch.equal(eager, captured), name
        assert decoding.counts == (0, number + 1), name
    assert not decoding.graphs.captures


@pytest.mark.long
def test_an_adapter_with_gains_and_biases_of_projections_alone_is_replayed(decoding: Decoding) -> None:
    outs = {(0, int(target.projection)): target.out for target in lora_targets("qkv", SPEC)}
    extras = add_extras(decoding.adapters[0], 5, hidden=32, vocab=40, outs=outs, added=0)
    vectors_at = extras.extras[13]
    extras.extras[:12], extras.extras[14:vectors_at] = 0, -1
    step = with_adapter(decoding, decoding.step(1), extras)
    eager, captured = decoding.both(step)
    assert torch.equal(eager, captured)
    assert decoding.counts == (1, 0)
    assert not torch.equal(captured, decoding.both(decoding.step(1, ((0, 1, 0),)))[1])


@pytest.mark.long
def test_an_adapter_that_is_gone_is_not_read_by_a_later_step(decoding: Decoding) -> None:
    """Its address stays in the table of the captured step; its memory may be another's."""
    decoding.both(decoding.step(2, ((0, 1, 0), (1, 2, 2))))
    for gone in (0, 2):
        decoding.adapters[gone].image.fill_(float("nan"))
    eager, captured = decoding.both(decoding.step(2, ((1, 2, 3),)))
    assert torch.equal(eager, captured)
    assert captured.isfinite().all()
    assert decoding.counts == (2, 0)


@pytest.mark.long
def test_a_version_that_is_placed_anew_before_every_step_is_read_where_it_lies(decoding: Decoding) -> None:
    """The same name and ranks, other values at another address, under one graph."""
    found = []
    for number in range(3):
        own = decoding.adapters[3]
        moved = dataclasses.replace(own, image=own.image * (number + 1))
        eager, captured = decoding.both(with_adapter(decoding, decoding.step(1), moved))
        assert torch.equal(eager, captured)
        found.append(captured)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert len(decoding.graphs.captures) == 1


def test_a_device_that_cannot_capture_computes_every_step_with_one_line(
    decoding: Decoding, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Callable[[], None]) -> None:
        raise RuntimeError("no graphs here\nmore lines")

    monkeypatch.setattr(decoding.graphs, "capture", fail)
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            eager, captured = decoding.both(decoding.step(1, seed=seed))
            assert torch.equal(eager, captured)
    assert [record.getMessage() for record in caplog.records] == [
        "steps.not_captured rows=1 with_adapters=False reason=no graphs here"
    ]
    assert decoding.counts == (0, 3)


def test_an_operation_that_waits_for_the_device_cannot_be_captured() -> None:
    numbers = torch.arange(3)
    for waits in (lambda: numbers[0].item(), lambda: numbers[numbers > 1], lambda: numbers.nonzero()):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            RecordedGraphs().capture(waits)


def test_an_unknown_token_is_refused_before_a_replay(decoding: Decoding) -> None:
    step = decoding.step(1)
    step.token_ids.fill_(40)
    with pytest.raises(IndexError, match="a token id is outside the table of 40 rows"):
        decoding.models[1].forward(step, decoding.kv[1])
    assert decoding.counts == (0, 0)


def test_a_result_is_the_caller_s_until_it_is_given_back(decoding: Decoding) -> None:
    model, kv = decoding.models[1], decoding.kv[1]
    first = model.forward(decoding.step(1, seed=1), kv)
    kept = first.clone()
    second = model.forward(decoding.step(1, seed=2), kv)
    assert torch.equal(first, kept)
    assert model.forward(decoding.step(1, seed=3), kv, second) is second


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 4)),
        (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        *long((100, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128))),
    ],
)
def test_the_sizes_end_at_the_first_that_holds_the_most_rows(most: int, sizes: tuple[int, ...]) -> None:
    assert captured_rows(most) == sizes


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_every_number_of_segments_replays_as_it_computes(decoding: Decoding, rows: int) -> None:
    decoding.both(decoding.step(rows, ((0, 1, 1),)))
    for first in range(rows):
        spans = tuple((row, row + 1, (row + first) % 4) for row in range(first, rows))
        eager, captured = decoding.both(decoding.step(rows, spans, first))
        torch.testing.assert_close(eager, captured, rtol=1e-5, atol=1e-5)
        if rows != 3:
            assert torch.equal(eager, captured)
