"""The logits of an adapter's classification head. A row's logits do not depend on the rows beside it."""

import numpy as np

from manylora.engine.pooling import Floats
from manylora.kernels.adapter_layout import NONE, task_head
from manylora.kernels.lora_batch import PlacedAdapter


def head_logits(hidden: Floats, adapter: PlacedAdapter) -> Floats:
    """Return `hidden @ weight.T + bias` of the adapter's head: hidden (rows, hidden) → (rows, labels).

    A product of matrices chooses its order of summation by the number of rows, so each row is summed by itself, in
    float64.
    """
    head = task_head(adapter.extras, *adapter.table.shape[:2])
    assert head is not None  # the pin has checked it
    weight = _part(adapter, head.weight, head.num_labels * hidden.shape[1]).reshape(head.num_labels, -1)
    logits = np.stack([np.multiply(weight, row, dtype=np.float64).sum(axis=1) for row in hidden])
    if head.bias != NONE:
        logits += _part(adapter, head.bias, head.num_labels)
    return logits.astype(np.float32)


def _part(adapter: PlacedAdapter, offset: int, count: int) -> Floats:
    values: Floats = adapter.image[offset : offset + count].float().cpu().numpy()
    return values
