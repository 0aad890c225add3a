"""Adapters in repositories of a Hugging Face hub, each at a pinned commit, with the caller's own token.

The module uses two routes of the hub, the list of a commit's files and the files, and calls them directly: the hub's
own client follows every redirect and reads an answer of any length.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from manylora.adapter_ref import AdapterRef
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.download import RemoteFile, StoreDenies, StoreRefused, tried
from manylora.adapters.sources.http_files import HttpFiles, HttpPlace, RedirectRule, check_status
from manylora.adapters.sources.object_storage import fetch_files
from manylora.adapters.sources.source import (
    CONFIG_FILE,
    PICKLED_FILE,
    TEXT_FILES,
    WEIGHTS_FILE,
    FetchedFiles,
    Located,
    missing_part,
)

if TYPE_CHECKING:
    import httpx2

DEFAULT_REVISION = "main"
MAX_ANSWER_BYTES = 8 << 20
"""Limit on the answer with a commit's list of files; it fits some thirty thousand files."""
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ABSENT = ("RepoNotFound", "RevisionNotFound", "EntryNotFound")


@dataclass(frozen=True, slots=True)
class _Commit:
    """A commit, with the size of each needed file and its checksum if the hub knows it."""

    sha: str
    files: dict[str, tuple[int, str | None]]


class HubSource:
    """Adapters named `org/name` or `org/name@revision`. A branch or tag is resolved to its commit when it is located.

    Without a token of the caller's own the hub is asked anonymously: the operator's access is not the callers'. A hub
    sends downloads to a content network, so it may redirect to any public address.
    """

    def __init__(self, endpoint: str, redirect_hosts: Sequence[str] = ()) -> None:
        self._endpoint = endpoint
        self._rule = RedirectRule(frozenset(redirect_hosts), public=True)

    async def locate(self, ref: AdapterRef) -> Located:
        refuse = Refusals(ref.id, ref.source)
        async with self._hub(ref).opened() as hub:
            commit = await tried(lambda: _ask(hub, ref), refuse)
        if commit is None:
            raise refuse.not_found()
        files = commit.files
        if CONFIG_FILE not in files or WEIGHTS_FILE not in files:
            raise missing_part(CONFIG_FILE in files, WEIGHTS_FILE in files, PICKLED_FILE in files, refuse)
        (config_bytes, _), (weights_bytes, sha256) = files[CONFIG_FILE], files[WEIGHTS_FILE]
        texts = {name: files[name] for name in TEXT_FILES if name in files}
        stamp = [commit.sha, config_bytes, weights_bytes, sha256, *([texts] if texts else [])]
        return Located(json.dumps(stamp), weights_bytes, sum(num_bytes for num_bytes, _ in texts.values()))

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        sha, config_bytes, weights_bytes, sha256, *more = json.loads(stamp)
        folder = f"{_repository(ref)[0]}/resolve/{sha}"
        config = RemoteFile(f"{folder}/{CONFIG_FILE}", config_bytes)
        weights = RemoteFile(f"{folder}/{WEIGHTS_FILE}", weights_bytes, sha256=sha256)
        texts = {
            name: RemoteFile(f"{folder}/{name}", num_bytes, sha256=text_sha256)
            for name, (num_bytes, text_sha256) in (more[0] if more else {}).items()
        }
        async with self._hub(ref).opened() as hub:
            return await fetch_files(hub, config, weights, texts, max_bytes, Refusals(ref.id, ref.source))

    def _hub(self, ref: AdapterRef) -> HttpPlace:
        return HttpPlace(self._endpoint, self._rule, ref.token)


def _repository(ref: AdapterRef) -> tuple[str, str]:
    name, _, revision = ref.id.partition("@")
    return name, revision or DEFAULT_REVISION


async def _ask(hub: HttpFiles, ref: AdapterRef) -> _Commit | None:
    """Return the commit of a revision and its files; None if there is none. Raises as `FileStore`."""
    name, revision = _repository(ref)
    async with hub.answer("GET", f"api/models/{quote(name)}/revision/{quote(revision, safe='')}?blobs=true") as answer:
        code = answer.headers.get("x-error-code", "")
        if code == "GatedRepo":
            raise StoreDenies
        if answer.status_code == 404 or code in _ABSENT:
            return None
        check_status(answer)
        return _read_commit(await _body(answer))


async def _body(answer: "httpx2.Response") -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise StoreRefused(f"its list of files has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _read_commit(body: bytes) -> _Commit:
    """Return the needed part of the hub's answer. Raises `StoreRefused` for an answer of another form."""
    try:
        fields: dict[str, Any] = json.loads(body)  # JSON values of several types
        ours = [
            entry
            for entry in fields["siblings"]
            if entry["rfilename"] in (CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE, *TEXT_FILES)
        ]
        files = {entry["rfilename"]: (_size(entry), _sha256(entry.get("lfs"))) for entry in ours}
        if not _COMMIT.fullmatch(fields["sha"]):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreRefused("the hub does not name a commit with its files and their sizes") from error
    return _Commit(fields["sha"], files)


def _size(entry: dict[str, Any]) -> int:
    size = entry["size"]
    if type(size) is not int or size < 0:
        raise ValueError
    return size


def _sha256(lfs: dict[str, Any] | None) -> str | None:
    if lfs is None:
        return None
    sha256 = lfs["sha256"]
    if not _SHA256.fullmatch(sha256):
        raise ValueError
    return str(sha256)
