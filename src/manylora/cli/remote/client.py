"""Requests of commands to a running server, and the options that name the server and the key."""

import json
import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.remote.output import fail, say
from manylora.config.environment import KEY_VARIABLE, URL_VARIABLE, caller_key, caller_url
from manylora.http.loopback import VERSION_HEADER, is_loopback
from manylora.system.printable import printable_json
from manylora.tenancy import Scope

if TYPE_CHECKING:
    import httpx2

LOCAL_URL = "http://127.0.0.1:8080"
DEFAULT_URL = ""
"""Default of `--url`: the environment variable MANYLORA_URL, else `LOCAL_URL`."""
PROBE_PATH = "/ready"
ANSWER_WAIT_S = 30.0
NO_CONTENT, NOT_FOUND = 204, 404


def _url(given: str) -> str:
    """Return the server's URL: of the option, else of the environment, else of this machine."""
    url = given or caller_url() or LOCAL_URL
    if not re.match(r"https?://[^/]", url):
        source = "--url" if given else URL_VARIABLE
        fail(f"{source} must be a server's address such as {LOCAL_URL}. Given: {url!r}")
    return url


UrlOption = Annotated[
    str,
    typer.Option(
        callback=_url,
        show_default=False,
        help=f"URL of the server. Default: {URL_VARIABLE}, else {LOCAL_URL}.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help=f"Key for a server that asks for one. Default: {KEY_VARIABLE}, which no list of processes shows."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's JSON unchanged.")]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of lines.")]
BeforeOption = Annotated[int | None, typer.Option(min=0, help="Continue after the page that named this value.")]


def _trusted(url: str) -> "bool | ssl.SSLContext":
    """Return the certificates that a client trusts: the system's for https, none for http.

    Reading the system's takes 20 ms, and no command follows a redirect from http to https.
    """
    return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOwner:
    """Owner of a key. is_operator: it may ask about every tenant."""

    tenant: str
    is_operator: bool


@dataclass(slots=True, kw_only=True)
class RemoteServer:
    """A running server, and the key to send it; None: the key of the environment, if there is one."""

    url: str
    key: str | None = None
    _is_known: bool = field(default=False, init=False)
    """True once the server has answered as a manylora server: only then it may get the key."""

    def ask(
        self,
        method: str,
        path: str,
        *,
        expects: str,
        query: dict[str, object] | None = None,
        body: object = None,
        wait_s: float = 0.0,
    ) -> "httpx2.Response":
        """Send one request and return the reply. A failure ends the program with one line that names it.

        Args:  expects  a field that the reply of a manylora server has; empty: the reply may be any document
               wait_s   seconds that the server may take in addition to `ANSWER_WAIT_S`
        """
        reply = self._send(method, path, query=query, body=body, wait_s=wait_s)
        if (message := refusal_in(reply, expects)) is not None:
            fail(message)
        return _harmless(reply) if expects else reply

    def ask_if_there(
        self, path: str, *, expects: str, query: dict[str, object] | None = None
    ) -> "httpx2.Response | None":
        """Return the reply to a GET as `ask` does; None if the server has no such route, as a control plane alone."""
        reply = self._send("GET", path, query=query, body=None, wait_s=0.0)
        if reply.status_code == NOT_FOUND:
            return None
        if (message := refusal_in(reply, expects)) is not None:
            fail(message)
        return _harmless(reply)

    def key_owner(self) -> "KeyOwner | None":
        """Return the owner of the key; None without a key, where the server wants one."""
        reply = self._send("GET", "/v1/account/key", query=None, body=None, wait_s=0.0)
        if (message := refusal_in(reply, "scopes")) is not None:
            return fail(message) if self.key or caller_key() else None
        body = _harmless(reply).json()
        return KeyOwner(tenant=str(body["tenant"]), is_operator=Scope.ADMIN in body["scopes"])

    def answers_own(self, tenant: str = "") -> bool:
        """Return whether a request about a tenant goes to the routes of the key's own account, not to the operator's.

        Args:  tenant  tenant of the request; empty: all tenants with the operator's key, else the key's own
        Ends the program for another tenant than the key's own, unless it is the operator's key.
        """
        owner = self.key_owner()
        if owner is None:
            return True
        if not owner.is_operator and tenant not in ("", owner.tenant):
            fail(f"the key is of tenant {owner.tenant}: about tenant {tenant} the operator's key alone may ask")
        return not owner.is_operator

    def _send(
        self, method: str, path: str, *, query: dict[str, object] | None, body: object, wait_s: float
    ) -> "httpx2.Response":
        import httpx2

        key = self.key or caller_key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        given = {name: str(value) for name, value in (query or {}).items()}
        try:
            # Behind a proxy of the environment the request would not come from this machine.
            with httpx2.Client(
                base_url=self.url, timeout=ANSWER_WAIT_S + wait_s, trust_env=False, verify=_trusted(self.url)
            ) as client:
                if key:
                    self._require_manylora(client)
                return client.request(method, path, params=given, json=body, headers=headers)
        except httpx2.TimeoutException:
            fail(f"the server at {self.url} did not answer within {ANSWER_WAIT_S + wait_s:g} s")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            fail(f"no server answers at {self.url} ({error}); start one with `manylora serve`, or name it with --url")
        except UnicodeEncodeError:
            fail("the key has letters that no key has")

    def _require_manylora(self, client: "httpx2.Client") -> None:
        """Require that a manylora server answers a request without the key; any other server must not get the key.

        No request follows a redirect: it may lead to another server.
        """
        if self._is_known:
            return
        reply = client.get(PROBE_PATH)
        if reply.is_redirect or VERSION_HEADER not in reply.headers:
            led = f"redirects to {reply.headers.get('location', '')}" if reply.is_redirect else "is no manylora server"
            fail(f"{self.url} {led}, so the key was not sent; name the server with --url or {URL_VARIABLE}")
        if client.base_url.scheme == "http" and not is_loopback(client.base_url.host):
            say(f"manylora: warning: {self.url} is not encrypted, every machine on the way can read the key", err=True)
        self._is_known = True

    def pages(self, path: str, *, expects: str, query: dict[str, object] | None = None) -> "Iterator[httpx2.Response]":
        """Yield the pages of a list as they arrive. A server of an older version has a single page."""
        query = query or {}
        while True:
            page = self.ask("GET", path, expects=expects, query=query)
            yield page
            following = page.json().get("next")
            if not following or following == query.get("after"):
                return
            query = query | {"after": following}


def whole_json(pages: "Sequence[httpx2.Response]", name: str) -> str:
    """Return the server's JSON; several pages become one document, with the entries of all under `name`."""
    if len(pages) == 1:
        return pages[0].text
    bodies = [page.json() for page in pages]
    listed = [entry for body in bodies for entry in body[name]]
    return printable_json(json.dumps({**bodies[-1], name: listed}, ensure_ascii=False))


def path_of(*parts: str) -> str:
    """Return a path with each part as one segment: unescaped, `..` or `a/b` would name another route."""
    from urllib.parse import quote

    for part in parts:
        if part in ("", ".", ".."):
            fail(f"{part!r} is no name")
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def refusal_in(reply: "httpx2.Response", key: str) -> str | None:
    """Return the error message of a reply; None for a success that has the field `key`."""
    if reply.status_code == NO_CONTENT or (reply.is_success and not key):
        return None
    if reply.is_redirect:
        return f"{reply.url} redirects to {reply.headers.get('location', '')}, which is not followed"
    try:
        body = reply.json()
        if reply.is_success and key in body:
            return None
        error = body["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return f"{reply.url} answered {reply.status_code}, and not as a manylora server does"


def _harmless(reply: "httpx2.Response") -> "httpx2.Response":
    """Return a JSON reply with the same meaning and without control characters of a terminal."""
    import httpx2

    kept = {name: value for name, value in reply.headers.items() if name == "content-type"}
    text = printable_json(reply.text)
    return httpx2.Response(reply.status_code, headers=kept, content=text.encode(), request=reply.request)
