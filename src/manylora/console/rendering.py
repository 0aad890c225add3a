"""Pages as HTML: the templates with every value escaped, and the headers that bound what a page may do."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from manylora.console import figures

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""No script, style or picture from elsewhere, none within a page, and no frame around one."""
PAGE_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
STATIC_HEADERS: Mapping[str, str] = {
    "cache-control": "public, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
}
MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


def static_files() -> dict[str, bytes]:
    """Return the scripts, styles and pictures of the package by their names."""
    folder = files("manylora.console") / "static"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in MEDIA_TYPES}


def environment(statics: Mapping[str, bytes]) -> Environment:
    """Return the templates. `statics`: the files, whose addresses change with their bytes."""
    marks = {name: hashlib.sha256(body).hexdigest()[:12] for name, body in statics.items()}
    made = Environment(
        loader=PackageLoader("manylora.console", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "money": figures.money,
        "count": figures.count,
        "size": figures.size,
        "duration": figures.duration,
        "ago": figures.ago,
        "moment": figures.moment,
        "moment_of_ms": figures.moment_of_ms,
    }
    made.globals["static"] = lambda name: f"/console/static/{name}?v={marks[name]}"
    return made
