"""The specification of every kernel in plain float32 torch: slow, obvious, and the oracle of the other back ends."""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.adapter_layout import (
    EMBED,
    EMBED_ROWS,
    EMBED_VECTORS,
    HEAD,
    HEAD_ROWS,
    HEAD_VECTORS,
    NONE,
    NORMS_AT,
    projection_vectors,
)
from manylora.kernels.interface import CompiledForward, Forward, Profile
from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, RopeTable, StepInput
from manylora.kernels.projections import FEED_FORWARD, LoraTarget
from manylora.kernels.sampling import RowNumbers, SamplingRules, TokenMasks, mask_logits, sample_tokens
from manylora.kernels.storage_form import StorageForm
from manylora.kernels.weight_groups import WeightGroups, check_group_size
from manylora.kernels.weight_rows import WeightRows, row_pieces, row_ranges


@dataclass(slots=True)
class ReferenceKv:
    """Paged keys and values, each (layers, num_blocks, block_size, kv_heads, head_dim)."""

    num_blocks: int
    block_size: int
    num_bytes: int
    keys: Tensor
    values: Tensor

    def discard(self, first: int, stop: int) -> bool:
        return False


class ReferenceKernels:
    """Every operation as its definition reads, in float32 whatever the storage dtypes.

    The storage dtypes exist so that the oracle of a bfloat16 back end can round where that back end rounds.
    torch chooses its summation order by shape, so rows are not bit-identical across batch sizes.
    """

    name = "reference"
    device = "cpu"
    owns_threads = False
    activation_dtype = torch.float32
    is_row_independent = False

    def __init__(
        self,
        weight_dtype: torch.dtype = torch.float32,
        *,
        kv_dtype: torch.dtype = torch.float32,
        lora_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weight_dtype = weight_dtype
        self.form = StorageForm(
            weights=str(weight_dtype).removeprefix("torch."),
            weight_bits=8.0 * weight_dtype.itemsize,
            table_bits=8.0 * weight_dtype.itemsize,
            kv_item_bytes=kv_dtype.itemsize,
            kv_lanes=1,
            lora_item_bytes=lora_dtype.itemsize,
        )
        self.kv_dtype = kv_dtype
        self.lora_dtype = lora_dtype

    def pack(self, weight: WeightRows) -> Packed:
        packed = torch.empty(tuple(weight.shape), dtype=self.weight_dtype)
        for first, rows in row_pieces(weight):
            packed[first : first + len(rows)] = rows
        return Packed(packed)

    def pack_table(self, weight: WeightRows) -> Packed:
        return self.pack(weight)

    def pack_groups(self, weight: WeightGroups) -> Packed:
        outputs, inputs = weight.shape
        check_group_size(weight.group_size, inputs)
        packed = torch.empty((outputs, inputs), dtype=self.weight_dtype)
        for rows in row_ranges(weight.shape):
            packed[rows] = weight[rows].wide(inputs, weight.group_size)
        return Packed(packed)

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        return F.linear(x, _plain(weight).float())

    def logits(self, x: Tensor, head: Packed) -> Tensor:
        return self.linear(x, head)

    def embed(self, token_ids: Tensor, table: Packed) -> Tensor:
        return _plain(table)[token_ids].float()

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += delta
        return self.norm(residual, weight, eps)

    def add_bias(self, y: Tensor, bias: Tensor) -> None:
        y += bias

    def norm_heads(self, y: Tensor, weight: Tensor, column: int, heads: int, head_dim: int, eps: float) -> None:
        columns = y[:, column : column + heads * head_dim]
        columns.copy_(self.norm(columns.reshape(-1, heads, head_dim), weight, eps).flatten(1))

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def compile(self, forward: Forward) -> CompiledForward:
        return lambda step, kv, reuse=None: forward(self, step, kv)

    def start_profile(self) -> Profile | None:
        return None

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        return sample_tokens(logits, rules)

    def mask_logits(self, logits: Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
        mask_logits(logits, rows, masks)

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        shape = (layers, num_blocks, block_size, kv_heads, head_dim)
        keys, values = torch.zeros(shape, dtype=self.kv_dtype), torch.zeros(shape, dtype=self.kv_dtype)
        return ReferenceKv(num_blocks, block_size, keys.nbytes + values.nbytes, keys, values)

    def rotate_and_store(
        self, qkv: Tensor, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Tensor:
        cache = _own(kv)
        kv_heads, head_dim = cache.keys.shape[3:]
        rows = qkv.shape[0]
        q, k, v = (
            part.reshape(rows, -1, head_dim)
            for part in torch.tensor_split(qkv, (heads * head_dim, (heads + kv_heads) * head_dim), dim=1)
        )
        if rope.cos.shape[0]:
            positions = batch.positions.long()
            cos, sin = rope.cos[positions][:, None], rope.sin[positions][:, None]
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        cache.keys[layer].flatten(0, 1)[batch.slots] = k.to(self.kv_dtype)
        cache.values[layer].flatten(0, 1)[batch.slots] = v.to(self.kv_dtype)
        return q.reshape(rows, heads * head_dim)

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        cache = _own(kv)
        _, _, block_size, kv_heads, head_dim = cache.keys.shape
        out = torch.empty_like(q)
        for sequence in sorted(set(batch.row_sequence.tolist())):
            rows = (batch.row_sequence == sequence).nonzero()[:, 0]
            positions = batch.positions[rows].long()[:, None]
            first = 0 if window is None else max(0, int(positions.min()) - window + 1)
            seen = torch.arange(first, int(positions.max()) + 1)
            blocks = batch.block_tables[sequence].long()[seen // block_size]
            keys = cache.keys[layer, blocks, seen % block_size].float()  # (seen, kv_heads, head_dim)
            values = cache.values[layer, blocks, seen % block_size].float()
            hidden = seen > positions if window is None else (seen > positions) | (seen <= positions - window)
            grouped = q[rows].reshape(len(rows), kv_heads, -1, head_dim)  # the heads of one group share a kv head
            scores = torch.einsum("rkgd,skd->kgrs", grouped, keys) / math.sqrt(head_dim)
            weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
            out[rows] = torch.einsum("kgrs,skd->rkgd", weights, values).reshape(len(rows), -1)
        return out

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def score_experts(self, x: Tensor, router: Tensor) -> Tensor:
        return F.linear(x, router)

    def route(self, scores: Tensor, chosen: int, is_normed: bool) -> Tensor:
        weights, numbers = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        weights = weights[:, :chosen]
        if is_normed:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return torch.cat((numbers[:, :chosen].float(), weights), dim=1)

    def send_to_experts(self, routes: Tensor, x: Tensor) -> Tensor:
        return x[_picks(routes) // (routes.shape[1] // 2)]

    def expert_linear(self, routes: Tensor, x: Tensor, experts: tuple[Packed, ...]) -> Tensor:
        y = x.new_empty(len(x), _plain(experts[0]).shape[0])
        for weight, (start, stop) in zip(experts, expert_ranges(routes, len(experts)), strict=True):
            y[start:stop] = self.linear(x[start:stop], weight)
        return y

    def gather_from_experts(self, routes: Tensor, x: Tensor) -> Tensor:
        numbers, weights = routes.chunk(2, dim=1)
        own = torch.empty_like(x)
        own[_picks(routes)] = x  # in the order of the routes
        terms = own.view(*numbers.shape, x.shape[1]) * weights[:, :, None]
        return terms.sum(dim=1)

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        return LoraBatch(segments, sampled, vocabulary)

    def add_lora(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        for segment in lora.segments:
            rows, adapter = slice(segment.start, segment.stop), segment.adapter
            for target in targets:
                _add_target(y[rows], x[rows], adapter, layer, target, target.projection, segment.weight)

    def add_expert_lora(
        self, routes: Tensor, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]
    ) -> None:
        rows = _picks(routes) // (routes.shape[1] // 2)
        for segment in lora.segments:
            is_own = (rows >= segment.start) & (rows < segment.stop)
            for expert, (start, stop) in enumerate(expert_ranges(routes)):
                own = start + is_own[start:stop].nonzero()[:, 0]
                for target in targets:
                    picks = y[own]
                    index = target.projection + len(FEED_FORWARD) * expert
                    _add_target(picks, x[own], segment.adapter, layer, target, index, segment.weight)
                    y[own] = picks

    def adapt_embedding(self, y: Tensor, step: StepInput) -> None:
        for segment in step.lora.segments:
            image, extras = segment.adapter.image, segment.adapter.extras
            if not extras.size:
                continue
            rows, ids = y[segment.start : segment.stop], step.row_ids[segment.start : segment.stop]
            for token_id, row in _own_rows(image, [int(entry) for entry in extras[EMBED_ROWS]], y.shape[1]):
                rows[ids == token_id] = row
            offset_a, offset_b, rank = (int(entry) for entry in extras[EMBED])
            gain = int(extras[EMBED_VECTORS][1])
            if gain != NONE:
                rows += rows * _part(image, gain, y.shape[1])
            if rank:
                a = torch.stack([_part(image, offset_a + int(token_id) * rank, rank) for token_id in ids])
                rows += a @ _part(image, offset_b, rank, y.shape[1])

    def adapt_norm(self, y: Tensor, x: Tensor, lora: LoraBatch, index: int, eps: float, is_sampled: bool) -> None:
        for segment in lora.sampled if is_sampled else lora.segments:
            extras, rows = segment.adapter.extras, slice(segment.start, segment.stop)
            if extras.size and (offset := int(extras[NORMS_AT + index])) != NONE:
                y[rows] = self.norm(x[rows], _part(segment.adapter.image, offset, x.shape[1]), eps)

    def keep_hidden(
        self, residual: Tensor, delta: Tensor, weight: Tensor, index: int, eps: float, step: StepInput
    ) -> None:
        rows, kept = step.hidden_rows, step.hidden
        if rows is None or kept is None:
            return
        x = residual[rows] + delta[rows]
        kept.copy_(self.norm(x, weight, eps))
        for segment in step.lora.segments:
            extras, own = segment.adapter.extras, (rows >= segment.start) & (rows < segment.stop)
            if extras.size and (offset := int(extras[NORMS_AT + index])) != NONE:
                kept[own] = self.norm(x[own], _part(segment.adapter.image, offset, x.shape[1]), eps)

    def adapt_logits(self, logits: Tensor, x: Tensor, lora: LoraBatch) -> Tensor:
        if lora.vocabulary > logits.shape[1]:
            logits = F.pad(logits, (0, lora.vocabulary - logits.shape[1]), value=-math.inf)
        for segment in lora.sampled:
            image, extras = segment.adapter.image, segment.adapter.extras
            rows, own = (
                logits[segment.start : segment.stop, : segment.adapter.vocabulary],
                x[segment.start : segment.stop],
            )
            for token_id, row in _own_rows(image, [int(entry) for entry in extras[HEAD_ROWS]], x.shape[1]):
                rows[:, token_id] = own @ row
            bias, gain = (int(offset) for offset in extras[HEAD_VECTORS])
            _add(rows, own, image, [int(entry) for entry in extras[HEAD]], (bias, gain))
        return logits


def _picks(routes: Tensor) -> Tensor:
    """Return the picks by expert, then by row: `row * chosen + place of the expert in the row's routes`, (picks,)."""
    numbers = routes[:, : routes.shape[1] // 2].reshape(-1)
    return numbers.argsort(stable=True)


def expert_ranges(routes: Tensor, count: int = 0) -> list[tuple[int, int]]:
    """Return the half-open range of the picks of each expert, of `count` of them or more."""
    numbers = routes[:, : routes.shape[1] // 2].reshape(-1).long()
    ends = torch.bincount(numbers, minlength=count).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _add_target(
    y: Tensor, x: Tensor, adapter: PlacedAdapter, layer: int, target: LoraTarget, index: int, weight: float
) -> None:
    """Add the delta of one projection, which has the entry `index` of the adapter's table, into its columns of y."""
    _add(
        y[:, target.column : target.column + target.out],
        x,
        adapter.image,
        [int(entry) for entry in adapter.table[layer, index]],
        projection_vectors(adapter.extras, layer, index, adapter.width),
        weight,
    )


def _add(y: Tensor, x: Tensor, image: Tensor, entry: list[int], vectors: tuple[int, int], weight: float = 1.0) -> None:
    """Add one adapter's delta of one product, in place: y (rows, out), x (rows, in); entry (A, B, rank)."""
    (offset_a, offset_b, rank), (bias, gain) = entry, vectors
    if rank == 0:
        return
    if gain != NONE:
        y += y * _part(image, gain, y.shape[1])
    y += (weight * x @ _part(image, offset_a, rank, x.shape[1]).T) @ _part(image, offset_b, rank, y.shape[1])
    if bias != NONE:
        y += _part(image, bias, y.shape[1])


def _part(image: Tensor, offset: int, *shape: int) -> Tensor:
    return image[offset : offset + math.prod(shape)].view(shape).float()


def _own_rows(image: Tensor, entry: list[int], width: int) -> list[tuple[int, Tensor]]:
    """Return the (token id, row) pairs of an entry of `HEAD_ROWS` or `EMBED_ROWS`."""
    ids, rows, count = entry
    if count == 0:
        return []
    tokens = image[ids : ids + count * 4 // image.element_size()].view(torch.int32)
    return list(zip(tokens.tolist(), _part(image, rows, count, width), strict=True))


def _plain(weight: Packed) -> Tensor:
    return cast(Tensor, weight)  # `pack` made it


def _own(kv: KvCache) -> ReferenceKv:
    return cast(ReferenceKv, kv)  # `new_kv` made it


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x rotated by half: x (rows, heads, head_dim); cos, sin (rows, 1, head_dim // 2)."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
