"""This server's copies of the adapters that trainers push: their files, by the version of each push.

    {folder}/{tenant}/{name}/{version}/adapter_config.json, adapter_model.safetensors

The control plane has the pushes, and names the one that a name means now. A push has a version of its own, so that no
later push changes what an earlier reference means. The folder is one server's, and is emptied at its start.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from manylora.adapter_ref import AdapterRef, pushed_ref
from manylora.adapters.sources.source import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE
from manylora.adapters.sources.upload_folders import Registry
from manylora.errors import InvalidParameter
from manylora.stored.pushes import PushFacts

CONFIG_KEY = CONFIG_FILE
"""The entry of a safetensors file's metadata that has the text of `adapter_config.json`."""
MAX_HEADER_BYTES = 16 << 20
LENGTH_BYTES = 8


class PushFinder(Protocol):
    """The pushes that names mean. Its methods raise `ControlUnavailable` if the control plane does not answer."""

    async def current(self, tenant: str, name: str) -> AdapterRef | None:
        """Return the newest push of a name, whose files this server has now; None: the tenant has none."""

    async def listed(self, tenant: str) -> list[tuple[str, AdapterRef]]:
        """Return the pushes of a tenant under their names."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """The files of a push that is still written."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE


class _Header(msgspec.Struct):
    """The metadata in the header of a safetensors file; the tensors are not read."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


class PushCopies:
    """The folder of copies. It belongs to one event loop; `write_config`, `publish` and `erase` run in threads."""

    def __init__(self, root: Path) -> None:
        """Empty the folder of an earlier server."""
        self.root = root
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._registry = Registry(root)
        self._ids: dict[Path, str] = {}  # of the push in each folder of a version

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Make a folder for a push; files that are not published go at the end."""
        folder = self.root / f".incoming-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        try:
            yield Incoming(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_config(self, incoming: Incoming) -> None:
        """Write the config that the weights' metadata has. Raises `InvalidParameter` if there is none."""
        (incoming.folder / CONFIG_FILE).write_text(_config_in(incoming.weights), encoding="utf-8")

    def publish(self, incoming: Incoming, push: PushFacts) -> None:
        """Make the files of a push those of its version, unless its copy is there still. Raises `OSError`.

        A request that heard of a push before its deletion comes while that copy waits for its end.
        """
        folder = self._folder(push)
        if self._ids.get(folder) == push.id:
            return
        self._registry.publish(incoming.folder, push.tenant, push.name, push.version)
        self._ids[folder] = push.id

    def erase(self, push: PushFacts) -> None:
        """Delete the files of a push, all at one moment for a load that begins meanwhile."""
        folder, gone = self._folder(push), self.root / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            folder.rename(gone)
        self._ids.pop(folder, None)  # last, so that no copy meets a folder that it does not know
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(OSError):  # the last push of the name, and of the tenant
            folder.parent.rmdir()
            folder.parent.parent.rmdir()

    def close(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _folder(self, push: PushFacts) -> Path:
        return self.root / push.tenant / push.name / str(push.version)


def ref_of(push: PushFacts) -> AdapterRef:
    return pushed_ref(push.tenant, push.name, push.version)


def _config_in(weights: Path) -> str:
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise InvalidParameter(f"the safetensors header claims {length} bytes, over {MAX_HEADER_BYTES}")
        text = file.read(length)
    try:
        metadata = msgspec.json.decode(text, type=_Header).metadata
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"the body is no safetensors file: its header is not valid: {error}") from error
    config = metadata.get(CONFIG_KEY)
    if config is None:
        raise InvalidParameter(
            f"the safetensors metadata has no `{CONFIG_KEY}`: save the tensors with the text of that file, as in "
            f'`save(tensors, metadata={{"{CONFIG_KEY}": json.dumps(config)}})`',
            parameter=CONFIG_KEY,
        )
    if len(config) > MAX_CONFIG_BYTES:
        raise InvalidParameter(f"`{CONFIG_KEY}` has {len(config)} characters, over {MAX_CONFIG_BYTES}")
    return config
