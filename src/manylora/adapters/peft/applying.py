"""Choice of the tensors of a weights file that are applied, with a reason for each that is left out, as PEFT does.

PEFT loads tensors into the modules that the config names, and drops every other key. A tensor that PEFT would load and
this server does not apply refuses the adapter. So does a tensor of a module that the config names and the base lacks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from manylora.adapters.base_shape import EMBED_MODULE, END_PATHS, PROJECTION_PATHS, BaseShape, Module, module_path
from manylora.adapters.peft.config import LoraRule
from manylora.adapters.peft.experts import ExpertTargets
from manylora.adapters.peft.safetensors_header import HeaderEntry
from manylora.adapters.peft.tensor_names import FINAL_NORM, PREFIX, TASK_HEAD, Part, Stack, read_name
from manylora.adapters.refusals import Refusals, shown
from manylora.kernels.projections import ROUTER

LORA_PARTS = frozenset({Part.A, Part.B, Part.BIAS, Part.MAGNITUDE})
_NO_SUCH = "the model has no such weight"
_UNUSED = "a copy of the module before it was trained"
_NO_PARAMETER = "neither `target_parameters` nor `target_modules` names its parameter"
_AGAIN = "the file has it a second time"
COPIES = frozenset({_UNUSED, _AGAIN})
"""The reasons of tensors that PEFT itself writes beside those that it reads."""
_RAW_SUFFIX = re.compile(r"\.(modules_to_save\.|original_module\.|base_layer\.|token_adapter\.)*[a-z_0-9]+$", re.ASCII)
_EXPERTS = re.compile(r"\.mlp\.(experts|gate)(\.|$)|\.block_sparse_moe(\.|$)")
_HEADS = re.compile(r"(^|\.)(score|classifier|v_head)(\.|$)")
_PROJECTION = re.compile(rf"model\.layers\.([0-9]{{1,5}})\.({'|'.join(map(re.escape, PROJECTION_PATHS))})", re.ASCII)
_IN_LAYER = re.compile(r"model\.layers\.([0-9]{1,5})\.(.+)", re.ASCII)


@dataclass(slots=True)
class SortedTensors:
    """The applied tensors by module and part, and the reason for each name that is left out."""

    parts: dict[tuple[Module, Part], list[HeaderEntry]] = field(default_factory=dict)
    names: dict[str, tuple[Module, Part]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, key: tuple[Module, Part], reason: str) -> None:
        """Take the tensors of one part out of those applied, for a reason."""
        for name in [name for name, known in self.names.items() if known == key]:
            del self.names[name]
            self.left_out[name] = reason
        self.parts.pop(key, None)


def module_name(module: Module, part: Part) -> str:
    """Return the path of a module as `module_path` does, and the path of a norm too."""
    if module == TASK_HEAD:
        return "score"
    if module[1] < 0:
        return f"model.layers.{module[0]}.mlp.{Stack(module[1]).path}"
    if part is not Part.NORM:
        return module_path(module)
    if module == FINAL_NORM:
        return "model.norm"
    return f"model.layers.{module[0]}.{('input_layernorm', 'post_attention_layernorm')[module[1]]}"


def sort_tensors(
    entries: Mapping[str, HeaderEntry], rule: LoraRule, shape: BaseShape, experts: ExpertTargets, refuse: Refusals
) -> SortedTensors:
    """Sort the tensors of a file into applied and left out.

    Raises: `AdapterUnsupported` for a tensor that the config names or PEFT would load and that is not applied here,
            `AdapterIncompatible` for one that the config names and the base lacks, `AdapterCorrupt` for a part twice.
    """
    return _Sorting(rule, shape, experts, refuse).sorted(entries)


class _Sorting:
    def __init__(self, rule: LoraRule, shape: BaseShape, experts: ExpertTargets, refuse: Refusals) -> None:
        self.rule = rule
        self.shape = shape
        self.experts = experts
        self.refuse = refuse

    def sorted(self, entries: Mapping[str, HeaderEntry]) -> SortedTensors:
        found = SortedTensors()
        for name, entry in entries.items():
            known = self.named(name)
            reason = self.unknown(name) if known is None else self.reason(name, known, entries)
            if reason is not None or known is None:
                found.left_out[name] = reason or _NO_SUCH
                continue
            self.check_place(name, known)
            same = found.parts.setdefault(known, [])
            if same and known[1] not in (Part.TABLE, Part.BASE):
                raise self.refuse.corrupt(f"it has `{shown(name)}` twice, under another name")
            same.append(entry)
            found.names[name] = known
        return found

    def named(self, name: str) -> tuple[Module, Part] | None:
        """Return the module and part of a name; None if it is none of those served, or a head that its task lacks."""
        known = read_name(name)
        return None if known is not None and known[0] == TASK_HEAD and self.rule.head is None else known

    # ── names of parts that are served ───────────────────────────────────────────────────────────────────────────

    def reason(self, name: str, known: tuple[Module, Part], entries: Iterable[str]) -> str | None:
        """Return the reason for which PEFT drops a tensor, or None if PEFT loads it."""
        module, part = known
        if part is Part.UNUSED:
            return _UNUSED
        is_second = ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in entries
        if module == TASK_HEAD:  # for its task PEFT saves it, whether or not `modules_to_save` names it
            return _AGAIN if is_second else None
        path = module_name(module, part)
        if part is Part.BASE_BIAS:
            return self.bias_reason(name, path)
        if part in LORA_PARTS:
            return self.stack_reason(name, module, part) if module[1] < 0 else self.lora_reason(name, module, part)
        is_saved = self.rule.selection.saves_whole(path)
        if ".modules_to_save." in name:
            if not is_saved:
                return "`modules_to_save` does not name its module"
            return _AGAIN if is_second else None
        if part is Part.TOKENS:
            return None if module in self.rule.token_ends(self.shape) else "`trainable_token_indices` does not name it"
        if part is Part.BASE:
            return None if self.is_wrapped(name, module, path) else "its module has no LoRA and no trained tokens"
        if part is Part.TABLE and not is_saved and self.is_hidden(module, path):
            return "its module has a LoRA or trained tokens, and `modules_to_save` does not name it"
        return None

    def stack_reason(self, name: str, module: Module, part: Part) -> str | None:
        """Return the reason to drop a tensor of all experts."""
        if self.experts.parameter_of(module) is None:
            return _NO_PARAMETER
        if part not in (Part.A, Part.B):
            raise self.refuse.unsupported(f"`{shown(name)}` for all experts, as PEFT cannot")
        return None

    def lora_reason(self, name: str, module: Module, part: Part) -> str | None:
        if (why := self.experts.why_not(module)) is not None:
            if module[1] > ROUTER and module not in END_PATHS and self.experts.is_part(module):
                raise self.refuse.unsupported(f"`target_parameters` with tensors of single experts (`{shown(name)}`)")
            return why.value
        if part is Part.BIAS and not (self.rule.has_bias and module != EMBED_MODULE):
            return "`lora_bias` is not set"
        if part is Part.MAGNITUDE and not self.rule.is_dora:
            return "`use_dora` is not set"
        return None

    def bias_reason(self, name: str, path: str) -> str | None:
        """Return the reason to drop the bias of a layer that a LoRA wraps."""
        if not any(path.endswith(f".{fixed.removesuffix('.bias')}") for fixed in self.shape.fixed):
            self.check_biases(name)
            return _NO_SUCH
        why = self.rule.selection.why_not(path)
        return None if why is None else why.value

    def check_biases(self, name: str) -> None:
        if self.rule.bias != "none":
            raise self.refuse.unsupported(f"trained biases (`bias` = {self.rule.bias}): `{shown(name)}`")

    def is_wrapped(self, name: str, module: Module, path: str) -> bool:
        """Return whether the file names the base's own table by the name it has inside the model."""
        if ".token_adapter." in name:
            return module in self.rule.wrapped_ends(self.shape)
        return self.rule.selection.targets(path)

    def is_hidden(self, module: Module, path: str) -> bool:
        return self.rule.selection.targets(path) or module in self.rule.wrapped_ends(self.shape)

    def check_place(self, name: str, known: tuple[Module, Part]) -> None:
        module, part = known
        layer, index = module
        if module in END_PATHS or module in (FINAL_NORM, TASK_HEAD):
            return
        if layer >= self.shape.num_layers:
            raise self.refuse.incompatible(
                f"it adapts layer {layer}, the model has layers 0 to {self.shape.num_layers - 1}: `{shown(name)}`"
            )
        if part is not Part.NORM and not (self.shape.has(index) if index >= 0 else self.shape.num_experts):
            raise self.refuse.incompatible(f"it adapts {module_name(module, part)}, which the model does not have")

    # ── other names ──────────────────────────────────────────────────────────────────────────────────────────────

    def unknown(self, name: str) -> str:
        """Return the reason for which PEFT drops a tensor whose name is none of those served.

        Raises an `AdapterError` if PEFT would load the tensor, or might.
        """
        selection = self.rule.selection
        bare = name.removeprefix(PREFIX)
        path, _, rest = bare.partition(".lora_")
        if rest:
            if (why := selection.why_not(path)) is not None:
                return why.value
            if _EXPERTS.search(f".{path}"):
                raise self.refuse.unsupported("an adapter on experts or their router")
            raise self.refuse.incompatible(f"it has a tensor `{shown(name)}`, which fits no layer of the model")
        path = _RAW_SUFFIX.sub("", bare)
        if selection.saves_whole(path):
            what = "a task's head" if _HEADS.search(path) else f"the trained module `{shown(path)}`"
            raise self.refuse.unsupported(f"{what} (`modules_to_save`)")
        if bare.endswith(".bias"):
            self.check_biases(name)
        self.check_fixed(name, bare)
        if _EXPERTS.search(f".{path}") and None in self.shape.projections:
            raise self.refuse.unsupported(f"trained experts or their router (`{shown(name)}`)")
        return self.raw_projection(name, bare, path)

    def check_fixed(self, name: str, bare: str) -> None:
        """Refuse a tensor that PEFT would load over a weight of the base that adapters leave.

        Such are norms of heads, and biases of layers without a LoRA.
        """
        match = _IN_LAYER.fullmatch(bare)
        if match is None or int(match[1]) >= self.shape.num_layers or not name.startswith(PREFIX):
            return
        path = bare.rpartition(".")[0]
        if match[2] in self.shape.fixed and not self.rule.selection.targets(path):  # else PEFT has another name for it
            raise self.refuse.unsupported(f"trained biases or norms of heads: `{shown(name)}`")

    def raw_projection(self, name: str, bare: str, path: str) -> str:
        """Return the reason to drop a linear layer's whole weight. PEFT loads it unless a LoRA has its name."""
        match = _PROJECTION.fullmatch(path)
        if match is None or int(match[1]) >= self.shape.num_layers or not name.startswith(PREFIX):
            return _NO_SUCH
        is_targeted = self.rule.selection.targets(path)
        if bare == f"{path}.base_layer.weight" and is_targeted:
            raise self.refuse.unsupported(f"saved copies of base weights (`base_layer`): `{shown(name)}`")
        if bare == f"{path}.weight" and not is_targeted:
            raise self.refuse.unsupported(f"trained modules (`modules_to_save`): `{shown(name)}`")
        return _NO_SUCH
