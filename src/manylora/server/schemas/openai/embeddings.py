"""The body of POST /v1/embeddings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import NamingBody
from manylora.server.schemas.body import Read
from manylora.server.schemas.field_names import ADAPTER_NAMES, EMBEDDINGS, OPENAI_ADAPTER, UNREAD
from manylora.server.schemas.field_rules import FieldRules, Refusal
from manylora.server.schemas.openai.shared import Model, RouteBody, Truncate, known_elsewhere
from manylora.server.schemas.readers import flag, positive_whole, text
from manylora.server.schemas.tokens import Prompt, read_prompts

Encoding = Literal["float", "base64"]


def _encoding(value: object, info: ValidationInfo) -> str:
    name = text(value, info)
    if name not in ("float", "base64"):
        raise InvalidParameter("`encoding_format` must be float or base64", parameter="encoding_format")
    return name


class EmbeddingBody(NamingBody, RouteBody):
    """The body of POST /v1/embeddings."""

    route: ClassVar[str] = EMBEDDINGS
    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD,
        refused={
            **dict.fromkeys(("normalize", "embed_dtype", "endianness"), Refusal()),
            "stream": Refusal("an embedding is one reply"),
        },
        hints={
            **dict.fromkeys(ADAPTER_NAMES, OPENAI_ADAPTER),
            **dict.fromkeys(("inputs", "prompt", "text", "messages"), "use `input`"),
            "truncate": "use `truncate_prompt_tokens`",
        },
        elsewhere=known_elsewhere,
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("input",)
    model: Model = None
    encoding_format: Annotated[
        Encoding,
        Read(_encoding, enum=["float", "base64", None]),
        Field(description="Numbers, or base64 of little-endian float32."),
    ] = "float"
    dimensions: Annotated[
        int | None,
        Read(positive_whole, "integer", minimum=1),
        Field(
            description="Keeps this many first numbers of a vector, divided by their length; at most the model's own."
        ),
    ] = None
    truncate_prompt_tokens: Truncate = None
    add_special_tokens: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the default, the tokenizer adds special tokens.")
    ] = True
    input: Annotated[
        tuple[Prompt, ...],
        Read(read_prompts),
        Field(description="A string, strings, token ids, or arrays of token ids."),
    ] = Field(default=None, validate_default=True)
