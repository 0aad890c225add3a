"""The proxy for measurements behind a faulty network."""

import gc
import socket

from manylora.bench.faults.network import Proxy

DISCARD_PORT = 9
NUM_PROXIES = 100
"""Among this many proxies some close while a connection's task has not begun."""


def test_a_proxy_that_closes_amid_an_accept_leaves_no_connection_open() -> None:
    """A connection that stays open warns when it is collected, and the warning fails the test."""
    for _ in range(NUM_PROXIES):
        proxy = Proxy(DISCARD_PORT)
        with socket.create_connection(("127.0.0.1", proxy.port)):
            proxy.close()
    gc.collect()
