"""An OpenAPI document as an HTML page without scripts, which loads nothing from elsewhere."""

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]  # JSON values of several types

METHODS = ("get", "post", "put", "patch", "delete")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#111}"
    "code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#f5f5f4;padding:.7rem;overflow:auto}"
    "summary{cursor:pointer;padding:.3rem 0}summary b{display:inline-block;min-width:4.5rem}"
    "section{border-top:1px solid #ddd;margin:.3rem 0}td,th{text-align:left;padding:.1rem .8rem .1rem 0}"
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")
PAGE_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
MEDIA_TYPE = "text/html; charset=utf-8"


def api_page(document: Document, *, source: str) -> bytes:
    """Return the page. `source`: the path of the document itself."""
    title = html.escape(str(document["info"]["title"]))
    version = html.escape(str(document["info"]["version"]))
    link = f'<a href="{html.escape(source)}">{html.escape(source)}</a>'
    routes = "\n".join(_route(document, *each) for each in _operations(document))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title} {version}</title><style>{STYLE}</style></head>
<body>
<h1>{title} {version}</h1>
<p>The routes of this server; for programs: {link}.</p>
{routes}
</body>
</html>
""".encode()


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield path, method, methods[method]


def _route(document: Document, path: str, method: str, operation: Document) -> str:
    description = html.escape(str(operation.get("description") or ""))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    parts = (
        f"<p>{description}</p>" if description else "",
        _parameters(operation.get("parameters", ())),
        "" if body is None else f"<p>Body:</p><pre>{_schema(document, body)}</pre>",
    )
    return (
        f"<section><details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
        f"{html.escape(str(operation.get('summary', '')))}</summary>{''.join(parts)}</details></section>"
    )


def _parameters(parameters: Any) -> str:
    if not parameters:
        return ""
    lines = "".join(
        f"<tr><td><code>{html.escape(str(each['name']))}</code></td><td>{html.escape(str(each['in']))}</td>"
        f"<td>{html.escape(str(each.get('description', '')))}</td></tr>"
        for each in parameters
    )
    return f"<table><tr><th>parameter</th><th>in</th><th></th></tr>{lines}</table>"


def _schema(document: Document, schema: Document) -> str:
    """Return a body's schema as JSON, with references to other parts of the document written out."""
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found = document.get("components", {}).get("schemas", {}).get(name, schema)
    return html.escape(json.dumps(found, indent=1))
