"""Adapters in repositories of a Hugging Face hub, each at a pinned commit, with the caller's own token."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from manylora.adapter_ref import AdapterRef
from manylora.adapters.download import RemoteFile, client_options, no_retries
from manylora.adapters.object_source import fetch_both
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources import CONFIG_FILE, PICKLED_FILE, WEIGHTS_FILE, FetchedFiles, Located, missing_part

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from huggingface_hub.hf_api import RepoSibling

ASK_TIMEOUT_S = 10.0
DEFAULT_REVISION = "main"


class HubSource:
    """Adapters named `org/name` or `org/name@revision`. A branch or tag is resolved to its commit when it is located.

    Without a token of the caller's own the hub is asked anonymously: the operator's access is not the callers'.
    """

    def __init__(self, endpoint: str, threads: "Executor") -> None:
        self._endpoint = endpoint.rstrip("/")
        self._threads = threads

    async def locate(self, ref: AdapterRef) -> Located:
        refuse = Refusals(ref.id, ref.source)
        loop = asyncio.get_running_loop()
        sha, siblings = await loop.run_in_executor(self._threads, lambda: self._ask(ref, refuse))
        files = {entry.rfilename: entry for entry in siblings}
        if CONFIG_FILE not in files or WEIGHTS_FILE not in files:
            raise missing_part(CONFIG_FILE in files, WEIGHTS_FILE in files, PICKLED_FILE in files, refuse)
        config, weights = files[CONFIG_FILE], files[WEIGHTS_FILE]
        if config.size is None or weights.size is None:
            raise refuse.unavailable("the hub does not tell the size of its files")
        sha256 = None if weights.lfs is None else weights.lfs.sha256
        return Located(json.dumps([sha, config.size, weights.size, sha256]), weights.size)

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        from obstore.store import HTTPStore

        sha, config_bytes, weights_bytes, sha256 = json.loads(stamp)
        store = HTTPStore(
            f"{self._endpoint}/{_repository(ref)[0]}/resolve/{sha}",
            client_options=client_options(ref.token),
            retry_config=no_retries(),
        )
        config = RemoteFile(CONFIG_FILE, config_bytes)
        weights = RemoteFile(WEIGHTS_FILE, weights_bytes, sha256=sha256)
        return await fetch_both(store, config, weights, max_bytes, Refusals(ref.id, ref.source))

    def _ask(self, ref: AdapterRef, refuse: Refusals) -> "tuple[str, list[RepoSibling]]":
        from huggingface_hub import HfApi

        repository, revision = _repository(ref)
        with _translated(refuse):
            found = HfApi(endpoint=self._endpoint, token=ref.token or False).model_info(
                repository, revision=revision, files_metadata=True, timeout=ASK_TIMEOUT_S
            )
        if not found.sha:
            raise refuse.unavailable("the hub names no commit")
        return found.sha, list(found.siblings or ())


def _repository(ref: AdapterRef) -> tuple[str, str]:
    name, _, revision = ref.id.partition("@")
    return name, revision or DEFAULT_REVISION


@contextmanager
def _translated(refuse: Refusals) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise refuse.access_denied() from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise refuse.not_found() from error
    except errors.HfHubHTTPError as error:
        response: Any = error.response  # of the client's own HTTP library
        if response.status_code in (401, 403):
            raise refuse.access_denied() from error
        raise refuse.unavailable(f"it answers with status {response.status_code}") from error
    # A connection that fails: the client's HTTPError is its HTTP library's.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # imported there, not declared
        raise refuse.unavailable("it cannot be reached") from error
