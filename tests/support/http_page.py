"""`docs/http.md`, from the OpenAPI documents of both applications: `python -m tests.support.http_page`."""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI

from manylora import __version__
from manylora.control.app.application import ROUTERS
from manylora.control.http.api_documents import document_for
from manylora.http.api_page import METHODS
from manylora.http.paths import CONTROL_ROUTES, SERVER_ROUTES, RouteTable
from tests.server.conftest import open_house
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "http.md"
HEAD = """\
# HTTP routes

Every route of the server and of the control plane, with its fields and replies. One server answers all of them; a
control plane of its own answers those of the second part, and a server passes them on.

- A route below `/{tenant}/deployments/v2/llms/{name}` is the route in its end, for that deployment.
- Routes that begin with `/v2`, `/llms`, `/supported_llms` or `/users` exist below `/v1` as well.
- A field that is null counts as absent. An unknown field is refused by its name. [Fields of a
  request](request-fields.md) has the effect of each field of an inference body.
- The table of [each route's scope](keys-and-limits.md#each-routes-scope) has the keys that open a route.
- A failure has the status and the code of its row in [errors](errors.md), as `{"error": {"message", "type", "param",
  "code"}}` below `/v1` and as `{"error", "error_type", "code"}` elsewhere.
- *(stream)* marks the JSON of each event, `data: …`, of a stream.
- *object* alone is a reply whose fields the documents leave open: the shapes of Predibase's clients, of which [adapter
  uploads](registry.md) and [the control plane](control-plane.md) show examples.

`make pages` writes this page from the OpenAPI documents that `GET /openapi.json` answers.
"""
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches `{}`",
}
_KINDS = {"string": "text", "boolean": "`true` or `false`"}
_UNREAD = "Accepted and not read."
_NO_TEXTS = ("The reply", "A stream of events", "Successful Response", None)

Json = dict[str, Any]  # JSON values of several types
Row = tuple[str, str, str]
"""Name, type with limits, and meaning of a field."""


def http_page() -> str:
    """Return the page: a part for each application, a section for each route."""
    parts = [
        HEAD,
        "## The server\n",
        *_sections(asyncio.run(_server_document()), SERVER_ROUTES),
        "## The control plane\n",
        *_sections(_control_document(), CONTROL_ROUTES),
    ]
    return "\n".join(parts)


async def _server_document() -> Json:
    with TemporaryDirectory() as folder:
        async with open_house(Path(folder)) as house:
            document: Json = (await house.client.get("/openapi.json")).json()
            return document


def _control_document() -> Json:
    app = FastAPI(title="control plane", version=__version__)
    for router in ROUTERS:
        app.router.routes.extend(router.routes)
    return document_for(app.openapi(), is_operator=True)


def _sections(document: Json, table: RouteTable) -> Iterator[str]:
    """Yield the section of each route in the table's order."""
    paths = _written_out(document["paths"], document.get("components", {}).get("schemas", {}))
    objects = _Objects()
    for path, method in table.documented(is_operator=True):
        operation = paths.get(path, {}).get(method)
        if operation is not None and method in METHODS and not (path.startswith("/v1/") and path[3:] in paths):
            yield "\n".join(_section(f"{method.upper()} {path}", operation, objects))


def _written_out(part: Any, schemas: Json) -> Any:
    """Return a part of a document with the schemas in the place of references to them."""
    if isinstance(part, list):
        return [_written_out(item, schemas) for item in part]
    if not isinstance(part, dict):
        return part
    referred = {} if "$ref" not in part else schemas[part["$ref"].rpartition("/")[2]]
    own = {name: value for name, value in part.items() if name != "$ref"}
    return {name: _written_out(value, schemas) for name, value in {**referred, **own}.items()}


def _section(name: str, operation: Json, objects: "_Objects") -> Iterator[str]:
    yield f"### `{name}`\n"
    yield f"{operation['summary'].rstrip('.')}. {_told(operation.get('description', ''))}\n"
    if parameters := operation.get("parameters"):
        rows = [
            (each["name"], f"in the {each['in']}, {_kind(each['schema'])}", each.get("description", ""))
            for each in parameters
        ]
        yield from _table("parameter", rows)
    for body in operation.get("requestBody", {}).get("content", {}).values():
        yield from objects.body(name, body["schema"])
        yield from _example("Example", body)
    for status, reply in operation["responses"].items():
        if status in ("default", "422"):
            continue
        text = "" if reply.get("description") in _NO_TEXTS else reply.get("description", "").rstrip(".")
        for media, each in (reply.get("content") or {"": {}}).items():
            title = f"Reply {status}{' *(stream)*' if media == 'text/event-stream' else ''}"
            yield from objects.reply(name, title, each.get("schema", {}), text)
            yield from _example("Example, the last event" if media == "text/event-stream" else "Example", each)


def _example(title: str, media: Json) -> Iterator[str]:
    """Yield an example of a body or of a reply, if the document has one."""
    if "example" in media:
        yield f"{title}:\n\n```json\n{json.dumps(media['example'], indent=1, ensure_ascii=False)}\n```\n"


class _Objects:
    """The objects of one application: each is shown once, and named by its route after that."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def body(self, route: str, schema: Json) -> Iterator[str]:
        yield from self._object("Body", f"the body of `{route}`", schema, list(_rows(schema, is_body=True)))

    def reply(self, route: str, title: str, schema: Json, text: str) -> Iterator[str]:
        items = schema["items"] if schema.get("type") == "array" else schema
        if rows := list(_rows(items, is_body=False)):
            yield from self._object(title, f"the reply of `{route}`", schema, rows)
        else:
            without = "no body" if title.endswith("204") else "a file, or JSON"
            yield f"**{title}**: {text or (_kind(schema) if schema else without)}.\n"

    def _object(self, title: str, name: str, schema: Json, rows: list[Row]) -> Iterator[str]:
        is_list, key = schema.get("type") == "array", json.dumps(rows)
        if key in self._shown:
            yield f"**{title}**: {'a list of objects, each ' if is_list else ''}as {self._shown[key]}.\n"
            return
        self._shown[key] = name
        yield f"**{title}**{', a list of objects' if is_list else ''}:\n"
        unread = [field for field, _, meaning in rows if meaning == _UNREAD]
        yield from _table("field", [row for row in rows if row[2] != _UNREAD])
        if unread:
            yield f"Accepted and not read: {', '.join(f'`{field}`' for field in unread)}.\n"


def _table(first: str, rows: Sequence[Row]) -> Iterator[str]:
    has_texts = any(text for _, _, text in rows)
    yield f"| {first} | type and limits |{' meaning |' if has_texts else ''}\n|---|---|{'---|' if has_texts else ''}"
    for name, kind, text in rows:
        yield f"| `{name}` | {_cell(kind)} |{f' {_cell(text)} |' if has_texts else ''}"
    yield ""


def _rows(schema: Json, prefix: str = "", *, is_body: bool) -> Iterator[Row]:
    """Yield each field of an object, with the fields of the objects in it."""
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        is_marked = (name in required) == is_body
        mark = ("required, " if is_body else "may be absent, ") if is_marked else ""
        yield f"{prefix}{name}", f"{mark}{_kind(field)}", str(field.get("description") or "")
        yield from _rows(field, f"{prefix}{name}.", is_body=is_body)
    for choice in _choices(schema):
        yield from _rows(choice, prefix, is_body=is_body)
    if isinstance(items := schema.get("items"), dict):
        yield from _rows(items, f"{prefix.removesuffix('.')}[].", is_body=is_body)


def _choices(schema: Json) -> list[Json]:
    return [each for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key, ()) if each.get("type") != "null"]


def _kind(schema: Json) -> str:
    """Return the type of a value with its limits: `integer, at least 1`."""
    if choices := _choices(schema):
        return " or ".join(dict.fromkeys(map(_kind, choices)))
    if "enum" in schema or "const" in schema:
        values = [f"`{value}`" for value in schema.get("enum", [schema.get("const")]) if value is not None]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    names = schema.get("type", "any value")
    words = [_KINDS.get(name, name) for name in ([names] if isinstance(names, str) else names) if name != "null"]
    kind = " or ".join(words) or "null"
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    elif kind == "object" and isinstance(more := schema.get("additionalProperties"), dict):
        kind = f"object, each value {_kind(more)}"
    limits = [words.format(_number(schema[key])) for key, words in _LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


def _number(limit: object) -> str:
    return f"{int(limit):,}" if isinstance(limit, int | float) and limit == int(limit) else str(limit)


def _told(description: str) -> str:
    """Return the sentences of an operation's description but the first, which is its summary."""
    paragraphs = [" ".join(each.split()) for each in description.split("\n\n")]
    return " ".join(each for each in (paragraphs if len(paragraphs) == 1 else paragraphs[1:]) if each)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(http_page(), encoding="utf-8")
