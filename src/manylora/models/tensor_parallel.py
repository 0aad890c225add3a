"""The shares of a base model on several devices: the degrees that divide it, and the spec of one device's shard.

Each device has a part of the heads and of the feed-forward width (Shoeybi et al., arXiv 1909.08053, section 3), and a
part of the vocabulary's rows. Fewer key-value heads than devices are replicated. Norms and routers lie on each device.
Without torch.
"""

import dataclasses

from manylora.errors import ConfigInvalid
from manylora.models.spec import ModelSpec

MAX_DEGREE = 1_024


def objection(spec: ModelSpec, degree: int) -> str | None:
    """Return the reason why the base cannot be divided over `degree` devices; None: it can."""
    if not 1 <= degree <= MAX_DEGREE:
        return f"is not 1 to {MAX_DEGREE:,}"
    if spec.heads % degree:
        return f"does not divide the {spec.heads} attention heads"
    if spec.kv_heads % degree and degree % spec.kv_heads:
        return f"neither divides the {spec.kv_heads} key-value heads nor is a multiple of them"
    if spec.intermediate % degree:
        return f"does not divide the feed-forward width of {spec.intermediate}"
    return None


def degrees(spec: ModelSpec) -> list[int]:
    """Return the degrees that divide the base, ascending."""
    return [degree for degree in range(1, min(spec.heads, MAX_DEGREE) + 1) if objection(spec, degree) is None]


def shard(spec: ModelSpec, degree: int) -> ModelSpec:
    """Return the spec of one device's share, in which all sizes of `models/sizes.py` are those of the share.

    Raises: `ConfigInvalid` with the reason and the degrees that divide the base.
    """
    if (why := objection(spec, degree)) is not None:
        possible = ", ".join(map(str, degrees(spec)))
        raise ConfigInvalid(f"tensor-parallel degree {degree} {why}; degrees of this base: {possible}")
    return dataclasses.replace(
        spec,
        heads=spec.heads // degree,
        kv_heads=max(1, spec.kv_heads // degree),
        intermediate=spec.intermediate // degree,
        vocab=-(-spec.vocab // degree),
    )
