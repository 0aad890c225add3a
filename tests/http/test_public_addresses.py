"""Public addresses: each special-purpose block of IANA's registries is refused at both of its ends."""

import asyncio
from ipaddress import ip_network

import pytest

from manylora.http.public_addresses import is_public, public_address

SPECIAL = (
    # IPv4: https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/31"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32", "224.0.0.0/4"),
    # IPv6: https://www.iana.org/assignments/iana-ipv6-special-registry, multicast, and what it no longer lists
    *("::1/128", "::/128", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64"),
    *("100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128"),
    *("2001:2::/48", "2001:3::/32", "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28"),
    *("2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    *("fec0::/10", "ff00::/8", "::/96", "4000::/3", "8000::/1"),
)
OPEN = (
    *("1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"),
    *("192.0.1.0", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700:4700::1111", "2620:4f:8000::1", "2a00::1"),
    *("3ffe:ffff::1", "3fff:1000::1"),
)


@pytest.mark.parametrize("block", SPECIAL)
def test_no_address_of_a_special_block_is_public(block: str) -> None:
    network = ip_network(block)
    for address in (network[0], network[-1]):
        assert not is_public(str(address)), address
    assert not is_public(f"{network[0]}%eth0") or network.version == 4


@pytest.mark.parametrize("address", OPEN)
def test_their_neighbours_and_what_is_reachable_by_all_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", [f"{'a' * 64}.example", "a..example"])
def test_a_name_that_cannot_be_looked_up_is_the_error_of_a_look_up(host: str) -> None:
    with pytest.raises(OSError, match="is no name of a host"):
        asyncio.run(public_address(host))
