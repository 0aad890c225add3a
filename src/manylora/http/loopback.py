"""The test for requests of programs on this machine, which come neither through a proxy nor from a web page."""

import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

EDGE_HEADER = "x-manylora-edge"
"""Header with the edge token: an edge passes this request on, and its last `x-forwarded-for` is true."""
CALLER_HEADER = "x-manylora-caller"
"""Header of the control plane's replies to an edge: `TENANT/KEY_ID` of the request, each `-` if there is none."""
VERSION_HEADER = "x-manylora-version"
"""Header of every reply of a server and of a control plane, with its version."""
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


def why_not_local(client_host: str | None, header: Callable[[str], str | None]) -> str | None:
    """Return the evidence that a request is not from a program here; None: there is none.

    A proxy on this machine calls from a loopback address for other machines, and so does a web page in a browser here.
    A proxy's headers name its client. A page's headers name its origin, or a host that is not this machine.

    Args:  client_host  the address the connection comes from; None where there is none
           header       the value of a header by its lower-case name
    """
    if not is_loopback(client_host):
        return f"this one came from {client_host or 'an unknown address'}"
    if (name := next((name for name in FORWARDED if header(name) is not None), None)) is not None:
        return f"this one came through a proxy (header `{name}`)"
    if header("origin") is not None:
        return "this one came from a web page (header `origin`)"
    host = header("host") or ""
    if not is_loopback(_name_of(host)):
        return f"this one was sent to the host `{host[:80]}`, use 127.0.0.1"
    return None


def is_loopback(host: str | None) -> bool:
    """Return whether an address, or the name `localhost`, is this machine itself."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _name_of(host: str) -> str | None:
    """Return the name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
