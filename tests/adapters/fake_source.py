"""Adapters that exist by name, version and size only: for tests of the store without files."""

import hashlib

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.sources.source import FetchedFiles, Located
from manylora.errors import AdapterNotFound
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY

NAMES = [f"a{number}" for number in range(6)]
BODY_BYTES = [640, 1280, 1920, 2560, 3200, 640]


class FakeSource:
    """Adapters that exist by name and version only."""

    name = SourceName.LOCAL

    def __init__(self) -> None:
        self.versions = dict.fromkeys(NAMES, 0)

    def locate(self, ref: AdapterRef) -> Located:
        if ref.id not in self.versions:
            raise AdapterNotFound(ref.id)
        return Located(str(self.versions[ref.id]), body_bytes(ref.id))

    def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        raise NotImplementedError

    def list(self) -> list[str]:
        return sorted(self.versions)


def body_bytes(name: str) -> int:
    return BODY_BYTES[NAMES.index(name)]


def num_rows(name: str) -> int:
    return body_bytes(name) // 64


def facts_of(name: str, stamp: str) -> ImageFacts:
    digest = Digest(hashlib.sha256(f"{name} {stamp}".encode()).hexdigest())
    return ImageFacts(digest, "bfloat16", TINY.num_layers, body_bytes(name), 0)
