"""Addresses that a server may call on another's word: public ones alone, so that no caller reaches its network.

The blocks are those of IANA's registries of special-purpose addresses and the multicast blocks. A table of our own
decides, since the standard library's differs between versions of Python and lets some of them pass.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

HTTPS_PORT = 443
_SPECIAL_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_UNICAST = IPv6Network("2000::/3")
"""The addresses that IANA has given out for use on the internet. All others are special or reserved."""
_SPECIAL_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols: Teredo, benchmarks, ORCHID, anycast; a customer's server is in none of them
            "2001:db8::/32",
            "2002::/16",  # 6to4 embeds an IPv4 address, which a relay would reach
            "3fff::/20",
        ),
    )
)


async def public_address(host: str) -> str | None:
    """Return an address of `host` if all its addresses are public, else None. Raise `OSError` if the look-up fails.

    The caller connects to this address: a second look-up of the name could give another one.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, HTTPS_PORT, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of the name is empty or longer than 63 letters
        raise OSError(f"{host[:80]} is no name of a host: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        return None
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an IP address is public. An address that embeds another one, as NAT64 and 6to4 do, is not.

    Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890); IPv6 unicast space, RFC 4291, 2.4
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _SPECIAL_IPV4)
    return parsed in _UNICAST and not any(parsed in network for network in _SPECIAL_IPV6)
