"""Limits on tries of passwords and one-time codes, counted by address, by tenant and address, and by tenant.

A tenant alone never reaches a limit that refuses its owner: tries of strangers at other addresses leave the owner's
address at least `MOST_UNDER_ATTACK` tries.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from manylora.clock import Clock
from manylora.control.tenants.attempts import Attempts, counted_address
from manylora.errors import InvalidApiKey, ManyloraError, RequestRateExceeded

WINDOW_S = 900.0
MOST_OF_ADDRESS = 20
"""Failed tries of one address, whatever the tenants."""
MOST_OF_PAIR = 10
"""Failed tries of one address for one tenant."""
ATTACK_OF_TENANT = 50
"""Failed tries for one tenant from all addresses, from which on each address has `MOST_UNDER_ATTACK` alone."""
MOST_UNDER_ATTACK = 2


class SignInLimiter:
    """Counts tries before they are checked, and takes those that succeed back. Keys and open sessions go on."""

    def __init__(self, clock: Clock) -> None:
        self._addresses = Attempts(clock, most=MOST_OF_ADDRESS, window_s=WINDOW_S)
        self._tenants = Attempts(clock, most=ATTACK_OF_TENANT, window_s=WINDOW_S)
        self._pairs = Attempts(clock, most=MOST_OF_PAIR, window_s=WINDOW_S)

    @contextmanager
    def trying(self, tenant: str, address: str) -> Iterator[None]:
        """Count a try before its check, and take it back after it, unless a secret was wrong (`InvalidApiKey`).

        A try that the server refuses for a cause of its own, such as a full queue, says nothing about the secret. A
        caller that leaves before the end stays counted, as its work goes on. Raise as `count`.
        """
        self.count(tenant, address)
        try:
            yield
        except InvalidApiKey:
            raise
        except ManyloraError:
            self.forgive(tenant, address)
            raise
        self.forgive(tenant, address)

    def count(self, tenant: str, address: str) -> None:
        """Count a try. Raise `RequestRateExceeded` with the time to wait."""
        address = counted_address(address)
        pair = _pair(tenant, address)
        most = MOST_UNDER_ATTACK if self._tenants.wait_s(tenant) else MOST_OF_PAIR
        if wait_s := max(self._addresses.wait_s(address), self._pairs.wait_s(pair, most)):
            raise RequestRateExceeded("Rate limit exceeded: too many failed tries to sign in", wait_s=wait_s)
        self._addresses.count(address)
        self._pairs.count(pair)
        self._tenants.count(tenant)

    def forgive(self, tenant: str, address: str) -> None:
        """Take a try back."""
        address = counted_address(address)
        self._addresses.forgive(address)
        self._pairs.forgive(_pair(tenant, address))
        self._tenants.forgive(tenant)


def _pair(tenant: str, address: str) -> str:
    return f"{address} {tenant}"
