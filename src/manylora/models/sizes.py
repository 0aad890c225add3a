"""The bytes that a base model takes: weights, keys and values, buffers of a step. Pure arithmetic, without torch.

Each function takes a base's `ModelSpec`; the spec of a shard (`models/tensor_parallel.py`) gives one device's share.
"""

import math

from manylora.kernels.storage_form import StorageForm
from manylora.models.spec import ModelSpec


def weight_bytes(spec: ModelSpec, form: StorageForm) -> int:
    """Return the bytes of the packed base: its weights, and their scales where they are quantised."""
    tables = (1 if spec.tie_embeddings else 2) * spec.vocab * spec.hidden
    bits = (spec.parameters - tables) * form.weight_bits + tables * form.table_bits
    return math.ceil(bits / 8) + spec.output_channels * form.scale_bytes


def kv_block_bytes(spec: ModelSpec, form: StorageForm, block_size: int) -> int:
    """Return the bytes of one block of `block_size` positions: keys and values of all layers."""
    return form.kv_block_bytes(
        layers=spec.num_layers, block_size=block_size, kv_heads=spec.kv_heads, head_dim=spec.head_dim
    )


def step_bytes(spec: ModelSpec, rows: int, ranks: int = 1) -> int:
    """Return the bytes of a step's float32 buffers: one block's activations, which all blocks share, and the results.

    Results are logits and hidden states, of each row at most. Several ranks exchange parts beside them: all parts of a
    sum, or, on rank 0, all parts of the logits and the joined ones. The back end holds each part twice.
    """
    inner = 2 * (spec.heads + 2 * spec.kv_heads) * spec.head_dim + 6 * spec.hidden
    if spec.experts is None:
        inner += 3 * spec.intermediate
    else:
        experts = spec.experts
        inner += experts.chosen * (3 * spec.intermediate + 2 * spec.hidden + 2) + experts.count
    exchanged = 0 if ranks == 1 else ranks * max(2 * spec.hidden, 3 * (spec.vocab + 1))
    return 4 * rows * (inner + spec.vocab + spec.hidden + exchanged)


def angle_bytes(spec: ModelSpec, positions: int) -> int:
    """Return the bytes of the float32 rotary angles: a cosine and a sine for each pair of dimensions."""
    return 2 * 4 * positions * (spec.head_dim // 2)


def widened_bytes(spec: ModelSpec, form: StorageForm) -> int:
    """Return the bytes of the largest matrix of a block as a product of many rows widens it; 0: none is widened."""
    if not form.is_widened:
        return 0
    own = [spec.hidden * (spec.q_size + 2 * spec.kv_size), spec.hidden * spec.q_size]
    if spec.experts is None:  # an expert's picks are multiplied in tiles
        own.append(2 * spec.intermediate * spec.hidden)
    return max(own) * form.lora_item_bytes
