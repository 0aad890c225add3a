"""A rank that keeps what it was sent builds the batch that rank 0 builds from the sequences themselves."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from hypothesis import given, settings

from manylora.adapter_state import AdapterHandle
from manylora.engine.execution.batch import Batch, BatchBuilder, BlockTables
from manylora.engine.execution.batch_sequence import S
from manylora.engine.execution.ranks.mirror import Mirror, RankSequence, StepEncoder
from manylora.engine.execution.sampler import Drawn
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Digest, RequestId
from manylora.kernels.reference import ReferenceKernels
from tests.engine.execution.test_batch import Weights
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.model import VOCAB
from tests.engine.test_laws import RequestState, Shape, loads, play, shapes


def real_digest(handle: AdapterHandle) -> AdapterHandle:
    """The handle with a digest of the form that the store gives."""
    parts = tuple((real_digest(part), weight) for part, weight in handle.parts)
    return replace(handle, digest=Digest(hashlib.sha256(handle.digest.encode()).hexdigest()), parts=parts)


class Ranked:
    """A sequence whose adapter has a real digest; pins stay the same objects."""

    def __init__(self, sequence: Sequence, handles: dict[int, tuple[AdapterHandle, AdapterHandle]]) -> None:
        self._sequence = sequence
        self._handles = handles
        self.pooled = None

    @property
    def blocks(self) -> list[int]:
        return self._sequence.blocks

    @property
    def tokens(self) -> list[int]:
        return self._sequence.tokens

    @property
    def block_ids(self) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
        return self._sequence.block_ids

    @property
    def active_from(self) -> int | None:
        return self._sequence.active_from

    @property
    def placed(self) -> AdapterHandle | None:
        placed = self._sequence.placed
        if placed is None:
            return None
        return self._handles.setdefault(id(placed), (placed, real_digest(placed)))[1]


class MirroredExecutor(SimulatedExecutor):
    """Builds the batch of every plan twice: from the sequences, and from a rank's copy of them."""

    def __init__(self, inner: SimulatedExecutor) -> None:
        super().__init__(inner.kv.num_blocks, inner.kv.block_size)
        self.weights, self.handles = Weights(), dict[int, tuple[AdapterHandle, AdapterHandle]]()
        self.views: dict[RequestId, Ranked] = {}
        self.encoder, self.mirror = StepEncoder(), Mirror()
        self.builders = [
            BatchBuilder(
                ReferenceKernels(), self.weights, max_rows=64, block_size=self.block_size, vocab=VOCAB, hidden=8
            )
            for _ in range(2)
        ]
        self.differences: list[str] = []

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
        own = {name: self.views.setdefault(name, Ranked(sequence, self.handles)) for name, sequence in running.items()}
        received, copies = self.mirror.decode(self.encoder.encode(plan, own))
        expected = facts(self.builders[0].build(plan, own))
        found = facts(self.builders[1].build(received, copies))
        self.differences += [name for name, value in expected.items() if found[name] != value]
        return super().execute(plan, running)

    def release(self) -> None:
        for builder in self.builders:
            builder.release()


def facts(batch: Batch[S]) -> dict[str, object]:
    """What a forward pass reads of a step."""
    step, attention = batch.step, batch.step.attention
    positions, owners = attention.positions.tolist(), attention.row_sequence.tolist()
    return {
        "tokens": step.token_ids.tolist(),
        "logit rows": step.logit_rows.tolist(),
        "positions": positions,
        "owners": owners,
        "slots": attention.slots.tolist(),
        "tables": [
            (sequence.blocks, attention.block_tables[row, : len(sequence.blocks)].tolist())
            for row, (_, sequence) in enumerate(batch.pairs)
        ],
        "adapters": [(part.start, part.stop, part.adapter.digest, part.weight) for part in step.lora.segments],
        "sampled": [(part.start, part.stop, part.adapter.digest) for part in step.lora.sampled],
    }


@settings(max_examples=60)
@given(shapes, loads)
def test_a_rank_builds_the_batch_of_rank_0_in_every_step(shape: Shape, load: list[RequestState]) -> None:
    opened: list[MirroredExecutor] = []

    def mirrored(inner: SimulatedExecutor) -> MirroredExecutor:
        opened.append(MirroredExecutor(inner))
        return opened[0]

    play(shape.world(open_executor=mirrored), load)
    assert not opened[0].differences


def test_a_step_of_one_token_is_a_message_of_a_dozen_numbers() -> None:
    shape = Shape(num_blocks=40, max_rows=32, max_running=2, capacity=1, polls_to_load=1)
    sizes: list[int] = []

    class Measured(SimulatedExecutor):
        encoder = StepEncoder()

        def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
            sizes.append(len(self.encoder.encode(plan, running)))
            return super().execute(plan, running)

    world = shape.world(open_executor=lambda inner: Measured(inner.kv.num_blocks, inner.kv.block_size))
    world.submit([1] * 30, budget=12)
    world.run()
    assert sizes[0] > 40  # the prompt's tokens and blocks
    assert max(sizes[1:]) <= 14


def test_blocks_that_replace_those_of_a_rejected_draft_reach_the_batch() -> None:
    sequence, tables = RankSequence(), BlockTables()
    sequence.set_blocks(0, [3, 4, 5])
    before = tables.of([sequence])[0, :3].tolist()
    sequence.set_blocks(2, [9])
    assert (before, tables.of([sequence])[0, :3].tolist()) == ([3, 4, 5], [3, 4, 9])
    sequence.set_blocks(3, [6])
    assert tables.of([sequence])[0, :4].tolist() == [3, 4, 9, 6]
