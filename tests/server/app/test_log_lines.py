"""The log line of each request names the tenant and the key whose it was: the control plane's routes included."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.control.app.application import create_control_app
from manylora.http.loopback import CALLER_HEADER
from manylora.server.access.access import Access
from manylora.server.access.control_client import HttpControlClient
from manylora.server.access.directory import REPORT_S, Directory
from manylora.server.app.error_handlers import handle_errors
from manylora.server.app.middleware.layers import layered
from manylora.server.http.routing import Guards
from manylora.server.observability.metrics import Meters
from manylora.system.log_lines import JsonFormatter
from manylora.tenancy import AdapterAct
from tests.control.plane import EDGE_TOKEN, Plane, in_plane, migrated_in

Seen = dict[str, Any]


def id_of(key: str) -> str:
    return key.split("_")[1]


class Caught(logging.Handler):
    """Keeps the fields of each request's line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Seen] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = json.loads(JsonFormatter("edge").format(record))
        if line["event"] == "request.finished":
            self.lines.append(line)


class Front:
    """A server's outermost layer before a control plane in its process."""

    def __init__(self, plane: Plane) -> None:
        control = create_control_app(plane.control)
        self.directory = Directory(HttpControlClient(EDGE_TOKEN, app=control), plane.clock, poll_s=1.0, max_age_s=1e9)
        access = Access(plane.clock, is_key_needed=True, directory=self.directory)
        edge = layered(
            cast(Any, _guarded(access, plane.clock)),
            settings=ServerConfig(),
            models=cast(Any, SimpleNamespace(serves=lambda deployment: True)),
            meters=Meters(),
            clock=plane.clock,
            access=access,
            control=cast(Any, control),
        )
        transport = httpx2.ASGITransport(cast(Any, edge), client=("192.0.2.9", 1))
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    async def line(self, method: str, path: str, key: str | None = None, **more: Any) -> tuple[httpx2.Response, Seen]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        log, caught = logging.getLogger("manylora.server"), Caught()
        log.addHandler(caught)
        log.setLevel(logging.INFO)
        try:
            reply = await self.client.request(method, path, headers=headers, **more)
        finally:
            log.removeHandler(caught)
            log.setLevel(logging.NOTSET)
        [line] = caught.lines
        return reply, line


def _guarded(access: Access, clock: Clock) -> FastAPI:
    """An application whose every path is guarded and answers nothing."""
    api, router = FastAPI(), APIRouter(dependencies=Guards(access).with_body)
    router.add_api_route("/{path:path}", lambda: Response(status_code=204), methods=["GET", "POST"])
    api.router.routes[:] = router.routes
    handle_errors(api, clock)
    return api


def run(tmp_path: Path, scenario: Any) -> None:
    url = migrated_in(tmp_path)

    async def with_front(plane: Plane) -> None:
        front = Front(plane)
        await front.directory.refresh()
        try:
            await scenario(plane, front)
        finally:
            await front.client.aclose()

    in_plane(url, tmp_path, with_front)


def test_the_trace_and_the_tenant_that_a_caller_names_are_logged_and_not_trusted(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        told = {"x-b3-traceid": "80f1", "traceparent": "00-0a-0b-01", "x-predibase-tenant": "stranger"}
        front.client.headers.update(told)
        reply, line = await front.line("GET", "/v1/account", plane.admin_key)
        assert (line["trace"], line["traceparent"], line["predibase_tenant"]) == tuple(told.values())
        assert (line["tenant"], reply.headers["x-b3-traceid"]) == ("operator", "80f1")
        front.client.headers.update(dict.fromkeys(told, "two words"))
        _, line = await front.line("GET", "/v1/account", plane.admin_key)
        assert (line["trace"], line["traceparent"], line["predibase_tenant"]) == (None, None, None)

    run(tmp_path, scenario)


def test_lines_of_control_routes_name_the_true_tenant_and_key(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        operator = plane.admin_key
        reply, line = await front.line("POST", "/admin/tenants", operator, json={"id": "acme"})
        key = reply.json()["key"]["key"]
        assert (line["tenant"], line["key"], line["status"]) == ("operator", id_of(operator), 201)
        assert CALLER_HEADER not in reply.headers
        narrow = (
            await front.client.post(
                "/v1/account/keys", json={"scopes": ["infer"]}, headers={"authorization": f"Bearer {key}"}
            )
        ).json()["key"]
        for method, path, by, tenant, status in (
            ("GET", "/v1/account", key, "acme", 200),
            ("GET", "/v1/account", narrow, "acme", 403),
            ("GET", "/v2/repos/none", key, "acme", 404),
            ("GET", "/admin/tenants", key, "acme", 403),
            ("POST", "/v1/signup", None, None, 400),
            ("GET", "/v1/account", None, None, 401),
            ("GET", "/v1/account", f"{key[:-1]}!", None, 401),
        ):
            reply, line = await front.line(method, path, by)
            assert (reply.status_code, line["tenant"]) == (status, tenant), path
            assert line["key"] == (id_of(by) if tenant and by else None)
        reply, line = await front.line("POST", "/v2/repos", key, json={"name": "triage"})
        rows = (await plane.call("GET", "/admin/audit")).json()["audit"]
        assert rows[0]["request_id"] == line["request_id"] == reply.headers["x-request-id"]
        assert rows[0]["address"] == "192.0.2.9"

    run(tmp_path, scenario)


def test_bytes_sent_to_a_signed_address_are_those_of_its_upload(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        key = await plane.new_tenant("acme")
        await plane.call("POST", "/v2/repos", {"name": "triage"}, key=key)
        begun = (await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=key)).json()
        address = httpx2.URL(begun["presignedUrls"]["adapter_config.json"]).raw_path.decode()
        _, line = await front.line("PUT", address, content=b"{}")
        assert (line["tenant"], line["key"]) == ("acme", id_of(key))
        _, line = await front.line("PUT", address[:-1] + "x", content=b"{}")
        assert (line["tenant"], line["key"], line["status"]) == (None, None, 403)

    run(tmp_path, scenario)


def test_lines_of_the_servers_routes_name_who_was_refused_too(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        key = await plane.new_tenant("acme")
        reader = (await plane.call("POST", "/v1/account/keys", {"scopes": ["read"]}, key=key)).json()["key"]
        await front.directory.refresh()
        for path, by, status, tenant in (
            ("/generate", key, 204, "acme"),
            ("/generate", reader, 403, "acme"),
            ("/beta/deployments/v2/llms/x/generate", key, 403, "acme"),
            ("/generate", None, 401, None),
            ("/nowhere", None, 401, None),
        ):
            reply, line = await front.line("POST", path, by)
            assert (reply.status_code, line["tenant"], line["key"]) == (status, tenant, id_of(by) if by else None)
        await plane.call("POST", "/admin/tenants/acme/suspend")
        await front.directory.refresh()
        reply, line = await front.line("POST", "/generate", key)
        assert (reply.status_code, line["tenant"]) == (403, "acme")
        _, line = await front.line("GET", "/info")
        assert (line["tenant"], line["key"]) == (None, None)

    run(tmp_path, scenario)


def test_a_server_reports_when_keys_were_used_once_a_minute(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        key = await plane.new_tenant("acme")
        await front.directory.refresh()
        await front.line("POST", "/generate", key)
        await front.directory.report_uses()
        await plane.control.uses.keep(plane.control.database)
        listed = (await plane.call("GET", "/admin/tenants/acme/keys")).json()["keys"]
        assert listed[0]["last_used"] is None, "not yet"
        plane.clock.advance(REPORT_S)
        await front.directory.report_uses()
        await plane.control.uses.keep(plane.control.database)
        listed = (await plane.call("GET", "/admin/tenants/acme/keys")).json()["keys"]
        assert listed[0]["last_used"] is not None

    run(tmp_path, scenario)


def test_a_control_plane_logs_what_no_server_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        caplog.set_level(logging.INFO, "manylora.control.app.access_log")
        reply = await plane.call("GET", "/admin/tenants")
        await front.line("GET", "/v1/account", plane.admin_key)
        [told] = [
            json.loads(JsonFormatter("control").format(record))
            for record in caplog.records
            if ".control." in record.name
        ]
        assert (told["tenant"], told["key"], told["status"]) == ("operator", id_of(plane.admin_key), 200)
        assert told["request_id"] == reply.headers["x-request-id"]

    run(tmp_path, scenario)


def test_acts_on_a_servers_adapters_are_in_the_audit_table(tmp_path: Path) -> None:
    async def scenario(plane: Plane, front: Front) -> None:
        act = AdapterAct(
            at_ms=plane.control.now_ms(),
            actor="operator",
            key=id_of(plane.admin_key),
            address="192.0.2.9",
            request_id="ticket-7",
            verb="delete",
            adapter="https://ada:secret@files.example/a?sig=s",
            owner=None,
        )
        await front.directory.report_act(act)
        await front.directory.report_acts()
        row = (await plane.call("GET", "/admin/audit")).json()["audit"][0]
        told = (row["verb"], row["kind"], row["name"], row["by_key"], row["request_id"])
        assert told == ("delete", "adapter", "https://files.example/a", act.key, "ticket-7")
        assert len((await plane.call("GET", "/admin/audit?verb=delete")).json()["audit"]) == 1, "told once"

    run(tmp_path, scenario)
