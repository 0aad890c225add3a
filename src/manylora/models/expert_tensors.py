"""The tensors of a mixture of experts in a checkpoint, by their paths inside a block. Without torch.

Files have one of three forms. The separate forms have three matrices for each expert, under the names of Mixtral or of
Qwen3-MoE; the fused form has two tensors for all experts, as transformers 5 holds them in memory. Each form is read as
Mixtral's separate one, so that one expert's matrix is in memory at a time.

  Mixtral   block_sparse_moe.gate.weight   block_sparse_moe.experts.N.w1, w3 and w2.weight
  Qwen      mlp.gate.weight                mlp.experts.N.gate_proj, up_proj and down_proj.weight
  fused     mlp.gate.weight                mlp.experts.gate_up_proj (experts, 2 * intermediate, hidden), w1 first
                                           mlp.experts.down_proj (experts, hidden, intermediate)
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from manylora.kernels.projections import EXPERT_NAMES, MIXTURE_PATH, Projection
from manylora.models.checkpoints.stored import DenseTensor, StoredTensor
from manylora.models.experts import MAX_EXPERTS
from manylora.models.spec import ModelSpec

ROUTER_PATH = f"{MIXTURE_PATH}.gate.weight"
"""The path of the matrix (experts, hidden) that scores the experts."""
_QWEN = re.compile(r"(model\.layers\.[0-9]+)\.mlp\.experts\.([0-9]+)\.(gate|up|down)_proj\.weight", re.ASCII)
_FUSED = re.compile(r"(model\.layers\.[0-9]+)\.mlp\.(?:(gate\.weight)|experts\.(gate_up|down)_proj)", re.ASCII)


def expert_path(expert: int, projection: Projection) -> str:
    """Return the path of an expert's matrix."""
    return f"{MIXTURE_PATH}.experts.{expert}.{EXPERT_NAMES[projection]}.weight"


def mixture_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a block's mixture, by its path; of a block without one, none."""
    if spec.experts is None:
        return {}
    separate = ((expert, projection) for expert in range(spec.experts.count) for projection in EXPERT_NAMES)
    shapes = {expert_path(expert, projection): projection.shape(spec) for expert, projection in separate}
    return {ROUTER_PATH: (spec.experts.count, spec.hidden), **shapes}


def separate_experts(entries: Mapping[str, DenseTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint in Mixtral's form. Others, and stacks of odd shapes, stay as they are."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in entries.items():
        match = _FUSED.fullmatch(name)
        if (own := _QWEN.fullmatch(name)) is not None:
            found[f"{own[1]}.{expert_path(int(own[2]), Projection[own[3].upper()])}"] = tensor
        elif match is None:
            found[name] = tensor
        elif match[2]:
            found[f"{match[1]}.{ROUTER_PATH}"] = tensor
        else:
            parts = {f"{match[1]}.{path}": part for path, part in _experts_of(tensor, match[3])}
            found |= parts or {name: tensor}
    return found


def _experts_of(tensor: DenseTensor, product: str) -> Iterator[tuple[str, DenseTensor]]:
    """Yield each expert's matrices of a fused tensor with their paths; none where its shape is no stack of them."""
    projections = [projection for projection in EXPERT_NAMES if projection.fused == product]
    if len(tensor.shape) != 3 or 0 in tensor.shape or tensor.shape[0] > MAX_EXPERTS:
        return
    experts, rows, inputs = tensor.shape
    if rows % len(projections):
        return
    shape = rows // len(projections), inputs
    num_bytes = tensor.num_bytes // (experts * len(projections))
    for place in range(experts * len(projections)):
        expert, index = divmod(place, len(projections))
        start = tensor.start + place * num_bytes
        yield expert_path(expert, projections[index]), replace(tensor, shape=shape, start=start, num_bytes=num_bytes)
