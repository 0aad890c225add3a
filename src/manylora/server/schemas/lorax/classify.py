"""The bodies and replies of POST /classify and /classify_batch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import NamingBody
from manylora.server.schemas.body import Read, wrong_type
from manylora.server.schemas.field_names import NATIVE_ADAPTER
from manylora.server.schemas.field_rules import FieldRules
from manylora.server.schemas.readers import name_of, text
from manylora.server.schemas.tokens import MAX_PROMPTS

_HINTS = dict.fromkeys(("prompt", "text"), "use `inputs` for classes of tokens, `input` for classes of texts")


def _texts(value: object, info: ValidationInfo) -> tuple[str, ...]:
    name = name_of(info)
    if value is None:
        raise InvalidParameter(f"`{name}` is required", parameter=name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong_type(name, "an array of strings", value)
    if not value or not all(value):
        raise InvalidParameter(f"`{name}` cannot be empty", parameter=name)
    if len(value) > MAX_PROMPTS:
        raise InvalidParameter(f"`{name}` may have at most {MAX_PROMPTS} items", parameter=name)
    return tuple(value)


def _text_or_texts(value: object, info: ValidationInfo) -> tuple[str, ...]:
    return _texts([value] if isinstance(value, str) else value, info)


def _inputs(value: object, info: ValidationInfo) -> str | None:
    """Read `inputs`. One of `input` and `inputs` must be there."""
    has_input = info.data.get("input") is not None
    if value is None and not has_input:
        raise InvalidParameter("`inputs` or `input` is required", parameter="inputs")
    if value is not None and has_input:
        raise InvalidParameter("at most one of `inputs` and `input` may be provided", parameter="inputs")
    if value == "":
        raise InvalidParameter("`inputs` cannot be empty", parameter="inputs")
    return None if value is None else text(value, info)


class ClassifyBody(NamingBody):
    """The body of POST /classify. lorax-client sends `inputs`, the SDK of Predibase `input` and `model`."""

    rules: ClassVar[FieldRules] = FieldRules(unread=frozenset({"stream"}), hints=_HINTS, adapter=NATIVE_ADAPTER)
    model: Annotated[str | None, Read(text, "string"), Field(description="The adapter's name.")] = None
    input: Annotated[
        tuple[str, ...] | None,
        Read(_text_or_texts),
        Field(description="A text or texts, each of which gets a class."),
    ] = None
    inputs: Annotated[str | None, Read(_inputs, "string"), Field(description="A text whose tokens get classes.")] = (
        Field(default=None, validate_default=True)
    )


class ClassifyBatchBody(NamingBody):
    """The body of POST /classify_batch."""

    rules: ClassVar[FieldRules] = FieldRules(unread=frozenset({"stream"}), hints=_HINTS, adapter=NATIVE_ADAPTER)
    required: ClassVar[tuple[str, ...]] = ("inputs",)
    inputs: Annotated[tuple[str, ...], Read(_texts), Field(description="Texts whose tokens get classes.")] = Field(
        default=None, validate_default=True
    )


class Entity(TypedDict):
    """Neighbouring tokens of one class: their text, the half-open range of its characters, the mean probability."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class TextClasses(TypedDict):
    """The classes of one text: the likeliest label, and the probability of each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassesReply(TypedDict):
    """The classes of texts, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[TextClasses]
