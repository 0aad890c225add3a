"""DoRA's magnitudes as gains on the base's output.  Source: Liu et al., arXiv 2402.09353, as PEFT computes it.

A layer's weight becomes m ⊙ (W + s·BA) / ‖W + s·BA‖, with a norm for each output. So does its output: with the gain
g = m / ‖W + s·BA‖ it is g ⊙ Wx + g ⊙ s·BAx, the base's own bias left alone.
"""

import numpy as np

from manylora.adapters.packing.base_weights import Matrix, pieces
from manylora.adapters.peft.tensors import FileTensor
from manylora.adapters.peft.values import Float


def linear_gain(weight: Matrix, a: Float, b: Matrix, scale: float, magnitude: Float) -> Float:
    """Return g - 1 (out,) of a linear layer.

    weight (out, in), a (rank, in), b (out, rank), magnitude (out,)
    """
    norms: Float = np.empty(weight.shape[0], dtype=np.float32)
    for first, piece in pieces(weight):
        stop = first + len(piece)
        norms[first:stop] = np.linalg.norm(piece + np.float32(scale) * (b.rows(first, stop) @ a), axis=1)
    return _gain(magnitude, norms)


def embedding_gain(weight: Matrix, a: FileTensor, b: Float, scale: float, magnitude: Float) -> Float:
    """Return g - 1 (hidden,) of an embedding.

    weight (vocabulary, hidden), a (rank, vocabulary), b (hidden, rank), magnitude (hidden,)
    """
    squares = np.zeros(weight.shape[1], dtype=np.float64)
    for first, piece in pieces(weight):
        changed = piece + np.float32(scale) * (a.columns(first, first + len(piece)).T @ b.T)
        squares += np.square(changed).sum(axis=0, dtype=np.float64)
    return _gain(magnitude, np.sqrt(squares).astype(np.float32))


def _gain(magnitude: Float, norms: Float) -> Float:
    gain = np.empty_like(magnitude)
    np.divide(magnitude, norms, out=gain)
    gain -= 1
    return gain
