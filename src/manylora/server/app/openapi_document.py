"""Our own OpenAPI document: the routes, their bodies and the two error shapes."""

from collections.abc import Mapping

from manylora.adapter_state import AdapterState
from manylora.server.schemas.adapters import AdapterActionBody
from manylora.server.schemas.body import Body
from manylora.server.schemas.lorax import GenerateBody, TokenizeBody
from manylora.server.schemas.openai import ChatBody, CompletionBody

Schema = dict[str, object]
EMBEDDINGS, CLASSES = ("/v1/embeddings", "/embed"), ("/classify", "/classify_batch")

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

ADAPTER_QUERY = ("source", "tenant", "wait")


def openapi_document(version: str) -> Schema:
    """The server's own routes, those of operators included; `documents.py` shows each caller its own."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "manylora", "version": version},
        "paths": {
            "/": _get("Whether the engine makes progress")
            | _post("Generate a text; `stream` decides how", _body(GenerateBody), native=True),
            "/invocations": _post("Generate a text, as the root path does", _body(GenerateBody), native=True),
            "/generate": _post("Generate a text", _body(GenerateBody), native=True),
            "/generate_stream": _post(
                "Generate a text, one server-sent event a token", _body(GenerateBody), native=True
            ),
            "/tokenize": _post(
                "Split a text into tokens, as an adapter does where one is named",
                _body(TokenizeBody),
                native=True,
            ),
            "/v1/completions": _post("Complete a prompt", _body(CompletionBody), native=False),
            "/v1/chat/completions": _post("Answer a conversation", _body(ChatBody), native=False),
            **{path: _refused("Embeddings: refused, since the base generates text only") for path in EMBEDDINGS},
            **{path: _refused("Classes of a text: refused, since the base has no classifier") for path in CLASSES},
            "/v1/models": _get("The base model and its adapters"),
            "/v1/models/{model_id}": _get("One model", parameter="model_id"),
            "/v1/adapters": {"get": _list_adapters()},
            "/v1/adapters/{adapter_id}": {
                "get": _operation("How one adapter stands", "adapter_id", ("source", "tenant"), _adapter()),
                "post": _operation("Preload, pin, unpin, evict or verify", "adapter_id", ADAPTER_QUERY, _adapter())
                | {"requestBody": _json(_body(AdapterActionBody))},
                "delete": _operation("Take an adapter away", "adapter_id", ADAPTER_QUERY, _adapter()),
            },
            "/info": _get("What is served, and its limits"),
            "/health": _get("Whether the engine makes progress"),
            "/ping": _get("Whether the engine makes progress, under another name"),
            "/startup": _get("Whether a first generation has succeeded"),
            "/ready": _get("Whether a request that comes now is served"),
            "/metrics": _get("Prometheus text, or JSON with `?format=json`"),
            "/docs": _get("This document as a page"),
            "/openapi.json": _get("This document: the routes that you may use"),
            "/api-doc/openapi.json": _get("This document, under the path of LoRAX"),
        },
    }


def _object(properties: Mapping[str, object], *required: str) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _nullable(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _body(model: type[Body]) -> Schema:
    """The schema of a body, with the schemas that it names written out."""
    schema = model.model_json_schema()
    return _written_out(schema, schema.pop("$defs", {}))  # type: ignore[return-value]  # a schema is an object


def _written_out(part: object, definitions: dict[str, object]) -> object:
    if isinstance(part, list):
        return [_written_out(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _written_out(definitions[str(part["$ref"]).rpartition("/")[2]], definitions)
    return {name: _written_out(value, definitions) for name, value in part.items()}


def _adapter() -> Schema:
    """`AdapterInfo` of adapter_state.py."""
    texts = {name: {"type": "string"} for name in ("id", "source", "tenant", "digest", "error")}
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
        "report": _nullable("object"),
    }
    return _object(fields, *fields)


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
    query = ("prefix", "state", "source", "tenant", "limit", "after")
    return _operation("The adapters the engine knows", None, query, page)


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


def _refused(summary: str) -> Schema:
    error = {"description": "A failure", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"post": {"summary": summary, "responses": {"default": error}}}


def _get(summary: str, *, parameter: str | None = None) -> Schema:
    body: Schema = {"summary": summary, "responses": {"200": {"description": "The answer"}}}
    if parameter is not None:
        body["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    return {"get": body}
