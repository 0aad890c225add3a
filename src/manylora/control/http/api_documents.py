"""The OpenAPI document of the control plane, reduced to the routes that a caller may use."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from manylora.http.error_bodies import NativeError, OpenAIError
from manylora.http.paths import CONTROL_ROUTES, PATHS, Dialect, Route, Trait
from manylora.http.scopes import told_of

Json = dict[str, Any]  # JSON values of several types

_SENTENCE = re.compile(r"(.+?)[.;](?=\s|$)", re.DOTALL)
_FRAMEWORKS_OWN = "422"
_ERROR_SCHEMAS, _definitions = TypeAdapter.json_schemas(
    [
        (is_openais, "serialization", TypeAdapter(kind))
        for is_openais, kind in ((False, NativeError), (True, OpenAIError))
    ],
    ref_template="#/components/schemas/{model}",
)
_ERRORS = {is_openais: schema for (is_openais, _), schema in _ERROR_SCHEMAS.items()}
_ERROR_PARTS: Json = _definitions.get("$defs", {})
_REFERENCE = re.compile(r"#/components/schemas/(\w+)")


def document_for(whole: Json, *, is_operator: bool) -> Json:
    """Return the routes of an OpenAPI document that a caller may use, each with a summary and its scopes."""
    shown = CONTROL_ROUTES.documented(is_operator=is_operator)
    paths: Json = {}
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            if (route := shown.get((path, method))) is not None:
                paths.setdefault(path, {})[method] = _described(operation, route)
    paths |= {"/openapi.json": {"get": _own_operation()}}
    schemas = {**whole.get("components", {}).get("schemas", {}), **_ERROR_PARTS}
    used = set(_named(paths, schemas))
    components = {"schemas": {name: schema for name, schema in schemas.items() if name in used}}
    return {**whole, "paths": paths, "components": components}


def _described(operation: Json, route: Route) -> Json:
    """Return an operation whose summary is its docstring's first sentence, or its own where it has no docstring.

    It replies to failures in the dialect of its path, which the framework does not know.
    """
    text = str(operation.get("description", ""))
    first = _SENTENCE.match(text)
    summary = " ".join((first[1] if first else text).split()) or operation["summary"]
    is_openais = PATHS.dialect_of(route.path) is Dialect.OPENAI or Trait.ZIP in route.traits
    failure = {"description": "A failure", "content": {"application/json": {"schema": _ERRORS[is_openais]}}}
    responses = {status: reply for status, reply in operation["responses"].items() if status != _FRAMEWORKS_OWN}
    return {
        **operation,
        "summary": summary,
        "description": f"{text}\n\n{told_of(route.scopes)}".strip(),
        "responses": {**responses, "default": failure},
    }


def _own_operation() -> Json:
    good = {"description": "An OpenAPI document", "content": {"application/json": {"schema": {"type": "object"}}}}
    summary = "Show this document: the routes that you may use"
    return {"summary": summary, "description": told_of(()), "responses": {"200": good}}


def _named(found: object, schemas: Json) -> Iterator[str]:
    """Yield the names of the schemas that a part of a document refers to, directly or through other schemas."""
    waiting, seen = [str(found)], set[str]()
    while waiting:
        for name in set(_REFERENCE.findall(waiting.pop())) - seen:
            seen.add(name)
            waiting.append(str(schemas.get(name, "")))
            yield name
