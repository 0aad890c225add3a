"""A route of the operator's says nothing about a request before it knows the key: not of its body, nor its address."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL

from tests.control.plane import Plane, in_plane

WRONG: tuple[dict[str, Any], ...] = (
    {"content": b"{"},
    {"content": b'{"id": 1, "surprise": true}', "headers": {"content-type": "application/json"}},
    {"content": b"", "headers": {"content-length": "9" * 30}},
    {"params": {"limit": "many", "month": "\0"}},
)


def test_no_route_of_the_operator_looks_at_a_request_before_the_key(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        paths = (await plane.call("GET", "/admin/openapi.json")).json()["paths"]
        routes = [(method.upper(), path) for path in paths if path.startswith("/admin") for method in paths[path]]
        assert len(routes) > 20
        for method, path in (*routes, ("GET", "/admin/docs"), ("GET", "/admin/openapi.json"), ("GET", "/admin/none")):
            for wrong in WRONG:
                for key, status in ((None, 401), (acme, 403)):
                    given = {} if key is None else {"authorization": f"Bearer {key}"}
                    headers = {**wrong.get("headers", {}), **given}
                    reply = await plane.client.request(method, path, **{**wrong, "headers": headers})
                    assert reply.status_code == status, (method, path, wrong.get("headers"), reply.text)

    in_plane(url, tmp_path, scenario)
