"""Visitors of the console in a soak: each signs in, opens every page that has a link, asks a model, and signs out."""

import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape

import httpx2

PASSWORD = "a password of the soak"
ENTRANCE = "/console/sign-in"
MOST_PAGES = 200
"""Pages of one visit: lists have further pages, and a report of usage links to others without an end."""
TOKEN = re.compile(r'(?:name="form_token" value|data-token)="([0-9a-f]{64})"')
LINK = re.compile(r'(?:href|src)="(/console[^"#]*)"')
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}


class NoEntry(Exception):
    """The answer to a sign-in that opened no session."""


@dataclass
class Visitor:
    """A person at a browser, with the login of one tenant.

    pages    pages read, all visits together
    refused  replies of 4xx and 5xx, by the form of the path and the status
    """

    key: str
    tenant: str = ""
    pages: int = 0
    visits: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    async def visit(self, browser: httpx2.AsyncClient) -> None:
        """Go through the console once, in a session of its own.

        Args:    browser  a client of the server without cookies
        Raises:  NoEntry; HTTPError, for a connection that ended
        """
        await self._claim(browser)
        await self._sign_in(browser)
        last = await self._read_all(browser)
        await self._ask(browser)
        await self._send(browser, "/console/sign-out", {"form_token": _token(last)})
        self.visits += 1

    async def _claim(self, browser: httpx2.AsyncClient) -> None:
        """Give the tenant of the key its login, at the first visit."""
        if self.tenant:
            return
        head = {"authorization": f"Bearer {self.key}"}
        own = (await browser.get("/v1/account/key", headers=head)).raise_for_status()
        set_ = await browser.put("/v1/account/login", json={"password": PASSWORD}, headers=head)
        set_.raise_for_status()
        self.tenant = str(own.json()["tenant"])

    async def _sign_in(self, browser: httpx2.AsyncClient) -> None:
        form = {"form_token": _token((await browser.get(ENTRANCE)).text), "tenant": self.tenant, "password": PASSWORD}
        reply = await self._send(browser, ENTRANCE, form)
        if reply.status_code != httpx2.codes.SEE_OTHER:
            raise NoEntry(f"the sign-in of {self.tenant} answered {reply.status_code}")

    async def _read_all(self, browser: httpx2.AsyncClient) -> str:
        """Open each page that a page before it links to; return the text of the first one."""
        first = ""
        seen = {"/console"}
        waiting = deque(seen)
        while waiting and len(seen) <= MOST_PAGES:
            path = waiting.popleft()
            reply = await browser.get(path)
            self._note(path, reply)
            self.pages += 1
            first = first or reply.text
            if reply.headers.get("content-type", "").startswith("text/html"):
                found = {unescape(link) for link in LINK.findall(reply.text)} - seen
                seen |= found
                waiting += sorted(found)
        return first

    async def _ask(self, browser: httpx2.AsyncClient) -> None:
        page = await browser.get("/console/playground")
        models = re.findall(r'<option value="([^"]+)"', page.text)
        if not models:
            return
        asked = {**QUESTION, "model": unescape(models[0])}
        reply = await browser.post("/console/playground/ask", json=asked, headers={"x-form-token": _token(page.text)})
        self._note("/console/playground/ask", reply)

    async def _send(self, browser: httpx2.AsyncClient, path: str, form: Mapping[str, str]) -> httpx2.Response:
        reply = await browser.post(path, data=dict(form), headers={"origin": str(browser.base_url).rstrip("/")})
        self._note(path, reply)
        return reply

    def _note(self, path: str, reply: httpx2.Response) -> None:
        if reply.is_error:
            self.refused[f"{re.sub(r'[0-9]+', 'N', path.partition('?')[0])} {reply.status_code}"] += 1


def _token(text: str) -> str:
    """Return the token of a page's forms. Raise `NoEntry` for a page without one, such as that of an error."""
    found = TOKEN.search(text)
    if found is None:
        raise NoEntry("the page has no form")
    return found[1]
