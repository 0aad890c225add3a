"""Adapters in object storage: S3, Google Cloud Storage, Azure, and plain HTTPS, each below allowed places."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from manylora.adapter_ref import AdapterRef
from manylora.adapters.download import RemoteFile, client_options, download, look_up, no_retries, together
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources import (
    MAX_CONFIG_BYTES,
    PARTS,
    PICKLED_FILE,
    FetchedFiles,
    Located,
    is_plain,
    missing_part,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class ObjectSource:
    """Adapters below places such as `s3://bucket/prefix`; the first place that has one is taken.

    An adapter's id is its path below a place, or its place and path together (`bucket/prefix/name`). Credentials,
    region and endpoint come from the variables that each storage's own tools read (`AWS_ACCESS_KEY_ID`, …).
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._places = [place.rstrip("/") for place in places]
        self._stores: dict[str, ObjectStore] = {}

    async def locate(self, ref: AdapterRef) -> Located:
        refuse = Refusals(ref.id, ref.source)
        if not is_plain(ref.id):
            raise refuse.not_found()
        for place in self._places:
            folder = _below(place, ref.id)
            store = self._store(place)
            config, weights = await together(*(look_up(store, f"{folder}/{name}", refuse) for name in PARTS))
            if config is not None and weights is not None:
                return Located(json.dumps([place, asdict(config), asdict(weights)]), weights.num_bytes)
            pickled = await look_up(store, f"{folder}/{PICKLED_FILE}", refuse)
            if config or weights or pickled:
                raise missing_part(config is not None, weights is not None, pickled is not None, refuse)
        raise refuse.not_found()

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        place, config, weights = json.loads(stamp)
        return await fetch_both(
            self._store(place), RemoteFile(**config), RemoteFile(**weights), max_bytes, Refusals(ref.id, ref.source)
        )

    def _store(self, place: str) -> "ObjectStore":
        from obstore.store import from_url

        if place not in self._stores:
            self._stores[place] = from_url(place, client_options=client_options(), retry_config=no_retries())
        return self._stores[place]


async def fetch_both(
    store: "ObjectStore", config: RemoteFile, weights: RemoteFile, max_bytes: int, refuse: Refusals
) -> FetchedFiles:
    """Both files side by side. Raises as `RemoteSource.fetch`."""
    for file, limit_bytes in ((config, MAX_CONFIG_BYTES), (weights, max_bytes)):
        if file.num_bytes > limit_bytes:
            raise refuse.too_large(file.num_bytes, limit_bytes)
    text, data = await together(*(download(store, file, refuse) for file in (config, weights)))
    return FetchedFiles(text.tobytes(), data)


def _below(place: str, adapter_id: str) -> str:
    """The adapter's folder below a place, from an id that may repeat the place."""
    return adapter_id.removeprefix(place.partition("://")[2] + "/")
