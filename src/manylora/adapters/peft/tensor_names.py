"""The meaning of each tensor of a PEFT adapter, by its name alone."""

import re
from enum import Enum, IntEnum, auto

from manylora.adapters.base_shape import EMBED_MODULE, HEAD_MODULE, PROJECTION_PATHS, Module
from manylora.kernels.projections import EXPERT_NAMES, ROUTER, expert_index

FINAL_NORM: Module = (1 << 20, 2)
TASK_HEAD: Module = (1 << 20, 3)
TASK_HEAD_NAMES = ("score", "classifier")
"""The names of a classification head in the models of transformers; PEFT looks for both."""
PREFIX = "base_model.model."
_PROJECTIONS = {path: index for index, path in enumerate(PROJECTION_PATHS)}
_EXPERT_PROJECTIONS = {name: projection for projection, name in EXPERT_NAMES.items()}


class Stack(IntEnum):
    """The tensors of a layer that hold a LoRA of all its experts, by the path that their names have.

    The value stands for a projection in a `Module`. `OUTER` and `INNER` are PEFT's wrappers of the fused parameters,
    where the config decides on the parameter; the others are tensors of three dimensions, an expert each in the first.
    """

    OUTER = -1
    INNER = -2
    W1 = -3
    W3 = -4
    W2 = -5
    GATE_UP = -6
    DOWN = -7

    @property
    def path(self) -> str:
        return _STACK_PATHS[self]


_STACK_PATHS = {
    Stack.OUTER: "experts",
    Stack.INNER: "experts.base_layer",
    Stack.W1: "experts.w1",
    Stack.W3: "experts.w3",
    Stack.W2: "experts.w2",
    Stack.GATE_UP: "experts.gate_up_proj",
    Stack.DOWN: "experts.down_proj",
}
_STACKS = {stack.path: stack for stack in Stack}
_MIXTURE = re.compile(r"(?:block_sparse_moe|mlp)\.(gate|experts(?:\.[a-z_0-9]+){0,2}?)\.(lora_\w+(?:\.\w+)?)", re.ASCII)
_EXPERT = re.compile(r"experts\.(0|[1-9][0-9]{0,3})\.(w[123])", re.ASCII)
_NORMS = {"input_layernorm": 0, "post_attention_layernorm": 1}
_ENDS = {"model.embed_tokens": EMBED_MODULE, "lm_head": HEAD_MODULE}
_END = re.compile(r"(model\.embed_tokens|lm_head)\.([\w.]+)", re.ASCII)
_TASK_HEAD = re.compile(rf"(?:{'|'.join(TASK_HEAD_NAMES)})\.([\w.]+)", re.ASCII)
_FINAL_NORM = re.compile(r"model\.norm\.(?:modules_to_save\.)?weight", re.ASCII)


class Part(Enum):
    """The part of a module that a tensor is.

    A, B        LoRA factors; A is (rank, in), B (out, rank); for an embedding in = vocabulary, out = hidden
    BIAS        bias of B, (out,): `lora_bias`
    MAGNITUDE   magnitude of DoRA, (out,)
    BASE_BIAS   trained bias of the layer that a LoRA wraps, (out,), in place of the base's
    TABLE       a whole embedding or head, trained or resized
    BASE        the base's own table, which PEFT copies beside a wrapped module; a tied base has one for both ends
    TOKENS      trained rows of a table, (tokens, hidden), which replace the base's
    NORM        a norm's whole weight, (hidden,)
    HEAD        the weight of a classification head, (labels, hidden)
    HEAD_BIAS   its bias, (labels,)
    UNUSED      a copy of the module before it was trained
    """

    A = auto()
    B = auto()
    BIAS = auto()
    MAGNITUDE = auto()
    BASE_BIAS = auto()
    TABLE = auto()
    BASE = auto()
    TOKENS = auto()
    NORM = auto()
    HEAD = auto()
    HEAD_BIAS = auto()
    UNUSED = auto()


_LINEAR_PARTS = {
    "lora_A.weight": Part.A,
    "lora_B.weight": Part.B,
    "lora_B.bias": Part.BIAS,
    "lora_magnitude_vector": Part.MAGNITUDE,
    "lora_magnitude_vector.weight": Part.MAGNITUDE,
}
_PROJECTION_PARTS = {**_LINEAR_PARTS, "base_layer.bias": Part.BASE_BIAS}
_END_PARTS = {
    "weight": Part.TABLE,
    "base_layer.weight": Part.BASE,
    "modules_to_save.weight": Part.TABLE,
    "token_adapter.base_layer.weight": Part.BASE,
    "original_module.weight": Part.UNUSED,
    "token_adapter.trainable_tokens_delta": Part.TOKENS,
    "lora_magnitude_vector": Part.MAGNITUDE,
    "lora_magnitude_vector.weight": Part.MAGNITUDE,
}
_EMBED_PARTS = {**_END_PARTS, "lora_embedding_A": Part.A, "lora_embedding_B": Part.B}
_HEAD_PARTS = {**_END_PARTS, **_LINEAR_PARTS}
_NORM_PARTS = {
    "weight": Part.NORM,
    "modules_to_save.weight": Part.NORM,
    "original_module.weight": Part.UNUSED,
}
_TASK_HEAD_PARTS = {
    "weight": Part.HEAD,
    "bias": Part.HEAD_BIAS,
    "modules_to_save.weight": Part.HEAD,
    "modules_to_save.bias": Part.HEAD_BIAS,
    "original_module.weight": Part.UNUSED,
    "original_module.bias": Part.UNUSED,
}


def read_name(name: str) -> tuple[Module, Part] | None:
    """Return the module that a tensor belongs to and the part that it is, or None if the name is none of those served.

    A norm's module is (layer, 0) before attention, (layer, 1) after it, or `FINAL_NORM`. The module of a tensor of all
    experts is (layer, `Stack`), that of a classification head `TASK_HEAD`.
    """
    if not name.startswith(PREFIX):
        return None
    name = name.removeprefix(PREFIX)
    if _FINAL_NORM.fullmatch(name):
        return FINAL_NORM, Part.NORM
    if (match := _END.fullmatch(name)) is not None:
        module = _ENDS[match[1]]
        part = (_EMBED_PARTS if module == EMBED_MODULE else _HEAD_PARTS).get(match[2])
        return None if part is None else (module, part)
    if (match := _TASK_HEAD.fullmatch(name)) is not None:
        part = _TASK_HEAD_PARTS.get(match[1])
        return None if part is None else (TASK_HEAD, part)
    return _read_layer_name(name)


def _read_layer_name(name: str) -> tuple[Module, Part] | None:
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    if not name.startswith("model.layers.") or not re.fullmatch(r"0|[1-9][0-9]{0,4}", layer, re.ASCII):
        return None
    for path, projection in _PROJECTIONS.items():
        if rest.startswith(f"{path}."):
            part = _PROJECTION_PARTS.get(rest.removeprefix(f"{path}."))
            return None if part is None else ((int(layer), projection), part)
    if (match := _MIXTURE.fullmatch(rest)) is not None:
        index, part = _mixture_index(match[1]), _LINEAR_PARTS.get(match[2])
        return None if index is None or part is None else ((int(layer), index), part)
    norm, _, rest = rest.partition(".")
    part = _NORM_PARTS.get(rest) if norm in _NORMS else None
    return None if part is None else ((int(layer), _NORMS[norm]), part)


def _mixture_index(path: str) -> int | None:
    """Return the projection of a module of a mixture, or its `Stack`."""
    if path == "gate":
        return ROUTER
    if (match := _EXPERT.fullmatch(path)) is not None:
        return expert_index(_EXPERT_PROJECTIONS[match[2]], int(match[1]))
    return _STACKS.get(path)
