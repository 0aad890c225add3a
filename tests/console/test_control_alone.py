"""The console of a control plane without a server: every page opens, and what needs a server says so."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from manylora.console.application import create_console
from manylora.control.app.application import create_control_app
from tests.console.house import ADDRESS, OPERATOR_PAGES, PAGES, PASSWORD, Browser, text_of
from tests.control.plane import migrated_in, open_plane


def test_a_control_plane_alone_has_the_console(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_plane(migrated_in(tmp_path), tmp_path, settings={"control.signup_open": True}) as plane:
            app = create_control_app(plane.control, create_console)
            client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ADDRESS)
            browser = Browser(client)
            assert (await browser.get("/console")).headers["location"] == "/console/sign-in?next=%2Fconsole"
            assert "pb_" in (await browser.sign_up("acme")).text
            pages = {name: await browser.get(f"/console{path}") for name, path in PAGES.items()}
            assert {name: page.status_code for name, page in pages.items() if page.status_code != 200} == {}
            assert "runs no model" in text_of(pages["playground"].text)
            assert "https://SERVER/v1/chat/completions" in text_of(pages["overview"].text)
            strange = await client.post("/console/keys", data={}, headers={"origin": "https://evil.example"})
            assert strange.status_code == 403
            await plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
            client.cookies.clear()
            await browser.sign_in("operator")
            for path in OPERATOR_PAGES.values():
                assert (await browser.get(f"/console{path}")).status_code == 200, path
            await client.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("has_console", [True, False])
def test_without_a_console_its_address_is_an_unknown_route(tmp_path: Path, *, has_console: bool) -> None:
    async def main() -> None:
        async with open_plane(migrated_in(tmp_path), tmp_path) as plane:
            app = create_control_app(plane.control, create_console if has_console else None)
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ADDRESS) as client:
                assert (await client.get("/console/sign-in")).status_code == (200 if has_console else 404)

    asyncio.run(main())
