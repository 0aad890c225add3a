"""One rank's share of an adapter: the parts that its share of the base's projections needs.

B of a projection whose outputs are divided has the rank's outputs, and A of one whose inputs are divided its inputs.
So a delta takes no collective of its own: its parts are summed with the base's. (S-LoRA, arXiv 2311.03285, section 6,
divides the ranks of the other matrix as well, and gathers them.) A gain multiplies each part of a sum alike, and a bias
is added once, by rank 0. The embedding and the norms change rows that each rank has whole. Rank 0 alone has the logits,
and what adapters change in them, and the classification head.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manylora.adapters.packing.image import ALIGNMENT_BYTES
from manylora.kernels.adapter_layout import (
    EMBED,
    EMBED_ROWS,
    EMBED_VECTORS,
    HEAD,
    HEAD_ROWS,
    HEAD_VECTORS,
    NONE,
    NORMS_AT,
    TASK_HEAD_SIZE,
    VECTORS_AT,
    VOCABULARY,
    Extras,
    projection_vectors,
    set_projection_vectors,
    task_head,
)
from manylora.kernels.lora_batch import PlacedAdapter
from manylora.kernels.projections import table_shapes
from manylora.models.tensor_parallel import Share


def share_of(whole: PlacedAdapter, share: Share) -> PlacedAdapter:
    """Return a rank's share of an adapter, in memory of its own. Factors of one place in the image have one there."""
    body = _Body(whole.image)
    experts = share.spec.experts
    shapes = table_shapes(share.spec, 0 if experts is None else experts.count)
    table = np.zeros_like(whole.table)
    for layer, index in np.argwhere(whole.table[:, :, 2]).tolist():
        a, b, rank = whole.table[layer, index].tolist()
        sizes = shapes[index]
        assert sizes is not None  # the adapter fits the base
        outputs, inputs = sizes
        places = (
            body.columns(a, rank, inputs, share.inputs(index)),
            body.columns(b, rank, outputs, share.outputs(index)),
        )
        table[layer, index] = (*places, rank)
    extras = _extras(whole, share, shapes, body) if whole.extras.size else whole.extras
    return PlacedAdapter(whole.digest, body.filled(), table, extras)


@dataclass(slots=True)
class _Body:
    """The image of a share: parts of the whole image, each on a boundary of 64 bytes."""

    image: Tensor
    end: int = 0
    _parts: dict[tuple[int, int, int, int, int], tuple[int, Tensor]] = field(default_factory=dict)

    def columns(self, offset: int, rows: int, width: int, part: range) -> int:
        """Take columns of a matrix (rows, width) that begins at `offset`; return the offset of the share's."""
        key = offset, rows, width, part.start, part.stop
        if key not in self._parts:
            whole = self.image[offset : offset + rows * width].view(rows, width)
            step = ALIGNMENT_BYTES // self.image.itemsize
            self._parts[key] = self.end, whole[:, part.start : part.stop]
            self.end += -(-rows * len(part) // step) * step
        return self._parts[key][0]

    def vector(self, offset: int, size: int, part: range | None = None) -> int:
        """Take a vector, or a part of it; `NONE` stays."""
        return NONE if offset == NONE else self.columns(offset, 1, size, range(size) if part is None else part)

    def filled(self) -> Tensor:
        """Return the image with all parts that were taken."""
        made = torch.zeros(self.end, dtype=self.image.dtype)
        for start, part in self._parts.values():
            made[start : start + part.numel()].view(part.shape).copy_(part)
        return made


def _extras(whole: PlacedAdapter, share: Share, shapes: tuple[tuple[int, int] | None, ...], body: _Body) -> Extras:
    old, new, hidden = whole.extras, whole.extras.copy(), share.spec.hidden
    vocabulary = int(old[VOCABULARY])
    new[EMBED] = _ends(old[EMBED], vocabulary, hidden, body)
    new[EMBED_ROWS] = _rows(old[EMBED_ROWS], hidden, body)
    new[EMBED_VECTORS] = [body.vector(int(offset), hidden) for offset in old[EMBED_VECTORS]]
    for place in range(NORMS_AT, int(old[VECTORS_AT])):
        new[place] = body.vector(int(old[place]), hidden)
    layers, width = whole.table.shape[:2]
    for layer in range(layers):
        for index, sizes in enumerate(shapes):
            if sizes is not None:
                bias, gain = projection_vectors(old, layer, index, width)
                if share.rank and share.is_summed(index):
                    bias = NONE
                bias, gain = (body.vector(offset, sizes[0], share.outputs(index)) for offset in (bias, gain))
                set_projection_vectors(new, layer, index, bias, gain, width)
    _set_head(whole, new, share, body)
    return new


def _set_head(whole: PlacedAdapter, new: Extras, share: Share, body: _Body) -> None:
    """Set the places of what changes the logits, and of the classification head; only rank 0 has them."""
    old, hidden, vocabulary = whole.extras, share.spec.hidden, int(whole.extras[VOCABULARY])
    head = task_head(old, *whole.table.shape[:2])
    if share.rank:
        new[HEAD] = new[HEAD_ROWS] = 0
        new[HEAD_VECTORS] = NONE
        if head is not None:
            new[-TASK_HEAD_SIZE:] = NONE, NONE, 0, 0
        return
    new[HEAD] = _ends(old[HEAD], hidden, vocabulary, body)
    new[HEAD_ROWS] = _rows(old[HEAD_ROWS], hidden, body)
    new[HEAD_VECTORS] = [body.vector(int(offset), vocabulary) for offset in old[HEAD_VECTORS]]
    if head is not None:
        places = body.vector(head.weight, head.num_labels * hidden), body.vector(head.bias, head.num_labels)
        new[-TASK_HEAD_SIZE:] = *places, head.num_labels, head.kind


def _ends(entry: Extras, inputs: int, outputs: int, body: _Body) -> tuple[int, int, int]:
    """Return the entry of a LoRA of the embedding or the head, both factors whole."""
    a, b, rank = entry.tolist()
    return (body.vector(a, rank * inputs), body.vector(b, rank * outputs), rank) if rank else (0, 0, 0)


def _rows(entry: Extras, hidden: int, body: _Body) -> tuple[int, int, int]:
    """Return the entry of rows that replace the base's, all of them. Their ids take four bytes each."""
    ids, rows, count = entry.tolist()
    if not count:
        return 0, 0, 0
    return body.vector(ids, count * 4 // body.image.itemsize), body.vector(rows, count * hidden), count
