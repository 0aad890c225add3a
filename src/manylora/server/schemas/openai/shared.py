"""The fields that bodies of several OpenAI routes have, and the names that belong in each body."""

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.field_names import AT_TOP, GENERATE, OPENAI_ADAPTER, UNREAD
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.lorax.bodies import GenerateParameters
from manylora.server.schemas.readers import count_within, flag, name_of, text, whole
from manylora.server.schemas.sampling import MAX_ALTERNATIVES
from manylora.server.schemas.tokens import Biases, read_biases

SEED_BOUNDS = (-(2**63), 2**64 - 1)  # OpenAI's integers have a sign, LoRAX's have none


class RouteBody(Body):
    """The body of one OpenAI route. Errors of unknown fields name the route whose body has them."""

    route: ClassVar[str] = ""


def known_elsewhere() -> Mapping[str, Collection[str]]:
    """Return place → its names, for a name that the body of a route does not know."""
    bodies = {
        f"the body of {body.route}": body.names() | body.rules.refused.keys() for body in RouteBody.__subclasses__()
    }
    return {
        **bodies,
        f"the body of {GENERATE}": GenerateParameters.names(),
        "`stream_options`": StreamOptions.names(),
    }


def known_at_top() -> Mapping[str, Collection[str]]:
    """Return the names at the top of any route's body, for a name that an object in a body does not know."""
    return {AT_TOP: UNREAD.union(*(body.names() for body in RouteBody.__subclasses__()))}


class StreamOptions(Body):
    """The object `stream_options`."""

    place: ClassVar[str] = "stream_options"
    rules: ClassVar[FieldRules] = FieldRules(
        refused={"include_obfuscation": Refusal("chunks are not padded"), "continuous_usage_stats": Refusal()},
        elsewhere=known_at_top,
        adapter=OPENAI_ADAPTER,
    )
    include_usage: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the last chunk has the usage.")
    ] = False


CHECKED_ALTERNATIVES = count_within(0, lambda _: MAX_ALTERNATIVES)


def _seed(value: object, info: ValidationInfo) -> int:
    seed = whole(value, info)
    lowest, highest = SEED_BOUNDS
    if not lowest <= seed <= highest:
        raise InvalidParameter(f"`seed` must be >= {lowest} and <= {highest}. Given: {seed}", parameter="seed")
    return seed


def _stream_options(value: object, info: ValidationInfo) -> StreamOptions:
    if not isinstance(value, dict):
        raise wrong_type(name_of(info), "an object", value)
    applied_fields(value, StreamOptions.names(), StreamOptions.rules, StreamOptions.place)
    if not info.data["stream"]:
        raise InvalidParameter("`stream_options` needs `stream` to be true", parameter="stream_options")
    return StreamOptions.model_validate(value)


Count = Annotated[
    int,
    Read(count_within(1, lambda bounds: bounds.settings.max_n), "integer", minimum=1),
    Field(description="Choices for each prompt."),
]
Biased = Annotated[Biases, Read(read_biases, "object"), Field(description="Token id → a number from -100 to 100.")]
Model = Annotated[str | None, Read(text, "string"), Field(description="The adapter's name, or the base's.")]
OpenAISeed = Annotated[
    int | None,
    Read(_seed, "integer"),
    Field(description="The same seed gives the same tokens."),
]
Options = Annotated[
    StreamOptions | None,
    Read(_stream_options, shape=StreamOptions | None),
    Field(description="`include_usage`; only with `stream`."),
]
Truncate = Annotated[
    int | None,
    Read(whole, "integer", minimum=-1),
    Field(description="Keeps the last tokens of the prompt; -1: as many as fit."),
]
