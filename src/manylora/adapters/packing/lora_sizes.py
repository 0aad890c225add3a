"""The bytes of a plain LoRA in the bank, from the shape of its base, as packing lays it out. Without torch."""

from collections.abc import Collection, Mapping

from manylora.adapters.base_shape import BaseShape
from manylora.adapters.packing.image import ITEM_BYTES, lay_out
from manylora.kernels.projections import FEED_FORWARD, Projection, expert_index

TARGETS: Mapping[str, tuple[Projection, ...]] = {
    "q,v": (Projection.Q, Projection.V),
    "q,k,v,o": (Projection.Q, Projection.K, Projection.V, Projection.O),
    "all": tuple(Projection),
}
"""Sets of projections that LoRAs are usually trained on."""


def lora_bytes(shape: BaseShape, targets: Collection[Projection], rank: int, dtype: str) -> int:
    """Return the bytes that a LoRA of one rank on these projections of every layer takes in the bank.

    In a mixture of experts a projection of the feed-forward layer is that of each expert. `dtype`: of the image.
    """
    table = [index for projection in targets for index in _indices(shape, projection)]
    ranks = {(layer, index): rank for layer in range(shape.num_layers) for index in table}
    return lay_out(shape, ranks, dtype)[1] * ITEM_BYTES[dtype]


def _indices(shape: BaseShape, projection: Projection) -> list[int]:
    """Return the indices of a projection in the table of an image."""
    if shape.num_experts and projection in FEED_FORWARD:
        return [expert_index(projection, expert) for expert in range(shape.num_experts)]
    return [projection]
