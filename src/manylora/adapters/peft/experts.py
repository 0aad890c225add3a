"""LoRA on a mixture of experts, in both forms of its files, as PEFT applies it.

In the form of transformers 4 each expert has modules of its own, w1, w2 and w3, and the router is a linear layer. In
that of transformers 5 all experts share two parameters, which `target_parameters` names, and so does the router. PEFT
wraps the parameters of one module in turn: the tensors of the inner wrapper are those of `gate_up_proj`, of the outer
those of `down_proj`; where the config names one parameter alone, it is in the outer one. The tensors of all experts are
one LoRA of E times the rank, whose A (E·rank, in) has the experts one after the other, and whose B (out, rank·E) has
them interleaved.

A third form has a tensor of three dimensions for each of w1, w2 and w3: A (experts, rank, in), B (experts, out, rank).
There the first dimension of one of them may be 1, for a factor that all experts share.
"""

from collections.abc import Iterator, Sequence

from manylora.adapters.base_shape import BaseShape, Module, module_path
from manylora.adapters.peft.config import LoraRule
from manylora.adapters.peft.safetensors_header import HeaderEntry
from manylora.adapters.peft.selection import Why
from manylora.adapters.peft.stacks import divided, is_block_diagonal
from manylora.adapters.peft.tensor_names import Stack
from manylora.adapters.peft.tensors import LoraModule
from manylora.adapters.refusals import Refusals
from manylora.kernels.projections import FEED_FORWARD, MIXTURE_PATH, ROUTER, Projection, expert_index

GATE_UP, DOWN, ROUTER_WEIGHT = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"
"""Parameters of a layer that can have a LoRA."""
_OLD_NAMES = {GATE_UP: ("w1", "w3"), DOWN: ("w2",), ROUTER_WEIGHT: ("gate",)}
"""The modules of the older form of which a parameter is made."""
_OTHER_PARAMETERS = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
_OTHER_MODULES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_PARAMETERS = {Stack.W1: GATE_UP, Stack.W3: GATE_UP, Stack.W2: DOWN, Stack.GATE_UP: GATE_UP, Stack.DOWN: DOWN}
_PROJECTIONS = {
    Stack.W1: (Projection.GATE,),
    Stack.W3: (Projection.UP,),
    Stack.W2: (Projection.DOWN,),
    Stack.GATE_UP: (Projection.GATE, Projection.UP),
    Stack.DOWN: (Projection.DOWN,),
}


class ExpertTargets:
    """The modules and parameters of a mixture that a config names."""

    def __init__(self, rule: LoraRule, shape: BaseShape, refuse: Refusals) -> None:
        """Check `target_parameters`. Raises `AdapterUnsupported` for a parameter that is not a mixture's."""
        self._rule = rule
        self._shape = shape
        self._refuse = refuse
        self._check_parameters()
        self._named = {
            (layer, parameter)
            for layer in range(shape.num_layers)
            for parameter in _OLD_NAMES
            if _ends_in(f"model.layers.{layer}.{parameter}", rule.parameters)
        }
        self._converted = {
            parameter
            for parameter, names in _OLD_NAMES.items()
            if all(rule.selection.names_end(name, self._older_paths(parameter, name)) for name in names)
        }

    def _check_parameters(self) -> None:
        named = self._rule.parameters
        if named and not self._shape.num_experts:
            raise self._refuse.unsupported("adapters on parameters (`target_parameters`)")
        layers = range(self._shape.num_layers)
        others = (f"model.layers.{layer}.{name}" for layer in layers for name in _OTHER_PARAMETERS)
        for parameter in (*others, *_OTHER_MODULES):
            if _ends_in(parameter, named):
                raise self._refuse.unsupported(f"an adapter on the parameter `{parameter}` (`target_parameters`)")

    def _older_paths(self, parameter: str, name: str) -> Iterator[str]:
        parent = "mlp" if parameter == ROUTER_WEIGHT else "mlp.experts"
        layers = self._shape.num_layers if self._shape.num_experts else 1
        return (f"model.layers.{layer}.{parent}.{name}" for layer in range(layers))

    # ── what the config names ────────────────────────────────────────────────────────────────────────────────────

    def why_not(self, module: Module) -> Why | None:
        """Return the reason for which a module has no LoRA, or None if it has one, under any of its names."""
        if module[1] == ROUTER and self._has(module[0], ROUTER_WEIGHT):
            return None
        reasons = [self._rule.selection.why_not(path) for path in _paths(module)]
        return None if None in reasons else reasons[0]

    def parameter_of(self, module: Module) -> str | None:
        """Return the parameter that the tensors of a `Stack` adapt, or None if the config names none."""
        layer, stack = module[0], Stack(module[1])
        if stack in (Stack.OUTER, Stack.INNER):
            both = [name for name in (GATE_UP, DOWN) if self._has(layer, name) or name in self._converted]
            is_there = len(both) == 2 or (both and stack is Stack.OUTER)
            return (both[0] if stack is Stack.INNER else both[-1]) if is_there else None
        parameter = _PARAMETERS[stack]
        is_named = self._has(layer, parameter) or parameter in self._converted
        paths = (f"model.layers.{layer}.mlp.{stack.path}", *_paths((layer, expert_index(_PROJECTIONS[stack][0], 0))))
        return parameter if is_named or any(map(self._rule.selection.targets, paths)) else None

    def targeted(self, layer: int) -> Iterator[Module]:
        """Yield the modules of a layer that have a LoRA as parts of a parameter."""
        if self._has(layer, ROUTER_WEIGHT):
            yield layer, ROUTER
        for expert in range(self._shape.num_experts):
            for projection in FEED_FORWARD:
                if self._has(layer, DOWN if projection is Projection.DOWN else GATE_UP):
                    yield layer, expert_index(projection, expert)

    def is_part(self, module: Module) -> bool:
        """Return whether the config names the parameter that an expert's module is a part of."""
        return module in set(self.targeted(module[0]))

    def names(self, module: Module) -> tuple[str, ...]:
        """Return the names of a module that the config's patterns of ranks and strengths may have."""
        own = _paths(module)
        return (*own, f"model.layers.{module[0]}.{ROUTER_WEIGHT}") if module[1] == ROUTER else own

    def _has(self, layer: int, parameter: str) -> bool:
        return (layer, parameter) in self._named

    # ── the tensors of all experts ───────────────────────────────────────────────────────────────────────────────

    def modules(self, module: Module, a: HeaderEntry, b: HeaderEntry, weights: memoryview) -> list[LoraModule]:
        """Return the LoRA of each expert's projections from the tensors of a `Stack` in the file `weights`.

        Raises `AdapterCorrupt` or `AdapterIncompatible` for tensors that do not divide over the experts.
        """
        layer, stack = module[0], Stack(module[1])
        parameter = self.parameter_of(module)
        assert parameter is not None  # the tensors of another are left out
        is_wrapped = stack in (Stack.OUTER, Stack.INNER)
        projections = _PROJECTIONS[(Stack.GATE_UP if parameter == GATE_UP else Stack.DOWN) if is_wrapped else stack]
        sizes = [self._sizes(projection) for projection in projections]
        path = f"model.layers.{layer}.mlp.{stack.path}"
        pairs = divided(a, b, (sum(out for out, _ in sizes), sizes[0][1]), self._shape.num_experts, is_wrapped)
        if pairs is None:
            raise self._refuse.incompatible(
                f"{path} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which do not divide over the model's "
                f"{self._shape.num_experts} experts, each {sum(out for out, _ in sizes)} by {sizes[0][1]}"
            )
        rank, scale = self._strength(module, parameter, path, projections, pairs[0].rank)
        names = (f"model.layers.{layer}.{parameter}",)
        if is_wrapped and len(projections) == 2 and is_block_diagonal(b, pairs[0].b, sizes[0][0], weights):
            factors = [pair.block(place, sizes[0][0]) for pair in pairs for place in range(2)]
            rank //= 2
        else:
            factors = [own for pair in pairs for own in pair.by_rows([out for out, _ in sizes])]
        places = [expert_index(projection, expert) for expert in range(len(pairs)) for projection in projections]
        return [
            LoraModule((layer, place), own.a, own.b, rank, scale, names=names, stack=module)
            for place, own in zip(places, factors, strict=True)
        ]

    def _strength(
        self, module: Module, parameter: str, path: str, projections: Sequence[Projection], rank: int
    ) -> tuple[int, float]:
        """Return rank and scale, and check the rank.

        Where PEFT renames w1 and w3, it doubles the rank and alpha of the parameter that they become.
        """
        layer, times = module[0], 1
        names: tuple[str, ...] = (f"model.layers.{layer}.{parameter}",)
        if module[1] in (Stack.OUTER, Stack.INNER):
            times = 2 if parameter == GATE_UP and not self._has(layer, parameter) else 1
        else:
            names = (path, *_paths((layer, expert_index(projections[0], 0))), *names)
        named = self._rule.rank_of(*names, times=times)
        if named != rank:
            raise self._refuse.corrupt(
                f"adapter_config.json gives {path} the rank {named}, its tensors have {rank} for each expert"
            )
        return rank, self._rule.scale_of(*names, rank=rank, times=times)

    def _sizes(self, projection: Projection) -> tuple[int, int]:
        sizes = self._shape.projections[expert_index(projection, 0)]
        assert sizes is not None  # the base has experts, or the names were refused
        return sizes


def _paths(module: Module) -> tuple[str, ...]:
    """Return the paths of a module in the form of transformers 4, and of a mixture's module in that of 5 as well."""
    path = module_path(module)
    return (path, path.replace(f".{MIXTURE_PATH}.", ".mlp.")) if module[1] >= ROUTER else (path,)


def _ends_in(parameter: str, names: Sequence[str]) -> bool:
    return any(parameter == name or parameter.endswith(f".{name}") for name in names)
