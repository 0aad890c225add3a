"""The bytes that a back end takes for a base's weights, for keys and values, and for adapters. Without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageForm:
    """One back end's storage.

    weights          name of the form of packed weights
    weight_bits      bits of each packed weight of a linear layer, its share of the scales of groups included
    table_bits       the same of the embedding and the head
    scale_bytes      bytes of the scale that each output of a quantised weight has; 0: weights are not quantised
    keeps_four_bits  matrices that a checkpoint stores in four bits stay as they are
    is_widened       a product of many rows widens its weight as a whole, one at a time
    kv_item_bytes    bytes of one number of a key or a value
    kv_lanes         positions of a block of keys, and numbers of a head's values, take whole multiples of it
    kv_slots         positions of a block of values take whole multiples of it
    lora_item_bytes  bytes of one number of an adapter
    lora_half        dtype of an adapter whose numbers have two bytes
    """

    weights: str
    weight_bits: float
    table_bits: float
    scale_bytes: int = 0
    keeps_four_bits: bool = False
    is_widened: bool = False
    kv_item_bytes: int = 2
    kv_lanes: int = 16
    kv_slots: int = 1
    lora_item_bytes: int = 2
    lora_half: str = "bfloat16"

    @property
    def lora_dtype(self) -> str:
        """Dtype of adapters' images: bfloat16, float16 or float32."""
        return {2: self.lora_half, 4: "float32"}[self.lora_item_bytes]

    def kv_block_bytes(self, *, layers: int, block_size: int, kv_heads: int, head_dim: int) -> int:
        """Return the bytes of one block's keys and values in all layers together."""

        def whole(number: int, of: int) -> int:
            return -(-number // of) * of

        keys = whole(block_size, self.kv_lanes) * head_dim
        values = whole(head_dim, self.kv_lanes) * whole(block_size, self.kv_slots)
        return layers * kv_heads * (keys + values) * self.kv_item_bytes

    @property
    def quantises_to_four_bits(self) -> bool:
        """All linear layers are in four bits, whatever a checkpoint stores them in."""
        return self.weight_bits < 8 and self.scale_bytes > 0


GROUP_INPUTS = 32
"""Inputs of a group of an int4 weight, which has a scale and a minimum of sixteen bits each."""
_GROUPED_BITS = 4 + 2 * 16 / GROUP_INPUTS
BFLOAT16 = StorageForm(weights="bfloat16", weight_bits=16.0, table_bits=16.0, kv_slots=2)
INT8 = StorageForm(weights="int8", weight_bits=8.0, table_bits=8.0, scale_bytes=4, kv_slots=2)
INT4 = StorageForm(
    weights="int4", weight_bits=_GROUPED_BITS, table_bits=8.0, scale_bytes=4, keeps_four_bits=True, kv_slots=2
)
FLOAT32 = StorageForm(
    weights="float32", weight_bits=32.0, table_bits=32.0, kv_item_bytes=4, kv_lanes=1, lora_item_bytes=4
)
"""The form of the reference kernels, which pad nothing."""
CARD = StorageForm(weights="bfloat16", weight_bits=16.0, table_bits=16.0, keeps_four_bits=True, kv_lanes=1)
"""The form of a card, which pads no block."""
QUANTISED: Mapping[str, StorageForm] = {"none": BFLOAT16, "int8": INT8, "int4": INT4}
"""The forms of the native kernels by the setting `model.quantize`."""


def on_card(form: StorageForm, quantize: str) -> StorageForm:
    """Return the form of a card's kernels that hold the linear layers as `quantize` says, else as `form` does."""
    if quantize == "none":
        return replace(form, keeps_four_bits=True)
    own = QUANTISED[quantize]
    return replace(
        form,
        weights=own.weights,
        weight_bits=own.weight_bits,
        table_bits=own.table_bits,
        scale_bytes=own.scale_bytes,
        keeps_four_bits=own.keeps_four_bits,
        is_widened=True,
    )


CARDS: Mapping[str, StorageForm] = {quantize: on_card(CARD, quantize) for quantize in QUANTISED}
"""The forms of a card by the setting `model.quantize`."""


def expected_form(kernels: str, quantize: str, device: str = "cpu") -> StorageForm:
    """Return the form of the back end that the settings `model.kernels`, `quantize` and `device` name.

    `auto` counts as the CPU. The native kernels are expected to work; a machine without a compiler falls back to the
    reference kernels.
    """
    if device.startswith("cuda"):
        return CARDS[quantize]
    if kernels in ("torch", "triton"):
        return on_card(FLOAT32, quantize)
    return FLOAT32 if kernels == "reference" else QUANTISED[quantize]
