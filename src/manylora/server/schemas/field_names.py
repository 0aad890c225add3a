"""The names of fields that this server accepts without an effect, refuses, or has under another name.

docs/request-fields.md documents them.
"""

from collections.abc import Mapping

from manylora.server.schemas.field_rules import Refusal

GENERATE, COMPLETIONS, CHAT = "POST /generate", "POST /v1/completions", "POST /v1/chat/completions"
EMBEDDINGS = "POST /v1/embeddings"

UNREAD = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    }
)
"""OpenAI's metadata and hints to caches, which change no token."""

_FORM = Refusal("`response_format` and `structured_outputs` give the text a form")
_FORMS = ("guided_options_request", "structural_tag", "grammar", "json_schema", "regex", "ebnf")
REFUSED: Mapping[str, Refusal] = {
    "no_repeat_ngram_size": Refusal("no rule forbids an n-gram to come again"),
    **dict.fromkeys(_FORMS, _FORM),
    "guided_decoding_backend": Refusal("there is one compiler of grammars", neutral=("auto", "guidance", "llguidance")),
    **dict.fromkeys(("guideline", "tools", "tool_prompt"), Refusal()),
    "functions": Refusal("use `tools` of POST /v1/chat/completions"),
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
    "lora_scale": Refusal("use `adapters`, which has a `weight` for each"),
    "extra_body": Refusal("its fields stand at the top level of the body"),
    "extra_headers": Refusal("headers are no part of the body"),
    "watermarking": Refusal(),
}
OPENAI_REFUSED: Mapping[str, Refusal] = {**REFUSED, "watermark": Refusal(), "decoder_input_details": Refusal()}
CHAT_REFUSED: Mapping[str, Refusal] = {
    **{name: refusal for name, refusal in OPENAI_REFUSED.items() if name not in ("tools", "functions")},
    **dict.fromkeys(("audio", "prediction", "web_search_options", "moderation"), Refusal()),
    **dict.fromkeys(("chat_template_kwargs", "chat_template", "documents"), Refusal()),
    "verbosity": Refusal("the model has no setting of its length"),
    "echo": Refusal("a conversation has no text before the reply"),
    "add_special_tokens": Refusal("the chat template writes them"),
    **dict.fromkeys(("include_reasoning", "separate_reasoning"), Refusal(neutral=(True, False))),
    **dict.fromkeys(("thinking", "enable_thinking", "thinking_token_budget"), Refusal("there is no reasoning part")),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs"), Refusal("the model reads text alone")),
}

ADAPTER_NAMES = (
    *("lora_path", "lora_adapter", "lora_adapters", "lora_request", "lora_id", "lora_int_id", "lora_name", "lora"),
    *("loras", "lora_local_path", "lora_modules", "adapter_name", "adapter", "adapter_path", "adapter_ids"),
    *("adapter_model", "adapter_parameters", "active_adapter", "active_adapters", "peft_model", "peft_model_id"),
)
NATIVE_ADAPTER = "name the adapter in `parameters.adapter_id`"
OPENAI_ADAPTER = "name the adapter in `model` or `adapter_id`"
_BUDGETS = ("max_tokens", "max_completion_tokens", "max_length", "n_predict", "num_predict")
_SHARED_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("stop_sequences", "stop_sequence", "stop_strings", "stop_words"), "use `stop`"),
    **dict.fromkeys(("eos_token_id", "eos_token_ids", "stop_token_id"), "use `stop_token_ids`"),
    **dict.fromkeys(("repeat_penalty", "rep_pen"), "use `repetition_penalty`"),
    "typical": "use `typical_p`",
    "random_seed": "use `seed`",
}
NATIVE_HINTS: Mapping[str, str] = {
    **_SHARED_HINTS,
    **dict.fromkeys(ADAPTER_NAMES, NATIVE_ADAPTER),
    **dict.fromkeys(_BUDGETS, "use `max_new_tokens`"),
    **dict.fromkeys(("truncate_prompt_tokens", "max_input_length"), "use `truncate`"),
    **dict.fromkeys(("top_n_tokens", "logprobs", "top_logprobs", "n_probs"), "use `return_k_alternatives`"),
    **dict.fromkeys(("n", "num_return_sequences"), "use `best_of`"),
    "model": NATIVE_ADAPTER,
}
OPENAI_HINTS: Mapping[str, str] = {
    **_SHARED_HINTS,
    **dict.fromkeys(ADAPTER_NAMES, OPENAI_ADAPTER),
    **dict.fromkeys(("max_new_tokens", "max_length", "n_predict", "num_predict"), "use `max_tokens`"),
    **dict.fromkeys(("truncate", "max_input_length"), "use `truncate_prompt_tokens`"),
    "do_sample": "`temperature` 0 is greedy, another one samples",
    "parameters": "its fields stand at the top level of the body",
    "num_return_sequences": "use `n`",
}
AT_TOP = "the top level of the body"
