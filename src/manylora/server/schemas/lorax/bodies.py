"""The bodies of LoRAX's routes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.adapters import (
    AdapterId,
    AdapterSource,
    ApiToken,
    Merged,
    Mixed,
    NamingBody,
)
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.field_names import (
    ADAPTER_NAMES,
    AT_TOP,
    NATIVE_ADAPTER,
    NATIVE_HINTS,
    REFUSED,
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
from manylora.server.schemas.readers import (
    Flag,
    bounds_of,
    flag,
    positive_unsigned,
    positive_whole,
    text,
    unsigned,
    whole,
)
from manylora.server.schemas.sampling import (
    MAX_ALTERNATIVES,
    AllowedTokens,
    BadWords,
    IgnoreEos,
    IgnoreEosToken,
    MinNewTokens,
    MinP,
    MinTokens,
    Penalty,
    RepetitionPenalty,
    Seed,
    SkipsSpecial,
    Stop,
    StopTokens,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)

_ASKS_FOR_SAMPLING = ("temperature", "top_k", "top_p", "typical_p")


def _watermark(value: object, info: ValidationInfo) -> bool:
    if flag(value, info):
        raise InvalidParameter("`watermark` is not supported by this server", parameter="watermark")
    return False


def _decoder_input_details(value: object, info: ValidationInfo) -> bool:
    if flag(value, info):
        if bounds_of(info).is_stream:
            raise InvalidParameter(
                "`decoder_input_details` == true is not supported when streaming tokens",
                parameter="decoder_input_details",
            )
        return True
    return False


def _best_of(value: object, info: ValidationInfo) -> int:
    best_of, bounds = whole(value, info), bounds_of(info)
    most = bounds.settings.max_best_of
    if best_of == 1:
        return 1
    if bounds.is_stream:
        raise InvalidParameter("`best_of` != 1 is not supported when streaming tokens", parameter="best_of")
    if most == 1:
        raise InvalidParameter("`best_of` != 1 is not allowed for this endpoint", parameter="best_of")
    if not 0 < best_of <= most:
        raise InvalidParameter(f"`best_of` must be > 0 and <= {most}. Given: {best_of}", parameter="best_of")
    _require_sampling(bounds.beside)
    return best_of


def _require_sampling(beside: Mapping[str, object]) -> None:
    """Raise `InvalidParameter` for a `best_of` without sampling, which would give equal sequences."""
    do_sample = beside.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise wrong_type("do_sample", "a boolean", do_sample)
    if not (do_sample or any(beside.get(name) is not None for name in _ASKS_FOR_SAMPLING)):
        raise InvalidParameter("you must use sampling when `best_of` is > 1", parameter="best_of")
    if beside.get("seed") is not None:
        raise InvalidParameter("`seed` must not be set when `best_of` > 1", parameter="seed")


def _alternatives(value: object, info: ValidationInfo) -> int:
    count = positive_whole(value, info)
    if count > MAX_ALTERNATIVES:
        raise InvalidParameter(
            f"`return_k_alternatives` must be <= {MAX_ALTERNATIVES}. Given: {count}",
            parameter="return_k_alternatives",
        )
    return count


def _truncate(value: object, info: ValidationInfo) -> int:
    count, most = unsigned(value, info), bounds_of(info).max_input
    if not 1 <= count <= most:
        raise InvalidParameter(
            f"`truncate` must be strictly positive and less than {most}. Given: {count}", parameter="truncate"
        )
    return count


def _keeps_stop(value: object, info: ValidationInfo) -> bool:
    keeps = flag(value, info)
    if not keeps and info.data.get("stop"):
        raise InvalidParameter(
            "`include_stop_str_in_output`: a stop string stays in `generated_text` on this route; "
            "POST /v1/completions removes it",
            parameter="include_stop_str_in_output",
        )
    return keeps


class GenerateParameters(Body):
    """The object `parameters` of a generation."""

    place: ClassVar[str] = "parameters"
    rules: ClassVar[FieldRules] = FieldRules(
        refused={**REFUSED, "logit_bias": Refusal("POST /v1/completions has it")},
        hints=NATIVE_HINTS,
        elsewhere=lambda: {AT_TOP: ("inputs", "stream")},
        adapter=NATIVE_ADAPTER,
    )
    response_format: Format = None
    structured_outputs: Structured = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None
    guided_json_object: GuidedObject = None
    guided_whitespace_pattern: WhiteSpace = None
    watermark: Annotated[bool, Read(_watermark, "boolean"), Field(description="Refused unless false.")] = False
    decoder_input_details: Annotated[
        bool,
        Read(_decoder_input_details, "boolean"),
        Field(description="If true, `details` list the prompt's tokens; implies `details`."),
    ] = False
    best_of: Annotated[
        int,
        Read(_best_of, "integer", minimum=1),
        Field(description="Generated sequences; the reply has the likeliest one."),
    ] = 1
    temperature: Temperature = None
    top_k: TopK = None
    repetition_penalty: RepetitionPenalty = None
    top_p: TopP = None
    typical_p: TypicalP = None
    min_p: MinP = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    return_k_alternatives: Annotated[
        int | None,
        Read(_alternatives, "integer", minimum=1),
        Field(description="Likeliest tokens beside each one; implies `details`."),
    ] = None
    do_sample: Flag = False
    details: Flag = False
    max_new_tokens: Annotated[
        int | None,
        Read(positive_unsigned, "integer", minimum=1),
        Field(description="Default: the rest of the window."),
    ] = None
    truncate: Annotated[
        int | None,
        Read(_truncate, "integer", minimum=1),
        Field(description="Number of the prompt's last tokens to keep."),
    ] = None
    adapter_id: AdapterId = None
    adapter_source: AdapterSource = None
    api_token: ApiToken = None
    merged_adapters: Merged = None
    adapters: Mixed = ()
    seed: Seed = None
    min_tokens: MinTokens = None
    min_new_tokens: MinNewTokens = None
    bad_words: BadWords = ()
    allowed_token_ids: AllowedTokens = None
    ignore_eos_token: IgnoreEosToken = None
    ignore_eos: IgnoreEos = None
    stop_token_ids: StopTokens = ()
    stop: Stop = ()
    skip_special_tokens: SkipsSpecial = True
    include_stop_str_in_output: Annotated[
        bool | None,
        Read(_keeps_stop, "boolean"),
        Field(description="If true, the text keeps the stop string or token."),
    ] = None
    return_full_text: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, the prompt precedes the generated text.")
    ] = False
    apply_chat_template: Annotated[
        bool, Read(flag, "boolean"), Field(description="If true, `inputs` is one user message.")
    ] = False


def _inputs(value: object, info: ValidationInfo) -> str:
    if value is None:
        raise InvalidParameter("`inputs` is required", parameter="inputs")
    return text(value, info)


def _some_inputs(value: object, info: ValidationInfo) -> str:
    inputs = _inputs(value, info)
    if not inputs:
        raise InvalidParameter("`inputs` cannot be empty", parameter="inputs")
    return inputs


def _stream(value: object, info: ValidationInfo) -> bool:
    """Read `stream`. The route's own behaviour is the default; a route for one behaviour refuses the other value."""
    is_stream = bounds_of(info).is_stream
    asked = bool(is_stream) if value is None else flag(value, info)
    if is_stream is not None and asked != is_stream:
        does, other = ("streams", "/generate") if is_stream else ("does not stream", "/generate_stream")
        raise InvalidParameter(f"`stream`: this route {does}; send the request to {other}", parameter="stream")
    return asked


def _parameters(value: object, info: ValidationInfo) -> GenerateParameters:
    if not isinstance(value, dict):
        raise wrong_type("parameters", "an object", value)
    bounds = replace(bounds_of(info), is_stream=info.data["stream"], beside=value)
    return GenerateParameters.model_validate(value, context=bounds)


def _belonging() -> Mapping[str, frozenset[str]]:
    return {"`parameters`": GenerateParameters.names() | REFUSED.keys() | NATIVE_HINTS.keys()}


class GenerateBody(Body):
    """The body of POST /generate, /generate_stream, / and /invocations."""

    rules: ClassVar[FieldRules] = FieldRules(
        hints={**dict.fromkeys(ADAPTER_NAMES, NATIVE_ADAPTER), "prompt": "use `inputs`", "model": NATIVE_ADAPTER},
        elsewhere=_belonging,
        adapter=NATIVE_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("inputs",)
    stream: Annotated[
        bool,
        Read(_stream, "boolean"),
        Field(description="POST / and /invocations obey it; others refuse a contrary value."),
    ] = Field(default=None, validate_default=True)
    inputs: Annotated[str, Read(_some_inputs, type="string")] = Field(default=None, validate_default=True)
    parameters: Annotated[GenerateParameters, Read(_parameters, shape=GenerateParameters | None)] = GenerateParameters()


class TokenizeBody(NamingBody):
    """The body of POST /tokenize."""

    rules: ClassVar[FieldRules] = FieldRules(
        hints=dict.fromkeys(("prompt", "text", "content", "input"), "use `inputs`"),
    )
    required: ClassVar[tuple[str, ...]] = ("inputs",)
    inputs: Annotated[str, Read(_inputs, type="string")] = Field(default=None, validate_default=True)
    add_special_tokens: Annotated[bool, Read(flag, "boolean"), Field(description="Default true.")] = True


class EmbedBody(NamingBody):
    """The body of POST /embed. lorax-client sends `stream` to each route."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"stream"}),
        hints={
            **dict.fromkeys(("prompt", "text", "input"), "use `inputs`"),
            **dict.fromkeys(("encoding_format", "dimensions"), "POST /v1/embeddings has it"),
        },
        adapter=NATIVE_ADAPTER,
    )
    required: ClassVar[tuple[str, ...]] = ("inputs",)
    inputs: Annotated[str, Read(_some_inputs, type="string")] = Field(default=None, validate_default=True)
