"""The one table of the operations of a forward pass (docs/decisions/table-of-operations.md).

Shape legend: rows = tokens of one step, sequences in order, each sequence's rows contiguous; hidden = model width;
heads, kv_heads, head_dim as in the model's config; rank = one adapter's own LoRA rank.
"""

from typing import Annotated, Protocol, TypeVar

from torch import Tensor

from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, RopeTable, StepInput
from manylora.kernels.operation import operation, operations_of
from manylora.kernels.projections import LoraTarget

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

    @operation(is_collective=True)
    def sum_over_ranks(self, y: Rows) -> None:
        """Replace y (rows, width) of each rank by the sum of all ranks' y, in place; a single rank changes nothing."""

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

    @operation(is_collective=True, changed="logits")
    def join_vocabulary(self, logits: Rows, vocab: int) -> Rows:
        """Return the logits of the whole vocabulary of `vocab` tokens on rank 0, whose ranks have a part each.

        logits (sampled, own) float32, as `collectives.join_columns` reads them → (sampled, vocab). On other ranks the
        result is not used. A single rank returns its argument.
        """

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
                    y[seg.start:seg.stop, t.column:t.column + t.out] += (seg.weight * x[seg.start:seg.stop] @ A.T) @ B
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

    @operation()
    def keep_hidden(self, residual: Rows, delta: Rows, weight: Vector, index: int, eps: float, step: StepInput) -> None:
        """Write the final hidden states of the rows `step.hidden_rows` into `step.hidden`.

        Semantics:  step.hidden[i] = norm(residual[r] + delta[r], weight, eps) with r = step.hidden_rows[i]; a row of
                    an adapter that has a weight of its own for the norm `index` gets that weight
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
