"""The batch of a step, built over what is left of the last one, is the one that its plan says."""

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import given, settings

from manylora.engine.execution.batch import Batch, BatchBuilder
from manylora.engine.execution.sampler import Drawn
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Digest, RequestId
from manylora.kernels.lora_batch import PlacedAdapter
from manylora.kernels.projections import NUM_PROJECTIONS
from manylora.kernels.reference import ReferenceKernels
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.model import VOCAB
from tests.engine.test_laws import RequestState, Shape, loads, play, shapes


class Weights:
    """Every version that is asked for, each at one place."""

    def __init__(self) -> None:
        self.placed: dict[Digest, PlacedAdapter] = {}

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        if digest not in self.placed:
            self.placed[digest] = PlacedAdapter(
                digest, torch.zeros(8), np.zeros((1, NUM_PROJECTIONS, 3), dtype=np.int64)
            )
        return self.placed[digest]


class CheckedExecutor(SimulatedExecutor):
    """Builds the batch of every plan with one builder, and compares it with the plan."""

    def __init__(self, inner: SimulatedExecutor) -> None:
        super().__init__(inner.kv.num_blocks, inner.kv.block_size)
        self.weights = Weights()
        self.builder = BatchBuilder(
            ReferenceKernels(), self.weights, max_rows=64, block_size=self.block_size, vocab=VOCAB, hidden=8
        )
        self.num_checked = 0
        self.faults: list[str] = []

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
        try:
            self._check(self.builder.build(plan, running), plan, running)
        except AssertionError as fault:  # the engine takes what is raised here for a fault of the step
            self.faults.append(str(fault))
        self.num_checked += 1
        return super().execute(plan, running)

    def release(self) -> None:
        self.builder.release()

    def _check(self, batch: Batch[Sequence], plan: Plan, running: Mapping[RequestId, Sequence]) -> None:
        pairs = sorted(((chunk, running[chunk.request_id]) for chunk in plan.chunks), key=digest_of)
        step, attention = batch.step, batch.step.attention
        tokens = [token for chunk, sequence in pairs for token in tokens_of(chunk, sequence)]
        assert step.token_ids.tolist() == tokens
        positions = [position for chunk, _ in pairs for position in range(chunk.start, chunk.start + chunk.num_rows)]
        assert attention.positions.tolist() == positions
        owners = [index for index, (chunk, _) in enumerate(pairs) for _ in range(chunk.num_rows)]
        assert attention.row_sequence.tolist() == owners
        for row, (_, sequence) in enumerate(pairs):
            assert attention.block_tables[row, : len(sequence.blocks)].tolist() == sequence.blocks
        size = self.block_size
        blocks = [pairs[owner][1].blocks[position // size] for owner, position in zip(owners, positions, strict=True)]
        slots = [block * size + position % size for block, position in zip(blocks, positions, strict=True)]
        assert attention.slots.tolist() == slots
        ends = np.cumsum([chunk.num_rows for chunk, _ in pairs]).tolist()
        logit_rows = [
            row
            for (chunk, _), end in zip(pairs, ends, strict=True)
            if chunk.is_sampled
            for row in range(end - 1 - len(chunk.draft_tokens), end)
        ]
        assert step.logit_rows.tolist() == logit_rows
        assert batch.sampled == [pair for pair in pairs if pair[0].is_sampled]
        assert batch.has_drafts == any(chunk.draft_tokens for chunk in plan.chunks)
        found = [""] * len(tokens)
        for segment in step.lora.segments:
            assert segment.adapter is self.weights[segment.adapter.digest]
            found[segment.start : segment.stop] = [segment.adapter.digest] * (segment.stop - segment.start)
        assert found == [digest_of(pairs[owner]) for owner in owners]


def tokens_of(chunk: Chunk, sequence: Sequence) -> list[int]:
    return [*sequence.tokens[chunk.start : chunk.stop], *chunk.draft_tokens]


def digest_of(pair: tuple[Chunk, Sequence]) -> str:
    placed = pair[1].placed
    return "" if placed is None else placed.digest


@settings(max_examples=60)
@given(shapes, loads)
def test_a_batch_is_what_its_plan_says_whatever_the_one_before(shape: Shape, load: list[RequestState]) -> None:
    checked: list[CheckedExecutor] = []

    def check(inner: SimulatedExecutor) -> CheckedExecutor:
        checked.append(CheckedExecutor(inner))
        return checked[0]

    world = shape.world(open_executor=check)
    play(world, load)
    assert not checked[0].faults
    assert checked[0].num_checked == len(checked[0].plans)


def test_weights_that_were_placed_again_are_found_at_their_new_place() -> None:
    weights = Weights()
    builder = BatchBuilder(ReferenceKernels(), weights, max_rows=8, block_size=4, vocab=VOCAB, hidden=8)
    batches: list[Batch[Sequence]] = []

    class Kept(SimulatedExecutor):
        def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
            batches.append(builder.build(plan, running))
            return super().execute(plan, running)

    shape = Shape(num_blocks=20, max_rows=8, max_running=2, capacity=1, polls_to_load=1)
    world = shape.world(open_executor=lambda inner: Kept(inner.kv.num_blocks, inner.kv.block_size))
    world.submit([1], adapter="one", budget=2)
    world.run()
    weights.placed.clear()  # evicted, and placed again for the next request
    world.submit([1], adapter="one", budget=2)
    world.run()
    first, second = (batch.step.lora.segments[0].adapter for batch in batches[1:3])
    assert first.digest == second.digest
    assert first is not second


def test_a_released_builder_keeps_no_weights() -> None:
    import gc
    import weakref

    weights = Weights()
    builder = BatchBuilder(ReferenceKernels(), weights, max_rows=8, block_size=4, vocab=VOCAB, hidden=8)

    class Built(SimulatedExecutor):
        def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
            builder.build(plan, running)
            return super().execute(plan, running)

        def release(self) -> None:
            builder.release()

    shape = Shape(num_blocks=20, max_rows=8, max_running=2, capacity=1, polls_to_load=1)
    world = shape.world(open_executor=lambda inner: Built(inner.kv.num_blocks, inner.kv.block_size))
    world.submit([1], adapter="one", budget=4)
    world.run()
    image = weakref.ref(weights.placed.popitem()[1].image)
    assert image() is not None
    world.engine.tend()
    gc.collect()
    assert image() is None
