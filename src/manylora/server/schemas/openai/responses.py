"""The body and the replies of /v1/responses."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_names import OPENAI_ADAPTER, OPENAI_HINTS, UNREAD
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.shared import Model, RouteBody, known_elsewhere
from manylora.server.schemas.openai.stored import MetadataField
from manylora.server.schemas.readers import Flag, Text, flag, name_of, object_of, positive_unsigned
from manylora.server.schemas.sampling import OpenAITemperature, OpenAITopP
from manylora.system.printable import quoted

RESPONSES = "POST /v1/responses"
ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text")

Message = Mapping[str, str]
Json = dict[str, Any]  # JSON values of several types


class InputPart(Body):
    """One part of the content of an item."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"prompt_cache_breakpoint"}), refused={"annotations": Refusal(), "logprobs": Refusal()}
    )
    required: ClassVar[tuple[str, ...]] = ("type", "text")
    type: Text = None
    text: Text = None


class InputItem(Body):
    """One item of the input: a message."""

    rules: ClassVar[FieldRules] = FieldRules(unread=frozenset({"id", "status", "phase"}))
    required: ClassVar[tuple[str, ...]] = ("role", "content")
    type: Annotated[str | None, Read(lambda value, _: value, enum=["message"])] = None
    role: Annotated[str | None, Read(lambda value, _: value, enum=list(ROLES))] = None
    content: Annotated[Any, Read(lambda value, _: value, shape=str | list[InputPart])] = None


def _input(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type(name_of(info), "a string or an array of items", value)
    if not value:
        raise InvalidParameter("`input` must have at least one item", parameter="input")
    return tuple(_message(item, f"input[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(item)}", parameter=where)
    kind = item.get("type", "message")
    if kind != "message":
        shown = quoted(kind) if isinstance(kind, str) else kind_of(kind)
        raise InvalidParameter(f"`{where}`: this server reads items `message` only, given {shown}", parameter=where)
    fields = applied_fields(item, InputItem.names(), InputItem.rules, where)
    role = fields.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"`{where}.role` must be one of {', '.join(ROLES)}", parameter=where)
    return {"role": str(role), "content": _content(fields.get("content"), f"{where}.content")}


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParameter(
            f"`{where}`: expected a string or an array of parts, given {kind_of(content)}", parameter=where
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(text, str):
            shown = quoted(kind) if isinstance(kind, str) else kind_of(kind or part)
            raise InvalidParameter(
                f"`{where}`: this model reads parts {' and '.join(TEXT_PARTS)} only, given {shown}", parameter=where
            )
        applied_fields(part, InputPart.names(), InputPart.rules, where)
        texts.append(text)
    return "".join(texts)


def _format(value: object, info: ValidationInfo) -> Json:
    """Read a form of the text; the chat route's `response_format` has the same forms."""
    if not isinstance(value, dict):
        raise wrong_type("text.format", "an object", value)
    return value


class TextOptions(Body):
    """The object `text`."""

    place: ClassVar[str] = "text"
    rules: ClassVar[FieldRules] = FieldRules(
        refused={"verbosity": Refusal("the model has no setting of its length", neutral=("medium",))}
    )
    format: Annotated[Json | None, Read(_format, "object")] = None


class ResponseBody(RouteBody):
    """The body of POST /v1/responses."""

    route: ClassVar[str] = RESPONSES
    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD - {"metadata", "store"},
        refused={
            "background": Refusal("the reply comes at once; /v1/batches runs requests that nothing waits for"),
            "conversation": Refusal("name the response before in `previous_response_id`"),
            "include": Refusal(),
            "max_tool_calls": Refusal(),
            "parallel_tool_calls": Refusal(neutral=(True, False)),
            "prompt": Refusal("there are no stored prompts"),
            "reasoning": Refusal("there is no reasoning part"),
            "stream_options": Refusal("chunks are not padded", neutral=({}, {"include_obfuscation": False})),
            "tools": Refusal(),
            "tool_choice": Refusal(neutral=("auto", "none")),
            "top_logprobs": Refusal(),
            "truncation": Refusal("a longer input is refused", neutral=("disabled",)),
            "context_management": Refusal("a longer input is refused"),
        },
        hints={
            **OPENAI_HINTS,
            "messages": "use `input`",
            **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_new_tokens"), "use `max_output_tokens`"),
            "response_format": "use `text.format`",
        },
        elsewhere=known_elsewhere,
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("input",)
    input: Annotated[tuple[Message, ...], Read(_input, shape=str | list[InputItem])] = Field(
        default=None, validate_default=True
    )
    instructions: Annotated[Text, Field(description="A message `system` before the conversation; it is not kept.")] = (
        None
    )
    previous_response_id: Annotated[Text, Field(description="A response whose conversation goes on.")] = None
    store: Annotated[
        bool | None,
        Read(flag, "boolean"),
        Field(description="Whether the response is kept for `storage.responses_s`; default true."),
    ] = None
    model: Model = None
    adapter_id: AdapterId = None
    adapter_source: AdapterSource = None
    api_token: ApiToken = None
    merged_adapters: Merged = None
    temperature: OpenAITemperature = None
    top_p: OpenAITopP = None
    max_output_tokens: Annotated[
        int | None,
        Read(positive_unsigned, "integer", minimum=1),
        Field(description="Default: the rest of the window."),
    ] = None
    metadata: MetadataField = None
    text: Annotated[TextOptions | None, Read(object_of(TextOptions), shape=TextOptions | None)] = None
    stream: Flag = False


class OutputText(TypedDict):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Json]
    logprobs: list[Json]


class OutputMessage(TypedDict):
    """A message of the model."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class ResponseUsage(TypedDict):
    """The tokens of a response."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseReply(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: Json | None
    incomplete_details: Json | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Mapping[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: Json
    tool_choice: str
    tools: list[Json]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class ResponseEvent(TypedDict):
    """One event of a stream; its `type` decides which of OpenAI's further fields it has."""

    type: str
    sequence_number: int
