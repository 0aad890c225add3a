"""Uploaded adapters of a control plane on another machine, fetched over HTTP from its folder of uploads."""

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

from manylora.adapter_ref import AdapterRef
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.download import FileStore, RemoteFile, look_up, together
from manylora.adapters.sources.http_files import HttpPlace, RedirectRule
from manylora.adapters.sources.object_storage import fetch_files, text_files
from manylora.adapters.sources.source import PARTS, FetchedFiles, Located
from manylora.adapters.sources.upload_folders import NEWEST, UPLOADS_PATH

_DIGEST = re.compile(r"repr-digest=sha-256=:([A-Za-z0-9+/=]{44}):")


class RemoteUploads:
    """The registry of a control plane as a source. Its ids are those of `RegistrySource`. See `RemoteSource`.

    Each file has its SHA-256 in `Repr-Digest` (RFC 9530), and a fetch refuses other bytes.

    Args:
        url    address of the control plane
        token  `control.edge_token`
    """

    def __init__(self, url: str, token: str) -> None:
        self._place = HttpPlace(f"{url.rstrip('/')}/{UPLOADS_PATH}", RedirectRule(), token)

    async def locate(self, ref: AdapterRef) -> Located:
        refuse = Refusals(ref.id, ref.source)
        repository, _, version = ref.id.partition("/")
        folder = f"{ref.tenant}/{repository}/{version or NEWEST}"
        async with self._opened() as store:
            config, weights = await together(*(look_up(store, f"{folder}/{name}", refuse) for name in PARTS))
            if config is None or weights is None:
                raise refuse.not_found()
            texts = await text_files(folder, store, refuse)
        found = {name: asdict(file) for name, file in texts.items()}
        stamp = json.dumps([asdict(config), asdict(weights), found])
        return Located(stamp, weights.num_bytes, sum(file.num_bytes for file in texts.values()))

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        config, weights, found = json.loads(stamp)
        texts = {name: _with_digest(RemoteFile(**file)) for name, file in found.items()}
        first, second = (_with_digest(RemoteFile(**file)) for file in (config, weights))
        async with self._opened() as store:
            return await fetch_files(store, first, second, texts, max_bytes, Refusals(ref.id, ref.source))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[FileStore]:
        async with self._place.opened() as store:
            yield store


def _with_digest(file: RemoteFile) -> RemoteFile:
    """Return a file with the hash that its server gives; without one it keeps what it has."""
    found = _DIGEST.fullmatch(file.version or "")
    if found is None:
        return file
    try:
        return replace(file, sha256=base64.b64decode(found[1], validate=True).hex())
    except binascii.Error:
        return file
