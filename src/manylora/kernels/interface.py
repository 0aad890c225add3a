"""The seam between the engine and the arithmetic: the operations of a back end and the shapes they work on.

Shape legend: rows = tokens of one step, sequences in order, each sequence's rows contiguous; hidden = model width;
heads, kv_heads, head_dim as in the model's config; rank = one adapter's own LoRA rank.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, NewType, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from manylora.ids import Digest
from manylora.kernels.adapter_layout import NO_EXTRAS, VECTORS_AT, VOCABULARY, Extras
from manylora.kernels.operation import operation, operations_of
from manylora.kernels.projections import LoraTarget
from manylora.kernels.sampling import SamplingRules
from manylora.kernels.weight_rows import WeightRows

Packed = NewType("Packed", object)
"""A weight matrix in a back end's own layout. Only the back end that packed it can read it."""


class AdapterAddresses(NamedTuple):
    """Addresses of the parts of a placed adapter, in the order of the C++ `Segment`.

    image    the first element of the image
    table    the table
    vectors  the projections' vectors inside `extras`; 0 without extras
    extras   the vector of extras; 0 without extras
    """

    image: int
    table: int
    vectors: int
    extras: int


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """An adapter's weights on the device, as the kernels read them. The engine knows it as an `AdapterHandle`.

    digest  content identity
    image   (elements,) in the back end's `lora_dtype`, contiguous; every A and B of every layer
    table   (layers, width, 3) int64, C order: (offset of A, offset of B, rank) in elements of `image`, for each
            projection of a block (`kernels/projections.py`); rank 0 means the adapter leaves that projection alone.
            A is (rank, in) row-major; B is stored transposed, (rank, out) row-major, with the scale folded in.
    extras  int64, the adapter's other changes (`kernels/adapter_layout.py`); empty if there are none
    addresses  of these parts, read once: the parts do not move while the adapter is placed
    width   number of projections of a block in the table
    """

    digest: Digest
    image: Tensor
    table: np.ndarray[Any, np.dtype[np.int64]]
    extras: Extras = field(default_factory=lambda: NO_EXTRAS)
    addresses: AdapterAddresses = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        extras = self.extras.ctypes.data if self.extras.size else 0
        vectors = extras + 8 * int(self.extras[VECTORS_AT]) if extras else 0
        addresses = AdapterAddresses(self.image.data_ptr(), self.table.ctypes.data, vectors, extras)
        object.__setattr__(self, "addresses", addresses)  # the class is frozen
        object.__setattr__(self, "width", self.table.shape[1])

    @property
    def vocabulary(self) -> int:
        """Bound of the token ids that the adapter knows; 0: those of the base."""
        return int(self.extras[VOCABULARY]) if self.extras.size else 0


class PlacedAdapters(Protocol):
    """The back end's side of the handles: the tensors of every version on the device."""

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        """Return the weights of a version. Raises `KeyError` if it is not on the device."""


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows `[start, stop)` of the step belong to this adapter."""

    start: int
    stop: int
    adapter: PlacedAdapter


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The adapters of a step's rows; rows in no segment are the base model's.

    segments    in terms of the step's rows
    sampled     in terms of the rows of logits, for adapters with extras alone
    vocabulary  width of the step's logits: the base's, or that of the widest adapter in `sampled`; 0: the base's
    native      the back end's own form of the segments, made by `Kernels.prepare_lora`
    """

    segments: tuple[LoraSegment, ...]
    sampled: tuple[LoraSegment, ...] = ()
    vocabulary: int = 0
    native: object = None

    @property
    def has_extras(self) -> bool:
        return any(segment.adapter.extras.size for segment in self.segments)


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The place of each row in its sequence, and of its keys and values in the cache.

    positions     (rows,) int32, position of the row in its sequence, from 0
    slots         (rows,) int64, `block * block_size + offset` at which the row's key and value are written
    row_sequence  (rows,) int32, index of the row's sequence in `block_tables`
    block_tables  (sequences, max_blocks) int32, the sequence's blocks in order. Entries past its end are unused, and so
                  are those of blocks wholly before a window: they name no block, or one of another sequence
    A row at position p attends to positions [max(0, p - window + 1), p] of its own sequence.
    """

    positions: Tensor
    slots: Tensor
    row_sequence: Tensor
    block_tables: Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """The input of one forward pass, built from the scheduler's plan. Its tensors are in host memory.

    token_ids   (rows,) int64, each in the base's vocabulary
    own_ids     (rows,) int64, the ids as the rows' adapters know them; None: `token_ids` has no substitutes
    logit_rows  (sampled,) int64, the rows that are sampled from, ascending
    """

    token_ids: Tensor
    logit_rows: Tensor
    attention: AttentionBatch
    lora: LoraBatch
    own_ids: Tensor | None = None

    @property
    def row_ids(self) -> Tensor:
        """(rows,) int64, the ids as the rows' adapters know them."""
        return self.token_ids if self.own_ids is None else self.own_ids


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary angles: `cos` and `sin`, (positions, head_dim // 2) float32, scaling already applied.

    Layout is rotate-half: element i pairs with element i + head_dim // 2. A table of no positions rotates nothing.
    """

    cos: Tensor
    sin: Tensor


class KvCache(Protocol):
    """Keys and values of all layers, paged in blocks; the layout inside is the back end's own."""

    num_blocks: int
    block_size: int
    num_bytes: int

    def discard(self, first: int, stop: int) -> bool:
        """Return the memory of blocks `[first, stop)` to the system until the next write; their content is lost.

        Returns: False, without an effect, if this back end keeps the memory of all blocks
        """


Rows = TypeVar("Rows")
"""The type of a (rows, width) matrix: a tensor, or a buffer while a forward pass is recorded."""

Vector = Annotated[Tensor, "vector"]
"""(width,) float32, contiguous; the same in every step."""
Matrix = Annotated[Tensor, "matrix"]
"""(out, in) float32, contiguous; the same in every step."""
TokenIds = Annotated[Tensor, "token ids"]
"""`StepInput.token_ids`, in a forward pass."""
RowIndices = Annotated[Tensor, "row indices"]
"""`StepInput.logit_rows`, in a forward pass."""


class Operations(Protocol[Rows]):
    """The table of the operations of a forward pass. An operation keeps no reference to its arguments.

    To add an operation, declare it here and implement it under its name in `kernels/reference.py` and in C++
    (docs/decisions/table-of-operations.md). Its parameters have types that `cpu/native/arguments.py` lists.
    """

    @operation(
        width=lambda table: table.inputs,
        refusal=lambda table: f"a token id is outside the table of {table.outputs} rows",
    )
    def embed(self, token_ids: TokenIds, table: Packed) -> Rows:
        """Return the rows of a packed table: (rows,) int64 → (rows, hidden). Raises: IndexError for an unknown id."""

    @operation(width=lambda x: x.width)
    def norm(self, x: Rows, weight: Vector, eps: float) -> Rows:
        """Return the RMSNorm `x / sqrt(mean(x²) + eps) * weight` in float32: x (rows, hidden), weight (hidden,)."""

    @operation(width=lambda residual: residual.width)
    def add_norm(self, residual: Rows, delta: Rows, weight: Vector, eps: float) -> Rows:
        """Add `delta` into `residual` in place, then return `norm(residual, weight, eps)`."""

    @operation(width=lambda weight: weight.outputs)
    def linear(self, x: Rows, weight: Packed) -> Rows:
        """Return `x @ weight.T`: x (rows, in) → (rows, out), activation dtype, accumulated in float32."""

    @operation()
    def add_bias(self, y: Rows, bias: Vector) -> None:
        """Add `bias` (width,) to every row of `y` (rows, width), in place."""

    @operation()
    def norm_heads(self, y: Rows, weight: Vector, column: int, heads: int, head_dim: int, eps: float) -> None:
        """Replace each head of columns `[column, column + heads * head_dim)` of y by its RMSNorm, in place.

        y (rows, width), weight (head_dim,); the mean of squares is taken over one head.
        """

    @operation(width=lambda head: head.outputs, outlive=True)
    def logits(self, x: Rows, head: Packed) -> Rows:
        """Return `x @ head.T` as float32: x (rows, hidden) → (rows, vocab)."""

    @operation(width=lambda x: x.width, are_sampled=True)
    def take_rows(self, x: Rows, rows: RowIndices) -> Rows:
        """Return the rows of x at the indices `rows` (taken,) int64: (taken, width)."""

    @operation(width=lambda rope, heads: heads * 2 * rope.cos.shape[1])
    def rotate_and_store(
        self, qkv: Rows, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Rows:
        """Apply rotary embedding to q and k at each row's position and write k and v to the row's slot.

        qkv (rows, (heads + 2 * kv_heads) * head_dim): q, k, v side by side.
        Returns q (rows, heads * head_dim), rotated.
        """

    @operation(width=lambda q: q.width)
    def attend(self, q: Rows, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Rows:
        """Return causal paged attention with grouped heads: softmax(q·k / sqrt(head_dim))·v, accumulated in float32.

        q (rows, heads * head_dim) → (rows, heads * head_dim). Keys and values are only ever read from the cache, so
        that a row's result does not depend on how its prompt was cut into chunks.
        """

    @operation(width=lambda gate_up: gate_up.width // 2)
    def gated_silu(self, gate_up: Rows) -> Rows:
        """Return `silu(gate) * up`: gate_up (rows, 2 * intermediate), gate first → (rows, intermediate)."""

    @operation(width=lambda router: router.shape[0])
    def score_experts(self, x: Rows, router: Matrix) -> Rows:
        """Return the router's logits `x @ router.T` in float32: x (rows, hidden) → (rows, experts)."""

    @operation(width=lambda chosen: 2 * chosen)
    def route(self, scores: Rows, chosen: int, is_normed: bool) -> Rows:
        """Return the routes: for each row the numbers of its `chosen` experts, then their weights, (rows, 2 * chosen).

        A weight is the softmax over all scores (rows, experts). The experts with the largest weights are chosen, in
        descending order; of equal ones the expert with the lower number comes first. With `is_normed` the weights of
        the chosen experts are divided by their sum.
        Source: top-k routing: Shazeer et al., arXiv 1701.06538; Mixtral: arXiv 2401.04088, section 2.1.
        """

    @operation(width=lambda x: x.width, copies=lambda routes: routes.width // 2)
    def send_to_experts(self, routes: Rows, x: Rows) -> Rows:
        """Return the picks of x (rows, width): (rows * chosen, width), a copy of each row for each of its experts.

        Picks are sorted by the number of the expert, and those of one expert by row. So an expert's picks are
        contiguous, and no expert is padded to the number of picks of another.
        """

    @operation(width=lambda experts: experts[0].outputs, copies=lambda routes: routes.width // 2)
    def expert_linear(self, routes: Rows, x: Rows, experts: tuple[Packed, ...]) -> Rows:
        """Return each pick times the weight of its expert: x (rows * chosen, in) → (rows * chosen, out).

        Semantics: `linear` of each expert's picks. The weight of an expert without a pick is not read.
        """

    @operation(width=lambda x: x.width)
    def gather_from_experts(self, routes: Rows, x: Rows) -> Rows:
        """Return the sum of each row's picks times their weights: x (rows * chosen, width) → (rows, width).

        The terms of a sum are added in the order of the routes.
        """

    @operation()
    def add_lora(self, y: Rows, x: Rows, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        """Add each row's adapter delta into `y`, in place.

        Semantics:
            for seg in lora.segments:
                for t in targets:
                    A, B = seg.adapter.a(layer, t.projection), seg.adapter.b(layer, t.projection)
                    y[seg.start:seg.stop, t.column:t.column + t.out] += (x[seg.start:seg.stop] @ A.T) @ B
        Args:
            y (rows, sum of outs), x (rows, in); A (rank, in), B (rank, out) with the scale folded in.
            Where the adapter has a gain for a projection (`extras`), its columns of y become y + y * gain first; where
            it has a bias, that is added last.
            Rows outside every segment are the base model's and stay bit-identical; each adapter has its true rank.
        Raises: nothing; shapes were checked when the adapter was packed.
        Source: SGMV: Punica, arXiv 2310.18547; mixed ranks in one batch: S-LoRA, arXiv 2311.03285.
        """

    @operation()
    def add_expert_lora(
        self, routes: Rows, y: Rows, x: Rows, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]
    ) -> None:
        """Add the delta of each row's adapter into its picks, in place: `add_lora` with the matrices of each expert.

        y (rows * chosen, sum of outs) and x (rows * chosen, in) have the order of `send_to_experts`; the segments of
        `lora` count the rows of the step. The entry of expert e lies `3 * e` entries after the target's own.
        """

    @operation()
    def adapt_embedding(self, y: Rows, step: StepInput) -> None:
        """Apply the adapters' changes of the embedding, in place: their own rows, their gain, then their LoRA.

        y (rows, hidden) is the result of `embed`. Rows of adapters without extras, and of none, keep their bits.
        """

    @operation()
    def adapt_norm(self, y: Rows, x: Rows, lora: LoraBatch, index: int, eps: float, is_sampled: bool) -> None:
        """Write `norm(x, weight, eps)` over each row of y whose adapter has a weight of its own for this norm.

        index  of the norm in the adapter's extras; is_sampled: the rows are those that are sampled from
        """

    @operation(changed="logits")
    def adapt_logits(self, logits: Rows, x: Rows, lora: LoraBatch) -> Rows:
        """Apply the adapters' changes of the output head: their own rows, their gain, then their LoRA and bias.

        logits (sampled, vocab) float32 is the result of the operation `logits`, x (sampled, hidden) its argument.
        Returns the logits. They are wider than the base's vocabulary where an adapter of the step adds tokens
        (`lora.vocabulary`): -Inf in the columns that a row's adapter does not have.
        """


OPERATIONS = operations_of(Operations)
"""The rows of the table, in order."""


class Forward(Protocol):
    """A model's forward pass, written in `Operations` alone: the same ones in the same order for every step."""

    def __call__(self, ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        """Return the logits of `step.logit_rows`, (sampled, vocab) float32."""


class CompiledForward(Protocol):
    """A forward pass in the form of one back end."""

    def __call__(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        """Return the logits of `step.logit_rows`, (sampled, vocab) float32.

        Args:  reuse  an earlier result that the caller needs no more; the logits may take its memory
        """


class Profile(Protocol):
    """Time spent in kernels since the start of the profile."""

    def seconds(self) -> dict[str, float]:
        """Return the seconds by operation."""


class Kernels(Protocol):
    """One back end. All tensors are on its device.

    device              type of that device, as torch names it
    owns_threads        True if the back end computes on threads of its own, so that torch's would spin beside them
    weight_dtype        dtype of packed weights
    weight_bits         bits of each packed weight of a linear layer, its share of the scales of groups included
    table_bits          the same of the embedding and the head
    scale_bytes         bytes of the scale that each output of a quantised weight has; 0: weights are not quantised
    activation_dtype    dtype of the residual stream and of every (rows, …) tensor between methods
    kv_dtype            dtype of the paged keys and values
    lora_dtype          dtype of adapters' images
    is_row_independent  True if a row's result has the same bits whatever other rows the step holds
    """

    name: str
    device: str
    owns_threads: bool
    weight_dtype: torch.dtype
    weight_bits: float
    table_bits: float
    scale_bytes: int
    activation_dtype: torch.dtype
    kv_dtype: torch.dtype
    lora_dtype: torch.dtype
    is_row_independent: bool

    def pack(self, weight: WeightRows) -> Packed:
        """Return `weight` (out, in), any float dtype, in this back end's layout, for `embed`, `linear` and `logits`.

        The rows are read piece by piece (`row_pieces`): the result and one piece are in memory at once.
        """

    def pack_table(self, weight: WeightRows) -> Packed:
        """As `pack`, for the embedding and the head, which may need more bits than the layers."""

    def pack_groups(self, integers: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Packed:
        """Pack a weight that is stored in four bits: `scales * (integers - zeros)`, each scale for a group of inputs.

        The native kernels keep the integers, and scales and `scales * zeros` as float16 in units of a power of two for
        each output. The reference widens them to its own dtype.

        Args:
            integers  (out, in) uint8 in 0 .. 15
            scales    (out, groups) of any float dtype
            zeros     (out, groups), integers or not; None: all are 8
            group     inputs of a group: a multiple of 32, or at least `in`; the last group may be cut off
        Raises: ValueError for other shapes, groups and integers.
        """

    def compile(self, forward: Forward) -> CompiledForward:
        """Return a function that runs `forward` as fast as this back end can.

        The function stages the step, whose tensors are in host memory, on the device. Its results have the bits that
        the same operations give one by one.
        """

    def start_profile(self) -> Profile | None:
        """Start to time compiled forwards and sampling by operation; return None if this back end cannot."""

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        """Return each row's token and its highest logit, as `sampling.sample_tokens`; logits (rows, vocab) float32.

        A token may differ from the one of `sample_tokens` where a sum differs in its last bits. One back end gives the
        same token for the same row, whatever the other rows.
        """

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        """Allocate the paged keys and values of all layers."""

    def kv_block_bytes(self, *, layers: int, block_size: int, kv_heads: int, head_dim: int) -> int:
        """Return the bytes of one block's keys and values in all layers together."""

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        """Return the batch of these segments in the form that the operations read; it serves every step with them."""
