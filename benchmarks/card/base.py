"""A base of random weights on a device, sequences in its keys and values, and adapters for their rows."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.card.sizes import AdapterKind, Size
from manylora.ids import Digest
from manylora.kernels.captures.limits import CaptureLimits
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, StepInput
from manylora.kernels.plain.weights import plain
from manylora.kernels.projections import Projection
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec, parse_spec
from manylora.models.weights import Dense, LayerWeights, Weights

BLOCK = 16
SCALE = 0.02
_DRAWN = 1 << 20
"""Random values of an adapter, which repeat after so many."""

Span = tuple[int, int, int]
"""Sequence, first position, and the position after the last."""


class Base:
    """A base with random keys and values of `max(size.rows)` sequences."""

    def __init__(self, size: Size, kernels: Kernels, device: torch.device) -> None:
        self.size, self.kernels, self.device = size, kernels, device
        self.spec = spec = parse_spec(dict(size.config), {})
        most = max(size.rows)
        limits = CaptureLimits(
            max_rows=most,
            max_positions=size.positions,
            block_size=BLOCK,
            vocab=spec.vocab,
            layers=spec.num_layers,
            width=len(Projection),
            max_rank=size.max_rank,
        )
        self.model = LlamaModel(spec, self._weights(), kernels, max_positions=size.positions, captured=limits)
        self._eager = LlamaModel(spec, self.model.weights, kernels, max_positions=size.positions)
        self._blocks = blocks_of(size)
        self._pool = torch.randperm(max(most * self._blocks, -(-size.prompt // BLOCK))).int()
        self.kv = self.new_kv(kernels, spec.num_layers)
        for own in _tensors(self.kv):
            own.normal_()
        self._logits: Tensor | None = None

    def new_kv(self, kernels: Kernels, layers: int) -> KvCache:
        """Return keys and values of the first layers, all zeros."""
        return kernels.new_kv(
            layers=layers,
            num_blocks=len(self._pool),
            block_size=BLOCK,
            kv_heads=self.spec.kv_heads,
            head_dim=self.spec.head_dim,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of decoding reads of the weights: all but the embedding and the norms."""
        parts = [self.model.weights.head, *(part for layer in self.model.weights.layers for part in _parts(layer))]
        return sum(plain(part).nbytes for part in parts)

    def kv_bytes(self, rows: int) -> int:
        """Bytes of keys and values that a step of decoding reads."""
        seen = min(self.size.context + 1, self.spec.sliding_window or self.size.positions)
        return rows * seen * 2 * self.spec.num_layers * self.spec.kv_size * self.kernels.kv_dtype.itemsize

    def prompt_operations(self, tokens: int) -> int:
        """Multiplications and additions of a prompt's products and of its attention; its last row alone has logits."""
        spec = self.spec
        block = sum(out * in_ for out, in_ in (projection.shape(spec) for projection in Projection))
        seen = sum(min(position + 1, spec.sliding_window or tokens) for position in range(tokens))
        return 2 * spec.num_layers * (tokens * block + 2 * spec.q_size * seen) + 2 * spec.vocab * spec.hidden

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

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def decoding(self, rows: int, adapters: Sequence[PlacedAdapter] = (), further: int = 0) -> StepInput:
        """A step of one row of each of the first sequences, `further` positions after the context.

        Args:  adapters  one for all rows, or one each for the first rows
        """
        position = self.size.context + further
        return self.step([(row, position, position + 1) for row in range(rows)], adapters)

    def prompt(self, tokens: int, adapters: Sequence[PlacedAdapter] = ()) -> StepInput:
        """A step of one sequence's prompt, which may be longer than the others' keys."""
        return self._step([(0, 0, tokens)], self._pool[None, : -(-tokens // BLOCK)], adapters, self.kernels)

    def step(
        self, spans: Sequence[Span], adapters: Sequence[PlacedAdapter] = (), kernels: Kernels | None = None
    ) -> StepInput:
        """A step of positions of several sequences, as `decoding`; `kernels` None: the base's own."""
        tables = self._pool[: max(self.size.rows) * self._blocks].view(-1, self._blocks)
        tables = tables[[sequence for sequence, _, _ in spans]]
        return self._step(spans, tables, adapters, kernels or self.kernels)

    def _step(
        self, spans: Sequence[Span], tables: Tensor, adapters: Sequence[PlacedAdapter], kernels: Kernels
    ) -> StepInput:
        counts = [stop - start for _, start, stop in spans]
        owners = np.repeat(np.arange(len(spans)), counts)
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        blocks = tables.numpy()[owners, positions // BLOCK].astype(np.int64)
        ends = list(itertools.accumulate(counts))
        return StepInput(
            torch.randint(self.spec.vocab, (len(owners),)),
            torch.tensor(ends) - 1,
            AttentionBatch(
                torch.from_numpy(positions).int(),
                torch.from_numpy(blocks * BLOCK + positions % BLOCK),
                torch.from_numpy(owners).int(),
                tables,
            ),
            kernels.prepare_lora(_segments(ends, adapters)),
        )

    def run(self, step: StepInput) -> Tensor:
        """Run a step, and wait for its greedy tokens as an engine does; return the logits."""
        self._logits = self.model.forward(step, self.kv, self._logits)
        self._logits.argmax(dim=1).tolist()
        return self._logits

    def eager(self, step: StepInput) -> Tensor:
        """Run a step operation by operation; return the logits."""
        return self._eager.forward(step, self.kv)

    def part(self, kernels: Kernels, layers: int) -> tuple[LlamaModel, KvCache]:
        """Return a model of the first layers on other kernels: copies of weights, keys and values in their dtype."""
        whole = self.model.weights

        def own(layer: LayerWeights) -> LayerWeights:
            qkv, o, gate_up, down = (kernels.pack(plain(part)) for part in _parts(layer))
            return replace(layer, qkv=qkv, o=o, mlp=Dense(gate_up=gate_up, down=down))

        weights = Weights(
            embed=kernels.pack_table(plain(whole.embed)),
            layers=tuple(map(own, whole.layers[:layers])),
            final_norm=whole.final_norm,
            head=kernels.pack_table(plain(whole.head)),
        )
        spec, kv = replace(self.spec, num_layers=layers), self.new_kv(kernels, layers)
        for copied, source in zip(_tensors(kv), _tensors(self.kv), strict=True):
            copied.copy_(source[:layers])
        return LlamaModel(spec, weights, kernels, max_positions=self.size.positions), kv

    # ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────

    def adapters(self, kind: AdapterKind, count: int, layers: int | None = None) -> list[PlacedAdapter]:
        """Return adapters of random values on the device, of the first layers or of all."""
        spec = self.spec if layers is None else replace(self.spec, num_layers=layers)
        return [drawn_adapter(spec, kind, number, self.kernels.lora_dtype, self.device) for number in range(count)]

    def host_adapters(self, kind: AdapterKind, count: int) -> list[PlacedAdapter]:
        """Return adapters of random values in host memory."""
        host = torch.device("cpu")
        return [drawn_adapter(self.spec, kind, number, self.kernels.lora_dtype, host) for number in range(count)]


def blocks_of(size: Size) -> int:
    """Return the blocks of one sequence: of its context, and of the longest request of a catalogue."""
    return -(-max(size.context + size.request[1], sum(size.request)) // BLOCK)


def fitted(size: Size, free_bytes: int, itemsize: int = 2) -> Size:
    """Return a size with the numbers of rows whose keys, values and adapters fit beside the weights.

    A tenth of the memory is left for activations, captures and copies. Raises `ValueError` if no row fits.
    """
    spec = parse_spec(dict(size.config), {})
    block = sum(out * in_ for out, in_ in (projection.shape(spec) for projection in Projection))
    weights = spec.num_layers * block + 2 * spec.vocab * spec.hidden
    sequence = blocks_of(size) * BLOCK * 2 * spec.num_layers * spec.kv_size
    adapter = spec.num_layers * max(
        max(kind.ranks) * sum(sum(each.shape(spec)) for each in kind.projections) for kind in size.kinds
    )
    left = int(0.9 * free_bytes) - itemsize * weights
    rows = tuple(count for count in size.rows if itemsize * count * (sequence + adapter) <= left)
    if not rows:
        weights_gb, free_gb = itemsize * weights / 1e9, free_bytes / 1e9
        raise ValueError(f"{size.name} needs {weights_gb:.0f} GB and those of one row; {free_gb:.0f} GB are free")
    return replace(size, rows=rows, streams=min(size.streams, max(rows)))


def drawn_adapter(
    spec: ModelSpec, kind: AdapterKind, number: int, dtype: torch.dtype, device: torch.device
) -> PlacedAdapter:
    """Return an adapter of random values, which has the next rank of its kind for each number."""
    rank = kind.ranks[number % len(kind.ranks)]
    table = np.zeros((spec.num_layers, len(Projection), 3), dtype=np.int64)
    used = 0
    for layer in range(spec.num_layers):
        for projection in kind.projections:
            out, in_ = projection.shape(spec)
            table[layer, projection] = used, used + rank * in_, rank
            used += rank * (in_ + out)
    drawn = torch.randn(min(used, _DRAWN), generator=torch.Generator().manual_seed(number)).mul_(SCALE)
    repeated = drawn.to(device, dtype).repeat(-(-used // len(drawn)))
    return PlacedAdapter(Digest(f"{number:064d}"), repeated[:used], table)


def _segments(ends: Sequence[int], adapters: Sequence[PlacedAdapter]) -> tuple[LoraSegment, ...]:
    """Return the segments of sequences that end at `ends`; neighbours of one adapter have one segment."""
    if len(adapters) == 1:
        return (LoraSegment(0, ends[-1], adapters[0]),)
    found: list[LoraSegment] = []
    for start, stop, own in zip([0, *ends], ends, adapters, strict=False):
        if found and found[-1].adapter is own:
            start = found.pop().start
        found.append(LoraSegment(start, stop, own))
    return tuple(found)


def _parts(layer: LayerWeights) -> tuple[Packed, ...]:
    if not isinstance(layer.mlp, Dense):
        raise TypeError("the bases of this benchmark have no mixture of experts")
    return layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down


def _tensors(kv: Any) -> tuple[Tensor, Tensor]:  # plain keys and values, which the seam does not name
    return kv.keys, kv.values
