"""The shares of a base model on several devices: the degrees that divide it, and the spec of one device's shard.

Each device has a part of the heads and of the feed-forward width (Shoeybi et al., arXiv 1909.08053, section 3), and a
part of the vocabulary's rows. Fewer key-value heads than devices are replicated. Norms and routers lie on each device.
A mixture's experts lie on all devices, each with a part of its width. Without torch.
"""

import dataclasses
from dataclasses import dataclass

from manylora.errors import ConfigInvalid
from manylora.kernels.projections import FEED_FORWARD, ROUTER, Projection
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


@dataclass(frozen=True, slots=True)
class Share:
    """The share of one rank of `degree` in a base of the shape `spec`.

    Raises: `ConfigInvalid` as `shard`
    """

    spec: ModelSpec
    degree: int
    rank: int
    own: ModelSpec = dataclasses.field(init=False)
    """The shape of the share. A rank's tables have one row more than its tokens, of zeros, for the other ranks' tokens.
    Its biases are those that it adds: of a sum over all ranks, rank 0 alone adds the bias.
    """

    def __post_init__(self) -> None:
        own = shard(self.spec, self.degree)
        biased = own.biased if self.rank == 0 else tuple(name for name in own.biased if name not in _SUMMED)
        own = dataclasses.replace(own, vocab=own.vocab + 1, biased=biased)
        object.__setattr__(self, "own", own)  # the class is frozen

    @property
    def vocabulary(self) -> range:
        """Return the tokens whose rows of the embedding and the head the rank has; the last rank may have fewer."""
        first = self.rank * (self.own.vocab - 1)
        return range(min(first, self.spec.vocab), min(first + self.own.vocab - 1, self.spec.vocab))

    def outputs(self, projection: int) -> range:
        """Return the outputs of a projection that the rank has; `projection`: index in the table of an image."""
        match _kind(projection):
            case Projection.Q:
                return _part(self.rank, self.own.q_size)
            case Projection.K | Projection.V:
                first = self.rank * self.spec.kv_heads // self.degree * self.spec.head_dim
                return range(first, first + self.own.kv_size)
            case Projection.GATE | Projection.UP:
                return _part(self.rank, self.own.intermediate)
            case None:
                assert self.spec.experts is not None  # the index is the router's
                return range(self.spec.experts.count)
            case _:
                return range(self.spec.hidden)

    def inputs(self, projection: int) -> range:
        """Return the inputs of a projection that the rank has; a part of them where `is_summed`."""
        match _kind(projection):
            case Projection.O:
                return _part(self.rank, self.own.q_size)
            case Projection.DOWN:
                return _part(self.rank, self.own.intermediate)
            case _:
                return range(self.spec.hidden)

    def is_summed(self, projection: int) -> bool:
        """Return whether the products of all ranks are summed."""
        kind = _kind(projection)
        return kind is not None and kind.fused in _SUMMED


_SUMMED = ("o", "down")
"""Products whose inputs are divided."""


def _kind(projection: int) -> Projection | None:
    """Return the projection of an index in the table of an image, an expert's as that of a block; None: a router."""
    if projection < ROUTER:
        return list(Projection)[projection]
    return None if projection == ROUTER else FEED_FORWARD[(projection - ROUTER - 1) % len(FEED_FORWARD)]


def _part(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)
