"""Uploads of a control plane on another machine, over its own routes: whole, cut, damaged, archived, and refused."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.sources.source import WEIGHTS_FILE, FetchedFiles
from manylora.adapters.sources.upload_folders import UPLOADS_PATH, Registry
from manylora.adapters.sources.uploads import RemoteUploads
from manylora.bench.faults.network import Proxy
from manylora.config.settings import enabled_sources, load_config
from manylora.errors import AdapterAccessDenied, AdapterCorrupt, AdapterNotFound, AdapterTooLarge, ConfigInvalid
from tests.adapters.adapter_files import config_bytes
from tests.control.control_process import EDGE_TOKEN, running_control

MAX_BYTES = 1 << 26
WEIGHTS = np.random.default_rng(0).bytes(9 << 20)
TEXTS = {"tokenizer_config.json": b"{}"}


@dataclass
class Uploads:
    """A control plane with version 1 and 2 of `acme/support`, and the proxy between it and the engine."""

    url: str
    registry: Registry
    proxy: Proxy

    @property
    def source(self) -> RemoteUploads:
        return RemoteUploads(f"http://127.0.0.1:{self.proxy.port}", EDGE_TOKEN)

    def fetch(self, adapter_id: str, max_bytes: int = MAX_BYTES) -> FetchedFiles:
        async def main() -> FetchedFiles:
            ref = reference(adapter_id)
            located = await self.source.locate(ref)
            return await self.source.fetch(ref, located.stamp, max_bytes)

        return asyncio.run(main())

    def get(self, path: str, token: str = EDGE_TOKEN, **headers: str) -> httpx2.Response:
        own = {"authorization": f"Bearer {token}", "accept-encoding": "identity", **headers}
        return httpx2.get(f"{self.url}/{UPLOADS_PATH}/{path}", headers=own, timeout=30)


def reference(adapter_id: str, tenant: str = "acme") -> AdapterRef:
    return AdapterRef(SourceName.PBASE, adapter_id, tenant=tenant)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    folder = tmp_path_factory.mktemp("plane") / "kept"
    with running_control(folder) as plane:
        registry = Registry(folder / "uploads")
        assert registry.add("acme", "support", config_bytes(), WEIGHTS, TEXTS) == 1
        assert registry.add("acme", "support", config_bytes(), WEIGHTS[:1000]) == 2
        proxy = Proxy(int(plane.url.rpartition(":")[2]))
        yield Uploads(plane.url, registry, proxy)
        proxy.close()


def test_a_version_and_the_newest_one_are_found_and_fetched(uploads: Uploads) -> None:
    first = uploads.fetch("support/1")
    assert (first.config, bytes(first.weights), dict(first.texts)) == (config_bytes(), WEIGHTS, TEXTS)
    assert bytes(uploads.fetch("support").weights) == WEIGHTS[:1000]
    with pytest.raises(AdapterTooLarge):
        uploads.fetch("support/1", max_bytes=1000)


def test_a_cut_download_goes_on_where_it_was_cut(uploads: Uploads) -> None:
    before = uploads.proxy.bytes_sent
    uploads.proxy.cut_after = 700_000
    try:
        assert bytes(uploads.fetch("support/1").weights) == WEIGHTS
    finally:
        uploads.proxy.cut_after = 0
    assert uploads.proxy.bytes_sent - before < 2 * len(WEIGHTS)


def test_other_bytes_than_were_uploaded_are_refused_by_their_digest(uploads: Uploads) -> None:
    number = uploads.registry.add("acme", "damaged", config_bytes(), WEIGHTS[:1000])
    file = uploads.registry.folder("acme", f"damaged/{number}") / WEIGHTS_FILE
    file.write_bytes(bytes(1000))
    with pytest.raises(AdapterCorrupt, match="checksum"):
        uploads.fetch("damaged")


def test_an_archived_version_and_unknown_names_are_not_found(uploads: Uploads) -> None:
    number = uploads.registry.add("acme", "old", config_bytes(), WEIGHTS[:10])
    uploads.registry.archive("acme", "old", number)
    for adapter_id in ("old", f"old/{number}", "support/9", "absent"):
        with pytest.raises(AdapterNotFound):
            uploads.fetch(adapter_id)
    with pytest.raises(AdapterNotFound):
        asyncio.run(_locate(uploads.source, reference("support/1", tenant="other")))


async def _locate(source: RemoteUploads, ref: AdapterRef) -> None:
    await source.locate(ref)


@pytest.mark.parametrize(
    "path",
    [
        "acme/support/1/sums.json",
        "acme/support/1/archived",
        "acme/support/x/adapter_config.json",
        "acme/..%2F..%2Fpepper/1/adapter_config.json",
        "%2E%2E/kept/1/adapter_config.json",
        "acme/support/1/..%2Fsums.json",
    ],
)
def test_only_the_files_of_adapters_are_sent(uploads: Uploads, path: str) -> None:
    assert uploads.get(path).status_code == 404


def test_a_file_is_sent_in_parts_and_to_edges_and_engines_alone(uploads: Uploads, tmp_path: Path) -> None:
    path = f"acme/support/1/{WEIGHTS_FILE}"
    part = uploads.get(path, range="bytes=100-199")
    assert (part.status_code, part.content) == (206, WEIGHTS[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(WEIGHTS)}"
    assert uploads.get(path, "another token").status_code == 401
    stranger = RemoteUploads(uploads.url, "another token")
    with pytest.raises(AdapterAccessDenied):
        asyncio.run(_locate(stranger, reference("support/1")))


def test_the_settings_of_an_engine_name_one_place_of_uploads() -> None:
    url, token = {"adapters.registry_url": "http://10.0.0.9:8090"}, {"control.edge_token": EDGE_TOKEN}
    config = load_config(None, {**url, **token}, {})
    assert SourceName.PBASE in enabled_sources(config.adapters)
    with pytest.raises(ConfigInvalid, match=r"adapters\.registry_url needs control\.edge_token"):
        load_config(None, url, {})
    with pytest.raises(ConfigInvalid, match=r"adapters\.registry_url and adapters\.registry_dir are both given"):
        load_config(None, {**url, **token, "adapters.registry_dir": "/uploads"}, {})
