"""The table of the projections of a block: order, PEFT module paths, shapes, fused products. Without torch.

A block with a mixture of experts has the first four projections, then the router, then three for each expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class ProjectionSizes(Protocol):
    """The sizes that the shapes of the table name; `models.spec.ModelSpec` has them."""

    @property
    def q_size(self) -> int: ...

    @property
    def kv_size(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def intermediate(self) -> int: ...


class Projection(IntEnum):
    """The linear layers of a Llama block. The value is a projection's index in the table of an adapter's image.

    path    module path inside a block, as checkpoints and PEFT name it
    fused   the product that computes it, side by side with the others of that name in this order
    """

    path: str
    fused: str
    _out: str
    _inputs: str

    def __new__(cls, index: int, path: str, fused: str, out: str, inputs: str) -> "Projection":
        """Make a row of the table. `out` and `inputs` are names of `ProjectionSizes`."""
        row = int.__new__(cls, index)
        row._value_ = index
        row.path, row.fused, row._out, row._inputs = path, fused, out, inputs
        return row

    Q = 0, "self_attn.q_proj", "qkv", "q_size", "hidden"
    K = 1, "self_attn.k_proj", "qkv", "kv_size", "hidden"
    V = 2, "self_attn.v_proj", "qkv", "kv_size", "hidden"
    O = 3, "self_attn.o_proj", "o", "hidden", "q_size"  # noqa: E741 - the field's name of the attention's output
    GATE = 4, "mlp.gate_proj", "gate_up", "intermediate", "hidden"
    UP = 5, "mlp.up_proj", "gate_up", "intermediate", "hidden"
    DOWN = 6, "mlp.down_proj", "down", "hidden", "intermediate"

    def shape(self, sizes: ProjectionSizes) -> tuple[int, int]:
        """Return (out, in) of the weight in a model of these sizes."""
        return getattr(sizes, self._out), getattr(sizes, self._inputs)


NUM_PROJECTIONS = len(Projection)
FEED_FORWARD = (Projection.GATE, Projection.UP, Projection.DOWN)
"""The projections that each expert of a mixture has for itself."""
EXPERT_NAMES = {Projection.GATE: "w1", Projection.UP: "w3", Projection.DOWN: "w2"}
"""The names of an expert's matrices in Mixtral's files and in PEFT's module paths."""
ROUTER = NUM_PROJECTIONS
"""Index of the router in the table of an adapter's image."""
MIXTURE_PATH = "block_sparse_moe"


def expert_index(projection: int, expert: int) -> int:
    """Return the index of an expert's own projection, one of `FEED_FORWARD`, in the table of an adapter's image."""
    return ROUTER + 1 + len(FEED_FORWARD) * expert + projection - Projection.GATE


def table_width(num_experts: int) -> int:
    """Return the number of projections in the table of an adapter's image; `num_experts` 0: a block without a mixture.

    A mixture's table has the entries of `FEED_FORWARD` as well, which stay blank.
    """
    return expert_index(Projection.GATE, num_experts) if num_experts else NUM_PROJECTIONS


def block_path(index: int) -> str:
    """Return the module path of a projection inside a block, by its index in the table of an adapter's image."""
    if index < NUM_PROJECTIONS:
        return list(Projection)[index].path
    if index == ROUTER:
        return f"{MIXTURE_PATH}.gate"
    expert, place = divmod(index - ROUTER - 1, len(FEED_FORWARD))
    return f"{MIXTURE_PATH}.experts.{expert}.{EXPERT_NAMES[FEED_FORWARD[place]]}"


def table_shapes(sizes: ProjectionSizes, num_experts: int) -> tuple[tuple[int, int] | None, ...]:
    """Return (out, in) of each projection in the order of the table; None where the block has none."""
    plain = [None if num_experts and p in FEED_FORWARD else p.shape(sizes) for p in Projection]
    if not num_experts:
        return tuple(plain)
    return (*plain, (num_experts, sizes.hidden), *(p.shape(sizes) for _ in range(num_experts) for p in FEED_FORWARD))


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """One projection inside the output of a fused product: its columns are `[column, column + out)`.

    projection  index in the table of an adapter's image; of an expert's projections that of expert 0
    """

    projection: int
    column: int
    out: int


def lora_targets(fused: str, sizes: ProjectionSizes) -> tuple[LoraTarget, ...]:
    """Return the projections of one fused product, left to right. `fused` is qkv, o, gate_up or down."""

    def targets() -> Iterator[LoraTarget]:
        column = 0
        for projection in Projection:
            if projection.fused == fused:
                out, _ = projection.shape(sizes)
                yield LoraTarget(projection, column, out)
                column += out

    return tuple(targets())


def expert_targets(fused: str, sizes: ProjectionSizes) -> tuple[LoraTarget, ...]:
    """Return the same for the experts' own product gate_up or down."""
    return tuple(
        LoraTarget(expert_index(target.projection, 0), target.column, target.out)
        for target in lora_targets(fused, sizes)
    )
