"""The mixture of experts of a base model, read from its config.json."""

from dataclasses import dataclass

from manylora.errors import ModelUnsupported
from manylora.models.config_fields import Fields, read_flag, read_size, refusal

_COUNT_NAMES = ("num_local_experts", "num_experts")
"""The two spellings of the number of experts."""
MAX_EXPERTS = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureFields:
    """The fields by which a class describes its mixture.

    count, chosen  the class's own values of an absent number of experts and of those of a row
    width          the field with the width of an expert
    is_normed      whether the weights of the chosen experts are divided by their sum; None: `norm_topk_prob` says so
    may_skip       some layers may have a feed-forward layer instead, by `decoder_sparse_step` and `mlp_only_layers`
    """

    count: int
    chosen: int
    width: str = "intermediate_size"
    is_normed: bool | None = None
    may_skip: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of config.json that the class reads."""
        normed = ("norm_topk_prob",) if self.is_normed is None else ()
        skipping = ("decoder_sparse_step", "mlp_only_layers") if self.may_skip else ()
        return (*_COUNT_NAMES, "num_experts_per_tok", self.width, *normed, *skipping)


MIXTRAL = MixtureFields(count=8, chosen=2, is_normed=True)
QWEN3_MOE = MixtureFields(count=128, chosen=8, width="moe_intermediate_size", may_skip=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSpec:
    """The mixture of experts of each block.

    count      number of experts
    chosen     number of experts that each row is sent to
    is_normed  whether the weights of the chosen experts are divided by their sum
    """

    count: int
    chosen: int
    is_normed: bool


def parse_experts(config: Fields, fields: MixtureFields) -> ExpertSpec:
    """Return the mixture of each block. Raises `ModelUnsupported` for a wrong number, for layers without a mixture."""
    named = {read_size(config, name, most=MAX_EXPERTS) for name in _COUNT_NAMES if config.get(name) is not None}
    if len(named) > 1:
        raise ModelUnsupported(f"config.json: {' and '.join(_COUNT_NAMES)} are {sorted(named)}, and must be equal")
    count = named.pop() if named else fields.count
    chosen = read_size(config, "num_experts_per_tok", fields.chosen)
    if chosen > count:
        raise ModelUnsupported(f"config.json: num_experts_per_tok = {chosen} exceeds num_local_experts = {count}")
    if fields.may_skip:
        _check_every_layer(config)
    is_normed = read_flag(config, "norm_topk_prob") if fields.is_normed is None else fields.is_normed
    return ExpertSpec(count=count, chosen=chosen, is_normed=is_normed)


def _check_every_layer(config: Fields) -> None:
    if read_size(config, "decoder_sparse_step", 1) != 1:
        raise refusal("decoder_sparse_step", config["decoder_sparse_step"], "leaves layers without a mixture")
    if config.get("mlp_only_layers") not in (None, []):
        raise refusal("mlp_only_layers", config["mlp_only_layers"], "leaves layers without a mixture")
