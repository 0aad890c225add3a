"""Bodies of the control plane: what a body does not have is refused by its name, and null counts as absent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.control.plane import Plane, in_plane, migrated_in
from tests.control.uploading import base_settings

UNKNOWN = [
    ("POST", "/admin/tenants", {"id": "b", "crdit_nanousd": 1}, "crdit_nanousd", "credit_nanousd"),
    ("POST", "/admin/tenants", {"id": "b", "limits": {"request_per_minute": 1}}, "request_per_minute", "requests_per"),
    ("POST", "/v1/account/keys", {"scope": ["query"]}, "scope", "scopes"),
    ("POST", "/v2/repos", {"name": "r", "descripton": "x"}, "descripton", "description"),
    ("POST", "/v2/repos", {"name": "r", "private": True}, "private", "known are"),
    ("PUT", "/v2/repos/triage", {"is_publik": True}, "is_publik", "public"),
    ("POST", "/v2/adapters/upload", {"repo": "triage", "repository": "x"}, "repository", "repo"),
    ("POST", "/v2/deployments", {"name": "d", "config": {"baseModel": "x"}, "replicas": 1}, "replicas", "known are"),
    ("PUT", "/v2/deployments/d", {"descrption": "x"}, "descrption", "description"),
]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Bodies are read before a database is asked, so one engine shows it."""

    def run(scenario: Callable[..., Any]) -> None:
        in_plane(migrated_in(tmp_path), tmp_path, scenario, settings=base_settings(tmp_path))

    return run


@pytest.mark.parametrize(("method", "path", "body", "name", "remedy"), UNKNOWN, ids=lambda value: str(value)[:30])
def test_an_unknown_field_is_refused_by_its_name(
    run: Callable[..., None], method: str, path: str, body: dict[str, Any], name: str, remedy: str
) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await plane.call("POST", "/v2/repos", {"name": "triage"}, key=acme)
        reply = await plane.call(method, path, body, key="" if path.startswith("/admin") else acme)
        assert reply.status_code in (400, 422), reply.text
        told = reply.json()["error"]
        message = told if isinstance(told, str) else told["message"]
        assert f"`{name}` is not a known field" in message
        assert remedy in message

    run(scenario)


def test_null_counts_as_absent(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        made = await plane.call("POST", "/admin/tenants", {"id": "acme", "name": None, "plan": None, "unknown": None})
        assert made.status_code == 201, made.text
        assert made.json()["tenant"]["plan"] == "standard"
        key = made.json()["key"]["key"]
        repo = await plane.call("POST", "/v2/repos", {"name": "r", "existsOk": None, "region": None}, key=key)
        assert repo.status_code == 200, repo.text
        config = {"baseModel": "mistral-7b-instruct", "ours": None}
        kept = await plane.call("POST", "/v2/deployments", {"name": "d", "config": config, "x": None}, key=key)
        assert kept.status_code == 200, kept.text
        assert kept.json()["data"]["config"]["baseModel"] == "mistral-7b-instruct"

    run(scenario)


def test_a_deployment_keeps_the_keys_of_its_config_that_nothing_knows(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        config = {"baseModel": "mistral-7b-instruct", "ourOwnKey": {"a": 1}}
        await plane.call("POST", "/v2/deployments", {"name": "d", "config": config}, key=key)
        told = (await plane.call("GET", "/v2/deployments/d", key=key)).json()["data"]["config"]
        assert told["ourOwnKey"] == {"a": 1}

    run(scenario)


def test_a_flag_is_a_boolean_and_a_number_is_none(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await plane.call("POST", "/v2/repos", {"name": "triage"}, key=acme)
        for method, path, body in (
            ("POST", "/v2/repos", {"name": "triage", "existsOk": "yes"}),
            ("PUT", "/v2/repos/triage", {"public": "on"}),
            ("PUT", "/v2/repos/triage", {"public": 1}),
            ("PUT", "/v2/repos/triage/version/1", {"archived": "yes"}),
            ("PUT", "/v2/repos/triage/aliases/prod", {"version": True}),
        ):
            reply = await plane.call(method, path, body, key=acme)
            assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter"), body
            assert f"`{list(body)[-1]}`" in reply.json()["error"]
        assert (await plane.call("GET", "/v2/repos/triage", key=acme)).json()["public"] is False

    run(scenario)
