"""The body and the replies of /v1/responses."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_names import OPENAI_ADAPTER, OPENAI_HINTS, UNREAD
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.shared import CHECKED_ALTERNATIVES, Model, RouteBody, known_elsewhere
from manylora.server.schemas.openai.stored import MetadataField
from manylora.server.schemas.readers import Flag, Text, array, flag, name_of, object_of, positive_unsigned
from manylora.server.schemas.sampling import MAX_ALTERNATIVES, OpenAITemperature, OpenAITopP
from manylora.system.printable import quoted

RESPONSES = "POST /v1/responses"
ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text")

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    LOGPROBS,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)
"""OpenAI's values of `include`. All but the first name parts of items that no response of this server has."""

Message = Mapping[str, Any]
Json = dict[str, Any]  # JSON values of several types


class InputPart(Body):
    """One part of the content of an item."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"prompt_cache_breakpoint"}), refused={"annotations": Refusal(), "logprobs": Refusal()}
    )
    required: ClassVar[tuple[str, ...]] = ("type", "text")
    type: Text = None
    text: Text = None


KINDS = ("message", "function_call", "function_call_output")


class InputItem(Body):
    """One item of the input: a message, a call of a function, or its output."""

    rules: ClassVar[FieldRules] = FieldRules(unread=frozenset({"id", "status", "phase"}))
    required: ClassVar[tuple[str, ...]] = ()
    type: Annotated[
        str | None, Read(lambda value, _: value, enum=["message", "function_call", "function_call_output"])
    ] = None
    role: Annotated[str | None, Read(lambda value, _: value, enum=list(ROLES))] = None
    content: Annotated[Any, Read(lambda value, _: value, shape=str | list[InputPart])] = None
    call_id: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    name: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    arguments: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    output: Annotated[Any, Read(lambda value, _: value, shape=str | list[InputPart])] = None


FIELDS_OF_ITEMS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"type", "role", "content"}),
    "function_call": frozenset({"type", "call_id", "name", "arguments"}),
    "function_call_output": frozenset({"type", "call_id", "output"}),
}
"""The kinds of items, and the fields of each."""


def _input(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type(name_of(info), "a string or an array of items", value)
    if not value:
        raise InvalidParameter("`input` must have at least one item", parameter="input")
    messages: list[Json] = []
    for index, item in enumerate(value):
        _add_item(messages, item, f"input[{index}]")
    return tuple(messages)


def _add_item(messages: list[Json], item: object, where: str) -> None:
    """Add an item to the messages of the chat route, where calls belong to the assistant's message before them."""
    if not isinstance(item, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(item)}", parameter=where)
    kind = item.get("type") or "message"
    if kind not in FIELDS_OF_ITEMS:
        shown, known = quoted(kind) if isinstance(kind, str) else kind_of(kind), ", ".join(FIELDS_OF_ITEMS)
        raise InvalidParameter(f"`{where}`: this server reads items {known}, given {shown}", parameter=where)
    fields = applied_fields(item, FIELDS_OF_ITEMS[kind], InputItem.rules, where)
    if kind == "message":
        role = fields.get("role")
        if role not in ROLES:
            raise InvalidParameter(f"`{where}.role` must be one of {', '.join(ROLES)}", parameter=where)
        messages.append({"role": str(role), "content": _content(fields.get("content"), f"{where}.content")})
    elif kind == "function_call_output":
        content = _content(fields.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": _text_of(fields, "call_id", where), "content": content})
    else:
        name, arguments = _text_of(fields, "name", where), _text_of(fields, "arguments", where)
        function = {"name": name, "arguments": arguments}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        calls = messages[-1].setdefault("tool_calls", [])
        calls.append({"id": _text_of(fields, "call_id", where), "type": "function", "function": function})


def _text_of(fields: Mapping[str, object], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidParameter(f"`{where}.{name}` must be a string", parameter=where)
    return value


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


def _tools(value: object, info: ValidationInfo) -> tuple[Json, ...]:
    """Read tools whose fields stand at their top; the chat route reads the functions."""
    if not isinstance(value, list):
        raise wrong_type(name_of(info), "an array", value)
    for index, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else None
            shown = quoted(kind) if isinstance(kind, str) else kind_of(kind or tool)
            raise InvalidParameter(f"`tools[{index}].type` must be function. Given: {shown}", parameter="tools")
    return tuple(value)


def chat_tool(tool: Json) -> Json:
    """Return a tool in the form of the chat route."""
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def chat_choice(choice: object) -> object:
    """Return a `tool_choice` in the form of the chat route."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return choice
    return chat_tool(choice)


def _format(value: object, info: ValidationInfo) -> Json:
    """Read a form of the text; the chat route's `response_format` has the same forms."""
    if not isinstance(value, dict):
        raise wrong_type("text.format", "an object", value)
    return value


def _include(value: object, info: ValidationInfo) -> tuple[str, ...]:
    given = array(name_of(info), value)
    for each in given:
        if each not in INCLUDABLE:
            shown = quoted(each[:80]) if isinstance(each, str) else kind_of(each)
            raise InvalidParameter(
                f"`include` may have {', '.join(INCLUDABLE)}. Given: {shown}", parameter=name_of(info)
            )
    if LOGPROBS in given and info.data.get("tools"):
        raise InvalidParameter(f"`include` of {LOGPROBS} goes without `tools`", parameter=name_of(info))
    return tuple(str(each) for each in given)


def _top_logprobs(value: object, info: ValidationInfo) -> object:
    count = CHECKED_ALTERNATIVES(value, info)
    if count and LOGPROBS not in info.data.get("include", ()):
        raise InvalidParameter(f"`top_logprobs` needs {LOGPROBS} in `include`", parameter=name_of(info))
    return count


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
            "prompt": Refusal("there are no stored prompts"),
            "reasoning": Refusal("there is no reasoning part", neutral=({}, {"effort": "none"})),
            "stream_options": Refusal("chunks are not padded", neutral=({}, {"include_obfuscation": False})),
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
    tools: Annotated[
        tuple[Json, ...], Read(_tools, shape=list[Json]), Field(description="Functions that the model may call.")
    ] = ()
    tool_choice: Annotated[
        Any,
        Read(lambda value, _: value, shape=str | Json | None),
        Field(description="`auto`, `none`, `required`, or one function by its name."),
    ] = None
    parallel_tool_calls: Annotated[
        bool, Read(flag, "boolean"), Field(description="Whether a reply may have several calls.")
    ] = True
    max_tool_calls: Annotated[
        int | None,
        Read(positive_unsigned, "integer", minimum=1),
        Field(description="Bounds OpenAI's own tools, of which this server has none; comes back unchanged."),
    ] = None
    include: Annotated[
        tuple[str, ...],
        Read(_include, shape=list[str]),
        Field(description="`message.output_text.logprobs`; the others name items that no response here has."),
    ] = ()
    top_logprobs: Annotated[
        int | None,
        Read(_top_logprobs, "integer", minimum=0, maximum=MAX_ALTERNATIVES),
        Field(description="Likeliest tokens beside each one; needs `include`."),
    ] = None
    text: Annotated[TextOptions | None, Read(object_of(TextOptions), shape=TextOptions | None)] = None
    stream: Flag = False

    @property
    def has_logprobs(self) -> bool:
        """The request for the tokens of the text with their log-probabilities: true or false."""
        return LOGPROBS in self.include


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


class OutputCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


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
    max_tool_calls: int | None
    metadata: Mapping[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: Json
    tool_choice: str | Json
    tools: list[Json]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class InputText(TypedDict):
    """A text of the caller."""

    type: Literal["input_text"]
    text: str


class InputMessage(TypedDict):
    """A message of the conversation."""

    id: str
    type: Literal["message"]
    status: Literal["completed"]
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText | OutputText]


class CallOutput(TypedDict):
    """The result of a call."""

    id: str
    type: Literal["function_call_output"]
    status: Literal["completed"]
    call_id: str
    output: str


class InputItemPage(TypedDict):
    """A page of the items of the conversation that a response answers."""

    object: Literal["list"]
    data: list[InputMessage | OutputCall | CallOutput]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseEvent(TypedDict):
    """One event of a stream; its `type` decides which of the further fields it has.

    response  of the events that begin and end the stream, and the one before the first output
    item      of those that open and close an item of the output
    part      of those that open and close the text of a message
    """

    type: str
    sequence_number: int
    response: NotRequired[ResponseReply]
    output_index: NotRequired[int]
    item: NotRequired[OutputMessage | OutputCall]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[Json]]
    name: NotRequired[str]
    arguments: NotRequired[str]
