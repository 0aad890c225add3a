"""A base of random weights on a device, sequences in its keys and values, and adapters for their rows."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manylora.ids import Digest
from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, Packed, StepInput
from manylora.kernels.projections import Projection
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec, parse_spec
from manylora.models.weights import Dense, LayerWeights, Weights

RANKS = (4, 8, 16, 64)
BLOCK = 16
SCALE = 0.02


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a run: the base's config, positions of a sequence, rows of decoding, prompt, adapters of a catalogue.

    catalogues  numbers of adapters whose throughputs are compared, the largest first; `room` of them are on the card
    """

    config: dict[str, Any]
    positions: int
    rows: tuple[int, ...]
    prompt: int
    catalogues: tuple[int, int]
    room: int
    requests: int


_CONFIG = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16"}
LLAMA_7B = Size(
    {
        **_CONFIG,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
    },
    positions=2304,
    rows=(1, 8, 16, 64),
    prompt=2048,
    catalogues=(2000, 5),
    room=64,
    requests=256,
)
TINY = Size(
    {
        **_CONFIG,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 24,
        "max_position_embeddings": 64,
    },
    positions=32,
    rows=(1, 2),
    prompt=6,
    catalogues=(6, 2),
    room=3,
    requests=4,
)


class Base:
    """A base with room for `max(size.rows)` sequences, whose keys and values are random."""

    def __init__(self, size: Size, kernels: Kernels, device: torch.device) -> None:
        self.size, self.kernels, self.device = size, kernels, device
        self.spec = spec = parse_spec(size.config, {})
        most = max(size.rows)
        limits = CaptureLimits(
            max_rows=most,
            max_positions=size.positions,
            block_size=BLOCK,
            vocab=spec.vocab,
            layers=spec.num_layers,
            width=len(Projection),
            max_rank=max(RANKS),
        )
        self.model = LlamaModel(spec, self._weights(), kernels, max_positions=size.positions, captured=limits)
        self._eager = LlamaModel(spec, self.model.weights, kernels, max_positions=size.positions)
        self.blocks = -(-size.positions // BLOCK)
        self.kv = kernels.new_kv(
            layers=spec.num_layers,
            num_blocks=most * self.blocks,
            block_size=BLOCK,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
        )
        self._tables = torch.randperm(most * self.blocks).view(most, self.blocks).int()
        self._logits: Tensor | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of decoding reads of the weights: all but the embedding."""
        parts = [self.model.weights.head, *(part for layer in self.model.weights.layers for part in _parts(layer))]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    def _packed(self, out: int, in_: int) -> Packed:
        return self.kernels.pack(torch.randn(out, in_, device=self.device) * SCALE)

    def _weights(self) -> Weights:
        spec = self.spec
        ones = torch.ones(spec.hidden, device=self.device)
        layers = tuple(
            LayerWeights(
                attention_norm=ones,
                qkv=self._packed(spec.q_size + 2 * spec.kv_size, spec.hidden),
                o=self._packed(spec.hidden, spec.q_size),
                mlp_norm=ones,
                mlp=Dense(
                    gate_up=self._packed(2 * spec.intermediate, spec.hidden),
                    down=self._packed(spec.hidden, spec.intermediate),
                ),
            )
            for _ in range(spec.num_layers)
        )
        table, head = self._packed(spec.vocab, spec.hidden), self._packed(spec.vocab, spec.hidden)
        return Weights(embed=table, layers=layers, final_norm=ones, head=head)

    def decoding(self, rows: int, position: int, adapters: Sequence[PlacedAdapter] = ()) -> StepInput:
        """A step of one row at `position` of each sequence; adapters of the first rows, or one of all rows."""
        return self._step([(row, position, position + 1) for row in range(rows)], adapters)

    def prompt(self, adapters: Sequence[PlacedAdapter] = ()) -> StepInput:
        """A step of one sequence's prompt."""
        return self._step([(0, 0, self.size.prompt)], adapters)

    def _step(self, spans: Sequence[tuple[int, int, int]], adapters: Sequence[PlacedAdapter]) -> StepInput:
        owners = np.repeat([row for row, _, _ in spans], [stop - start for _, start, stop in spans])
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        blocks = self._tables.numpy()[owners, positions // BLOCK].astype(np.int64)
        ends = list(itertools.accumulate(stop - start for _, start, stop in spans))
        edges = [0, ends[-1]] if len(adapters) == 1 else [0, *ends]
        segments = [LoraSegment(first, stop, own) for first, stop, own in zip(edges, edges[1:], adapters, strict=False)]
        return StepInput(
            torch.randint(self.spec.vocab, (len(owners),)),
            torch.tensor(ends) - 1,
            AttentionBatch(
                torch.from_numpy(positions).int(),
                torch.from_numpy(blocks * BLOCK + positions % BLOCK),
                torch.from_numpy(owners).int(),
                self._tables[: len(spans)],
            ),
            self.kernels.prepare_lora(tuple(segments)),
        )

    def run(self, step: StepInput) -> Tensor:
        """Run a step, and wait for its greedy tokens as an engine does; return the logits."""
        self._logits = self.model.forward(step, self.kv, self._logits)
        self._logits.argmax(dim=1).tolist()
        return self._logits

    def eager(self, step: StepInput) -> Tensor:
        """Run a step operation by operation; return the logits."""
        return self._eager.forward(step, self.kv)

    def adapters(self, count: int, ranks: Sequence[int] = RANKS, first: int = 0) -> Iterator[PlacedAdapter]:
        """Adapters of q, k, v and o in host memory, of the ranks in turn."""
        for number in range(first, first + count):
            yield host_adapter(self.spec, number, ranks[number % len(ranks)], self.kernels.lora_dtype)


def host_adapter(spec: ModelSpec, number: int, rank: int, dtype: torch.dtype) -> PlacedAdapter:
    """Return an adapter of random values in pinned host memory where there is a card."""
    table = np.zeros((spec.num_layers, len(Projection), 3), dtype=np.int64)
    used = 0
    for layer in range(spec.num_layers):
        for projection in (Projection.Q, Projection.K, Projection.V, Projection.O):
            out, in_ = projection.shape(spec)
            table[layer, projection] = used, used + rank * in_, rank
            used += rank * (in_ + out)
    image = torch.empty(used, dtype=dtype, pin_memory=torch.cuda.is_available())
    image.copy_(torch.randn(min(used, 1 << 20)).repeat(-(-used // (1 << 20)))[:used] * SCALE)
    return PlacedAdapter(Digest(f"{number:064d}"), image, table)


def _parts(layer: LayerWeights) -> tuple[Packed, ...]:
    assert isinstance(layer.mlp, Dense)
    return layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down
