"""Adapters in object storage: S3, Google Cloud Storage, Azure, and plain HTTPS, each below allowed places."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

from manylora.adapter_ref import AdapterRef, SourceName, source_of
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.download import FileStore, RemoteFile, download, look_up, together
from manylora.adapters.sources.http_files import HttpPlace, RedirectRule
from manylora.adapters.sources.object_files import ObjectFiles
from manylora.adapters.sources.source import (
    MAX_CONFIG_BYTES,
    PARTS,
    PICKLED_FILE,
    TEXT_FILES,
    FetchedFiles,
    Located,
    is_plain,
    missing_part,
)
from manylora.adapters.text.base_text import MAX_FILE_BYTES
from manylora.errors import AdapterAccessDenied


class ObjectSource:
    """Adapters below places such as `s3://bucket/prefix`; the first place that has an adapter serves it.

    An adapter's id is its path below a place, or its place and path together (`bucket/prefix/name`). Credentials,
    region and endpoint come from the variables that each storage's own tools read (`AWS_ACCESS_KEY_ID`, …).
    Plain HTTPS is redirected to `redirect_hosts` only, since a file elsewhere is not below a place.

    The storage's version id or ETag identifies a version. Where neither is reliable (plain HTTPS without a version id
    or a checksum) its stamp has `session`, too: with another session, as after a restart, the content is fetched
    again, and an equal digest keeps the packed image.
    """

    def __init__(self, places: Sequence[str], redirect_hosts: Sequence[str] = (), *, session: str = "") -> None:
        self._session = session
        rule = RedirectRule(frozenset(redirect_hosts))
        self._places = [place.rstrip("/") for place in places]
        self._stores: dict[str, ObjectFiles | HttpPlace] = {
            place: HttpPlace(place, rule) if source_of(place) is SourceName.HTTPS else ObjectFiles(place)
            for place in self._places
        }

    async def locate(self, ref: AdapterRef) -> Located:
        refuse = Refusals(ref.id, ref.source)
        if not is_plain(ref.id):
            raise refuse.not_found()
        for place in self._places:
            async with self._opened(place) as store:
                located = await self._located(place, ref, store, refuse)
            if located is not None:
                return located
        raise refuse.not_found()

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        place, config, weights, _, *texts = json.loads(stamp)
        files = {name: RemoteFile(**file) for name, file in (texts[0] if texts else {}).items()}
        async with self._opened(place) as store:
            return await fetch_files(
                store, RemoteFile(**config), RemoteFile(**weights), files, max_bytes, Refusals(ref.id, ref.source)
            )

    async def probe(self, place: str) -> None:
        """Ask a place for its first file, or for one that need not exist where files cannot be listed.

        Raises:  StoreDenies, FileReplaced (there is no such bucket), StoreRefused, OSError
        """
        store = self._stores[place.rstrip("/")]
        if isinstance(store, ObjectFiles):
            await store.list_first()
            return
        async with store.opened() as opened:
            await opened.look_up(PARTS[0])

    async def _located(self, place: str, ref: AdapterRef, store: FileStore, refuse: Refusals) -> Located | None:
        """Return the adapter's version in one place; None if the place has none of its files."""
        folder = _below(place, ref.id)
        config, weights = await together(*(look_up(store, f"{folder}/{name}", refuse) for name in PARTS))
        if config is not None and weights is not None:
            texts = await text_files(folder, store, refuse)
            is_known = all(_is_versioned(file, source_of(place)) for file in (config, weights, *texts.values()))
            stamp = [place, asdict(config), asdict(weights), "" if is_known else self._session]
            stamp += [{name: asdict(file) for name, file in texts.items()}] if texts else []
            return Located(json.dumps(stamp), weights.num_bytes, sum(file.num_bytes for file in texts.values()))
        pickled = await look_up(store, f"{folder}/{PICKLED_FILE}", refuse)
        if config or weights or pickled:
            raise missing_part(config is not None, weights is not None, pickled is not None, refuse)
        return None

    @asynccontextmanager
    async def _opened(self, place: str) -> AsyncIterator[FileStore]:
        store = self._stores[place]
        if isinstance(store, ObjectFiles):
            yield store  # the store keeps connections of its own
        else:
            async with store.opened() as opened:
                yield opened


async def text_files(folder: str, store: FileStore, refuse: Refusals) -> dict[str, RemoteFile]:
    """Look up the text files of an adapter side by side, and return those that exist."""

    async def found_or_none(name: str) -> RemoteFile | None:
        try:
            return await look_up(store, f"{folder}/{name}", refuse)
        except AdapterAccessDenied:
            # S3 denies a missing file to a caller that may not list; the two parts beside it were allowed.
            return None

    found = await together(*(found_or_none(name) for name in TEXT_FILES))
    return {name: file for name, file in zip(TEXT_FILES, found, strict=True) if file is not None}


async def fetch_files(
    store: FileStore,
    config: RemoteFile,
    weights: RemoteFile,
    texts: Mapping[str, RemoteFile],
    max_bytes: int,
    refuse: Refusals,
) -> FetchedFiles:
    """Fetch all files side by side. Raises as `RemoteSource.fetch`."""
    limits = [(config, MAX_CONFIG_BYTES), (weights, max_bytes)]
    limits += [(file, MAX_FILE_BYTES[name]) for name, file in texts.items()]
    for file, limit_bytes in limits:
        if file.num_bytes > limit_bytes:
            raise refuse.too_large(file.num_bytes, limit_bytes)
    first, data, *others = await together(*(download(store, file, refuse) for file, _ in limits))
    return FetchedFiles(first.tobytes(), data, {n: d.tobytes() for n, d in zip(texts, others, strict=True)})


def _is_versioned(file: RemoteFile, source: SourceName | None) -> bool:
    """Return whether other content has other marks: an object storage's ETag is a hash, or new with each write."""
    return file.version is not None or (file.etag is not None and source is not SourceName.HTTPS)


def _below(place: str, adapter_id: str) -> str:
    """Return the adapter's folder below a place, from an id that may repeat the place."""
    return adapter_id.removeprefix(place.partition("://")[2] + "/")
