"""Adapters that trainers push, in the form in which the control plane and its edges exchange them.

The id of a push is `push-`, its version with nine digits, and the digest of its bytes: an edge that has the bytes of an
id has those that were pushed, also beside a database that came back from a backup and counts versions anew.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from manylora.ids import TenantId

DIGEST_LENGTH = 48
"""Hexadecimal digits of SHA-256 in an id, so that it has 63 characters: 192 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushWish:
    """The announcement of a push. `digest`: as `push_digest` returns it."""

    name: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFacts:
    """The facts of one push. `version`: larger than that of every earlier push of the control plane."""

    id: str
    tenant: TenantId
    name: str
    version: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PushList:
    """Pushes that their names mean now."""

    pushes: tuple[PushFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushIds:
    """Ids of pushes: those that an edge has files of, or those of them that names mean now."""

    ids: tuple[str, ...]


def push_id(version: int, digest: str) -> str:
    return f"push-{version:09d}-{digest}"


def push_version(push: str) -> int:
    return int(push.split("-")[1])


def digest_in(push: str) -> str:
    """Return the digest of a push's bytes, which its id ends with."""
    return push.rpartition("-")[2]


def push_digest(file: Path) -> str:
    """Return the digest of a file of pushed tensors. Raises `OSError`."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_LENGTH]
