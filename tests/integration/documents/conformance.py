"""Replies held against an OpenAPI document: status, content type, JSON and events, and the routes that were met."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs

Json = Any  # a JSON value of any type
JSON, EVENTS = "application/json", "text/event-stream"
BAD = 400


class Conformance:
    """The document of a server, and the routes of it that were answered well and badly, as (method, path).

    Objects with declared fields may have no other field: a field that the document does not name is a deviation.
    """

    def __init__(self, document: Json) -> None:
        self.paths: dict[str, dict[str, Json]] = document["paths"]
        self.routes = {(method, path) for path, methods in self.paths.items() for method in methods}
        self.good: set[tuple[str, str]] = set()
        self.bad: set[tuple[str, str]] = set()
        self._components = _closed(document.get("components", {}))
        self._validators: dict[tuple[str, str, str, str], jsonschema_rs.Validator] = {}
        # Of two paths that match, the one with more letters of its own counts.
        shapes = {path: len(re.sub(r"\{\w+\}", "", path)) for path in self.paths}
        self._patterns = [(path, _pattern(path)) for path in sorted(shapes, key=lambda path: -shapes[path])]

    def note(self, reply: httpx2.Response) -> httpx2.Response:
        """Check a reply and return it. Raises `AssertionError` that names the deviation."""
        method, path = reply.request.method.lower(), reply.request.url.path
        route = next(each for each, pattern in self._patterns if pattern.fullmatch(path) and method in self.paths[each])
        told = f"{method.upper()} {route} {reply.status_code}: {reply.text[:600]}"
        responses = self.paths[route][method]["responses"]
        status = str(reply.status_code)
        if status not in responses:
            assert reply.status_code >= BAD, f"undocumented status {told}"
            assert "default" in responses, f"undocumented status {told}"
            status = "default"
        if content := responses[status].get("content"):
            kind = reply.headers.get("content-type", "").partition(";")[0]
            assert kind in content, f"undocumented content type {kind!r} {told}"
            self._check_body(reply, (method, route, status, kind), content[kind].get("schema"), told)
        (self.bad if reply.status_code >= BAD else self.good).add((method, route))
        return reply

    def _check_body(self, reply: httpx2.Response, key: tuple[str, str, str, str], schema: Json, told: str) -> None:
        if schema is None or key[3] not in (JSON, EVENTS):
            return
        if (validator := self._validators.get(key)) is None:
            whole = {**_closed(schema), "components": self._components}
            validator = self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        for value in _events(reply.text) if key[3] == EVENTS else [reply.json()]:
            errors = [f"{error.instance_path} {error.message[:300]}" for error in validator.iter_errors(value)]
            assert not errors, f"{errors[:3]} {told}"


def _events(text: str) -> Iterator[Json]:
    """The JSON of each event of a stream; OpenAI's last one is no JSON."""
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    assert data, "a stream without an event"
    yield from (json.loads(each) for each in data if each != "[DONE]")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(path)), re.DOTALL)


def _closed(part: Json) -> Json:
    """A schema whose objects with declared fields have no others."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {name: _closed(value) for name, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
