"""Paths of the server and of the control plane: a table of areas, a table of routes, and the properties of a path.

An area is every path that begins with the same words. It has the component that answers and the dialect of errors, for
unknown paths as well. A route is one method on one path. It has the scopes that a key needs, and its traits. A new page
or route is added here and to its router, and nowhere else: the names that tenants cannot take, the log, the metrics,
the origin policy, authorisation and the documents read these tables.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto

from manylora.http.scopes import ADMIN, ANY, INFER, KEYLESS, LISTING, LOOKING, MANAGE, READ, UPLOAD, Scopes


class Dialect(StrEnum):
    """The form of errors.

    NATIVE  LoRAX's, for its routes and the control plane
    OPENAI  OpenAI's, for routes under /v1
    """

    NATIVE = "native"
    OPENAI = "openai"


class Component(Enum):
    """The part of the product that answers an area.

    SERVER   the edge itself
    CONTROL  the control plane; an edge passes the request on
    CONSOLE  the console, whose pages and forms the console itself guards
    EDGES    the control plane, for edges alone, which send a token; no edge passes such a request on
    ABSENT   nothing: Predibase has these paths, and this product answers 501
    """

    SERVER = auto()
    CONTROL = auto()
    CONSOLE = auto()
    EDGES = auto()
    ABSENT = auto()


class Trait(Flag):
    """Properties of a route that other rooms read.

    QUIET      a finished request is logged at the level debug, since machines send it all the time
    PROBE      while the engine loads, the answer is that of an unhealthy server
    GENERATES  the reply counts in the metrics of replies
    PAGES      a web page may call it on a server that needs no keys
    VISITED    a person follows a link to it
    ZIP        the reply is a zip file, beside which Predibase's clients read errors in OpenAI's form
    BYTES      the body is bytes, which the route itself reads and bounds
    """

    NONE = 0
    QUIET = auto()
    PROBE = auto()
    GENERATES = auto()
    PAGES = auto()
    VISITED = auto()
    ZIP = auto()
    BYTES = auto()


NONE, QUIET, PROBE, GENERATES = Trait.NONE, Trait.QUIET, Trait.PROBE, Trait.GENERATES
PAGES, VISITED, ZIP, BYTES = Trait.PAGES, Trait.VISITED, Trait.ZIP, Trait.BYTES


@dataclass(frozen=True, slots=True)
class Area:
    """The paths that begin with the words of `prefix`. Of several areas of a path, the longest prefix counts.

    scopes  a key needs one of them for a path or a method that the area does not have
    """

    prefix: str
    component: Component
    dialect: Dialect = Dialect.NATIVE
    scopes: Scopes = KEYLESS


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    name    method and path; a path that begins with `(/v1)` exists with and without it
    scopes  a key with any of them opens the route; empty: the route needs no key
    """

    name: str
    scopes: Scopes
    traits: Trait = NONE

    @property
    def method(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.name.partition(" ")[2]


_PREFIX = "(/v1)"
_OPTIONAL_V1 = ("", "/v1")
ROOT = Area("", Component.SERVER)
AREAS: tuple[Area, ...] = (
    ROOT,
    Area("/v1", Component.SERVER, Dialect.OPENAI),
    Area("/console", Component.CONSOLE),
    Area("/admin", Component.CONTROL, scopes=(ADMIN,)),
    Area("/internal", Component.EDGES),
    *(Area(f"/v1/{name}", Component.CONTROL, Dialect.OPENAI) for name in ("signup", "account", "prices")),
    Area("/v1/account/adapters", Component.SERVER, Dialect.OPENAI),
    *(Area(f"{v1}/{name}", Component.SERVER) for v1 in _OPTIONAL_V1 for name in ("users", "v2")),
    *(
        Area(f"{v1}/{name}", Component.CONTROL)
        for v1 in _OPTIONAL_V1
        for name in ("users/current", "v2/deployments", "v2/repos", "v2/adapters")
    ),
    *(Area(f"{v1}/{name}", Component.CONTROL) for v1 in _OPTIONAL_V1 for name in ("llms", "supported_llms")),
    *(Area(f"{v1}/models/version", Component.CONTROL) for v1 in _OPTIONAL_V1),
    *(
        Area(f"{v1}/{name}", Component.ABSENT)
        for v1 in _OPTIONAL_V1
        for name in ("v2/finetuning", "v2/datasets", "v2/batch-inference", "v2/gateways", "v2/secrets", "datasets")
    ),
)
_SERVER: tuple[Route, ...] = (
    Route("GET /", KEYLESS, QUIET | PAGES),
    Route("POST /", (INFER,), GENERATES | PAGES),
    Route("POST /invocations", (INFER,), GENERATES | PAGES),
    Route("POST /generate", (INFER,), GENERATES | PAGES),
    Route("POST /generate_stream", (INFER,), GENERATES | PAGES),
    Route("POST /v1/completions", (INFER,), GENERATES | PAGES),
    Route("POST /v1/chat/completions", (INFER,), GENERATES | PAGES),
    Route("POST /v1/embeddings", (INFER,), PAGES),
    Route("POST /embed", (INFER,), PAGES),
    Route("POST /classify", (INFER,), PAGES),
    Route("POST /classify_batch", (INFER,), PAGES),
    Route("POST /tokenize", (INFER,), PAGES),
    Route("GET /v1/models", LOOKING, PAGES),
    Route("GET /v1/models/{model_id:path}", LOOKING, PAGES),
    Route("GET /v1/files", LOOKING),
    Route("POST /v1/files", (INFER,), BYTES),
    Route("GET /v1/files/{file_id}", LOOKING),
    Route("DELETE /v1/files/{file_id}", (INFER,)),
    Route("GET /v1/files/{file_id}/content", (INFER,)),
    Route("GET /v1/batches", LOOKING),
    Route("POST /v1/batches", (INFER,)),
    Route("GET /v1/batches/{batch_id}", LOOKING),
    Route("POST /v1/batches/{batch_id}/cancel", (INFER,)),
    Route("POST /v1/responses", (INFER,), GENERATES | PAGES),
    Route("GET /v1/responses/{response_id}", (INFER,)),
    Route("GET /v1/responses/{response_id}/input_items", (INFER,)),
    Route("POST /v1/responses/{response_id}/cancel", (INFER,)),
    Route("DELETE /v1/responses/{response_id}", (INFER,)),
    Route("POST /v1/conversations", (INFER,)),
    Route("GET /v1/conversations/{conversation_id}", (INFER,)),
    Route("POST /v1/conversations/{conversation_id}", (INFER,)),
    Route("DELETE /v1/conversations/{conversation_id}", (INFER,)),
    Route("GET /v1/conversations/{conversation_id}/items", (INFER,)),
    Route("POST /v1/conversations/{conversation_id}/items", (INFER,)),
    Route("GET /v1/conversations/{conversation_id}/items/{item_id}", (INFER,)),
    Route("DELETE /v1/conversations/{conversation_id}/items/{item_id}", (INFER,)),
    Route("GET /v1/adapters", (ADMIN,)),
    Route("GET /v1/account/adapters", (READ,)),
    Route("POST /v1/adapters/{name}/tensors", (UPLOAD, ADMIN), BYTES),
    Route("DELETE /v1/adapters/{name}/tensors", (UPLOAD, ADMIN)),
    Route("GET /v1/adapters/{adapter_id:path}", (ADMIN,)),
    Route("POST /v1/adapters/{adapter_id:path}", (ADMIN,)),
    Route("DELETE /v1/adapters/{adapter_id:path}", (ADMIN,)),
    Route("GET /metrics", (ADMIN,), QUIET),
    Route("GET /info", KEYLESS, PAGES),
    Route("GET /health", KEYLESS, QUIET | PROBE | PAGES),
    Route("GET /ping", KEYLESS, QUIET | PROBE | PAGES),
    Route("GET /startup", KEYLESS, QUIET | PROBE | PAGES),
    Route("GET /ready", KEYLESS, QUIET | PROBE | PAGES),
    Route("GET /docs", KEYLESS, VISITED | PAGES),
    Route("GET /api-doc/openapi.json", KEYLESS, PAGES),
    Route("GET /openapi.json", KEYLESS, PAGES),
)
_CONTROL: tuple[Route, ...] = (
    Route("GET /admin/docs", (ADMIN,), VISITED),
    Route("GET /admin/openapi.json", (ADMIN,)),
    Route("GET /admin/tenants", (ADMIN,)),
    Route("POST /admin/tenants", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}", (ADMIN,)),
    Route("PATCH /admin/tenants/{tenant}", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/suspend", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/resume", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/close", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/limits", (ADMIN,)),
    Route("PUT /admin/tenants/{tenant}/limits", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/credits", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/credits", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/wallet", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/wallet/entries", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/budgets", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/budgets", (ADMIN,)),
    Route("GET /admin/tenants/{tenant}/keys", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/keys", (ADMIN,)),
    Route("POST /admin/tenants/{tenant}/login-code", (ADMIN,)),
    Route("POST /admin/keys/{key}/rotate", (ADMIN,)),
    Route("PUT /admin/keys/{key}/limits", (ADMIN,)),
    Route("DELETE /admin/keys/{key}", (ADMIN,)),
    Route("DELETE /admin/budgets/{budget}", (ADMIN,)),
    Route("GET /admin/prices", (ADMIN,)),
    Route("POST /admin/prices", (ADMIN,)),
    Route("GET /admin/usage", (ADMIN,)),
    Route("GET /admin/ledger", (ADMIN,)),
    Route("GET /admin/invoices/{tenant}/{month}", (ADMIN,)),
    Route("GET /admin/billing/invoices", (ADMIN,)),
    Route("POST /admin/billing/invoices", (ADMIN,)),
    Route("GET /admin/billing/invoices/{invoice}", (ADMIN,)),
    Route("DELETE /admin/billing/invoices/{invoice}", (ADMIN,)),
    Route("GET /admin/billing/invoices/{invoice}/document", (ADMIN,), VISITED),
    Route("POST /admin/billing/invoices/{invoice}/finalise", (ADMIN,)),
    Route("POST /admin/billing/invoices/{invoice}/pay", (ADMIN,)),
    Route("POST /admin/billing/invoices/{invoice}/void", (ADMIN,)),
    Route("POST /admin/billing/invoices/{invoice}/credit-notes", (ADMIN,)),
    Route("GET /admin/billing/exports/{sink}", (ADMIN,)),
    Route("POST /admin/billing/exports/{sink}", (ADMIN,)),
    Route("POST /admin/corrections", (ADMIN,)),
    Route("GET /admin/audit", (ADMIN,)),
    Route("GET /admin/catalogue", (ADMIN,)),
    Route("PUT /admin/catalogue", (ADMIN,)),
    Route("GET /admin/repos", (ADMIN,)),
    Route("DELETE /admin/repos/{tenant}", (ADMIN,)),
    Route("GET /admin/repos/{tenant}/{repo}", (ADMIN,)),
    Route("DELETE /admin/repos/{tenant}/{repo}", (ADMIN,)),
    Route("GET /admin/deployments", (ADMIN,)),
    Route("POST /admin/repos/{tenant}/{repo}/archive", (ADMIN,)),
    Route("POST /admin/repos/{tenant}/{repo}/unarchive", (ADMIN,)),
    Route("POST /admin/repos/{tenant}/{repo}/aliases/{alias}/promote", (ADMIN,)),
    Route("GET /admin/repos/{tenant}/{repo}/version/{tag}", (ADMIN,)),
    Route("DELETE /admin/repos/{tenant}/{repo}/version/{tag}", (ADMIN,)),
    Route("POST /admin/repos/{tenant}/{repo}/version/{tag}/archive", (ADMIN,)),
    Route("POST /admin/repos/{tenant}/{repo}/version/{tag}/unarchive", (ADMIN,)),
    Route("GET /health", KEYLESS, PAGES),
    Route("GET /openapi.json", KEYLESS, PAGES),
    Route("POST /v1/signup", KEYLESS),
    Route("GET /v1/prices", KEYLESS),
    Route("GET /v1/account", (READ,)),
    Route("GET /v1/account/key", ANY),
    Route("GET /v1/account/usage", (READ,)),
    Route("GET /v1/account/activity", (READ,)),
    Route("GET /v1/account/ledger", (READ,)),
    Route("GET /v1/account/credits", (READ,)),
    Route("GET /v1/account/wallet", (READ,)),
    Route("GET /v1/account/wallet/entries", (READ,)),
    Route("GET /v1/account/budgets", (READ,)),
    Route("POST /v1/account/budgets", (MANAGE,)),
    Route("DELETE /v1/account/budgets/{budget}", (MANAGE,)),
    Route("GET /v1/account/webhooks", (READ,)),
    Route("POST /v1/account/webhooks", (MANAGE,)),
    Route("GET /v1/account/webhooks/messages", (READ,)),
    Route("POST /v1/account/webhooks/messages/{message}/retry", (MANAGE,)),
    Route("DELETE /v1/account/webhooks/{webhook}", (MANAGE,)),
    Route("GET /v1/account/invoices/{month}", (READ,)),
    Route("GET /v1/account/billing/invoices", (READ,)),
    Route("GET /v1/account/billing/invoices/{invoice}", (READ,)),
    Route("GET /v1/account/billing/invoices/{invoice}/document", (READ,), VISITED),
    Route("GET /v1/account/audit", (READ,)),
    Route("GET /v1/account/login", (READ, MANAGE)),
    Route("PUT /v1/account/login", (MANAGE,)),
    Route("POST /v1/account/login/reset", KEYLESS),
    Route("GET /v1/account/sessions", (READ, MANAGE)),
    Route("POST /v1/account/sessions", KEYLESS),
    Route("DELETE /v1/account/sessions/{session}", (MANAGE,)),
    Route("GET /v1/account/keys", (READ, MANAGE)),
    Route("POST /v1/account/keys", (MANAGE,)),
    Route("POST /v1/account/keys/{key}/rotate", (MANAGE,)),
    Route("PUT /v1/account/keys/{key}/limits", (MANAGE,)),
    Route("DELETE /v1/account/keys/{key}", (MANAGE,)),
    Route("GET (/v1)/users/current", ANY),
    Route("GET /v1/models/version/name/{name}", LOOKING),
    Route("GET (/v1)/v2/deployments", LOOKING),
    Route("POST (/v1)/v2/deployments", (MANAGE,)),
    Route("GET (/v1)/v2/deployments/recommended-config", LOOKING),
    Route("GET (/v1)/v2/deployments/{name}", LOOKING),
    Route("PUT (/v1)/v2/deployments/{name}", (MANAGE,)),
    Route("DELETE (/v1)/v2/deployments/{name}", (MANAGE,)),
    Route("GET (/v1)/v2/deployments/{name}/request-logs", (READ,), ZIP),
    Route("GET (/v1)/llms", LOOKING),
    Route("GET (/v1)/llms/validate_adapter_compatibility", LOOKING),
    Route("GET (/v1)/supported_llms", LOOKING),
    Route("GET (/v1)/llms/{name}", LOOKING),
    Route("GET (/v1)/llms/{name}/events", LOOKING),
    Route("GET (/v1)/llms/{name}/scaled", LOOKING),
    Route("GET (/v1)/v2/repos", LISTING),
    Route("POST (/v1)/v2/repos", (UPLOAD,)),
    Route("GET (/v1)/v2/repos/{repo}", LISTING),
    Route("PUT (/v1)/v2/repos/{repo}", (UPLOAD, MANAGE)),
    Route("DELETE (/v1)/v2/repos/{repo}", (UPLOAD,)),
    Route("GET (/v1)/v2/repos/{repo}/aliases/{alias}", LISTING),
    Route("PUT (/v1)/v2/repos/{repo}/aliases/{alias}", (MANAGE,)),
    Route("POST (/v1)/v2/repos/{repo}/aliases/{alias}/rollback", (MANAGE,)),
    Route("GET (/v1)/v2/repos/{repo}/aliases/{alias}/results", (READ,)),
    Route("DELETE (/v1)/v2/repos/{repo}/aliases/{alias}", (MANAGE,)),
    Route("POST (/v1)/v2/repos/{repo}/aliases/{alias}/promotions", (MANAGE,)),
    Route("GET (/v1)/v2/repos/{repo}/promotions", LISTING),
    Route("GET (/v1)/v2/repos/{repo}/promotions/{promotion}", LISTING),
    Route("GET (/v1)/v2/repos/{repo}/evaluation", LISTING),
    Route("PUT (/v1)/v2/repos/{repo}/evaluation", (MANAGE,)),
    Route("DELETE (/v1)/v2/repos/{repo}/evaluation", (MANAGE,)),
    Route("POST (/v1)/v2/repos/{repo}/shares", (MANAGE,)),
    Route("DELETE (/v1)/v2/repos/{repo}/shares/{tenant}", (MANAGE,)),
    Route("POST (/v1)/v2/repos/{repo}/versions", (UPLOAD,)),
    Route("GET (/v1)/v2/repos/{repo}/version/{tag}", LISTING),
    Route("PUT (/v1)/v2/repos/{repo}/version/{tag}", (UPLOAD,)),
    Route("DELETE (/v1)/v2/repos/{repo}/version/{tag}", (UPLOAD,)),
    Route("GET (/v1)/v2/repos/{repo}/version/{tag}/download", (UPLOAD,), ZIP),
    Route("POST (/v1)/v2/adapters/upload", (UPLOAD,)),
    Route("PUT (/v1)/v2/adapters/upload", (UPLOAD,)),
    Route("POST (/v1)/v2/adapters/upload/", (UPLOAD,)),
    Route("PUT (/v1)/v2/adapters/upload/", (UPLOAD,)),
    Route("PUT (/v1)/v2/adapters/upload/{tenant}/{upload}/{file}", KEYLESS),  # the address is signed
    Route("GET (/v1)/v2/adapters/upload/{tenant}/{upload}/{file}", KEYLESS),
)


class RouteTable(Iterable[Route]):
    """Routes, each `(/v1)` written out, with a look-up by path."""

    def __init__(self, rows: Iterable[Route]) -> None:
        self._routes = tuple(route for row in rows for route in _expanded(row))
        self._patterns = tuple((_pattern(route.path), route) for route in self._routes)
        self._with_parameters = tuple(each for each in self._patterns if "{" in each[1].path)
        plain = {route.path for route in self._routes if "{" not in route.path}
        self._plain = {path: self._matching(self._patterns, path) for path in plain}

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def at(self, path: str) -> Mapping[str, Route]:
        """Return the routes of a path, by method; HEAD is as GET. Of two rows that match a path, the first counts."""
        found = self._plain.get(path)
        return self._matching(self._with_parameters, path) if found is None else found

    def documented(self, *, is_operator: bool) -> dict[tuple[str, str], Route]:
        """Return the routes by path and method, as an OpenAPI document writes them.

        Routes for the scope `admin` alone are left out unless `is_operator`.
        """
        shown = (route for route in self._routes if is_operator or route.scopes != (ADMIN,))
        return {(route.path.replace(":path}", "}"), route.method.lower()): route for route in shown}

    @staticmethod
    def _matching(patterns: Iterable[tuple[re.Pattern[str], Route]], path: str) -> Mapping[str, Route]:
        found: dict[str, Route] = {}
        for pattern, route in patterns:
            if pattern.fullmatch(path):
                found.setdefault(route.method, route)
        return found | ({"HEAD": found["GET"]} if "GET" in found else {})


def _expanded(row: Route) -> Iterator[Route]:
    if not row.path.startswith(_PREFIX):
        yield row
        return
    plain = row.path.removeprefix(_PREFIX)
    for v1 in _OPTIONAL_V1:
        yield Route(f"{row.method} {v1}{plain}", row.scopes, row.traits)


def _pattern(path: str) -> re.Pattern[str]:
    """Return a path's regular expression: `{name}` is one word, `{name:path}` any number of words."""
    text = re.sub(r"\\\{\w+(:path)?\\\}", lambda found: ".*" if found[1] else "[^/]+", re.escape(path))
    return re.compile(text, re.DOTALL)


class PathTable:
    """All properties of a path, from areas and routes."""

    def __init__(self, areas: Iterable[Area], routes: Iterable[Route]) -> None:
        self._routes = RouteTable(routes)
        self._areas = {area.prefix: area for area in areas}
        self._most_words = max(prefix.count("/") for prefix in self._areas)
        paths = (*self._areas, *(route.path for route in self._routes))
        self.first_words = frozenset(word for path in paths if (word := path.removeprefix("/").partition("/")[0]))
        """First words of all paths. No tenant has such a name, since its own paths begin with its name."""

    def area_of(self, path: str) -> Area:
        """Return the area with the longest prefix that a path begins with, word by word."""
        words = path.split("/", self._most_words + 1)[: self._most_words + 1]
        for count in range(len(words), 1, -1):
            if (area := self._areas.get("/".join(words[:count]))) is not None:
                return area
        return self._areas[""]

    def dialect_of(self, path: str) -> Dialect:
        """Return the dialect of errors on a path, known or not; that of a deployment's route is the route's own."""
        deployment = deployment_path(path)
        path = path if deployment is None else normalized(deployment.rest)
        area = self.area_of(path)
        if area.component is Component.CONTROL and self.has_trait("GET", path.rstrip("/"), ZIP):
            return Dialect.OPENAI
        return area.dialect

    def has_trait(self, method: str, path: str, trait: Trait) -> bool:
        """Return whether a path has a route of that method, and the route has the trait. HEAD is as GET."""
        route = self._routes.at(path).get(method)
        return route is not None and trait in route.traits

    def any_has_trait(self, path: str, trait: Trait) -> bool:
        """Return whether a route on a path has the trait, with any method."""
        return any(trait in route.traits for route in self._routes.at(path).values())


SERVER_ROUTES = RouteTable(_SERVER)
"""Routes of the server itself."""
CONTROL_ROUTES = RouteTable(_CONTROL)
"""Routes of the control plane, without those for edges."""
PATHS = PathTable(AREAS, (*_SERVER, *_CONTROL))

_SLASHES = re.compile("/{2,}")
_DEPLOYMENT = re.compile(r"/([^/]+)/deployments/v2/llms/([^/]+)(/.*)?")


@dataclass(frozen=True, slots=True)
class DeploymentPath:
    """The parts of `/{tenant}/deployments/v2/llms/{name}` and the rest after it; `/` without a rest.

    `name` is as in the path.
    """

    tenant: str
    name: str
    rest: str


def deployment_path(path: str) -> DeploymentPath | None:
    """Split the path of a route of one deployment; None: the path is no such route."""
    match = _DEPLOYMENT.fullmatch(path)
    return None if match is None else DeploymentPath(match[1], match[2], match[3] or "/")


def normalized(path: str) -> str:
    """Return a path without repeated and trailing slashes, which make no difference."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"
