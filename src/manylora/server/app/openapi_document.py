"""The OpenAPI document of the server's routes, from the routers and their models."""

from collections.abc import Iterable
from typing import Any, Literal

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from manylora.http.error_bodies import NativeError, OpenAIError
from manylora.http.paths import PATHS, Dialect
from manylora.server.http.routing import Endpoint, OtherReply, Parameter, RouteOperation
from manylora.server.schemas.body import Body
from manylora.server.schemas.examples import EXAMPLES, Example

Json = dict[str, Any]  # JSON values of several types
EVENTS = "events"
"""The key, beside the statuses, of the schema of a stream's events."""
FORM = "form"
"""The place of a parameter that is a field of a form."""
_MODE: Literal["serialization"] = "serialization"


def openapi_document(routes: Iterable[BaseRoute], *, title: str, version: str) -> Json:
    """Return the document of all routes, including those of operators.

    Each use of a schema has its full text instead of a reference, so that the HTML page shows the fields.
    """
    operations = {(route.path_format, method): each for route, method, each in _operations(routes)}
    typed = {(*key, status): kind for key, each in operations.items() for status, kind in _typed(key[0], each).items()}
    schemas, definitions = TypeAdapter.json_schemas([(key, _MODE, TypeAdapter(kind)) for key, kind in typed.items()])
    paths: dict[str, Json] = {}
    for (path, method), operation in operations.items():
        found = {str(key[2]): schemas[key, _MODE] for key in typed if key[:2] == (path, method)}
        shown = {status: _written_out(schema, definitions["$defs"]) for status, schema in found.items()}
        paths.setdefault(path, {})[method] = _shown(operation, shown)
        if (example := EXAMPLES.get(f"{method.upper()} {path}")) is not None:
            _add_example(paths[path][method], example)
    return {"openapi": "3.1.0", "info": {"title": title, "version": version}, "paths": paths}


def _operations(routes: Iterable[BaseRoute]) -> Iterable[tuple[APIRoute, str, RouteOperation]]:
    for route in routes:
        if isinstance(route, APIRoute) and isinstance(route.endpoint, Endpoint):
            (method,) = (route.methods or set()) - {"HEAD"}
            yield route, method.lower(), route.endpoint.operation


def _typed(path: str, operation: RouteOperation) -> dict[int | str, Any]:
    """Return the types of JSON replies by status. The dialect of the path decides the type of errors."""
    error = OpenAIError if PATHS.dialect_of(path) is Dialect.OPENAI else NativeError
    return {
        **{status: reply for status, reply in operation.replies.items() if not isinstance(reply, OtherReply)},
        **({} if operation.events is None else {EVENTS: operation.events}),
        "default": error,
    }


def _shown(operation: RouteOperation, schemas: Json) -> Json:
    replies: Json = {
        str(status): {"description": reply.description, "content": {kind: {} for kind in reply.kinds}}
        for status, reply in operation.replies.items()
        if isinstance(reply, OtherReply)
    }
    events = schemas.pop(EVENTS, None)
    for status, schema in schemas.items():
        description = "A failure" if status == "default" else "The reply"
        replies[status] = {"description": description, "content": {"application/json": {"schema": schema}}}
    if events is not None:
        good = replies.setdefault("200", {"description": "A stream of events", "content": {}})
        good["content"]["text/event-stream"] = {"schema": events}
    shown: Json = {"summary": operation.summary, "responses": replies}
    if stated := [each for each in operation.parameters if each.place != FORM]:
        shown["parameters"] = [_parameter(each) for each in stated]
    if fields := {each.name: _field(each) for each in operation.parameters if each.place == FORM}:
        shown["requestBody"] = {
            "content": {"multipart/form-data": {"schema": {"type": "object", "properties": fields}}}
        }
    if operation.body is not None:
        kind = operation.body if isinstance(operation.body, str) else "application/json"
        schema = (
            {"type": "string", "format": "binary"} if isinstance(operation.body, str) else _schema_of(operation.body)
        )
        content = {kind: {"schema": schema}}
        shown["requestBody"] = {"required": True, "content": content}
    return shown


def _add_example(operation: Json, example: Example) -> None:
    """Add the example of a route to its description."""
    operation["requestBody"]["content"]["application/json"]["example"] = example.request
    replies = operation["responses"]["200"]["content"]
    for kind, shown in (("application/json", example.reply), ("text/event-stream", example.event)):
        if shown is not None:
            replies[kind]["example"] = shown


def _field(parameter: Parameter) -> Json:
    return {"type": "string", "description": parameter.description}


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "schema": {"type": "string"},
        "description": parameter.description,
    }


def _schema_of(model: type[Body]) -> Json:
    """Return the schema of a body with the full text of all schemas in it."""
    schema = model.model_json_schema()
    written: Json = _written_out(schema, schema.pop("$defs", {}))
    return written


def _written_out(part: Any, definitions: Json) -> Any:
    if isinstance(part, list):
        return [_written_out(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _written_out(definitions[str(part["$ref"]).rpartition("/")[2]], definitions)
    return {name: _written_out(value, definitions) for name, value in part.items()}
