"""The fields of OpenAI's requests, as openai 3.54.0 declares them, each with a value and what this server does with it.

`tests/server/routes/test_openai_fields.py` sends each; a case of `openai_tools.py` compares the names with the types
of the package.
"""

from typing import Any, Literal

Outcome = Literal["applied", "unread", "refused"]
Fields = dict[str, tuple[Any, Outcome]]

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT: Fields = {
    "audio": ({"format": "wav", "voice": "x"}, "refused"),
    "frequency_penalty": (0.5, "applied"),
    "function_call": ("auto", "applied"),
    "functions": ([{"name": "f"}], "applied"),
    "logit_bias": ({"65": 1}, "applied"),
    "logprobs": (True, "applied"),
    "max_completion_tokens": (2, "applied"),
    "max_tokens": (2, "applied"),
    "messages": ([{"role": "user", "content": "Hi"}], "applied"),
    "metadata": ({"a": "b"}, "unread"),
    "modalities": (["text"], "applied"),
    "model": ("tiny", "applied"),
    "moderation": ({"model": "x"}, "refused"),
    "n": (2, "applied"),
    "parallel_tool_calls": (False, "applied"),
    "prediction": ({"type": "content", "content": "x"}, "refused"),
    "presence_penalty": (0.5, "applied"),
    "prompt_cache_key": ("k", "unread"),
    "prompt_cache_options": ({"mode": "x"}, "unread"),
    "prompt_cache_retention": ("24h", "unread"),
    "reasoning_effort": ("none", "applied"),
    "response_format": ({"type": "json_object"}, "applied"),
    "safety_identifier": ("s", "unread"),
    "seed": (1, "applied"),
    "service_tier": ("auto", "applied"),
    "stop": ("x", "applied"),
    "store": (True, "unread"),
    "stream": (True, "applied"),
    "stream_options": ({"include_usage": True}, "applied"),
    "temperature": (0, "applied"),
    "tool_choice": ("auto", "applied"),
    "tools": ([TOOL], "applied"),
    "top_logprobs": (0, "applied"),
    "top_p": (0.5, "applied"),
    "user": ("u", "unread"),
    "verbosity": ("low", "refused"),
    "web_search_options": ({"search_context_size": "low"}, "refused"),
}
COMPLETION: Fields = {
    "best_of": (1, "applied"),
    "echo": (True, "applied"),
    "frequency_penalty": (0.5, "applied"),
    "logit_bias": ({"65": 1}, "applied"),
    "logprobs": (1, "applied"),
    "max_tokens": (2, "applied"),
    "model": ("tiny", "applied"),
    "n": (1, "applied"),
    "presence_penalty": (0.5, "applied"),
    "prompt": ("Hi", "applied"),
    "seed": (1, "applied"),
    "stop": (["x"], "applied"),
    "stream": (True, "applied"),
    "stream_options": ({"include_usage": True}, "applied"),
    "suffix": ("x", "refused"),
    "temperature": (0, "applied"),
    "top_p": (0.5, "applied"),
    "user": ("u", "unread"),
}
STREAM_OPTIONS: Fields = {"include_obfuscation": (True, "refused"), "include_usage": (True, "applied")}
MESSAGE_FIELDS = {
    "assistant": {"audio", "content", "function_call", "name", "refusal", "role", "tool_calls"},
    "developer": {"content", "name", "role"},
    "system": {"content", "name", "role"},
    "tool": {"content", "role", "tool_call_id"},
    "user": {"content", "name", "role"},
}
FUNCTION_FIELDS = {"description", "name", "parameters", "strict"}
