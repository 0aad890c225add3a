"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged, Mixed
from manylora.server.schemas.body import Read, Reading
from manylora.server.schemas.field_names import (
    CHAT,
    CHAT_REFUSED,
    OPENAI_ADAPTER,
    OPENAI_HINTS,
    UNREAD,
)
from manylora.server.schemas.field_rules import FieldRules, not_built
from manylora.server.schemas.grammars import (
    Format,
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedObject,
    GuidedRegex,
    Structured,
    WhiteSpace,
)
from manylora.server.schemas.openai.functions import FunctionChoice, Functions
from manylora.server.schemas.openai.messages import ChatMessage, Message, read_messages
from manylora.server.schemas.openai.shared import (
    CHECKED_ALTERNATIVES,
    Biased,
    Count,
    Model,
    OpenAISeed,
    Options,
    RouteBody,
    Truncate,
    known_elsewhere,
)
from manylora.server.schemas.openai.tools import Choice, ToolChoice, Tools
from manylora.server.schemas.readers import (
    Flag,
    flag,
    name_of,
    positive_unsigned,
)
from manylora.server.schemas.sampling import (
    MAX_ALTERNATIVES,
    AllowedTokens,
    BadWords,
    IgnoreEos,
    IgnoreEosToken,
    KeepsStop,
    MinNewTokens,
    MinP,
    MinTokens,
    OpenAITemperature,
    OpenAITopP,
    Penalty,
    RepetitionPenalty,
    SkipsSpecial,
    Stop,
    StopTokens,
    TopK,
    TypicalP,
)

SERVICE_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")


def _one_of(*values: object) -> Reading:
    """Return a reader of a field that accepts only `values`, which have no effect."""

    def read(value: object, info: ValidationInfo) -> object:
        if value not in values:
            raise not_built(name_of(info))
        return value

    return read


def _has_logprobs(value: object, info: ValidationInfo) -> bool:
    has_logprobs = flag(value, info)
    if info.data.get("top_logprobs") and not has_logprobs:
        raise InvalidParameter("`top_logprobs` needs `logprobs` to be true", parameter="top_logprobs")
    return has_logprobs


def _opens_turn(value: object, info: ValidationInfo) -> bool:
    """Read `add_generation_prompt`. It defaults to true, or to false if the reply continues the last message."""
    continues = bool(info.data["continue_final_message"])
    opens = not continues if value is None else flag(value, info)
    if continues and opens:
        raise InvalidParameter(
            "`continue_final_message` and `add_generation_prompt` must not both be true",
            parameter="continue_final_message",
        )
    return opens


def _service_tier(value: object, info: ValidationInfo) -> str:
    if value not in SERVICE_TIERS:
        raise InvalidParameter(f"`service_tier` must be one of {', '.join(SERVICE_TIERS)}", parameter="service_tier")
    return str(value)


class ChatBody(RouteBody):
    """The body of POST /v1/chat/completions."""

    route: ClassVar[str] = CHAT
    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD - {"service_tier"},
        refused=CHAT_REFUSED,
        hints={**OPENAI_HINTS, **dict.fromkeys(("inputs", "text", "input", "conversation"), "use `messages`")},
        elsewhere=known_elsewhere,
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("messages",)
    service_tier: Annotated[
        str | None,
        Read(_service_tier, "string"),
        Field(description="One of OpenAI's tiers; all are served alike, and the reply has `default`."),
    ] = None
    tools: Tools = ()
    tool_choice: Choice = ToolChoice()
    functions: Functions = ()
    function_call: FunctionChoice = ToolChoice()
    modalities: Annotated[Any, Read(_one_of(["text"]), shape=list[str] | None), Field(description="`text` alone.")] = (
        None
    )
    reasoning_effort: Annotated[
        Any, Read(_one_of("none"), "string"), Field(description="`none` alone: there is no reasoning part.")
    ] = None
    parallel_tool_calls: Annotated[
        bool, Read(flag, "boolean"), Field(description="False: at most one call; default true.")
    ] = True
    top_logprobs: Annotated[
        int | None,
        Read(CHECKED_ALTERNATIVES, "integer", minimum=0, maximum=MAX_ALTERNATIVES),
        Field(description="Needs `logprobs`."),
    ] = None
    logprobs: Annotated[bool, Read(_has_logprobs, "boolean")] = Field(default=False, validate_default=True)
    response_format: Format = None
    structured_outputs: Structured = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None
    guided_json_object: GuidedObject = None
    guided_whitespace_pattern: WhiteSpace = None
    temperature: OpenAITemperature = None
    max_completion_tokens: Annotated[
        int | None,
        Read(positive_unsigned, "integer", minimum=1),
        Field(description="Default: `max_tokens`, else the rest of the window."),
    ] = None
    max_tokens: Annotated[
        int | None, Read(positive_unsigned, "integer", minimum=1), Field(description="Tokens generated at most.")
    ] = None
    n: Count = 1
    top_k: TopK = None
    repetition_penalty: RepetitionPenalty = None
    top_p: OpenAITopP = None
    typical_p: TypicalP = None
    min_p: MinP = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Biased = ()
    model: Model = None
    adapter_id: AdapterId = None
    adapter_source: AdapterSource = None
    api_token: ApiToken = None
    merged_adapters: Merged = None
    adapters: Mixed = ()
    seed: OpenAISeed = None
    min_tokens: MinTokens = None
    min_new_tokens: MinNewTokens = None
    bad_words: BadWords = ()
    allowed_token_ids: AllowedTokens = None
    ignore_eos_token: IgnoreEosToken = None
    ignore_eos: IgnoreEos = None
    stop_token_ids: StopTokens = ()
    stop: Stop = ()
    skip_special_tokens: SkipsSpecial = True
    include_stop_str_in_output: KeepsStop = None
    stream: Flag = False
    stream_options: Options = None
    truncate_prompt_tokens: Truncate = None
    continue_final_message: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the reply continues the last message.")
    ] = False
    add_generation_prompt: Annotated[
        bool, Read(_opens_turn, "boolean"), Field(description="If true, the prompt opens the assistant's turn.")
    ] = Field(default=None, validate_default=True)
    messages: Annotated[tuple[Message, ...], Read(read_messages, shape=list[ChatMessage])] = Field(
        default=None, validate_default=True
    )
