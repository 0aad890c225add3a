"""Which hosts, web pages and proxies a server answers, through the edge with its control plane inside."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock, SystemClock
from manylora.control.tenants.signup import SIGNUPS_PER_HOUR
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.tenancy import Snapshot
from tests.control.plane import Plane, migrated_in, open_plane
from tests.server.conftest import House, open_house
from tests.server.fake_control import PEPPER, FakeControl

FOREIGN = "https://evil.example"
LOCAL = "http://localhost:3000"
OWN = "http://127.0.0.1"
INFERENCE = ("/generate", "/", "/v1/completions", "/v1/chat/completions", "/tokenize")
READ = ("/v1/models", "/info", "/health", "/acme/deployments/v2/llms/tiny/v1/models")
CHANGES = (
    ("POST", "/v2/repos"),
    ("PUT", "/v2/repos/a"),
    ("DELETE", "/v2/repos/a"),
    ("DELETE", "/v1/v2/repos/a"),
    ("DELETE", "/v2/repos/a/version/1"),
    ("GET", "/v2/repos/a/version/1/download"),
    ("POST", "/v2/adapters/upload"),
    ("GET", "/v1/account"),
    ("POST", "/v1/account/keys"),
    ("POST", "/v1/signup"),
    ("GET", "/admin/tenants"),
    ("POST", "/admin/tenants"),
    ("DELETE", "/v1/adapters/triage"),
    ("GET", "/v1/adapters"),
    ("GET", "/metrics"),
    ("GET", "/v2/deployments"),
)


async def keyed() -> Access:
    """Who may call a server with keys, none of which a test here has."""
    clock = ManualClock()
    snapshot = Snapshot(revision=1, taken_ms=0, is_whole=True, pepper=PEPPER)
    directory = Directory(FakeControl(snapshot), clock, poll_s=0.1, max_age_s=600)
    await directory.refresh()
    return Access(SystemClock(), is_key_needed=True, directory=directory)


def code_of(reply: Any) -> str:
    error = reply.json()["error"]
    return str(error["code"] if isinstance(error, dict) else reply.json()["code"])


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1.evil.example", "http://192.168.1.9", "nonsense"])
def test_an_open_server_answers_no_foreign_page(in_house: Callable[..., None], origin: str) -> None:
    async def scenario(house: House) -> None:
        asked = {"origin": origin}
        replies = [await house.post(path, {"inputs": "Hi"}, headers=asked) for path in INFERENCE]
        replies += [await house.client.get(path, headers=asked) for path in READ]
        replies += [await house.client.request(method, path, headers=asked) for method, path in CHANGES]
        replies += [await house.client.options(path, headers=asked) for path in (*INFERENCE, "/v2/repos/a")]
        for reply in replies:
            assert (reply.status_code, code_of(reply)) == (403, "origin_not_allowed"), reply.request.url
            assert not [name for name in reply.headers if name.startswith("access-control")]
            assert reply.headers["vary"] == "origin"
        assert house.engine.submitted == []

    in_house(scenario)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_of_a_page_that_names_no_origin_is_one_of_a_foreign_page(
    in_house: Callable[..., None], site: str
) -> None:
    async def scenario(house: House) -> None:
        image = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        visit = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert code_of(await house.client.get("/v1/models", headers=image)) == "origin_not_allowed"
        assert code_of(await house.client.get("/v2/repos/a/version/1/download", headers=visit)) == "origin_not_allowed"
        assert code_of(await house.post("/generate", {"inputs": "Hi"}, headers=visit)) == "origin_not_allowed"
        assert (await house.client.get("/docs", headers=visit)).status_code == 200
        assert (await house.client.get("/v1/models", headers={"sec-fetch-site": "none"})).status_code == 200

    in_house(scenario)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_form_of_a_page_changes_nothing(in_house: Callable[..., None], kind: str | None) -> None:
    async def scenario(house: House) -> None:
        more = {} if kind is None else {"content-type": kind}
        for path in ("/generate", "/v2/repos", "/v1/adapters/triage"):
            reply = await house.client.post(path, content=b'{"inputs": "Hi"}', headers={"origin": FOREIGN, **more})
            assert code_of(reply) == "origin_not_allowed"
        reply = await house.client.post("/generate", content=b'{"inputs": "Hi"}', headers=more)
        assert reply.status_code == 415

    in_house(scenario)


@pytest.mark.parametrize("origin", [LOCAL, "http://127.0.0.1:9", "http://[::1]:3000", "https://localhost", OWN])
def test_a_page_on_this_machine_may_infer_and_read_models_alone(in_house: Callable[..., None], origin: str) -> None:
    async def scenario(house: House) -> None:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await house.client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE, OPTIONS"
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        for reply in (
            preflight,
            await house.post("/generate", {"inputs": "Hi"}, headers={"origin": origin}),
            *[await house.client.get(path, headers={"origin": origin}) for path in READ],
        ):
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in reply.headers
            assert "access-control-allow-private-network" not in reply.headers
            exposed = reply.headers["access-control-expose-headers"]
            assert all(name in exposed for name in ("x-total-tokens", "retry-after", "retry-after-ms"))
        for method, path in CHANGES:
            refused = await house.client.request(method, path, headers={"origin": origin})
            assert (refused.status_code, code_of(refused)) == (403, "origin_not_allowed"), path
            assert "access-control-allow-origin" not in refused.headers

    in_house(scenario)


def test_a_server_with_keys_answers_listed_pages_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = "https://app.example"
        async with open_house(tmp_path, access=await keyed(), cors_allow_origins=(mine,)) as house:
            for origin in (FOREIGN, LOCAL, "null", "https://app.example:444", "http://app.example"):
                for path in ("/generate", "/v2/repos", "/v1/signup"):
                    assert code_of(await house.post(path, {}, headers={"origin": origin})) == "origin_not_allowed"
            for path in ("/generate", "/v1/completions"):
                reply = await house.post(path, {}, headers={"origin": mine})
                assert reply.status_code == 401  # with a key it would be answered
                assert reply.headers["access-control-allow-origin"] == mine
                assert (await house.client.options(path, headers={"origin": mine.upper()})).status_code == 200

    asyncio.run(scenario())


def test_a_star_stands_for_all_pages_where_keys_are_needed_and_for_none_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_house(tmp_path, access=await keyed(), cors_allow_origins=("*",)) as house:
            reply = await house.client.get("/health", headers={"origin": FOREIGN})
            assert reply.headers["access-control-allow-origin"] == FOREIGN
        async with open_house(tmp_path, cors_allow_origins=("*",)) as house:
            assert code_of(await house.client.get("/health", headers={"origin": FOREIGN})) == "origin_not_allowed"

    asyncio.run(scenario())


ANSWERED = ("127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "10.1.2.3", "203.0.113.9:443", "[2001:db8::1]")
REFUSED = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "a b",
    "a,b",
    "127.0.0.1@evil",
    "x/y",
    "",
)


def test_the_host_is_an_address_or_a_name_that_is_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        names = ("llm.example", ".cluster.local")
        async with open_house(tmp_path, allowed_hosts=names, host="box.internal") as house:
            for host in (
                *ANSWERED,
                "llm.example",
                "LLM.example:80",
                "llm.example.",
                "a.b.cluster.local",
                "box.internal",
            ):
                assert (await house.client.get("/health", headers={"host": host})).status_code == 200, host
            for host in (*REFUSED, "x.llm.example", "cluster.local", "notcluster.local"):
                for path in ("/health", "/v1/models", "/docs", "/metrics", "/v2/repos", "/admin/tenants"):
                    reply = await house.client.get(path, headers={"host": host})
                    assert (reply.status_code, code_of(reply)) == (403, "host_not_allowed"), host
                assert (await house.client.options("/generate", headers={"host": host})).status_code == 403

    asyncio.run(scenario())


def test_the_machine_s_own_name_and_a_request_without_a_host_are_answered(in_house: Callable[..., None]) -> None:
    import socket

    async def scenario(house: House) -> None:
        own = {"host": f"{socket.gethostname()}:8080"}
        assert (await house.client.get("/health", headers=own)).status_code == 200
        request = house.client.build_request("GET", "/health")
        del request.headers["host"]
        assert (await house.client.send(request)).status_code == 200
        twice = house.client.build_request("GET", "/health", headers=[("host", "127.0.0.1"), ("host", "evil.example")])
        assert (await house.client.send(twice)).status_code == 403

    in_house(scenario)


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def address_seen(house: House, headers: dict[str, str], taken: list[int]) -> int:
    """The status of one sign-up more."""
    taken.append(len(taken))
    return (await house.post("/v1/signup", {"id": f"acme-{len(taken)}"}, headers=headers)).status_code


async def with_sign_ups(folder: Path, scenario: Callable[[House], Any], **server: Any) -> None:
    from manylora.control.app.application import create_control_app

    url = migrated_in(folder)
    async with open_plane(url, folder, settings={"control.signup_open": True}) as plane:
        app = create_control_app(plane.control)
        async with open_house(folder, control=app, access=await keyed(), **server) as house:
            await scenario(house)


LIES = ("x-forwarded-for", "x-real-ip", "forwarded")


@pytest.mark.parametrize("header", LIES)
def test_a_caller_s_own_word_for_its_address_counts_for_nothing(tmp_path: Path, header: str) -> None:
    async def scenario(house: House) -> None:
        taken: list[int] = []
        lie = "for=198.51.100.{}" if header == "forwarded" else "198.51.100.{}"
        seen = [await address_seen(house, {header: lie.format(n)}, taken) for n in range(SIGNUPS_PER_HOUR + 1)]
        assert seen == [201] * SIGNUPS_PER_HOUR + [429]

    asyncio.run(with_sign_ups(tmp_path, scenario))


TRUE = {
    "x-forwarded-for": "9.9.9.{n}, 203.0.113.5, 10.0.0.2",
    "forwarded": 'for=9.9.9.{n}, For="203.0.113.5:77";proto=https, for=10.0.0.2',
    "x-real-ip": "203.0.113.5",
}


@pytest.mark.parametrize("header", LIES)
def test_a_trusted_proxy_names_the_last_address_that_is_no_proxy(tmp_path: Path, header: str) -> None:
    async def scenario(house: House) -> None:
        taken: list[int] = []
        told = [{header: TRUE[header].format(n=n)} for n in range(SIGNUPS_PER_HOUR + 1)]
        seen = [await address_seen(house, headers, taken) for headers in told]
        assert seen == [201] * SIGNUPS_PER_HOUR + [429]
        assert await address_seen(house, {header: TRUE[header].replace("0.113.5", "0.113.6").format(n=0)}, taken) == 201

    trusted = ("127.0.0.1", "10.0.0.0/8")
    asyncio.run(with_sign_ups(tmp_path, scenario, trusted_proxies=trusted))


def test_headers_that_contradict_each_other_are_not_believed(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        taken: list[int] = []
        told = [
            {"x-forwarded-for": "203.0.113.5", "forwarded": f"for=198.51.100.{n}"} for n in range(SIGNUPS_PER_HOUR + 1)
        ]
        seen = [await address_seen(house, headers, taken) for headers in told]
        assert seen == [201] * SIGNUPS_PER_HOUR + [429]

    asyncio.run(with_sign_ups(tmp_path, scenario, trusted_proxies=("127.0.0.1",)))


def test_a_caller_behind_a_trusted_proxy_is_no_program_of_this_machine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_house(tmp_path, trusted_proxies=("127.0.0.1",)) as house:
            for header, value in (("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1"), ("via", "1.1 x")):
                assert (await house.client.get("/v1/adapters", headers={header: value})).status_code == 403
            assert (await house.client.get("/v1/adapters")).status_code == 200

    asyncio.run(scenario())


def test_the_host_that_a_trusted_proxy_names_is_checked_like_any(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_house(tmp_path, trusted_proxies=("127.0.0.1",), allowed_hosts=("llm.example",)) as house:
            for host, status in (("llm.example", 200), ("evil.example", 403)):
                for headers in ({"x-forwarded-host": host}, {"forwarded": f"for=1.1.1.1;host={host}"}):
                    assert (await house.client.get("/health", headers=headers)).status_code == status
        async with open_house(tmp_path) as house:
            assert (await house.client.get("/health", headers={"x-forwarded-host": "evil.example"})).status_code == 200

    asyncio.run(scenario())


# ── the control plane by itself, and the addresses that uploads are sent to ──────────────────────────────────────


def in_control(folder: Path, scenario: Callable[[Plane], Any], **options: Any) -> None:

    async def main() -> None:
        url = migrated_in(folder)
        async with open_plane(url, folder, **options) as plane:
            await scenario(plane)

    asyncio.run(main())


def test_the_control_plane_alone_checks_hosts_and_pages(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = {"authorization": f"Bearer {plane.admin_key}"}
        for headers, code in (
            ({"origin": FOREIGN}, "origin_not_allowed"),
            ({"host": "evil.example"}, "host_not_allowed"),
        ):
            for method, path in (("GET", "/admin/tenants"), ("OPTIONS", "/v2/repos"), ("GET", "/health")):
                reply = await plane.client.request(method, path, headers=key | headers)
                assert (reply.status_code, code_of(reply)) == (403, code)
        mine = {"origin": "https://app.example"}
        reply = await plane.client.get("/admin/tenants", headers=key | mine)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://app.example")
        preflight = await plane.client.options("/v2/repos", headers=mine)
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        edge = {"authorization": "Bearer token-of-the-edges", "host": "control:8090"}
        assert (await plane.client.get("/internal/snapshot", headers=edge)).status_code == 200

        for kind in ("text/plain", "application/x-www-form-urlencoded", None):
            more = key if kind is None else key | {"content-type": kind}
            reply = await plane.client.post("/admin/tenants", content=b'{"id": "acme"}', headers=more)
            assert (reply.status_code, code_of(reply)) == (415, "unsupported_media_type")

    in_control(tmp_path, scenario, settings={"server.cors_allow_origins": ("https://app.example",)})


@pytest.mark.parametrize(
    ("settings", "headers", "address"),
    [
        ({}, {}, "http://127.0.0.1"),
        ({}, {"host": "127.0.0.1:81"}, "http://127.0.0.1:81"),
        ({}, {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}, "http://127.0.0.1"),
        ({}, {"forwarded": "host=evil.example;proto=https"}, "http://127.0.0.1"),
        ({"server.public_url": "https://llm.example/api/"}, {"host": "10.0.0.1"}, "https://llm.example/api"),
        (
            {"server.trusted_proxies": ("192.0.2.0/24",), "server.allowed_hosts": ("llm.example",)},
            {"x-forwarded-host": "llm.example", "x-forwarded-proto": "https"},
            "https://llm.example",
        ),
        (
            {},
            {"x-manylora-edge": "token-of-the-edges", "x-forwarded-host": "llm.example", "x-forwarded-proto": "https"},
            "https://llm.example",
        ),
    ],
)
def test_signed_addresses_are_those_that_are_configured_or_checked(
    tmp_path: Path, settings: dict[str, object], headers: dict[str, str], address: str
) -> None:
    async def scenario(plane: Plane) -> None:
        key = {"authorization": f"Bearer {await plane.new_tenant('acme')}"}
        assert (await plane.client.post("/v2/repos", json={"name": "a"}, headers=key)).status_code == 200
        reply = await plane.client.post("/v2/adapters/upload", json={"repo": "a"}, headers=key | headers)
        for signed in reply.json()["presignedUrls"].values():
            assert signed.startswith(f"{address}/v2/adapters/upload/acme/")

    in_control(tmp_path, scenario, settings=settings)
