"""Passwords of logins, stored as scrypt hashes with a salt of their own, and one-time codes."""

import asyncio
import base64
import hashlib
import hmac
import secrets

from manylora.errors import InvalidParameter, RequestRateExceeded

LEAST_LETTERS, MOST_LETTERS = 12, 200
COST, BLOCK, PARALLEL = 2**14, 8, 5
"""Parameters N, r, p: 16 MiB and about 0.2 s of one core for each hash (RFC 7914; OWASP Password Storage)."""
SALT_BYTES, HASH_BYTES = 16, 32
CODE_LETTERS = 24
"""Letters of a one-time code: 120 random bits."""
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters without those that look alike
_SCHEME = "scrypt"
MAX_AT_ONCE = 2
"""Hashes at one time, so that sign-ins take neither all cores nor all memory."""
MAX_WAITING = 32
"""Hashes that wait for a place, about 3 s of work; more than one address may have under way (`sign_ins.py`)."""
MAX_OF_TENANT = 2
"""Hashes of one tenant's own callers, who have a key or a code, so that they leave the queue to all others."""
BUSY_WAIT_S = 5.0
"""Seconds after which a caller that was refused for the length of the queue may try again."""


def require_password(password: str, tenant: str) -> None:
    """Raise `InvalidParameter` for a password that is too short, too long, or the tenant's name repeated."""
    if not LEAST_LETTERS <= len(password) <= MOST_LETTERS:
        raise InvalidParameter(
            f"`password` must have {LEAST_LETTERS} to {MOST_LETTERS} characters. Given: {len(password)}",
            parameter="password",
        )
    if len(set(password)) < 5 or password.lower().replace(tenant.lower(), "") == "":
        raise InvalidParameter("`password` must have at least 5 different characters", parameter="password")


class PasswordHasher:
    """Computes the hashes of passwords in threads, at most `MAX_AT_ONCE` at one time; `MAX_WAITING` more may wait.

    A further hash raises `RequestRateExceeded` with the time to wait, as does one of an `owner`, the tenant of a caller
    that has shown a key or a code, beyond `MAX_OF_TENANT`. A sign-in has no owner: strangers would take its places.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._asked: dict[asyncio.Task[bytes], str | None] = {}  # with their owners

    async def hashed(self, password: str, *, owner: str | None = None) -> str:
        """Return the text that stores a password: scheme, N, r, p, salt and hash, joined by `$`."""
        salt = secrets.token_bytes(SALT_BYTES)
        found = await self._scrypt(owner, password, salt, COST, BLOCK, PARALLEL)
        return "$".join((_SCHEME, str(COST), str(BLOCK), str(PARALLEL), _text(salt), _text(found)))

    async def is_password(self, password: str, stored: str | None, *, owner: str | None = None) -> bool:
        """Return whether a password has the stored hash. None, of an unknown login, takes as long, and is False."""
        _, cost, block, parallel, salt, expected = (stored or _of_nothing()).split("$")
        numbers = (int(cost), int(block), int(parallel))
        found = await self._scrypt(owner, password[:MOST_LETTERS], _bytes(salt), *numbers)
        return hmac.compare_digest(found, _bytes(expected)) and stored is not None

    async def _scrypt(
        self, owner: str | None, password: str, salt: bytes, cost: int, block: int, parallel: int
    ) -> bytes:
        is_over = owner is not None and sum(each == owner for each in self._asked.values()) >= MAX_OF_TENANT
        if len(self._asked) >= MAX_AT_ONCE + MAX_WAITING or is_over:
            raise RequestRateExceeded("Rate limit exceeded: too many passwords wait for a check", wait_s=BUSY_WAIT_S)
        work = asyncio.create_task(self._in_a_thread(password, salt, cost, block, parallel))
        self._asked[work] = owner
        work.add_done_callback(self._asked.pop)
        return await asyncio.shield(work)  # a caller that leaves does not end its thread, which keeps its place

    async def _in_a_thread(self, password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
        async with self._places:
            return await asyncio.to_thread(
                hashlib.scrypt,
                password.encode("utf-8", "surrogatepass"),
                salt=salt,
                n=cost,
                r=block,
                p=parallel,
                maxmem=128 * block * (cost + parallel + 2) + 65_536,  # what scrypt needs, and a little
                dklen=HASH_BYTES,
            )


def mint_code() -> str:
    """Return a fresh one-time code: six groups of four letters."""
    letters = [secrets.choice(_ALPHABET) for _ in range(CODE_LETTERS)]
    return "-".join("".join(letters[start : start + 4]) for start in range(0, CODE_LETTERS, 4))


def plain_code(text: str) -> str:
    """Return a code as its hash takes it: lower-case ASCII without blanks and hyphens; empty for other text."""
    plain = "".join(text.lower().replace("-", "").split())
    return plain if plain.isascii() and len(plain) == CODE_LETTERS else ""


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _of_nothing() -> str:
    """Return the stored text of no password, with today's parameters."""
    return "$".join((_SCHEME, str(COST), str(BLOCK), str(PARALLEL), _text(bytes(SALT_BYTES)), _text(bytes(HASH_BYTES))))
