"""The body of POST /v1/completions."""

from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import AdapterId, AdapterSource, ApiToken, Merged, Mixed
from manylora.server.schemas.body import Read
from manylora.server.schemas.field_names import (
    COMPLETIONS,
    OPENAI_ADAPTER,
    OPENAI_HINTS,
    OPENAI_REFUSED,
    UNREAD,
)
from manylora.server.schemas.field_rules import FieldRules, Refusal
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
from manylora.server.schemas.readers import (
    Flag,
    bounds_of,
    flag,
    positive_unsigned,
    unsigned,
    whole,
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
from manylora.server.schemas.tokens import Prompt, read_prompts


def _budget_of_completion(value: object, info: ValidationInfo) -> int:
    return unsigned(value, info) if info.data.get("echo") else positive_unsigned(value, info)


def _best_of(value: object, info: ValidationInfo) -> int:
    best_of, n, most = whole(value, info), info.data["n"], bounds_of(info).settings.max_n
    if not n <= best_of <= most:
        raise InvalidParameter(f"`best_of` must be >= `n` and <= {most}. Given: {best_of}", parameter="best_of")
    if info.data["stream"] and best_of > n:
        raise InvalidParameter("`best_of` > `n` is not supported when streaming", parameter="best_of")
    return best_of


class CompletionBody(RouteBody):
    """The body of POST /v1/completions."""

    route: ClassVar[str] = COMPLETIONS
    rules: ClassVar[FieldRules] = FieldRules(
        unread=UNREAD,
        refused={**OPENAI_REFUSED, "suffix": Refusal(neutral=())},
        hints={
            **OPENAI_HINTS,
            **dict.fromkeys(("inputs", "text", "input"), "use `prompt`"),
            "top_logprobs": "use `logprobs`",
            "max_completion_tokens": "use `max_tokens`",
        },
        elsewhere=known_elsewhere,
        adapter=OPENAI_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("prompt",)
    logprobs: Annotated[
        int | None,
        Read(CHECKED_ALTERNATIVES, "integer", minimum=0, maximum=MAX_ALTERNATIVES),
        Field(description="Likeliest tokens beside each one."),
    ] = None
    echo: Annotated[bool, Read(flag, "boolean"), Field(description="If true, the prompt precedes the text.")] = False
    response_format: Format = None
    structured_outputs: Structured = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None
    guided_json_object: GuidedObject = None
    guided_whitespace_pattern: WhiteSpace = None
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
    best_of: Annotated[int | None, Read(_best_of, "integer", minimum=1)] = None
    add_special_tokens: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the default, the tokenizer adds special tokens.")
    ] = True
    prompt: Annotated[
        tuple[Prompt, ...],
        Read(read_prompts),
        Field(description="A string, strings, token ids, or arrays of token ids."),
    ] = Field(default=None, validate_default=True)
