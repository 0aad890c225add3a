"""The origin of an HTTP request: its client behind trusted proxies, the host it names, the web page that sends it.

A browser lets any page send requests to this machine. A page whose own name resolves to this machine (DNS rebinding)
can even read the replies. `Origin` or `Sec-Fetch-Site` reveals the first case, `Host` the second. Clients without a
browser send no `Origin` and no `Sec-Fetch-Site`, and their `Host` is the address that they were given.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from manylora.config.address_rules import Network, network_of
from manylora.errors import HostNotAllowed, OriginNotAllowed
from manylora.http.loopback import is_loopback
from manylora.http.paths import PATHS, Component, Trait, deployment_path
from manylora.system.printable import printable

Scope = dict[str, Any]  # ASGI's own type is a dictionary of anything

ANY = "*"
CORS_METHODS = "GET, POST, PUT, DELETE, OPTIONS"
CORS_HEADERS = "authorization, content-type"
NO_ORIGIN = "null"
"""The Origin of a page without an address. A cross-site request without an Origin counts as one of such a page."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(%25?[\w.-]+)?\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_FORWARDED_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,\s]*)\s*')


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginPolicy:
    """Rules for the requests that a server answers.

    is_key_needed   False: pages on this machine and listed pages may infer and read models, and nothing else
    hosts           further host names, lower-case; `.name` stands for all names below it, `*` for all names
    origins         Origins of web pages, such as `https://app.example`; `*`, where keys are needed, for all
    proxies         networks of proxies whose `X-Forwarded-…` headers are trusted
    """

    is_key_needed: bool
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    proxies: tuple[Network, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        is_key_needed: bool,
        host: str,
        allowed_hosts: Sequence[str],
        origins: Sequence[str],
        proxies: Sequence[str],
    ) -> "OriginPolicy":
        """Return the policy of a server that listens on `host`. `check_rule` has checked the settings."""
        own = {socket.gethostname().lower(), host.lower()}
        return cls(
            is_key_needed=is_key_needed,
            hosts=frozenset({*own, *(name.lower() for name in allowed_hosts)}),
            origins=frozenset(origin.lower() for origin in origins),
            proxies=tuple(map(network_of, proxies)),
        )

    def seen(self, scope: Scope) -> Scope:
        """Return the scope as the outermost trusted proxy saw it: client, scheme and `host` header; else unchanged.

        The headers stay, since they also show that the request came through a proxy.
        """
        peer = scope.get("client")
        if not peer or not self._is_proxy(str(peer[0])):
            return scope
        headers = headers_of(scope)
        client = self._client_behind(headers) or str(peer[0])
        told = _forwarded(headers.get("forwarded", [])) or [{}]
        scheme = _last(headers.get("x-forwarded-proto")) or told[-1].get("proto") or scope.get("scheme", "http")
        host = _last(headers.get("x-forwarded-host")) or told[-1].get("host")
        kept = scope["headers"]
        if host:
            kept = [*((name, value) for name, value in kept if name.lower() != b"host"), (b"host", host.encode())]
        scheme = scheme.lower() if scheme.lower() in ("http", "https") else "http"
        return {**scope, "client": (client, peer[1]), "scheme": scheme, "headers": kept}

    def check(self, scope: Scope) -> str | None:
        """Return the Origin that may read the reply, by CORS; None: no page asked, or one of this server's own.

        Raises:  `HostNotAllowed`, `OriginNotAllowed`
        """
        headers = headers_of(scope)
        host = self._checked_host(headers.get("host", []))
        origin = _page(headers, scope)
        if origin is None:
            return None
        is_own = origin != NO_ORIGIN and host is not None and _authority(origin) == host.lower()
        if PATHS.area_of(scope["path"]).component is Component.CONSOLE:
            if is_own:
                return None
            raise OriginNotAllowed("the console answers its own pages alone; open it by its address")
        if not self.is_key_needed and not _is_open_to_pages(scope["path"]):
            raise OriginNotAllowed(
                f"this came from a web page (`{printable(origin[:80])}`), which may only infer and read models where "
                "no keys are needed; use a program, or start the server with keys (server.auth=on)"
            )
        is_local = not self.is_key_needed and is_loopback(_name(origin))
        is_listed = origin in self.origins or (self.is_key_needed and ANY in self.origins and origin != NO_ORIGIN)
        if is_own or is_local or is_listed:
            return None if origin == NO_ORIGIN else origin
        raise OriginNotAllowed(
            f"web pages of `{printable(origin[:80])}` may not use this server; its operator can name them in "
            "server.cors_allow_origins"
        )

    def _checked_host(self, given: Sequence[str]) -> str | None:
        """Return the `Host` of a request; None: it has none, as from programs with HTTP/1.0, which no browser uses."""
        if not given:
            return None
        if len(given) > 1 or not _HOST.fullmatch(given[0]):
            raise HostNotAllowed("the header `Host` must be one name or address, with or without a port")
        name = (_name(f"//{given[0]}") or "").rstrip(".")
        if is_loopback(name) or _is_address(name) or name in self.hosts or ANY in self.hosts:
            return given[0]
        parents = name.split(".")
        if any("." + ".".join(parents[start:]) in self.hosts for start in range(1, len(parents))):
            return given[0]
        raise HostNotAllowed(
            f"this server does not answer to the host name `{printable(name[:80])}`; use its address, or name it in "
            "server.allowed_hosts"
        )

    def _client_behind(self, headers: Mapping[str, Sequence[str]]) -> str | None:
        """Return the last address outside the trusted proxies, of all that the proxies name; None: they name none.

        A proxy passes on the headers that it does not know as its caller wrote them. So if the three headers contradict
        each other, the method trusts none.
        """
        chains = (
            [part.strip() for value in headers.get("x-forwarded-for", []) for part in value.split(",")],
            [pair.get("for", "") for pair in _forwarded(headers.get("forwarded", []))],
            [value.strip() for value in headers.get("x-real-ip", [])],
        )
        found = {client for chain in chains if (client := self._last_stranger(chain)) is not None}
        if len(found) == 1:
            return found.pop()
        trusted = [_address(chain[0]) for chain in chains if chain]
        return trusted[0] if not found and trusted else None

    def _last_stranger(self, chain: Sequence[str]) -> str | None:
        """Return the last hop that is no trusted proxy.

        The hops are read from the right, since each proxy appends its caller.
        """
        for hop in reversed(chain):
            address = _address(hop)
            if address is None:
                return "unknown"
            if not self._is_proxy(address):
                return address
        return None

    def _is_proxy(self, host: str) -> bool:
        return is_within(host, self.proxies)


def cors_headers(origin: str | None, exposed: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of every reply: an allowed Origin may read it; never with credentials."""
    vary = [(b"vary", b"origin")]
    if origin is None:
        return vary
    return [
        *vary,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", ", ".join(exposed).encode("ascii")),
    ]


def preflight_headers(origin: str | None) -> dict[str, str]:
    """Return the headers of the answer to a preflight of an allowed Origin; None: there was none."""
    if origin is None:
        return {}
    return {
        "access-control-allow-methods": CORS_METHODS,
        "access-control-allow-headers": CORS_HEADERS,
        "access-control-max-age": "600",
    }


def headers_of(scope: Scope) -> dict[str, list[str]]:
    """Return all values of each header, by its lower-case name, in their order."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks. An IPv4 address in an IPv6 one counts as itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def _page(headers: Mapping[str, Sequence[str]], scope: Scope) -> str | None:
    """Return the Origin of the page that sends a request; None: none does, or a person visits a page of this server."""
    if (origins := headers.get("origin")) is not None:
        return origins[0].strip().lower() if len(origins) == 1 else NO_ORIGIN
    site = _last(headers.get("sec-fetch-site"))
    if site not in ("cross-site", "same-site"):
        return None
    is_visit = scope["method"] == "GET" and _last(headers.get("sec-fetch-mode")) == "navigate"
    return None if is_visit and _is_visited(scope["path"]) else NO_ORIGIN


def _is_visited(path: str) -> bool:
    """Return whether a person may follow a link of another site to a path."""
    return PATHS.any_has_trait(path, Trait.VISITED) or PATHS.area_of(path).component is Component.CONSOLE


def _is_open_to_pages(path: str) -> bool:
    """Return whether a page may ask a path of a server without keys: inference, models, and facts that need no key."""
    deployment = deployment_path(path)
    return PATHS.any_has_trait(path if deployment is None else deployment.rest, Trait.PAGES)


def _forwarded(values: Sequence[str]) -> list[dict[str, str]]:
    """Return the elements of `Forwarded` (RFC 7239), each with the pairs that one proxy added."""
    elements: list[dict[str, str]] = []
    for element in ",".join(values).split(",") if values else []:
        pairs = (_FORWARDED_PAIR.fullmatch(pair) for pair in element.split(";"))
        elements.append({pair[1].lower(): pair[2].strip('"') for pair in pairs if pair})
    return elements


def _address(hop: str) -> str | None:
    """Return the address in a hop such as `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]:80`; None: it has none."""
    bare = hop.strip().strip('"')
    bracketed = re.fullmatch(r"\[([^\]]+)\](:\d+)?", bare)
    with_port = re.fullmatch(r"([0-9.]+):\d+", bare)
    bare = bracketed[1] if bracketed else with_port[1] if with_port else bare
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(url: str) -> str | None:
    """Return the host name of a URL, lower-case."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _authority(origin: str) -> str:
    return origin.partition("://")[2]


def _last(values: Sequence[str] | None) -> str | None:
    return values[-1].rpartition(",")[2].strip() or None if values else None
