"""The extras of an adapter: the places of its parts beside the LoRA of a block's projections. Without torch.

Extras are rare, and a plain LoRA has none. They are one vector of int64: offsets and sizes in elements of the image,
`NONE` for an absent part.

[0:3]    output head   offset of A (rank, hidden), offset of B (rank, vocabulary), rank
[3:6]    embedding     offset of A transposed (vocabulary, rank), offset of B (rank, hidden), rank
[6:9]    head rows     offset of token ids (count,) int32 ascending, offset of rows (count, hidden), count
[9:12]   embed rows    the same: rows that replace the base's
[12]     vocabulary    token ids below this may be used with the adapter: the base's, and those the adapter adds
[13]     index in this vector at which the vectors of the projections begin
[14:16]  head          offset of its bias, offset of its gain, each (vocabulary,)
[16:18]  embedding     `NONE`, offset of its gain (hidden,)
[18:…]   norms         2 * layers + 1 of them, (hidden,): each layer's before attention and after it, then the final
[…:…]    projections   (layers, width, 2): offset of the bias, offset of the gain, each (out,); width is the table's
[…:]     task head     offset of its weight (labels, hidden), offset of its bias (labels,), number of labels, and its
                       kind: 1 for whole texts, 2 for tokens. Images of older releases end before it

A gain g is stored as g - 1: the base's output y becomes y + y * gain before the adapter's own is added. DoRA's
magnitudes are such gains (Liu et al., arXiv 2402.09353): with g = m / ‖W + s·BA‖, y = g ⊙ Wx + (g ⊙ s·B)Ax.
"""

from typing import Any, NamedTuple

import numpy as np

from manylora.kernels.projections import NUM_PROJECTIONS

NONE = -1
MAX_ADDED_TOKENS = 1_024
"""Tokens that an adapter may add to the base's vocabulary."""
HEAD, EMBED = slice(0, 3), slice(3, 6)
HEAD_ROWS, EMBED_ROWS = slice(6, 9), slice(9, 12)
VOCABULARY = 12
VECTORS_AT = 13
HEAD_VECTORS, EMBED_VECTORS = slice(14, 16), slice(16, 18)
NORMS_AT = 18

Extras = np.ndarray[Any, np.dtype[np.int64]]

NO_EXTRAS: Extras = np.empty(0, dtype=np.int64)
TASK_HEAD_SIZE = 4
TEXT_HEAD, TOKEN_HEAD = 1, 2


class TaskHead(NamedTuple):
    """The place of a classification head: offsets of weight and bias (`NONE`: it has none), labels, kind."""

    weight: int
    bias: int
    num_labels: int
    kind: int


def blank_extras(layers: int, vocabulary: int, width: int = NUM_PROJECTIONS) -> Extras:
    """Return the extras of an adapter without parts beside its LoRA. `width` counts the projections of a block."""
    vectors_at = NORMS_AT + 2 * layers + 1
    extras = np.full(vectors_at + layers * width * 2 + TASK_HEAD_SIZE, NONE, dtype=np.int64)
    extras[-2:] = 0  # no labels, no kind
    extras[0 : HEAD.stop] = extras[EMBED] = extras[HEAD_ROWS] = extras[EMBED_ROWS] = 0
    extras[VOCABULARY], extras[VECTORS_AT] = vocabulary, vectors_at
    return extras


def projection_vectors(extras: Extras, layer: int, projection: int, width: int = NUM_PROJECTIONS) -> tuple[int, int]:
    """Return the offsets of the bias and of the gain of one projection, each `NONE` where it has none."""
    if not extras.size:
        return NONE, NONE
    first = int(extras[VECTORS_AT]) + (layer * width + projection) * 2
    return int(extras[first]), int(extras[first + 1])


def set_projection_vectors(
    extras: Extras, layer: int, projection: int, bias: int, gain: int, width: int = NUM_PROJECTIONS
) -> None:
    """Store the offsets of the bias and of the gain of one projection."""
    first = int(extras[VECTORS_AT]) + (layer * width + projection) * 2
    extras[first : first + 2] = bias, gain


def changes_projections_alone(extras: Extras, vocabulary: int) -> bool:
    """Return whether an adapter leaves embedding, norms, head and a base's vocabulary of so many tokens as they are."""
    if not extras.size:
        return True
    parts = (HEAD, EMBED, HEAD_ROWS, EMBED_ROWS)
    vectors = extras[HEAD_VECTORS.start : int(extras[VECTORS_AT])]  # of head, embedding and norms
    has_part = any(extras[part.stop - 1] for part in parts)
    return not has_part and bool((vectors == NONE).all()) and int(extras[VOCABULARY]) <= vocabulary


def task_head(extras: Extras, layers: int, width: int) -> TaskHead | None:
    """Return the classification head of an adapter; None if it has none. `layers`, `width`: of its table."""
    if not extras.size:
        return None
    own = extras[int(extras[VECTORS_AT]) + layers * width * 2 :]
    return TaskHead(*(int(entry) for entry in own)) if own.size and own[3] else None
