"""An example of a request and of its reply for each inference route, for the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]  # JSON values of several types


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One request and its reply.

    reply  the JSON of the reply; None: the route streams alone
    event  the JSON of the last event of a stream that is no usage; None: the example shows no stream
    """

    request: Json
    reply: object = None
    event: Json | None = None


_ID, _CREATED = "0123456789abcdef0123456789abcdef", 1790000000
_USAGE: Json = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_GENERATE: Json = {
    "inputs": "Where is my parcel?",
    "parameters": {"adapter_id": "triage", "max_new_tokens": 32, "details": True},
}
_DETAILS: Json = {
    "finish_reason": "eos_token",
    "prompt_tokens": 6,
    "generated_tokens": 2,
    "skipped_tokens": 0,
    "seed": None,
}
_TOKEN: Json = {"id": 2132, "text": "shipping", "logprob": -0.12, "special": False, "skipped": False}
_GENERATED: Json = {"generated_text": "shipping", "details": {**_DETAILS, "prefill": [], "tokens": [_TOKEN]}}
_LAST_EVENT: Json = {
    "token": {"id": 2, "text": "", "logprob": -0.01, "special": True, "skipped": False},
    "generated_text": "shipping",
    "details": _DETAILS,
    "usage": {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8},
    "timings": {
        "queue_ms": 0.4,
        "adapter_load_ms": 0.0,
        "time_to_first_token_ms": 21.5,
        "inference_ms": 30.2,
        "total_ms": 31.0,
    },
}
_FINGERPRINT = "manylora-0123456789ab"
_ENVELOPE: Json = {"created": _CREATED, "model": "triage", "system_fingerprint": _FINGERPRINT}
_MESSAGE: Json = {
    "id": f"msg_{_ID}",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "shipping", "annotations": [], "logprobs": []}],
}
_RESPONSE: Json = {
    "id": f"resp_{_ID}",
    "object": "response",
    "created_at": _CREATED,
    "status": "completed",
    "background": False,
    "conversation": None,
    "error": None,
    "incomplete_details": None,
    "instructions": "Answer with one word.",
    "max_output_tokens": 32,
    "max_tool_calls": None,
    "metadata": {},
    "model": "triage",
    "output": [_MESSAGE],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    },
}
_ENTITY: Json = {"entity_group": "LABEL_1", "score": 0.98, "word": "Ada", "start": 0, "end": 3}

EXAMPLES: Mapping[str, Example] = {
    "POST /": Example(request=_GENERATE, reply=[_GENERATED], event=_LAST_EVENT),
    "POST /invocations": Example(request=_GENERATE, reply=[_GENERATED], event=_LAST_EVENT),
    "POST /generate": Example(request=_GENERATE, reply=_GENERATED),
    "POST /generate_stream": Example(request=_GENERATE, event=_LAST_EVENT),
    "POST /v1/completions": Example(
        request={"model": "triage", "prompt": "Where is my parcel?", "max_tokens": 16},
        reply={
            "id": f"cmpl-{_ID}",
            "object": "text_completion",
            **_ENVELOPE,
            "choices": [{"index": 0, "text": "shipping", "logprobs": None, "finish_reason": "stop"}],
            "usage": _USAGE,
        },
        event={
            "id": f"cmpl-{_ID}",
            "object": "text_completion",
            **_ENVELOPE,
            "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
        },
    ),
    "POST /v1/chat/completions": Example(
        request={
            "model": "triage",
            "messages": [
                {"role": "system", "content": "Answer with one word."},
                {"role": "user", "content": "Where is my parcel?"},
            ],
            "max_completion_tokens": 32,
        },
        reply={
            "id": f"chatcmpl-{_ID}",
            "object": "chat.completion",
            **_ENVELOPE,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "shipping", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
        },
        event={
            "id": f"chatcmpl-{_ID}",
            "object": "chat.completion.chunk",
            **_ENVELOPE,
            "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        },
    ),
    "POST /v1/responses": Example(
        request={
            "model": "triage",
            "instructions": "Answer with one word.",
            "input": "Where is my parcel?",
            "max_output_tokens": 32,
        },
        reply=_RESPONSE,
        event={"type": "response.completed", "response": _RESPONSE, "sequence_number": 9},
    ),
    "POST /v1/embeddings": Example(
        request={"model": "triage", "input": ["Where is my parcel?", "I want my money back."]},
        reply={
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, 0.5, -0.5, 0.5]},
                {"object": "embedding", "index": 1, "embedding": [0.1, -0.7, 0.7, 0.1]},
            ],
            "model": "triage",
            "usage": {"prompt_tokens": 12, "total_tokens": 12},
        },
    ),
    "POST /embed": Example(
        request={"inputs": "Where is my parcel?", "parameters": {"adapter_id": "triage"}},
        reply={"embeddings": [0.5, 0.5, -0.5, 0.5]},
    ),
    "POST /classify": Example(
        request={"input": "Where is my parcel?", "model": "triage"},
        reply={
            "id": f"classify-{_ID}",
            "object": "list",
            "created": _CREATED,
            "model": "triage",
            "data": [{"index": 0, "label": "LABEL_2", "probs": [0.1, 0.2, 0.7], "num_classes": 3}],
        },
    ),
    "POST /classify_batch": Example(
        request={"inputs": ["Ada lives here.", "She met Grace."], "parameters": {"adapter_id": "triage"}},
        reply=[[_ENTITY], [{**_ENTITY, "word": "Grace", "start": 8, "end": 13}]],
    ),
    "POST /tokenize": Example(
        request={"inputs": "Where is", "add_special_tokens": False},
        reply=[{"id": 9, "text": "Where", "start": 0, "stop": 5}, {"id": 10, "text": "Ġis", "start": 5, "stop": 8}],
    ),
}
"""The examples by route. `tests/server/app/test_examples.py` sends each."""
