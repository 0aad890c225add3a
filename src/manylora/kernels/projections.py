"""The table of the projections of a Llama block: order, PEFT module paths, shapes, fused products. Without torch."""

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


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """One projection inside the output of a fused product: its columns are `[column, column + out)`."""

    projection: Projection
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
