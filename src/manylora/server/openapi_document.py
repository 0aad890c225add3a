"""Our own OpenAPI document: the routes, their bodies and the two error shapes."""

from collections.abc import Mapping

from manylora.adapter_state import AdapterAction, AdapterState

Schema = dict[str, object]

NATIVE_ERROR: Schema = {
    "type": "object",
    "required": ["error", "error_type", "code"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}, "code": {"type": "string"}},
}
OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
NUMBERS = {
    "number": ("temperature", "top_p", "typical_p", "min_p", "repetition_penalty"),
    "integer": ("top_k", "seed"),
}
_STOP: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


def openapi_document(version: str) -> Schema:
    """The document of `/api-doc/openapi.json`."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "manylora", "version": version},
        "paths": {
            "/": _post("Generate; `stream` decides how", _native_body(has_stream=True), native=True),
            "/generate": _post("Generate", _native_body(), native=True),
            "/generate_stream": _post("Generate, one server-sent event a token", _native_body(), native=True),
            "/tokenize": _post("Tokenise", _object({"inputs": {"type": "string"}}, "inputs"), native=True),
            "/v1/completions": _post("Complete a prompt", _completion_body(), native=False),
            "/v1/chat/completions": _post("Answer a conversation", _chat_body(), native=False),
            "/v1/models": _get("The base model and its adapters"),
            "/v1/models/{model_id}": _get("One model", parameter="model_id"),
            "/v1/adapters": {"get": _list_adapters()},
            "/v1/adapters/{adapter_id}": {
                "get": _operation("How one adapter stands", "adapter_id", ("source",), _adapter()),
                "post": _operation("Preload, pin, unpin, evict or verify", "adapter_id", ("source", "wait"), _adapter())
                | {"requestBody": _json(_action_body())},
                "delete": _operation("Take an adapter away", "adapter_id", ("source", "wait"), _adapter()),
            },
            "/info": _get("What is served, and its limits"),
            "/health": _get("Whether the engine makes progress"),
            "/startup": _get("Whether a first generation has succeeded"),
            "/ready": _get("Whether a request that comes now is served"),
            "/metrics": _get("Prometheus text, or JSON with `?format=json`"),
        },
    }


def _object(properties: Mapping[str, object], *required: str) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _nullable(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _sampling() -> Schema:
    fields: Schema = {name: _nullable(kind) for kind, names in NUMBERS.items() for name in names}
    penalties = {name: _nullable("number") for name in ("frequency_penalty", "presence_penalty")}
    return {**fields, **penalties, "stop": _STOP, "ignore_eos_token": _nullable("boolean")}


def _native_body(*, has_stream: bool = False) -> Schema:
    texts = {name: _nullable("string") for name in ("adapter_id", "adapter_source", "api_token")}
    flags = ("do_sample", "return_full_text", "details", "apply_chat_template")
    counts = ("max_new_tokens", "best_of", "truncate", "return_k_alternatives")
    parameters = {
        **texts,
        "merged_adapters": {"type": ["object", "null"]},
        **{name: _nullable("integer") for name in counts},
        **{name: _nullable("boolean") for name in flags},
        **_sampling(),
    }
    stream: Schema = {"stream": _nullable("boolean")} if has_stream else {}
    return _object({"inputs": {"type": "string"}, "parameters": _object(parameters), **stream}, "inputs")


def _openai_common() -> Schema:
    return {
        **{name: _nullable("string") for name in ("model", "adapter_id", "adapter_source", "api_token", "user")},
        "merged_adapters": {"type": ["object", "null"]},
        **{name: _nullable("integer") for name in ("max_tokens", "n")},
        "stream": _nullable("boolean"),
        "stream_options": {"type": ["object", "null"]},
        "logit_bias": {"type": ["object", "null"]},
        **_sampling(),
    }


def _completion_body() -> Schema:
    extra = {"prompt": {}, "logprobs": _nullable("integer"), "echo": _nullable("boolean")}
    return _object({**_openai_common(), **extra, "best_of": _nullable("integer")}, "prompt")


def _chat_body() -> Schema:
    extra = {
        "messages": {"type": "array", "items": {"type": "object"}},
        "max_completion_tokens": _nullable("integer"),
        "logprobs": _nullable("boolean"),
        "top_logprobs": _nullable("integer"),
    }
    return _object({**_openai_common(), **extra}, "messages")


def _adapter() -> Schema:
    """`AdapterInfo` of adapter_state.py."""
    texts = {name: {"type": "string"} for name in ("id", "source", "digest", "error")}
    counts = {name: {"type": "integer"} for name in ("rank", "num_bytes", "pins", "hits")}
    fields = {
        **texts,
        **counts,
        "state": {"type": "string", "enum": list(AdapterState)},
        "is_pinned": {"type": "boolean"},
        "is_deleted": {"type": "boolean"},
        "is_verified": _nullable("boolean"),
        "last_use_s": _nullable("number"),
        "stage_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    return _object(fields, *fields)


def _action_body() -> Schema:
    actions = [action for action in AdapterAction if action is not AdapterAction.DELETE]
    return _object({"action": {"type": "string", "enum": actions}, "api_token": _nullable("string")}, "action")


def _list_adapters() -> Schema:
    page = _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _adapter()},
            "has_more": {"type": "boolean"},
            "after": _nullable("string"),
        },
        *("object", "data", "has_more", "after"),
    )
    return _operation("The adapters the engine knows", None, ("prefix", "state", "source", "limit", "after"), page)


def _operation(summary: str, path_name: str | None, query_names: tuple[str, ...], answer: Schema) -> Schema:
    """An operators' route: its parameters are strings, its answer is JSON, its errors are OpenAI's."""
    places = ([(path_name, "path")] if path_name else []) + [(name, "query") for name in query_names]
    failure = {"description": "A failure", "content": {"application/json": {"schema": OPENAI_ERROR}}}
    good = {"description": "How it stands now", "content": {"application/json": {"schema": answer}}}
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
            for name, place in places
        ],
        "responses": {"200": good, **({"202": good} if "wait" in query_names else {}), "default": failure},
    }


def _json(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _post(summary: str, body: Schema, *, native: bool) -> Schema:
    error = NATIVE_ERROR if native else OPENAI_ERROR
    return {
        "post": {
            "summary": summary,
            "requestBody": _json(body),
            "responses": {
                "200": {"description": "The answer; JSON, or an event stream"},
                "default": {"description": "A failure", "content": {"application/json": {"schema": error}}},
            },
        }
    }


def _get(summary: str, *, parameter: str | None = None) -> Schema:
    body: Schema = {"summary": summary, "responses": {"200": {"description": "The answer"}}}
    if parameter is not None:
        body["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    return {"get": body}
