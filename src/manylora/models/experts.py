"""The mixture of experts of a base model, read from its config.json."""

from dataclasses import dataclass

from manylora.errors import ModelUnsupported
from manylora.models.config_fields import Fields, read_size

EXPERT_FIELDS = ("num_local_experts", "num_experts", "num_experts_per_tok")
_COUNT_NAMES = ("num_local_experts", "num_experts")
"""The two spellings of the number of experts."""
MAX_EXPERTS = 4_096
_DEFAULT_COUNT, _DEFAULT_CHOSEN = 8, 2  # the file format's values of absent fields


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


def parse_experts(config: Fields) -> ExpertSpec:
    """Return the mixture of a Mixtral. Raises `ModelUnsupported` for a wrong number."""
    named = {read_size(config, name, most=MAX_EXPERTS) for name in _COUNT_NAMES if config.get(name) is not None}
    if len(named) > 1:
        raise ModelUnsupported(f"config.json: {' and '.join(_COUNT_NAMES)} are {sorted(named)}, and must be equal")
    count = named.pop() if named else _DEFAULT_COUNT
    chosen = read_size(config, "num_experts_per_tok", _DEFAULT_CHOSEN)
    if chosen > count:
        raise ModelUnsupported(f"config.json: num_experts_per_tok = {chosen} exceeds num_local_experts = {count}")
    return ExpertSpec(count=count, chosen=chosen, is_normed=True)
