"""The served architectures: what distinguishes one class of transformers from the next, as values.

The forward pass is one (`models/llama.py`). A class is a row here: the defaults of its fields, the products that have
biases, norms of the heads, the choice of the layers with a window and of those without rotation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from manylora.models.config_fields import Fields, read_flag, read_size, refusal
from manylora.models.experts import MIXTRAL, QWEN3_MOE, MixtureFields

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Windowed(Enum):
    """The layers in which a row sees the positions of a window alone.

    NONE       no layer
    ALL        every layer, by `sliding_window` alone
    ASKED      every layer, with `use_sliding_window`
    LATER      with `use_sliding_window`, the layers from `max_window_layers` on, or those that `layer_types` names
    UNROTATED  with `use_sliding_window`, the layers without rotation, or those that `layer_types` names
    """

    NONE = auto()
    ALL = auto()
    ASKED = auto()
    LATER = auto()
    UNROTATED = auto()


_WINDOW_FIELDS = {
    Windowed.NONE: (),
    Windowed.ALL: ("sliding_window",),
    Windowed.ASKED: ("sliding_window", "use_sliding_window"),
    Windowed.LATER: ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    Windowed.UNROTATED: ("sliding_window", "use_sliding_window", "layer_types"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One class of transformers.

    defaults              the class's own values of fields that config.json may lack
    biased                fused products that always have a bias
    bias_fields           fused products that have a bias if a field of config.json is true, by field
    has_head_norms        each head of q and of k is normed before its rotation
    windowed              the layers with a window
    has_unrotated_layers  `no_rope_layers` names layers without rotation
    experts               the fields of the mixture that each block has; None: it has a feed-forward layer
    type_name             `model_type` where it is not the name in small letters
    """

    name: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    biased: tuple[str, ...] = ()
    bias_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_head_norms: bool = False
    windowed: Windowed = Windowed.NONE
    has_unrotated_layers: bool = False
    experts: MixtureFields | None = None
    type_name: str | None = None

    @property
    def model_type(self) -> str:
        """The name by which transformers finds the class: config.json has it as `model_type`."""
        return self.type_name or self.name.removesuffix("ForCausalLM").lower()

    @property
    def inner_width(self) -> str:
        """The field with the width of the feed-forward layer, or of each expert."""
        return "intermediate_size" if self.experts is None else self.experts.width

    @property
    def reads(self) -> frozenset[str]:
        """Fields of config.json that the class reads beside those of every class."""
        rotation = ("no_rope_layers", "no_rope_layer_interval") if self.has_unrotated_layers else ()
        experts = () if self.experts is None else self.experts.names
        return frozenset((*self.bias_fields, *_WINDOW_FIELDS[self.windowed], *rotation, *experts))


_ATTENTION_BIAS = {"attention_bias": ("qkv", "o")}
_EVERY_BIAS = {**_ATTENTION_BIAS, "mlp_bias": ("gate_up", "down")}
_QWEN_DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4_096, "max_window_layers": 28}

ARCHITECTURES: Mapping[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(name="LlamaForCausalLM", bias_fields=_EVERY_BIAS),
        Architecture(
            name="MistralForCausalLM",
            defaults={"num_key_value_heads": 8, "sliding_window": 4_096},
            windowed=Windowed.ALL,
        ),
        Architecture(
            name="MixtralForCausalLM",
            defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
            windowed=Windowed.ALL,
            experts=MIXTRAL,
        ),
        Architecture(name="Qwen2ForCausalLM", defaults=_QWEN_DEFAULTS, biased=("qkv",), windowed=Windowed.LATER),
        Architecture(
            name="Qwen3ForCausalLM",
            defaults={**_QWEN_DEFAULTS, "head_dim": 128},
            bias_fields=_ATTENTION_BIAS,
            has_head_norms=True,
            windowed=Windowed.LATER,
        ),
        Architecture(
            name="Qwen3MoeForCausalLM",
            defaults={"num_key_value_heads": 4, "sliding_window": 4_096, "moe_intermediate_size": 768},
            bias_fields=_ATTENTION_BIAS,
            has_head_norms=True,
            windowed=Windowed.ASKED,
            experts=QWEN3_MOE,
            type_name="qwen3_moe",
        ),
        Architecture(
            name="SmolLM3ForCausalLM",
            defaults={
                "num_key_value_heads": 4,
                "rope_theta": 2e6,
                "tie_word_embeddings": True,
                "no_rope_layer_interval": 4,
            },
            bias_fields=_EVERY_BIAS,
            windowed=Windowed.UNROTATED,
            has_unrotated_layers=True,
        ),
    )
}


def find_architecture(config: Fields) -> Architecture:
    """Return the row of the class that config.json names. Raises `ModelUnsupported`."""
    named = config.get("architectures") or []
    one = named[0] if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(one, str) or one not in ARCHITECTURES:
        given = named if one is None else one
        raise refusal("architectures", given, f"is not supported (known: {', '.join(ARCHITECTURES)})")
    found = ARCHITECTURES[one]
    if config.get("model_type") not in (None, "", found.model_type):
        raise refusal("model_type", config["model_type"], f"is not the type of {one}, {found.model_type!r}")
    return found


def biased_products(config: Fields, architecture: Architecture) -> tuple[str, ...]:
    """Return the fused products that have a bias."""
    asked = [products for name, products in architecture.bias_fields.items() if read_flag(config, name)]
    return (*architecture.biased, *(product for products in asked for product in products))


def unrotated_layers(config: Fields, architecture: Architecture, num_layers: int) -> tuple[int, ...]:
    """Return the layers without rotary embedding: those at which `no_rope_layers` has 0, or one of each interval.

    Raises: `ModelUnsupported` for a list that is too short or has another number.
    """
    if not architecture.has_unrotated_layers:
        return ()
    flags = config.get("no_rope_layers")
    if flags is None:
        interval = read_size(config, "no_rope_layer_interval")
        return tuple(range(interval - 1, num_layers, interval))
    if not isinstance(flags, list) or len(flags) < num_layers or any(flag not in (0, 1) for flag in flags):
        raise refusal("no_rope_layers", flags, f"must have 1 (rotated) or 0 for each of {num_layers} layers")
    return tuple(layer for layer, flag in enumerate(flags[:num_layers]) if not flag)


def parse_windows(
    config: Fields, architecture: Architecture, num_layers: int, unrotated: Sequence[int]
) -> tuple[int | None, tuple[int, ...]]:
    """Return the window, or None without one, and the layers that see all positions in spite of it.

    Raises: `ModelUnsupported` for a window that is no size, for a wrong `layer_types`.
    """
    windowed = architecture.windowed
    if windowed is Windowed.NONE:
        return None, ()
    window = None if config.get("sliding_window") is None else read_size(config, "sliding_window")
    if windowed is Windowed.ALL:
        return window, ()
    if not read_flag(config, "use_sliding_window"):
        window = None
    if windowed is Windowed.ASKED:
        return window, ()
    named = _layers_by_type(config, num_layers)
    if named is not None:
        sliding = named
    elif windowed is Windowed.LATER:
        sliding = list(range(read_size(config, "max_window_layers", least=0), num_layers))
    else:
        sliding = list(unrotated)
    if window is None and named:
        why = "needs use_sliding_window = true and a sliding_window"
        raise refusal(f"layer_types[{named[0]}]", _SLIDING, why)
    if window is None or not sliding:
        return None, ()
    return window, tuple(layer for layer in range(num_layers) if layer not in set(sliding))


def _layers_by_type(config: Fields, num_layers: int) -> list[int] | None:
    """Return the layers that `layer_types` gives a window; None without that field."""
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise refusal("layer_types", types, f"must be a list of {num_layers} types")
    for layer, kind in enumerate(types):
        if kind not in (_FULL, _SLIDING):
            raise refusal(f"layer_types[{layer}]", kind, f"is not supported (known: {_FULL}, {_SLIDING})")
    return [layer for layer, kind in enumerate(types) if kind == _SLIDING]
