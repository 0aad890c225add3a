"""The OpenAPI document of the control plane, reduced to the routes that a caller may use."""

import re
from collections.abc import Iterator
from typing import Any

from manylora.http.paths import CONTROL_ROUTES
from manylora.http.scopes import told_of

Json = dict[str, Any]  # JSON values of several types

_SENTENCE = re.compile(r"(.+?)[.;](?=\s|$)", re.DOTALL)
_REFERENCE = re.compile(r"#/components/schemas/(\w+)")


def document_for(whole: Json, *, is_operator: bool) -> Json:
    """Return the routes of an OpenAPI document that a caller may use, each with a summary and its scopes."""
    shown = CONTROL_ROUTES.documented(is_operator=is_operator)
    paths: Json = {}
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            if (route := shown.get((path, method))) is not None:
                paths.setdefault(path, {})[method] = _described(operation, told_of(route.scopes))
    paths |= {"/openapi.json": {"get": _own_operation()}}
    schemas = whole.get("components", {}).get("schemas", {})
    used = set(_named(paths, schemas))
    components = {"schemas": {name: schema for name, schema in schemas.items() if name in used}}
    return {**whole, "paths": paths, "components": components}


def _described(operation: Json, scopes: str) -> Json:
    """Return an operation whose summary is its docstring's first sentence, or its own where it has no docstring."""
    text = str(operation.get("description", ""))
    first = _SENTENCE.match(text)
    summary = " ".join((first[1] if first else text).split()) or operation["summary"]
    return {**operation, "summary": summary, "description": f"{text}\n\n{scopes}".strip()}


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
