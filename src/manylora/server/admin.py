"""Who may see and steer the server: until there are keys, whoever calls from this machine itself."""

import ipaddress
from urllib.parse import urlsplit

from manylora.errors import InsufficientPermissions
from manylora.server.exchange import Exchange

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


def require_operator(exchange: Exchange, *, is_open: bool) -> None:
    """Let only a program on this machine through, or everyone if `server.admin_open` is on.

    A proxy on this machine calls from a loopback address for everybody, and so does a web page in a browser here:
    the first names whom it calls for, the second its origin, or a host that is not this machine.
    Raises `InsufficientPermissions` saying what was wrong.
    """
    if is_open:
        return
    if not is_loopback(exchange.client_host):
        raise _refusal(f"this one came from {exchange.client_host or 'an unknown address'}")
    if (name := next((name for name in FORWARDED if exchange.header(name) is not None), None)) is not None:
        raise _refusal(f"this one came through a proxy (header `{name}`)")
    if exchange.header("origin") is not None:
        raise _refusal("this one came from a web page (header `origin`)")
    host = exchange.header("host") or ""
    if not is_loopback(_name_of(host)):
        raise _refusal(f"this one was sent to the host `{host[:80]}`, use 127.0.0.1")


def is_operator(exchange: Exchange, *, is_open: bool) -> bool:
    """The same as an answer, for what strangers may see less of."""
    try:
        require_operator(exchange, is_open=is_open)
    except InsufficientPermissions:
        return False
    return True


def is_loopback(host: str | None) -> bool:
    """Whether an address, or the name `localhost`, is this machine itself."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _name_of(host: str) -> str | None:
    """The name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _refusal(why: str) -> InsufficientPermissions:
    return InsufficientPermissions(
        f"adapters are managed by callers on the server's own machine (server.admin_open is off); {why}"
    )
