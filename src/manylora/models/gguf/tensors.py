"""The tensors of a model in a GGUF file under the names of a checkpoint, with rows in the order of a checkpoint."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manylora.errors import ModelUnsupported
from manylora.kernels.projections import Projection
from manylora.models.checkpoints.four_bits import FourBitRows
from manylora.models.checkpoints.stored import StoredTensor, StoredValues
from manylora.models.expert_tensors import ROUTER_PATH, expert_path
from manylora.models.gguf.file import GgufFourBits, GgufTensor
from manylora.models.gguf.model import ROPE_FACTORS, GgufFields, head_dim_of
from manylora.models.gguf.parts import read_model

_INTERLEAVED = {"llama", "smollm3"}
"""Architectures whose q and k rows the file has in the order of another rotary layout."""
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": Projection.Q.path,
    "attn_k": Projection.K.path,
    "attn_v": Projection.V.path,
    "attn_output": Projection.O.path,
    "ffn_gate_inp": ROUTER_PATH.removesuffix(".weight"),
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": Projection.GATE.path,
    "ffn_up": Projection.UP.path,
    "ffn_down": Projection.DOWN.path,
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_EXPERTS = re.compile(r"blk\.([0-9]+)\.ffn_(gate|up|down)(?:_exps|\.([0-9]+))\.weight", re.ASCII)
"""Names of experts' matrices: one stack of all experts, or one for each expert, as older files have them."""


@dataclass(frozen=True, slots=True)
class _HalfOrder:
    """Rows of q or k in rotate-half order. The file has the two elements of a rotary pair as neighbours."""

    stored: GgufTensor
    head_dim: int

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes

    def rows(self, first: int, stop: int) -> StoredValues:
        low, high, places = self._heads(first, stop)
        found: StoredValues = self.stored.rows(low, high)[places]
        return found

    def _heads(self, first: int, stop: int) -> tuple[int, int, NDArray[np.int64]]:
        """Return the range of stored rows of whole heads that has these rows, and their places in it."""
        rows = np.arange(first, stop)
        inside = rows % self.head_dim
        places = rows - inside + 2 * (inside % (self.head_dim // 2)) + inside // (self.head_dim // 2)
        low = first // self.head_dim * self.head_dim
        return low, min(self.shape[0], -(-stop // self.head_dim) * self.head_dim), places - low


@dataclass(frozen=True, slots=True)
class _HalfOrderFourBits(_HalfOrder):
    """The same of a `FourBitMatrix`."""

    stored: GgufFourBits

    @property
    def group_size(self) -> int:
        return self.stored.group_size

    @property
    def has_minima(self) -> bool:
        return self.stored.has_minima

    def four_bits(self, first: int, stop: int) -> FourBitRows:
        low, high, places = self._heads(first, stop)
        found = self.stored.four_bits(low, high)
        minima = None if found.minima is None else found.minima[places]
        return FourBitRows(found.pairs[places], found.scales[places], minima)


def read_gguf(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model by their checkpoint names. Raises as `read_model`, and for an unknown tensor."""
    source = read_model(file, keeps_texts=False)
    fields = GgufFields(source)
    head_dim = head_dim_of(fields)
    found: dict[str, StoredTensor] = {}
    for tensor in source.tensors:
        if tensor.name == ROPE_FACTORS:
            continue  # `config_of` reads it
        if (match := _EXPERTS.fullmatch(tensor.name)) is not None:
            found |= _experts_of(tensor, match)
            continue
        name = checkpoint_name(tensor.name, tensor.file)
        is_turned = fields.architecture in _INTERLEAVED and (".attn_q." in tensor.name or ".attn_k." in tensor.name)
        if is_turned and tensor.shape[0] % head_dim:
            raise ModelUnsupported(
                f"{tensor.file}: {tensor.name} of shape {tensor.shape} has no whole heads of {head_dim}"
            )
        found[name] = _half_order(tensor, head_dim) if is_turned else tensor
    return found


def _half_order(tensor: GgufTensor, head_dim: int) -> _HalfOrder:
    if isinstance(tensor, GgufFourBits):
        return _HalfOrderFourBits(tensor, head_dim)
    return _HalfOrder(tensor, head_dim)


def _experts_of(tensor: GgufTensor, match: re.Match[str]) -> Iterator[tuple[str, GgufTensor]]:
    """Yield the matrices of a stack (experts, out, in) with their names, or the one matrix of an expert."""
    projection = Projection[match[2].upper()]
    if match[3] is not None:
        yield f"model.layers.{match[1]}.{expert_path(int(match[3]), projection)}", tensor
        return
    if len(tensor.shape) != 3:
        raise ModelUnsupported(f"{tensor.file}: {tensor.name} of shape {tensor.shape} is no stack of experts")
    num_bytes = tensor.num_bytes // tensor.shape[0]
    for expert in range(tensor.shape[0]):
        part = replace(tensor, shape=tensor.shape[1:], start=tensor.start + expert * num_bytes, num_bytes=num_bytes)
        yield f"model.layers.{match[1]}.{expert_path(expert, projection)}", part


def checkpoint_name(gguf_name: str, file: Path) -> str:
    """Return the name that a safetensors checkpoint has for a tensor. Raises `ModelUnsupported` if there is none."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    parts = gguf_name.split(".")
    is_known = len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES and parts[3] in ("weight", "bias")
    if not is_known:
        raise ModelUnsupported(f"{file}: the tensor {gguf_name} belongs to no supported architecture")
    return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
