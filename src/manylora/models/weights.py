"""A base model's weights: read from its files some rows at a time, fused, and packed by the kernels."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from manylora.kernels.interface import Kernels
from manylora.kernels.operands import Packed
from manylora.kernels.projections import Projection
from manylora.models.checkpoint_files import (
    ATTENTION_NORM,
    EMBED,
    FINAL_NORM,
    HEAD,
    K_NORM,
    MLP_NORM,
    Q_NORM,
    block_tensor,
    checked_entries,
    expected_shapes,
    fused_weights,
)
from manylora.models.checkpoints.four_bits import in_four_bits
from manylora.models.checkpoints.stored import StoredTensor
from manylora.models.expert_tensors import ROUTER_PATH
from manylora.models.shares import share_entries
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import Share
from manylora.models.weight_source import WeightSource
from manylora.system.freed_memory import release_freed_memory
from manylora.system.resources import find_resources

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward layer, packed; before packing gate_up (2 * intermediate, hidden), down (hidden, intermediate)."""

    gate_up: Packed
    down: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: a matrix of each product for each expert, shaped as those of `Dense`.

    router  (experts, hidden) float32, whatever the format of packed weights: a rounded score sends a row elsewhere
    """

    router: Tensor
    gate_up: tuple[Packed, ...]
    down: tuple[Packed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One block. Norms are (hidden,) float32; the rest is packed, shapes before packing:

    qkv (q_size + 2 * kv_size, hidden)   o (hidden, q_size)

    biases          (out,) float32 of each fused product that has one
    q_norm, k_norm  (head_dim,) float32; None: the heads are not normed
    """

    attention_norm: Tensor
    qkv: Packed
    o: Packed
    mlp_norm: Tensor
    mlp: Dense | Experts
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
    directory: Path,
    spec: ModelSpec,
    kernels: Kernels,
    progress: Callable[[int, int], None] | None = None,
    share: Share | None = None,
) -> Weights:
    """Read, check and pack a base model. Peak memory is the packed total and a piece of `row_pieces`.

    Args:    progress  called with (stored bytes that are read, stored bytes of the model or of the share)
             share     the part of the base to load; None: the whole base
    Raises:  `ModelNotFound` for a missing file, `ModelUnsupported` for wrong names, shapes or dtypes
    """
    entries = checked_entries(directory, spec)
    _log_conversions(entries, kernels)
    if share is not None:
        entries = share_entries(entries, share, keeps_four_bits=kernels.form.keeps_four_bits)
        spec = share.own
    with WeightSource(entries, expected_shapes(spec), progress, find_resources().threads) as source:
        layers = []
        for layer in range(spec.num_layers):
            layers.append(_load_layer(spec, layer, source, kernels))
            release_freed_memory()  # pieces that lay between packed weights
        embed = kernels.pack_table(source.matrix(EMBED))
        head = embed if spec.tie_embeddings else kernels.pack_table(source.matrix(HEAD))
        release_freed_memory()
        final_norm = kernels.place(source.vector(FINAL_NORM))
        return Weights(embed=embed, layers=tuple(layers), final_norm=final_norm, head=head)


def _load_layer(spec: ModelSpec, layer: int, source: WeightSource, kernels: Kernels) -> LayerWeights:
    def biases(name: str) -> tuple[str, ...]:
        paths = (projection.path for projection in Projection if projection.fused == name)
        return tuple(block_tensor(layer, f"{path}.bias") for path in paths)

    def vector(path: str) -> Tensor:
        return kernels.place(source.vector(block_tensor(layer, path)))

    def matrix(name: str) -> Packed:
        [parts] = fused_weights(spec, layer, name)
        return source.packed(kernels, *parts)

    def experts(name: str) -> tuple[Packed, ...]:
        found = []
        for parts in fused_weights(spec, layer, name):
            found.append(source.packed(kernels, *parts))
            release_freed_memory()  # else a layer of many experts keeps the pieces of each of them until its end
        return tuple(found)

    def mixture() -> Experts:
        router = kernels.place(source.matrix(block_tensor(layer, ROUTER_PATH))[:].float())
        return Experts(router=router, gate_up=experts("gate_up"), down=experts("down"))

    return LayerWeights(
        attention_norm=vector(ATTENTION_NORM),
        qkv=matrix("qkv"),
        o=matrix("o"),
        mlp_norm=vector(MLP_NORM),
        mlp=Dense(gate_up=matrix("gate_up"), down=matrix("down")) if spec.experts is None else mixture(),
        biases={name: kernels.place(source.vector(*biases(name))) for name in spec.biased},
        q_norm=vector(Q_NORM) if spec.has_head_norms else None,
        k_norm=vector(K_NORM) if spec.has_head_norms else None,
    )


def _log_conversions(entries: Mapping[str, StoredTensor], kernels: Kernels) -> None:
    """Warn once when packing rounds: float16 has three more mantissa bits than bfloat16, float32 sixteen more.

    Quantised formats are widened to float32 first. Vectors and routers stay float32.
    """
    if kernels.form.scale_bytes:
        return  # the settings ask for quantised weights, and the kernels' own line reports them
    exact = {torch.bfloat16: {"BF16"}, torch.float16: {"F16"}}
    matrices = (entry for name, entry in entries.items() if len(entry.shape) > 1 and not name.endswith(ROUTER_PATH))
    keeps = kernels.form.keeps_four_bits
    formats = {entry.dtype for entry in matrices if not (keeps and in_four_bits(entry) is not None)}
    rounded = sorted(formats - exact.get(kernels.weight_dtype, formats))
    if rounded:
        kept = str(kernels.weight_dtype).removeprefix("torch.")
        log.warning("model.weights_rounded from=%s to=%s", ",".join(rounded), kept)
