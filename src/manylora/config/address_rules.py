"""Rules of hosts, Origins and proxies, as the settings spell them."""

import ipaddress
import re

from manylora.errors import ConfigInvalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_HOST_RULE = re.compile(r"\*|\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN_RULE = re.compile(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")


def check_rule(setting: str, value: str) -> None:
    """Check an entry of `server.allowed_hosts`, `.cors_allow_origins` or `.trusted_proxies`.

    Raises `ConfigInvalid` for a malformed one.
    """
    if setting.endswith("allowed_hosts") and not _HOST_RULE.fullmatch(value.lower()):
        raise ConfigInvalid(f"{setting}: a host is a name without a port, `.name` for all below it, given {value!r}")
    if setting.endswith("cors_allow_origins") and not _ORIGIN_RULE.fullmatch(value.lower()):
        raise ConfigInvalid(f"{setting}: an Origin is https://name or http://name:port, given {value!r}")
    if setting.endswith("trusted_proxies"):
        try:
            network_of(value)
        except ValueError:
            raise ConfigInvalid(f"{setting}: a proxy is an address or a network, 10.0.0.0/8, given {value!r}") from None


def network_of(text: str) -> Network:
    return ipaddress.ip_network(text, strict=False)
