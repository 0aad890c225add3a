"""Bodies of OpenAI's routes: POST /v1/completions and /v1/chat/completions."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged
from manylora.server.schemas.body import Body, Read, Reading, kind_of, wrong_type
from manylora.server.schemas.field_names import (
    AT_TOP,
    CHAT,
    CHAT_REFUSED,
    COMPLETIONS,
    GENERATE,
    OPENAI_ADAPTER,
    OPENAI_HINTS,
    OPENAI_REFUSED,
    UNREAD,
)
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields, not_built
from manylora.server.schemas.lorax import GenerateParameters
from manylora.server.schemas.readers import (
    Flag,
    Text,
    array,
    bounds_of,
    count_within,
    flag,
    name_of,
    positive_unsigned,
    text,
    unsigned,
    whole,
)
from manylora.server.schemas.sampling import (
    MAX_ALTERNATIVES,
    AllowedTokens,
    BadWords,
    Format,
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
from manylora.server.schemas.tokens import Biases, Prompt, read_biases, read_prompts
from manylora.system.printable import quoted

PLAIN_MESSAGE = frozenset({"role", "content"})
SEED_BOUNDS = (-(2**63), 2**64 - 1)  # OpenAI's integers have a sign, LoRAX's have none

Message = Mapping[str, str]


def _anywhere() -> Mapping[str, Collection[str]]:
    return {AT_TOP: ChatBody.names() | CompletionBody.names() | UNREAD}


class StreamOptions(Body):
    """The object `stream_options`."""

    place: ClassVar[str] = "stream_options"
    rules: ClassVar[FieldRules] = FieldRules(
        refused={"include_obfuscation": Refusal("chunks are not padded"), "continuous_usage_stats": Refusal()},
        elsewhere=_anywhere,
        adapter=OPENAI_ADAPTER,
    )
    include_usage: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the last chunk has the usage.")
    ] = False


class ContentPart(Body):
    """One part of a message's content."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"prompt_cache_breakpoint", "cache_control"}),
        refused={"annotations": Refusal()},
        elsewhere=_anywhere,
    )
    required: ClassVar[tuple[str, ...]] = ("type", "text")
    type: Text = None
    text: Text = None


class ChatMessage(Body):
    """One message of a conversation."""

    rules: ClassVar[FieldRules] = FieldRules(
        refused={
            **dict.fromkeys(("refusal", "audio", "annotations", "reasoning_content", "reasoning"), Refusal()),
            **dict.fromkeys(("tool_calls", "tool_call_id", "function_call"), Refusal()),
            **dict.fromkeys(("prefix", "partial"), Refusal("use `continue_final_message`")),
        },
        hints={"text": "use `content`"},
        elsewhere=_anywhere,
        adapter=f"{OPENAI_ADAPTER} at {AT_TOP}",
    )
    required: ClassVar[tuple[str, ...]] = ("role",)
    role: Text = None
    content: Annotated[Any, Read(lambda value, _: value, shape=str | list[ContentPart] | None)] = None
    name: Annotated[str | None, Read(text, "string"), Field(description="The chat template may show it.")] = None


_CHECKED_ALTERNATIVES = count_within(0, lambda _: MAX_ALTERNATIVES)


def _echo(value: object, info: ValidationInfo) -> bool:
    echo = flag(value, info)
    if echo and info.data.get("logprobs") is not None:
        raise InvalidParameter("`echo` with `logprobs` is not supported by this server yet", parameter="echo")
    return echo


def _budget_of_completion(value: object, info: ValidationInfo) -> int:
    return unsigned(value, info) if info.data.get("echo") else positive_unsigned(value, info)


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


def _best_of(value: object, info: ValidationInfo) -> int:
    best_of, n, most = whole(value, info), info.data["n"], bounds_of(info).settings.max_n
    if not n <= best_of <= most:
        raise InvalidParameter(f"`best_of` must be >= `n` and <= {most}. Given: {best_of}", parameter="best_of")
    if info.data["stream"] and best_of > n:
        raise InvalidParameter("`best_of` > `n` is not supported when streaming", parameter="best_of")
    return best_of


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


class CompletionBody(Body):
    """The body of POST /v1/completions."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD,
        refused={**OPENAI_REFUSED, "suffix": Refusal(neutral=())},
        hints={
            **OPENAI_HINTS,
            **dict.fromkeys(("inputs", "text", "input"), "use `prompt`"),
            "top_logprobs": "use `logprobs`",
            "max_completion_tokens": "use `max_tokens`",
        },
        elsewhere=lambda: {
            f"the body of {CHAT}": ChatBody.names() | CHAT_REFUSED.keys(),
            f"the body of {GENERATE}": GenerateParameters.names(),
            "`stream_options`": ("include_usage",),
        },
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("prompt",)
    logprobs: Annotated[
        int | None,
        Read(_CHECKED_ALTERNATIVES, "integer", minimum=0, maximum=MAX_ALTERNATIVES),
        Field(description="Likeliest tokens beside each one."),
    ] = None
    echo: Annotated[bool, Read(_echo, "boolean"), Field(description="If true, the prompt precedes the text.")] = False
    response_format: Format = None
    temperature: OpenAITemperature = None
    max_tokens: Annotated[
        int | None,
        Read(_budget_of_completion, "integer", minimum=0),
        Field(description="Tokens generated at most; default 16; 0 with `echo`."),
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
    best_of: Annotated[int | None, Read(_best_of, "integer", minimum=1)] = None
    add_special_tokens: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the default, the tokenizer adds special tokens.")
    ] = True
    prompt: Annotated[
        tuple[Prompt, ...],
        Read(read_prompts),
        Field(description="A string, strings, token ids, or arrays of token ids."),
    ] = Field(default=None, validate_default=True)


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


def _messages(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    given = () if value is None else array(name_of(info), value)
    if not given:
        raise InvalidParameter("`messages` must have at least one message", parameter="messages")
    messages = tuple(_message(message, index) for index, message in enumerate(given))
    if info.data["continue_final_message"] and not messages[-1]["content"].strip():
        raise InvalidParameter(
            "`continue_final_message` needs text in the last message", parameter="continue_final_message"
        )
    return messages


def _message(message: object, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(message)}", parameter="messages")
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise InvalidParameter(f"`{where}`: tool messages are not supported by this server yet", parameter="messages")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidParameter(
            f"`{where}.role` must be one of system, developer, user, assistant", parameter="messages"
        )
    plain = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), where),
    }
    if message.keys() <= PLAIN_MESSAGE:
        return plain
    name = applied_fields(message, ChatMessage.names(), ChatMessage.rules, where).get("name")
    if name is not None and not isinstance(name, str):
        raise wrong_type("name", "a string", name)
    return plain if name is None else {**plain, "name": name}


def _content(content: object, where: str) -> str:
    """Return the text of a message, with its parts joined in order."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidParameter(
            f"`{where}.content`: expected a string or an array of parts, given {kind_of(content)}", parameter="messages"
        )
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text_of_part = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text_of_part, str):
            raise InvalidParameter(
                f"`{where}.content`: this model reads text parts only; given {_shown(kind, part)}",
                parameter="messages",
            )
        applied_fields(part, ContentPart.names(), ContentPart.rules, f"{where}.content")
        texts.append(text_of_part)
    return "".join(texts)


def _shown(kind: object, part: object) -> str:
    return quoted(kind if kind and isinstance(kind, str) else kind_of(kind or part))


_TOOLS = Field(description="`none` or `auto`: there are no tools yet.")


class ChatBody(Body):
    """The body of POST /v1/chat/completions."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD,
        refused=CHAT_REFUSED,
        hints={**OPENAI_HINTS, **dict.fromkeys(("inputs", "text", "input", "conversation"), "use `messages`")},
        elsewhere=lambda: {
            f"the body of {COMPLETIONS}": CompletionBody.names() | {"suffix"},
            f"the body of {GENERATE}": GenerateParameters.names(),
            "`stream_options`": ("include_usage",),
        },
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("messages",)
    tool_choice: Annotated[Any, Read(_one_of("none", "auto")), _TOOLS] = None
    function_call: Annotated[Any, Read(_one_of("none", "auto")), _TOOLS] = None
    modalities: Annotated[Any, Read(_one_of(["text"]), shape=list[str] | None), Field(description="`text` alone.")] = (
        None
    )
    reasoning_effort: Annotated[
        Any, Read(_one_of("none"), "string"), Field(description="`none` alone: there is no reasoning part.")
    ] = None
    parallel_tool_calls: Annotated[
        bool, Read(flag, "boolean"), Field(description="There are no tool calls yet: either value holds.")
    ] = False
    top_logprobs: Annotated[
        int | None,
        Read(_CHECKED_ALTERNATIVES, "integer", minimum=0, maximum=MAX_ALTERNATIVES),
        Field(description="Needs `logprobs`."),
    ] = None
    logprobs: Annotated[bool, Read(_has_logprobs, "boolean")] = Field(default=False, validate_default=True)
    response_format: Format = None
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
    messages: Annotated[tuple[Message, ...], Read(_messages, shape=list[ChatMessage])] = Field(
        default=None, validate_default=True
    )
