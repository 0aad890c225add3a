"""Every remote source, over a network that is slow, cut, stuck or down, in the terms of one suite."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.sources import download
from manylora.adapters.sources.hub import HubSource
from manylora.adapters.sources.object_storage import ObjectSource
from manylora.adapters.sources.source import TEXT_FILES, FetchedFiles, Located, RemoteSource
from manylora.bench.faults.network import Proxy
from manylora.bench.faults.object_storage import BUCKET, S3Server, credentials
from tests.adapters.adapter_files import config_bytes, lora_tensors, safetensors_bytes
from tests.adapters.fake_hub import HttpServer, Repository
from tests.support.waiting import PATIENCE_S

MAX_BYTES = 1 << 26
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SMALL = {CONFIG: config_bytes(), WEIGHTS: safetensors_bytes(lora_tensors())}
KINDS = ("s3", "https", "hub")
FOLDERS = itertools.count()
T = TypeVar("T")


def large_files(num_bytes: int = 10 << 20) -> dict[str, bytes]:
    return {CONFIG: config_bytes(), WEIGHTS: np.random.default_rng(0).bytes(num_bytes)}


class Remote(Protocol):
    """A source under test, reached through `proxy`, and the way to put adapters into it."""

    kind: str
    proxy: Proxy
    source: RemoteSource

    def ref(self, name: str) -> AdapterRef: ...

    def put(self, name: str, files: dict[str, bytes]) -> None: ...


class S3Remote:
    kind = "s3"

    def __init__(self, server: S3Server, proxy: Proxy, folder: str) -> None:
        self.proxy = proxy
        self.source: RemoteSource = ObjectSource([f"s3://{BUCKET}/{folder}"])
        self._server = server
        self._folder = folder

    def ref(self, name: str) -> AdapterRef:
        return AdapterRef(SourceName.S3, name)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        for file in (CONFIG, WEIGHTS, PICKLED, *TEXT_FILES):
            self._server.delete(f"{self._folder}/{name}/{file}")
        for file, data in files.items():
            self._server.put(f"{self._folder}/{name}/{file}", data)


class HttpsRemote:
    kind = "https"

    def __init__(self, server: HttpServer, proxy: Proxy) -> None:
        self.proxy = proxy
        self.source: RemoteSource = ObjectSource([f"http://127.0.0.1:{proxy.port}/files"])
        self._server = server

    def ref(self, name: str) -> AdapterRef:
        return AdapterRef(SourceName.HTTPS, name)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        folder = self._server.files / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for file, data in files.items():
            (folder / file).write_bytes(data)


class HubRemote:
    kind = "hub"

    def __init__(self, server: HttpServer, proxy: Proxy) -> None:
        self.proxy = proxy
        self.source: RemoteSource = HubSource(f"http://127.0.0.1:{proxy.port}", ["localhost"])
        self.server = server

    def ref(self, name: str, token: str = "") -> AdapterRef:
        return AdapterRef(SourceName.HUB, f"org/{name}", token)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.server.repositories.setdefault(f"org/{name}", Repository()).push(files)


@pytest.fixture
def hub(http: HttpServer) -> Iterator[HubRemote]:
    proxy = Proxy(http.port)
    yield HubRemote(http, proxy)
    proxy.close()


@pytest.fixture
def s3(weed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Remote]:
    proxy = Proxy(weed.port)
    for name, value in credentials(proxy.port).items():
        monkeypatch.setenv(name, value)
    yield S3Remote(weed, proxy, f"t{next(FOLDERS)}")
    proxy.close()


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    match request.param:
        case "s3":
            yield request.getfixturevalue("s3")
        case "hub":
            yield request.getfixturevalue("hub")
        case _:
            http: HttpServer = request.getfixturevalue("http")
            proxy = Proxy(http.port)
            yield HttpsRemote(http, proxy)
            proxy.close()


def locate(remote: Remote, name: str = "a") -> Located:
    return asyncio.run(_located(remote.source, remote.ref(name)))


async def _located(source: RemoteSource, ref: AdapterRef) -> Located:
    return await source.locate(ref)


def fetch(remote: Remote, located: Located, name: str = "a", max_bytes: int = MAX_BYTES) -> FetchedFiles:
    async def run() -> FetchedFiles:
        return await remote.source.fetch(remote.ref(name), located.stamp, max_bytes)

    return asyncio.run(run())


def test_an_adapter_is_found_and_fetched(remote: Remote) -> None:
    files = large_files()
    remote.put("a", files)
    located = locate(remote)
    assert located.weights_bytes == len(files[WEIGHTS])
    fetched = fetch(remote, located)
    assert fetched.config == files[CONFIG]
    assert bytes(fetched.weights) == files[WEIGHTS]


def test_text_files_beside_an_adapter_are_part_of_its_version(remote: Remote) -> None:
    remote.put("plain", SMALL)
    plain = asyncio.run(remote.source.locate(remote.ref("plain")))
    assert plain.text_bytes == 0
    texts = {"chat_template.jinja": b"{{ messages }}", "generation_config.json": b"{}"}
    remote.put("own", {**SMALL, **texts, "README.md": b"x" * 100, "tokenizer.model": b"x" * 100})
    ref = remote.ref("own")
    located = asyncio.run(remote.source.locate(ref))
    assert located.text_bytes == sum(map(len, texts.values()))
    files = asyncio.run(remote.source.fetch(ref, located.stamp, MAX_BYTES))
    assert dict(files.texts) == texts
    remote.put("own", {**SMALL, **texts, "chat_template.jinja": b"{{ messages[0] }}"})
    changed = asyncio.run(remote.source.locate(ref))
    assert changed.stamp != located.stamp
    remote.put("own", {**SMALL, "chat_template.jinja": b"x" * ((512 << 10) + 1)})
    large = asyncio.run(remote.source.locate(ref))
    with pytest.raises(errors.AdapterTooLarge):
        asyncio.run(remote.source.fetch(ref, large.stamp, MAX_BYTES))


def test_the_stamp_stays_until_the_content_changes(remote: Remote) -> None:
    remote.put("a", SMALL)
    first = locate(remote)
    assert locate(remote) == first
    remote.put("a", {**SMALL, WEIGHTS: safetensors_bytes(lora_tensors(seed=1))})
    assert locate(remote).stamp != first.stamp


def test_a_version_that_was_replaced_is_never_mixed_with_the_new_one(remote: Remote) -> None:
    remote.put("a", SMALL)
    first = locate(remote)
    remote.put("a", {**SMALL, WEIGHTS: safetensors_bytes(lora_tensors(seed=1))})
    if remote.kind == "hub":  # a commit stays what it is
        assert bytes(fetch(remote, first).weights) == SMALL[WEIGHTS]
    else:
        with pytest.raises(errors.AdapterSourceUnavailable, match="replaced"):
            fetch(remote, first)


@pytest.mark.parametrize(
    ("there", "refusal", "text"),
    [
        ((), errors.AdapterNotFound, "was not found"),
        ((CONFIG,), errors.AdapterCorrupt, f"{WEIGHTS} is missing"),
        ((WEIGHTS,), errors.AdapterCorrupt, f"{CONFIG} is missing"),
        ((CONFIG, PICKLED), errors.AdapterUnsafeFormat, "no safetensors weights"),
    ],
)
def test_what_is_missing_is_named(
    remote: Remote, there: tuple[str, ...], refusal: type[errors.AdapterError], text: str
) -> None:
    remote.put("a", dict.fromkeys(there, b"some bytes"))
    with pytest.raises(refusal, match=text):
        locate(remote)


def test_a_file_over_the_limit_is_not_downloaded(remote: Remote) -> None:
    remote.put("a", large_files())
    located = locate(remote)
    before = remote.proxy.bytes_sent
    with pytest.raises(errors.AdapterTooLarge, match="the limit is 1000"):
        fetch(remote, located, max_bytes=1000)
    assert remote.proxy.bytes_sent - before < 1 << 20


def test_a_cut_download_goes_on_where_it_was_cut(remote: Remote) -> None:
    files = large_files()
    remote.put("a", files)
    located = locate(remote)
    remote.proxy.cut_after = 700_000
    before = remote.proxy.bytes_sent
    assert bytes(fetch(remote, located).weights) == files[WEIGHTS]
    # What was in flight when a connection was cut is sent again, and nothing else.
    assert remote.proxy.bytes_sent - before < 2 * len(files[WEIGHTS])


def test_a_source_that_is_down_is_unavailable(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.005)
    remote.put("a", SMALL)
    located = locate(remote)
    remote.proxy.is_down = True
    with pytest.raises(errors.AdapterSourceUnavailable):
        fetch(remote, located)
    with pytest.raises(errors.AdapterSourceUnavailable):
        locate(remote)


def test_a_source_that_comes_back_is_tried_again(remote: Remote) -> None:
    remote.put("a", SMALL)
    located = locate(remote)

    async def run() -> FetchedFiles:
        remote.proxy.is_down = True
        fetching = asyncio.create_task(remote.source.fetch(remote.ref("a"), located.stamp, MAX_BYTES))
        async with asyncio.timeout(PATIENCE_S):
            while not remote.proxy.num_refused:  # noqa: ASYNC110  the proxy has a loop of its own
                await asyncio.sleep(0.005)
        remote.proxy.is_down = False
        return await fetching

    assert bytes(asyncio.run(run()).weights) == SMALL[WEIGHTS]


def test_a_fetch_that_is_stuck_can_be_cancelled(remote: Remote) -> None:
    remote.put("a", SMALL)
    located = locate(remote)
    remote.proxy.is_stuck = True

    async def run() -> None:
        async with asyncio.timeout(0.3):
            await remote.source.fetch(remote.ref("a"), located.stamp, MAX_BYTES)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_loads_of_a_slow_source_run_side_by_side(remote: Remote) -> None:
    for number in range(12):
        remote.put(f"a{number}", SMALL)
    stamps = [locate(remote, f"a{number}").stamp for number in range(12)]
    before = remote.proxy.num_connections
    remote.proxy.is_stuck = True

    async def run() -> list[FetchedFiles]:
        fetching = asyncio.gather(
            *(remote.source.fetch(remote.ref(f"a{n}"), stamp, MAX_BYTES) for n, stamp in enumerate(stamps))
        )
        async with asyncio.timeout(PATIENCE_S):
            while remote.proxy.num_connections < before + 6:  # noqa: ASYNC110  the proxy has a loop of its own
                await asyncio.sleep(0.005)
        remote.proxy.is_stuck = False
        return await fetching

    assert all(bytes(files.weights) == SMALL[WEIGHTS] for files in asyncio.run(run()))


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc", "http://169.254.169.254/latest", "a\0b"])
def test_ids_that_lead_elsewhere_are_not_found(remote: Remote, name: str) -> None:
    remote.put("a", SMALL)
    with pytest.raises((errors.AdapterNotFound, errors.AdapterSourceUnavailable)):
        locate(remote, name)


# ── S3 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_secret_is_denied(s3: S3Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("a", SMALL)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.source = ObjectSource([f"s3://{BUCKET}/x"])
    with pytest.raises(errors.AdapterAccessDenied, match="denies access to adapter 'a'"):
        locate(s3)


def test_an_id_may_repeat_its_place(s3: S3Remote) -> None:
    s3.put("team/a", SMALL)
    whole = f"{BUCKET}/{s3._folder}/team/a"
    assert locate(s3, whole) == locate(s3, "team/a")


def test_places_are_searched_in_order(s3: S3Remote) -> None:
    s3.put("one/a", SMALL)
    s3.put("two/a", large_files(1 << 16))
    s3.put("two/b", SMALL)
    place = f"s3://{BUCKET}/{s3._folder}"
    s3.source = ObjectSource([f"{place}/one", f"{place}/two/"])
    assert locate(s3, "a").weights_bytes == len(SMALL[WEIGHTS])
    assert locate(s3, "b").weights_bytes == len(SMALL[WEIGHTS])


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_private_repository_needs_its_token(hub: HubRemote) -> None:
    hub.put("a", SMALL)
    hub.server.repositories["org/a"].token = "hf_right"
    located = asyncio.run(_located(hub.source, hub.ref("a", "hf_right")))
    for token in ("", "hf_wrong"):
        with pytest.raises(errors.AdapterNotFound):
            asyncio.run(_located(hub.source, hub.ref("a", token)))

    async def run(token: str) -> FetchedFiles:
        return await hub.source.fetch(hub.ref("a", token), located.stamp, MAX_BYTES)

    assert bytes(asyncio.run(run("hf_right")).weights) == SMALL[WEIGHTS]
    with pytest.raises(errors.AdapterAccessDenied):
        asyncio.run(run("hf_wrong"))


def test_a_gated_repository_denies_access(hub: HubRemote) -> None:
    hub.put("a", SMALL)
    hub.server.repositories["org/a"].token = "hf_right"
    hub.server.repositories["org/a"].is_gated = True
    with pytest.raises(errors.AdapterAccessDenied):
        locate(hub)


def test_our_own_token_is_not_the_callers(hub: HubRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_the_operators")
    hub.put("a", SMALL)
    fetch(hub, locate(hub))
    assert {credential for _, credential in hub.server.seen} == {""}


def test_a_token_is_not_sent_to_where_a_download_is_redirected(hub: HubRemote) -> None:
    hub.put("a", SMALL)
    hub.server.repositories["org/a"].token = "hf_right"
    hub.server.redirect_to = f"http://localhost:{hub.server.port}"
    ref = hub.ref("a", "hf_right")
    located = asyncio.run(_located(hub.source, ref))

    async def run() -> FetchedFiles:
        return await hub.source.fetch(ref, located.stamp, MAX_BYTES)

    assert bytes(asyncio.run(run()).weights) == SMALL[WEIGHTS]
    assert {credential for path, credential in hub.server.seen if path.startswith("/cdn/")} == {""}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubRemote) -> None:
    hub.put("a", SMALL)
    repository = hub.server.repositories["org/a"]
    other = {**SMALL, WEIGHTS: safetensors_bytes(lora_tensors(seed=5))}
    commit = repository.push(other, "experiment")
    for revision in ("experiment", commit):
        located = locate(hub, f"a@{revision}")
        assert bytes(fetch(hub, located, f"a@{revision}").weights) == other[WEIGHTS]
    assert bytes(fetch(hub, locate(hub)).weights) == SMALL[WEIGHTS]
    with pytest.raises(errors.AdapterNotFound):
        locate(hub, "a@nowhere")


def test_a_download_with_another_checksum_is_refused(hub: HubRemote) -> None:
    hub.put("a", SMALL)
    located = locate(hub)
    [commit] = hub.server.repositories["org/a"].commits.values()
    commit[WEIGHTS] = bytes(reversed(commit[WEIGHTS]))
    with pytest.raises(errors.AdapterCorrupt, match="checksum"):
        fetch(hub, located)


def test_a_file_that_is_not_as_long_as_it_was_said_is_refused(hub: HubRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.005)
    hub.put("a", SMALL)
    located = locate(hub)
    [commit] = hub.server.repositories["org/a"].commits.values()
    change: list[Callable[[bytes], bytes]] = [lambda data: data + b"more", lambda data: data[:-8]]
    original = commit[WEIGHTS]
    for changed in change:
        commit[WEIGHTS] = changed(original)
        with pytest.raises(errors.AdapterSourceUnavailable):
            fetch(hub, located)


def stamp_of(http: HttpServer, session: str) -> str:
    source = ObjectSource([f"http://127.0.0.1:{http.port}/files"], session=session)
    return asyncio.run(_located(source, AdapterRef(SourceName.HTTPS, "a"))).stamp


def test_a_server_that_gives_no_version_is_read_again_after_a_restart(http: HttpServer, tmp_path: Path) -> None:
    """Many servers make the ETag of size and modification time, so that other content may have the same."""
    (tmp_path / "files" / "a").mkdir()
    for file, data in SMALL.items():
        (tmp_path / "files" / "a" / file).write_bytes(data)
    http.marks = {"etag": '"5e1-600"'}
    first = stamp_of(http, "one")
    assert (stamp_of(http, "one") == first, stamp_of(http, "two") == first) == (True, False)
    source = ObjectSource([f"http://127.0.0.1:{http.port}/files"])
    located = asyncio.run(source.fetch(AdapterRef(SourceName.HTTPS, "a"), first, MAX_BYTES))
    assert located.config == SMALL[CONFIG]


@pytest.mark.parametrize("header", ["x-amz-version-id", "x-goog-generation", "repr-digest", "content-md5"])
def test_a_version_id_or_a_checksum_of_the_servers_tells_versions(
    http: HttpServer, tmp_path: Path, header: str
) -> None:
    (tmp_path / "files" / "a").mkdir()
    for file, data in SMALL.items():
        (tmp_path / "files" / "a" / file).write_bytes(data)
    http.marks = {"etag": '"5e1-600"', header: "one"}
    first = stamp_of(http, "one")
    assert stamp_of(http, "two") == first
    http.marks[header] = "two"
    assert stamp_of(http, "one") != first
    source = ObjectSource([f"http://127.0.0.1:{http.port}/files"])
    with pytest.raises(errors.AdapterSourceUnavailable, match="replaced"):
        asyncio.run(source.fetch(AdapterRef(SourceName.HTTPS, "a"), first, MAX_BYTES))


def test_an_object_storages_own_mark_tells_versions_across_restarts(s3: S3Remote) -> None:
    s3.put("a", SMALL)
    place = f"s3://{BUCKET}/{s3._folder}"
    stamps = [asyncio.run(_located(ObjectSource([place], session=each), s3.ref("a"))).stamp for each in ("one", "two")]
    assert stamps[0] == stamps[1]
