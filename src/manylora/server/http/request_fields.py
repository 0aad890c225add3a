"""The fields of each inference route's body: applied, accepted unread, or refused with a reason.

docs/request-fields.md tells the same to people; the OpenAPI document is made of these tables.
"""

from collections.abc import Mapping

from manylora.server.http.known_fields import NOTHING_ASKED, Form, Refusal, Schema

GENERATE, COMPLETIONS, CHAT = "POST /generate", "POST /v1/completions", "POST /v1/chat/completions"


def _of(kind: str, description: str = "", **rules: object) -> Schema:
    """A field that may be null. `rules` are JSON schema's."""
    told = {"description": description} if description else {}
    return {"type": [kind, "null"], **rules, **told}


def _list_of(kind: str, description: str) -> Schema:
    return {"type": ["array", "null"], "items": {"type": kind}, "description": description}


ADAPTER: Mapping[str, Schema] = {
    "adapter_id": _of("string", "The adapter's name; absent, empty or the base's name is the base model."),
    "adapter_source": _of("string", "Where the adapter comes from: hub, local, s3 or pbase."),
    "api_token": _of("string", "The caller's credential at the adapter's source."),
    "merged_adapters": _of("object", "Several adapters merged into one for this request."),
}
STOPS: Mapping[str, Schema] = {
    "stop": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
        "description": "Strings that end the generation; one may name a special token, alone or within text.",
    },
    "stop_token_ids": _list_of("integer", "Tokens that end the generation and are no part of the text."),
    "include_stop_str_in_output": _of("boolean", "Whether the text keeps what ended the generation."),
    "ignore_eos_token": _of("boolean", "Whether end-of-sequence tokens do not end the generation."),
    "ignore_eos": _of("boolean", "The same as `ignore_eos_token`."),
    "skip_special_tokens": _of("boolean", "Whether special tokens are left out of the text; default true."),
}
SAMPLING: Mapping[str, Schema] = {
    "temperature": _of("number", "0 is greedy.", minimum=0),
    "top_p": _of("number", minimum=0, maximum=1),
    "top_k": _of("integer", minimum=1),
    "typical_p": _of("number", exclusiveMinimum=0, exclusiveMaximum=1),
    "min_p": _of("number", minimum=0, maximum=1),
    "repetition_penalty": _of("number", exclusiveMinimum=0),
    "frequency_penalty": _of("number", minimum=-2, maximum=2),
    "presence_penalty": _of("number", minimum=-2, maximum=2),
    "seed": _of("integer", "The same seed gives the same tokens."),
    "response_format": _of("object", "Only `text` so far."),
}
PARAMETERS_APPLIED: Mapping[str, Schema] = {
    **ADAPTER,
    **SAMPLING,
    **STOPS,
    "do_sample": _of("boolean"),
    "max_new_tokens": _of("integer", "Default: the rest of the window.", minimum=1),
    "best_of": _of("integer", "Sequences generated, of which the likeliest is returned.", minimum=1),
    "truncate": _of("integer", "Keeps the last tokens of the prompt, this many.", minimum=1),
    "return_full_text": _of("boolean", "Whether the prompt stands before the generated text."),
    "details": _of("boolean"),
    "decoder_input_details": _of("boolean", "Refused unless false."),
    "return_k_alternatives": _of("integer", "Likeliest tokens beside each one; implies `details`.", minimum=1),
    "apply_chat_template": _of("boolean", "Whether `inputs` is one user message."),
    "watermark": _of("boolean", "Refused unless false."),
}
COMMON_APPLIED: Mapping[str, Schema] = {
    "model": _of("string", "The adapter's name, or the base's."),
    **ADAPTER,
    **SAMPLING,
    "temperature": _of("number", "0 is greedy; default 1.", minimum=0, maximum=2),
    **STOPS,
    "n": _of("integer", "Choices for each prompt.", minimum=1),
    "max_tokens": _of("integer", "Tokens generated at most.", minimum=1),
    "stream": _of("boolean"),
    "stream_options": _of("object", "`include_usage`; only with `stream`."),
    "logit_bias": _of("object", "Token id → a number from -100 to 100."),
    "truncate_prompt_tokens": _of("integer", "Keeps the last tokens of the prompt; -1: as many as fit.", minimum=-1),
}
COMPLETION_APPLIED: Mapping[str, Schema] = {
    **COMMON_APPLIED,
    "prompt": {"description": "A string, strings, token ids, or arrays of token ids."},
    "max_tokens": _of("integer", "Tokens generated at most; default 16; 0 with `echo`.", minimum=0),
    "logprobs": _of("integer", "Likeliest tokens beside each one.", minimum=0, maximum=20),
    "echo": _of("boolean", "Whether the prompt stands before the text."),
    "best_of": _of("integer", minimum=1),
    "add_special_tokens": _of("boolean", "Whether what leads the model's texts is added; default true."),
}
CHAT_APPLIED: Mapping[str, Schema] = {
    **COMMON_APPLIED,
    "messages": {"type": "array", "items": {"type": "object"}},
    "max_completion_tokens": _of("integer", "Default: `max_tokens`, else the rest of the window.", minimum=1),
    "logprobs": _of("boolean"),
    "top_logprobs": _of("integer", "Needs `logprobs`.", minimum=0, maximum=20),
    "add_generation_prompt": _of("boolean", "Whether the prompt opens the assistant's turn."),
    "continue_final_message": _of("boolean", "Whether the last message is continued; then no turn is opened."),
    "tool_choice": {"description": "`none` or `auto`: there are no tools yet."},
    "function_call": {"description": "`none` or `auto`: there are no tools yet."},
    "parallel_tool_calls": _of("boolean", "There are no tool calls yet: either value holds."),
    "modalities": _list_of("string", "`text` alone."),
    "reasoning_effort": _of("string", "`none` alone: there is no reasoning part."),
}

UNREAD = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    }
)
"""OpenAI's metadata and hints to caches: they change no token."""

_LOGITS = Refusal("no rule allows, forbids or forces single tokens")
_GRAMMAR = Refusal("the text is not constrained to a form")
_GUIDED = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object"),
    *("guided_decoding_backend", "guided_whitespace_pattern", "guided_options_request", "structural_tag"),
    *("grammar", "json_schema", "regex", "ebnf"),
)
REFUSED: Mapping[str, Refusal] = {
    **dict.fromkeys(("min_tokens", "min_new_tokens", "bad_words", "no_repeat_ngram_size"), _LOGITS),
    "allowed_token_ids": Refusal(_LOGITS.why, neutral=()),  # an empty list would allow no token
    **dict.fromkeys(_GUIDED, _GRAMMAR),
    "structured_outputs": _GRAMMAR,
    **dict.fromkeys(("guideline", "tools", "functions", "tool_prompt"), Refusal()),
    "use_beam_search": Refusal(),
    "length_penalty": Refusal("there is no beam search", neutral=(1,)),
    "early_stopping": Refusal("there is no beam search"),
    "spaces_between_special_tokens": Refusal("no space is added between special tokens", neutral=(True, False)),
    "truncation_side": Refusal("the last tokens of the prompt are kept", neutral=("left",)),
    "prompt_logprobs": Refusal(neutral=()),
    "logprob_token_ids": Refusal(),
    "return_tokens_as_token_ids": Refusal(),
    "return_token_ids": Refusal(),
    "priority": Refusal("tenants share by their weights"),
    "request_id": Refusal("send the header `x-request-id`"),
    "cache_salt": Refusal("each tenant has a prefix cache of its own"),
    "lora_scale": Refusal("an adapter's scale is its own; `merged_adapters` weighs several"),
    "extra_body": Refusal("its fields stand at the top level of the body"),
    "extra_headers": Refusal("headers are no part of the body"),
    "watermarking": Refusal(),
}
_OF_OPENAI: Mapping[str, Refusal] = {**REFUSED, "watermark": Refusal(), "decoder_input_details": Refusal()}
_CHAT_REFUSED: Mapping[str, Refusal] = {
    **_OF_OPENAI,
    **dict.fromkeys(("audio", "prediction", "web_search_options", "moderation"), Refusal()),
    **dict.fromkeys(("chat_template_kwargs", "chat_template", "documents"), Refusal()),
    "verbosity": Refusal("the model has no setting of its length"),
    "echo": Refusal("a conversation has no text before the reply"),
    "add_special_tokens": Refusal("the chat template writes them"),
    **dict.fromkeys(("include_reasoning", "separate_reasoning"), Refusal(neutral=(True, False))),
    **dict.fromkeys(("thinking", "enable_thinking", "thinking_token_budget"), Refusal("there is no reasoning part")),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs"), Refusal("the model reads text alone")),
}

_ADAPTER_NAMES = (
    *("lora_path", "lora_adapter", "lora_adapters", "lora_request", "lora_id", "lora_int_id", "lora_name", "lora"),
    *("loras", "lora_local_path", "lora_modules", "adapter_name", "adapter", "adapters", "adapter_path", "adapter_ids"),
    *("adapter_model", "adapter_parameters", "active_adapter", "active_adapters", "peft_model", "peft_model_id"),
)
_NATIVE_ADAPTER = "name the adapter in `parameters.adapter_id`"
_OPENAI_ADAPTER = "name the adapter in `model` or `adapter_id`"
_BUDGETS = ("max_tokens", "max_completion_tokens", "max_length", "n_predict", "num_predict")
_SHARED_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("stop_sequences", "stop_sequence", "stop_strings", "stop_words"), "use `stop`"),
    **dict.fromkeys(("eos_token_id", "eos_token_ids", "stop_token_id"), "use `stop_token_ids`"),
    **dict.fromkeys(("repeat_penalty", "rep_pen"), "use `repetition_penalty`"),
    "typical": "use `typical_p`",
    "random_seed": "use `seed`",
}
_NATIVE_HINTS: Mapping[str, str] = {
    **_SHARED_HINTS,
    **dict.fromkeys(_ADAPTER_NAMES, _NATIVE_ADAPTER),
    **dict.fromkeys(_BUDGETS, "use `max_new_tokens`"),
    **dict.fromkeys(("truncate_prompt_tokens", "max_input_length"), "use `truncate`"),
    **dict.fromkeys(("top_n_tokens", "logprobs", "top_logprobs", "n_probs"), "use `return_k_alternatives`"),
    **dict.fromkeys(("n", "num_return_sequences"), "use `best_of`"),
    "model": _NATIVE_ADAPTER,
}
_OPENAI_HINTS: Mapping[str, str] = {
    **_SHARED_HINTS,
    **dict.fromkeys(_ADAPTER_NAMES, _OPENAI_ADAPTER),
    **dict.fromkeys(("max_new_tokens", "max_length", "n_predict", "num_predict"), "use `max_tokens`"),
    **dict.fromkeys(("truncate", "max_input_length"), "use `truncate_prompt_tokens`"),
    "do_sample": "`temperature` 0 is greedy, another one samples",
    "parameters": "its fields stand at the top level of the body",
    "num_return_sequences": "use `n`",
}
_AT_TOP = "the top level of the body"

NATIVE_PARAMETERS = Form(
    applied=PARAMETERS_APPLIED,
    refused={**REFUSED, "logit_bias": Refusal("POST /v1/completions has it")},
    hints=_NATIVE_HINTS,
    elsewhere={_AT_TOP: ("inputs", "stream")},
    adapter=_NATIVE_ADAPTER,
)
NATIVE_BODY = Form(
    applied={
        "inputs": {"type": "string"},
        "parameters": _of("object"),
        "stream": _of("boolean", "POST / obeys it; on the other two it must say what the route does."),
    },
    hints={**dict.fromkeys(_ADAPTER_NAMES, _NATIVE_ADAPTER), "prompt": "use `inputs`", "model": _NATIVE_ADAPTER},
    elsewhere={"`parameters`": {*PARAMETERS_APPLIED, *REFUSED, *_NATIVE_HINTS}},
    adapter=_NATIVE_ADAPTER,
)
COMPLETION_BODY = Form(
    applied=COMPLETION_APPLIED,
    unread=UNREAD,
    refused={**_OF_OPENAI, "suffix": Refusal(neutral=())},
    hints={
        **_OPENAI_HINTS,
        **dict.fromkeys(("inputs", "text", "input"), "use `prompt`"),
        "top_logprobs": "use `logprobs`",
        "max_completion_tokens": "use `max_tokens`",
    },
    elsewhere={
        f"the body of {CHAT}": {*CHAT_APPLIED, *_CHAT_REFUSED},
        f"the body of {GENERATE}": PARAMETERS_APPLIED,
        "`stream_options`": ("include_usage",),
    },
    adapter=_OPENAI_ADAPTER,
)
CHAT_BODY = Form(
    applied=CHAT_APPLIED,
    unread=UNREAD,
    refused=_CHAT_REFUSED,
    hints={**_OPENAI_HINTS, **dict.fromkeys(("inputs", "text", "input", "conversation"), "use `messages`")},
    elsewhere={
        f"the body of {COMPLETIONS}": {*COMPLETION_APPLIED, "suffix"},
        f"the body of {GENERATE}": PARAMETERS_APPLIED,
        "`stream_options`": ("include_usage",),
    },
    adapter=_OPENAI_ADAPTER,
)
_ANYWHERE = {_AT_TOP: {*CHAT_APPLIED, *COMPLETION_APPLIED, *UNREAD}}
STREAM_OPTIONS = Form(
    applied={"include_usage": _of("boolean", "Whether the last chunk tells the usage.")},
    refused={"include_obfuscation": Refusal("chunks are not padded"), "continuous_usage_stats": Refusal()},
    elsewhere=_ANYWHERE,
    adapter=_OPENAI_ADAPTER,
)
MESSAGE = Form(
    applied={"role": _of("string"), "content": {}, "name": _of("string", "The chat template may show it.")},
    refused={
        **dict.fromkeys(("refusal", "audio", "annotations", "reasoning_content", "reasoning"), Refusal()),
        **dict.fromkeys(("tool_calls", "tool_call_id", "function_call"), Refusal()),
        **dict.fromkeys(("prefix", "partial"), Refusal("use `continue_final_message`")),
    },
    hints={"text": "use `content`"},
    elsewhere=_ANYWHERE,
    adapter=f"{_OPENAI_ADAPTER} at {_AT_TOP}",
)
CONTENT_PART = Form(
    applied={"type": _of("string"), "text": _of("string")},
    unread=("prompt_cache_breakpoint", "cache_control"),
    refused={"annotations": Refusal()},
    elsewhere=_ANYWHERE,
)
MERGED_ADAPTERS = Form(
    applied={
        "ids": {"type": "array", "items": {"type": "string"}},
        "weights": {"type": "array", "items": {"type": "number"}},
        "merge_strategy": _of("string"),
        "density": _of("number", exclusiveMinimum=0, maximum=1),
        "majority_sign_method": _of("string"),
    },
    hints={
        **dict.fromkeys(("adapter_ids", "adapters", "names"), "use `ids`"),
        **dict.fromkeys(("strategy", "combination_type", "method"), "use `merge_strategy`"),
    },
    elsewhere={"the object that holds `merged_adapters`": {*PARAMETERS_APPLIED, *COMMON_APPLIED}},
)
RESPONSE_FORMAT = Form(
    applied={"type": _of("string")},
    refused=dict.fromkeys(("json_schema", "schema", "value"), Refusal(_GRAMMAR.why, neutral=NOTHING_ASKED)),
)
TOKENIZE_PARAMETERS = Form(applied=ADAPTER)
TOKENIZE_BODY = Form(
    applied={
        "inputs": {"type": "string"},
        "add_special_tokens": _of("boolean", "Default true."),
        **ADAPTER,
        "parameters": {"type": "object", "description": "Another place for the adapter's fields."},
    },
    hints=dict.fromkeys(("prompt", "text", "content", "input"), "use `inputs`"),
)
ADAPTER_ACTION = Form(applied={"action": {"type": "string"}, "api_token": _of("string")})
