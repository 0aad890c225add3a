"""Random requests to every route of the registry, the deployments and the account: none ends in a fault of ours."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.control.app.application import create_control_app
from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.control.uploading import base_settings, new_repo

ROOMS = ("/v2/repos", "/v2/adapters", "/v2/deployments", "/llms", "/supported_llms", "/users/", "/v1/models/version")
VALUES: list[Any] = [  # JSON of every type
    *(None, True, -1, 0, 1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "a\0b", "\ud800", "../x", "é" * 200),
    *([], {}, [None], {"a": {}}, "x" * 5000, ["triage"], "triage", "mine", "s3://b/x"),
    *({"baseModel": "Tiny-Base", "x": float("nan")}, {"baseModel": "Tiny-Base", "minReplicas": 10**30}),
]
WORDS = ("triage", "1", "x", "%00", "%F0%9F%98%80", "9" * 30, "-1", "mine", "%2e%2e", "a" * 400, "tiny-base", "prod")
TEXTS = ("x", "1", "-1", "", "9" * 40, "true", "shared", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
FIELDS = (
    *("name", "config", "description", "existsOk", "public", "adapter_id", "adapter_source", "api_token", "archived"),
    *("repo", "uploadToken", "version", "tenants"),
)
FIELDS_OF = {  # by the end of a route's path
    "/v2/repos": ("name", "description", "existsOk"),
    "/v2/repos/{repo}": ("description", "public"),
    "/versions": ("adapter_id", "adapter_source", "api_token"),
    "/version/{tag}": ("archived",),
    "/aliases/{alias}": ("version",),
    "/shares": ("tenants",),
    "/v2/deployments": ("name", "config", "description"),
    "/v2/deployments/{name}": ("config", "description"),
    "/v2/adapters/upload": ("repo", "region", "uploadToken"),
}
PARAMETERS = (
    "limit",
    "after",
    "shared",
    "owner",
    "type",
    "from",
    "to",
    "adapterId",
    "baseModel",
    "signature",
    "version",
)
BODIES = (b"{", b"[" * 100_000, b"null", b"[]", b"\xff", b"")


def body_of(drawn: random.Random, path: str) -> bytes:
    if drawn.random() < 0.2:
        return drawn.choice(BODIES)
    # A field that a route does not have ends the reading of a body, so most bodies have none.
    own = [name for end, names in FIELDS_OF.items() if path.endswith(end) for name in names]
    fields = drawn.sample(own, drawn.randint(0, len(own))) + ([drawn.choice(FIELDS)] if drawn.random() < 0.2 else [])
    return json.dumps({field: drawn.choice(VALUES) for field in fields}).encode()


def path_of(route: str, drawn: random.Random) -> str:
    return "/".join(drawn.choice(WORDS) if part.startswith("{") else part for part in route.split("/"))


@pytest.mark.parametrize("rounds", [4, *long(12)])
def test_no_request_ends_in_a_fault(url: URL, tmp_path: Path, rounds: int) -> None:
    async def scenario(plane: Plane) -> None:
        drawn = random.Random(5)
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        routes = create_control_app(plane.control).openapi()["paths"]
        asked = [(path, method) for path in routes for method in routes[path] if any(room in path for room in ROOMS)]
        assert len(asked) > 60
        for path, method in asked * rounds:
            reply = await plane.client.request(
                method.upper(),
                path_of(path, drawn),
                content=body_of(drawn, path) if method in ("post", "put") else None,
                params={name: drawn.choice(TEXTS) for name in drawn.sample(PARAMETERS, drawn.randint(0, 5))},
                headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            )
            assert reply.status_code < 500, (method, str(reply.url), reply.text)
            if reply.is_error:
                assert isinstance(reply.json()["error"], str | dict)

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))
