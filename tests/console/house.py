"""A console over a real control plane in the test's own process, and a browser without scripts."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx2

from manylora.console.application import create_console
from manylora.control.app.application import create_control_app
from tests.control.plane import Plane, migrated_in, open_plane

PASSWORD = "correct horse battery"
ADDRESS = "http://127.0.0.1"
PAGES = {
    "overview": "",
    "playground": "/playground",
    "adapters": "/adapters",
    "usage": "/usage?by=day&by=adapter",
    "billing": "/billing",
    "webhooks": "/webhooks",
    "deployments": "/deployments",
    "keys": "/keys",
    "sign-in-settings": "/sign-in-settings",
}
OPERATOR_PAGES = {
    name: f"/operator/{name}" for name in ("tenants", "tenants/acme", "fleet", "invoices", "prices", "audit")
}
_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')


@dataclass
class Browser:
    """Keeps cookies, follows no redirect by itself, and takes the token of a form from the page that has it."""

    client: httpx2.AsyncClient

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        return await self.client.get(path, **more)

    async def post(self, path: str, fields: dict[str, Any], *, page: str = "", **more: Any) -> httpx2.Response:
        """Send a form of a page; `page`: the one that has it, where its address is another one."""
        token = token_of((await self.get(page or path)).text)
        return await self.client.post(path, data={**fields, "form_token": token}, **more)

    async def sign_up(self, tenant: str, **fields: str) -> httpx2.Response:
        form = {"tenant": tenant, "password": PASSWORD, "again": PASSWORD, **fields}
        return await self.post("/console/sign-up", form)

    async def sign_in(self, tenant: str, password: str = PASSWORD, **fields: str) -> httpx2.Response:
        return await self.post("/console/sign-in", {"tenant": tenant, "password": password, **fields})


@dataclass
class ConsoleHouse:
    """A console with its control plane. Each browser has cookies of its own."""

    plane: Plane
    new_browser: Callable[[], Browser]


Scenario = Callable[[ConsoleHouse], Coroutine[Any, Any, None]]


def in_console(folder: Path, scenario: Scenario, **options: Any) -> None:
    """Run a coroutine function with a fresh console."""

    async def main() -> None:
        async with open_console(folder, **options) as house:
            await scenario(house)

    asyncio.run(main())


@asynccontextmanager
async def open_console(folder: Path, **options: Any) -> AsyncIterator[ConsoleHouse]:
    """A console whose API is a control plane alone: it has every page but the answers of models."""
    settings = {"control.signup_open": True, **options.pop("settings", {})}
    browsers: list[Browser] = []
    async with open_plane(migrated_in(folder), folder, settings=settings, **options) as plane:
        transport = httpx2.ASGITransport(create_console(plane.control.config, create_control_app(plane.control)))  # type: ignore[arg-type]  # ASGI's types differ by library

        def new_browser() -> Browser:
            browser = Browser(httpx2.AsyncClient(transport=transport, base_url=ADDRESS))
            browsers.append(browser)
            return browser

        try:
            yield ConsoleHouse(plane, new_browser)
        finally:
            for browser in browsers:
                await browser.client.aclose()


def token_of(page: str) -> str:
    """Return the token of a page's forms; empty: it has none."""
    found = _TOKEN.search(page)
    return found[1] if found else ""


def text_of(page: str) -> str:
    """Return what a person reads of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
