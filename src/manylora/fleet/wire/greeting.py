"""The greeting of an edge and a host: each shows the other that it knows the fleet's secret, which is never sent.

    host → edge   manylora-fleet VERSION NONCE
    edge → host   manylora-fleet VERSION NONCE NAME PROOF
    host → edge   welcome NAME PROOF     or   refused WHY

A proof is HMAC-SHA-256 under the secret over the role of its sender, both nonces and the name of its sender (RFC 2104).
The nonces are fresh, and each role has a proof of its own, so that no proof serves a second time or for the other role.
"""

import asyncio
import hmac
import re
import secrets
from dataclasses import dataclass

from manylora.fleet.wire.framing import GREETING_BYTES, read_message, write_message

PROTOCOL = "manylora-fleet"
VERSION = 4
GREETING_WAIT_S = 10.0
_NONCE = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{16}")


class GreetingRefused(Exception):
    """The peer is no member of this fleet, or one of another version; the message names the reason."""


@dataclass(frozen=True, slots=True)
class FleetSecret:
    """The secret that all members of a fleet know."""

    key: bytes

    def proof(self, role: str, host_nonce: str, edge_nonce: str, name: str) -> str:
        text = " ".join((PROTOCOL, str(VERSION), role, host_nonce, edge_nonce, name))
        return hmac.new(self.key, text.encode("ascii"), "sha256").hexdigest()

    def __repr__(self) -> str:
        return "FleetSecret(…)"


async def greet_edge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: FleetSecret, name: str) -> str:
    """Greet an edge as the host `name`, and return the edge's name.

    Raises: `GreetingRefused` for another secret, version or protocol, with the reason sent to the edge; `LinkBroken`;
            TimeoutError
    """
    async with asyncio.timeout(GREETING_WAIT_S):
        own = secrets.token_hex(32)
        _send(writer, PROTOCOL, str(VERSION), own)
        words = await _words(reader)
        try:
            edge = _checked_edge(words, secret, own)
        except GreetingRefused as error:
            _send(writer, "refused", str(error))
            raise
        _send(writer, "welcome", name, secret.proof("host", own, words[2], name))
        return edge


async def greet_host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: FleetSecret, name: str) -> str:
    """Greet a host as the edge `name`, and return the host's name.

    Raises: `GreetingRefused` for another secret, version or protocol; `LinkBroken`; TimeoutError
    """
    async with asyncio.timeout(GREETING_WAIT_S):
        words = await _words(reader)
        _check_version(words, "the engine")
        if len(words) != 3 or not _NONCE.fullmatch(words[2]):
            raise GreetingRefused("the engine's greeting has no nonce")
        own = secrets.token_hex(32)
        _send(writer, PROTOCOL, str(VERSION), own, name, secret.proof("edge", words[2], own, name))
        answer = await _words(reader)
        if answer[0] == "refused":
            raise GreetingRefused(f"the engine refuses this edge: {' '.join(answer[1:])}")
        if len(answer) != 3 or answer[0] != "welcome" or not _NAME.fullmatch(answer[1]):
            raise GreetingRefused("the engine's answer to the greeting is none")
        if not hmac.compare_digest(answer[2], secret.proof("host", words[2], own, answer[1])):
            raise GreetingRefused("the engine does not know the fleet's secret (fleet.secret_file)")
        return answer[1]


def _checked_edge(words: list[str], secret: FleetSecret, host_nonce: str) -> str:
    _check_version(words, "the edge")
    if len(words) != 5 or not _NONCE.fullmatch(words[2]) or not _NAME.fullmatch(words[3]):
        raise GreetingRefused("the edge's greeting is malformed")
    if not hmac.compare_digest(words[4], secret.proof("edge", host_nonce, words[2], words[3])):
        raise GreetingRefused("the edge does not know the fleet's secret (fleet.secret_file)")
    return words[3]


def _check_version(words: list[str], peer: str) -> None:
    if words[0] != PROTOCOL or len(words) < 2:
        raise GreetingRefused(f"{peer} does not speak {PROTOCOL}")
    if words[1] != str(VERSION):
        raise GreetingRefused(f"{peer} speaks version {words[1][:20]} of {PROTOCOL}, and this side version {VERSION}")


async def _words(reader: asyncio.StreamReader) -> list[str]:
    data = await read_message(reader, GREETING_BYTES)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise GreetingRefused("the peer's greeting is no ASCII") from None
    if not text.isprintable():
        raise GreetingRefused("the peer's greeting has characters that cannot be printed")
    return text.split(" ")


def _send(writer: asyncio.StreamWriter, *words: str) -> None:
    write_message(writer, " ".join(words).encode("ascii", "replace")[:GREETING_BYTES])
