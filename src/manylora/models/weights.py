"""A base model's weights: read from safetensors one tensor at a time, fused, and packed by the kernels."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from manylora.kernels.interface import Kernels, Packed
from manylora.kernels.projections import Projection
from manylora.models.checkpoint_files import (
    ATTENTION_NORM,
    EMBED,
    FINAL_NORM,
    HEAD,
    K_NORM,
    MLP_NORM,
    Q_NORM,
    CheckpointTensor,
    block_tensor,
    check_entries,
    read_entries,
)
from manylora.models.spec import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One block. Norms are (hidden,) float32; the rest is packed, shapes before packing:

    qkv (q_size + 2 * kv_size, hidden)   o (hidden, q_size)   gate_up (2 * intermediate, hidden)
    down (hidden, intermediate)

    biases          (out,) float32 of each fused product that has one
    q_norm, k_norm  (head_dim,) float32; None: the heads are not normed
    """

    attention_norm: Tensor
    qkv: Packed
    o: Packed
    mlp_norm: Tensor
    gate_up: Packed
    down: Packed
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of a model. With tied embeddings `head` and `embed` are one object."""

    embed: Packed
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Packed


def load_weights(
    directory: Path, spec: ModelSpec, kernels: Kernels, progress: Callable[[int, int], None] | None = None
) -> Weights:
    """Read, check and pack a base model. Peak memory is the packed total and the largest fused tensor.

    Args:    progress, called with (layers done, layers)
    Raises:  `ModelNotFound` for a missing file, `ModelUnsupported` for wrong names, shapes or dtypes
    """
    entries = read_entries(directory)
    check_entries(entries, spec)
    _log_conversions(entries, kernels)
    with ExitStack() as open_files:
        handles = {
            file: open_files.enter_context(safe_open(file, framework="pt"))
            for file in {entry.file for entry in entries.values()}
        }

        def read(name: str) -> Tensor:
            tensor: Tensor = handles[entries[name].file].get_tensor(name)
            return tensor

        layers = []
        for layer in range(spec.num_layers):
            layers.append(_load_layer(spec, partial(_read_block, read, layer), kernels))
            if progress is not None:
                progress(layer + 1, spec.num_layers)
        embed = kernels.pack(read(EMBED))
        head = embed if spec.tie_embeddings else kernels.pack(read(HEAD))
        return Weights(embed=embed, layers=tuple(layers), final_norm=_vector(read(FINAL_NORM)), head=head)


def _read_block(read: Callable[[str], Tensor], layer: int, path: str) -> Tensor:
    return read(block_tensor(layer, path))


def _load_layer(spec: ModelSpec, read: Callable[[str], Tensor], kernels: Kernels) -> LayerWeights:
    """Pack one block; the projections of a fused product become one matrix, so that each product is one GEMM."""

    def fused(name: str, kind: str = "weight") -> Tensor:
        parts = [read(f"{projection.path}.{kind}") for projection in Projection if projection.fused == name]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return LayerWeights(
        attention_norm=_vector(read(ATTENTION_NORM)),
        qkv=kernels.pack(fused("qkv")),
        o=kernels.pack(fused("o")),
        mlp_norm=_vector(read(MLP_NORM)),
        gate_up=kernels.pack(fused("gate_up")),
        down=kernels.pack(fused("down")),
        biases={name: _vector(fused(name, "bias")) for name in spec.biased},
        q_norm=_vector(read(Q_NORM)) if spec.has_head_norms else None,
        k_norm=_vector(read(K_NORM)) if spec.has_head_norms else None,
    )


def _vector(weight: Tensor) -> Tensor:
    return weight.to(torch.float32, copy=True)


def _log_conversions(entries: dict[str, CheckpointTensor], kernels: Kernels) -> None:
    """Warn when packing rounds: float16 has three more mantissa bits than bfloat16, float32 sixteen more."""
    if kernels.scale_bytes:
        return  # the settings ask for quantised weights, and the kernels' own line reports them
    kept = {torch.bfloat16: {"BF16"}, torch.float16: {"F16"}, torch.float32: {"BF16", "F16", "F32"}}
    for dtype in sorted({entry.dtype for entry in entries.values()} - kept.get(kernels.weight_dtype, set())):
        log.warning("model.weights_rounded from=%s to=%s", dtype, str(kernels.weight_dtype).removeprefix("torch."))
