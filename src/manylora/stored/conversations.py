"""The bounds and the digest of conversations, which the control plane keeps as bytes."""

import hashlib

MOST_BYTES = 1 << 20
"""Bytes of one conversation at most."""


def digest_of(data: bytes) -> str:
    """Return 32 hexadecimal digits by which an edge names the bytes that it has read."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
