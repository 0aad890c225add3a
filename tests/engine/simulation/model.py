"""The simulated model: a token is a function of the adapter and the tokens before it."""

import hashlib
import itertools
import zlib
from collections.abc import Iterable

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName, mixed_ref

VOCAB = 97


def next_token(identity: str, tokens: Iterable[int]) -> int:
    """The simulated model: a checksum of who speaks and what was said.

    Two times in three it says again what followed its last token before, if anything did, so that prompt look-up
    drafts tokens.
    """
    said = list(tokens)
    checksum = zlib.crc32(f"{identity}|{said}".encode())
    earlier = [after for before, after in itertools.pairwise(said) if before == said[-1]]
    return earlier[-1] if earlier and checksum % 3 else checksum % VOCAB


def _parts(adapter: str) -> list[tuple[str, float]]:
    """Names and weights of a mix, written `one*0.5+two*-2.0`."""
    pairs = (part.partition("*") for part in adapter.split("+"))
    return [(name, float(weight or "1")) for name, _, weight in pairs]


def ref_of(adapter: str) -> AdapterRef:
    names, weights = zip(*_parts(adapter), strict=True)
    return mixed_ref([AdapterRef(SourceName.LOCAL, name) for name in names], weights)


def identity_of(adapter: str | None) -> str:
    """The digest of an adapter or a mix of adapters, each in its version 0."""
    if adapter is None:
        return ""
    if "*" not in adapter:
        return f"{adapter}@0"
    versions = ",".join(f"{name}@0*{weight!r}" for name, weight in _parts(adapter))
    return hashlib.sha256(f"mix:{versions}".encode()).hexdigest()


def score_of(identity: str, before: Iterable[int], token_id: int) -> float:
    """The simulation's log-probability of a token after others."""
    return -float(abs(next_token(identity, before) - token_id))


def logits_of(likeliest: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Logits whose order tells the likeliest token: it comes first, then the ones after it, round the vocabulary."""
    return -((np.arange(VOCAB) - likeliest) % VOCAB).astype(np.float32)


def alone(prompt: Iterable[int], identity: str, budget: int) -> list[int]:
    """What the simulated model generates for one request with nobody else there."""
    tokens = list(prompt)
    start = len(tokens)
    for _ in range(budget):
        tokens.append(next_token(identity, tokens))
    return tokens[start:]
