"""The body of /v1/responses."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_names import OPENAI_ADAPTER, OPENAI_HINTS, UNREAD
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.response_input import InputItem, Message, read_input
from manylora.server.schemas.openai.shared import CHECKED_ALTERNATIVES, Model, RouteBody, known_elsewhere
from manylora.server.schemas.openai.stored import MetadataField
from manylora.server.schemas.readers import Flag, Text, array, flag, name_of, object_of, positive_unsigned
from manylora.server.schemas.sampling import MAX_ALTERNATIVES, OpenAITemperature, OpenAITopP
from manylora.system.printable import quoted

RESPONSES = "POST /v1/responses"
TRUNCATIONS = ("auto", "disabled")
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

Json = dict[str, Any]  # JSON values of several types


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


def _background(value: object, info: ValidationInfo) -> bool:
    is_asked = flag(value, info)
    if is_asked and info.data.get("store") is False:
        raise InvalidParameter("`background` goes without `store` false", parameter=name_of(info))
    return is_asked


class ConversationName(Body):
    """A conversation by its id."""

    place: ClassVar[str] = "conversation"
    required: ClassVar[tuple[str, ...]] = ("id",)
    id: Text = Field(default=None, validate_default=True)


def _conversation(value: object, info: ValidationInfo) -> str:
    if info.data.get("previous_response_id") is not None:
        raise InvalidParameter("`conversation` goes without `previous_response_id`", parameter=name_of(info))
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise wrong_type(name_of(info), "a string or an object with an id", value)
    named = applied_fields(value, ConversationName.names(), ConversationName.rules, "conversation").get("id")
    if not isinstance(named, str):
        raise InvalidParameter("`conversation.id` must be a string", parameter="conversation.id")
    return named


def _truncation(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise wrong_type(name_of(info), "a string", value)
    if value not in TRUNCATIONS:
        raise InvalidParameter(
            f"`truncation` must be {' or '.join(TRUNCATIONS)}. Given: {quoted(value[:80])}", parameter=name_of(info)
        )
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
            "prompt": Refusal("there are no stored prompts"),
            "reasoning": Refusal("there is no reasoning part", neutral=({}, {"effort": "none"})),
            "stream_options": Refusal("chunks are not padded", neutral=({}, {"include_obfuscation": False})),
            "context_management": Refusal("`truncation` drops the oldest turns of a longer input"),
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
    input: Annotated[tuple[Message, ...], Read(read_input, shape=str | list[InputItem])] = Field(
        default=None, validate_default=True
    )
    instructions: Annotated[Text, Field(description="A message `system` before the conversation; it is not kept.")] = (
        None
    )
    previous_response_id: Annotated[Text, Field(description="A response whose conversation goes on.")] = None
    conversation: Annotated[
        str | None,
        Read(_conversation, shape=str | ConversationName | None),
        Field(description="A conversation that goes on, by its id; it gets the items of the input and of the output."),
    ] = None
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
    truncation: Annotated[
        str | None,
        Read(_truncation, enum=list(TRUNCATIONS)),
        Field(
            description="`auto` drops the oldest turns of an input that is too long, never `instructions`; "
            "`disabled`, the default, refuses it."
        ),
    ] = None
    stream: Flag = False
    background: Annotated[
        bool,
        Read(_background, "boolean"),
        Field(
            description="If true, the reply is the queued response, or with `stream` its events; it runs on. Needs "
            "`store`."
        ),
    ] = False

    @property
    def has_logprobs(self) -> bool:
        """The request for the tokens of the text with their log-probabilities: true or false."""
        return LOGPROBS in self.include
