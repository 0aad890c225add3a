"""The Protocols of sources of adapters. A source opens only an adapter's config, weights and named text files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.adapters.refusals import Refusals
from manylora.adapters.text.base_text import MAX_FILE_BYTES
from manylora.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PARTS = (CONFIG_FILE, WEIGHTS_FILE)
TEXT_FILES = tuple(MAX_FILE_BYTES)
"""Names of the text files that an adapter may have beside its config and weights."""
MAX_CONFIG_BYTES = 1 << 20
MAX_LISTED = 100_000


@dataclass(frozen=True, slots=True)
class Located:
    """One version of an adapter at its source; `stamp` changes when the content may have changed.

    text_bytes  bytes of the text files; 0: there are none, and the stamp is that of releases without text files
    """

    stamp: str
    weights_bytes: int
    text_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FetchedFiles:
    """The files of one version, in memory; `texts` has those of `TEXT_FILES` that exist."""

    config: bytes
    weights: memoryview
    texts: Mapping[str, bytes] = field(default_factory=dict)


class Source(Protocol):
    """The Protocol of a source in the file system of this machine."""

    def locate(self, ref: AdapterRef) -> Located:
        """Find the adapter's current version. The call is cheap enough for the engine's thread.

        Raises `AdapterNotFound`, `AdapterUnsafeFormat` (pickled weights only), `AdapterCorrupt` (a file is missing),
        `AdapterReferenceInvalid` (outside the configured places) or `AdapterSourceUnavailable`.
        """

    def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        """Read the files of version `stamp`.

        Raises as `locate`, `AdapterTooLarge` over `max_bytes`, and `AdapterSourceUnavailable` if the adapter was
        replaced meanwhile.
        """

    def list(self) -> list[str]:
        """Return the ids of the adapters that exist, sorted."""


class FolderSource(Source, Protocol):
    """The Protocol of a source whose files lie in folders of this machine."""

    def config(self, ref: AdapterRef) -> bytes:
        """Return the text of `adapter_config.json` as it is now. Raises as `fetch`."""


class RemoteSource(Protocol):
    """The Protocol of a source over a network. The ingest process alone awaits its methods.

    Both methods raise as those of `Source`, and `AdapterAccessDenied` if the caller's or the operator's credential is
    refused. They retry failures that may pass, and may be cancelled at any moment.
    """

    async def locate(self, ref: AdapterRef) -> Located: ...

    async def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles: ...


def is_plain(adapter_id: str) -> bool:
    """Return whether an id stays below any prefix that it is appended to."""
    parts = PurePosixPath(adapter_id).parts
    is_relative = bool(parts) and not adapter_id.startswith("/") and ".." not in parts
    return is_relative and "//" not in adapter_id and "\0" not in adapter_id


def missing_part(has_config: bool, has_weights: bool, has_pickle: bool, refuse: Refusals) -> AdapterError:
    """Return the error for an adapter that lacks one of its two files, or both."""
    if has_weights:
        return refuse.corrupt(f"{CONFIG_FILE} is missing")
    if has_pickle:
        return refuse.unsafe_format()
    if has_config:
        return refuse.corrupt(f"{WEIGHTS_FILE} is missing")
    return refuse.not_found()
