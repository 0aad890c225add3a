"""Adapters that trainers push: their files, the version that each name means now, and the shares of their tenants.

    {folder}/{tenant}/{name}/{version}/adapter_config.json, adapter_model.safetensors

A push has a version of its own, so that no later push changes what an earlier reference means. The folder is one
server's, and is emptied at its start: pushed adapters do not outlive it.
"""

import contextlib
import itertools
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from manylora.adapter_ref import AdapterRef, pushed_ref
from manylora.adapters.sources.source import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE
from manylora.adapters.sources.upload_folders import Registry
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import InvalidParameter, StorageLimitExceeded
from manylora.sharing import has_place

CONFIG_KEY = CONFIG_FILE
"""The entry of a safetensors file's metadata that has the text of `adapter_config.json`."""
MAX_HEADER_BYTES = 16 << 20
LENGTH_BYTES = 8


@dataclass(slots=True)
class Push:
    """One push. `used_s` is the moment of its publication or of its last request."""

    tenant: str
    name: str
    num_bytes: int
    version: int = 0
    used_s: float = 0.0

    @property
    def ref(self) -> AdapterRef:
        return pushed_ref(self.tenant, self.name, self.version)


@dataclass(slots=True)
class Incoming(Push):
    """A push whose files are still written, in `folder`."""

    folder: Path = field(default_factory=Path)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE


class _Header(msgspec.Struct):
    """The metadata in the header of a safetensors file; the tensors are not read."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


class PushedAdapters:
    """The pushes of a server. It belongs to one event loop; `write_config`, `publish` and `erase` run in threads."""

    def __init__(self, config: AdaptersConfig, clock: Clock) -> None:
        """Empty the folder of an earlier server. `config.pushed_dir` is set."""
        self._config = config
        self._clock = clock
        self._root = Path(config.pushed_dir)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._registry = Registry(self._root)
        self._versions = itertools.count(1)
        self._current: dict[tuple[str, str], Push] = {}
        self._others: dict[int, Push] = {}  # being written or checked, or replaced and not erased yet, by id()

    @property
    def root(self) -> Path:
        """The folder of the pushes."""
        return self._root

    def __len__(self) -> int:
        """Return the number of pushes that have files."""
        return len(self._current) + len(self._others)

    def current(self, tenant: str, name: str) -> AdapterRef | None:
        """Return the newest push of a name, for a request; None: the tenant has none."""
        push = self._current.get((tenant, name))
        if push is None:
            return None
        push.used_s = self._clock.monotonic_s()
        return push.ref

    @contextmanager
    def taken_in(self, tenant: str, name: str, num_bytes: int) -> Iterator[Incoming]:
        """Reserve the bytes and the name of a push and make its folder; whatever is not published goes at the end.

        Raises `StorageLimitExceeded` with the limit and the value.
        """
        self._require_room(tenant, name, num_bytes)
        folder = self._root / f".incoming-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        incoming = Incoming(tenant, name, num_bytes, folder=folder)
        self._others[id(incoming)] = incoming
        try:
            yield incoming
        finally:
            del self._others[id(incoming)]
            shutil.rmtree(folder, ignore_errors=True)

    def write_config(self, incoming: Incoming) -> None:
        """Write the config that the weights' metadata has. Raises `InvalidParameter` if there is none."""
        (incoming.folder / CONFIG_FILE).write_text(_config_in(incoming.weights), encoding="utf-8")

    def publish(self, incoming: Incoming) -> Push:
        """Give an adapter's files a version, which no request finds yet."""
        version = next(self._versions)
        self._registry.publish(incoming.folder, incoming.tenant, incoming.name, version)
        return Push(incoming.tenant, incoming.name, incoming.num_bytes, version)

    @contextmanager
    def held(self, push: Push) -> Iterator[None]:
        """Count a push that no name means."""
        self._others[id(push)] = push
        try:
            yield
        finally:
            del self._others[id(push)]

    def take_over(self, push: Push) -> Push | None:
        """Let a name mean a push from now on, unless a later one was faster; return the push that lost its name."""
        key = (push.tenant, push.name)
        earlier = self._current.get(key)
        if earlier is not None and earlier.version > push.version:
            return push
        push.used_s = self._clock.monotonic_s()
        self._current[key] = push
        return earlier

    def take(self, tenant: str, name: str) -> Push | None:
        """Take the push from its name; return it, whose files are still there."""
        return self._current.pop((tenant, name), None)

    def expired(self) -> list[Push]:
        """Return the pushes without a request for `pushed_ttl_s`."""
        limit_s = self._clock.monotonic_s() - self._config.pushed_ttl_s
        return [push for push in self._current.values() if push.used_s <= limit_s]

    def all_of(self, tenant: str) -> list[Push]:
        return [push for (owner, _), push in self._current.items() if owner == tenant]

    def tenants(self) -> set[str]:
        return {tenant for tenant, _ in self._current}

    def erase(self, push: Push) -> None:
        """Delete the files of a push, all at one moment for a load that begins meanwhile."""
        gone = self._root / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            (self._root / push.tenant / push.name / str(push.version)).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(OSError):  # the last push of the name, and of the tenant
            (self._root / push.tenant / push.name).rmdir()
            (self._root / push.tenant).rmdir()

    def close(self) -> None:
        """Delete all files."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _require_room(self, tenant: str, name: str, num_bytes: int) -> None:
        all_pushes = [*self._current.values(), *self._others.values()]
        own = [push for push in all_pushes if push.tenant == tenant]
        names = {push.name for push in own} | {name}
        if len(names) > self._config.pushed_count:
            raise StorageLimitExceeded(
                f"tenant `{tenant}` may have {self._config.pushed_count} pushed adapters (adapters.pushed_count)"
            )
        held, taken = (sum(push.num_bytes for push in pushes) for pushes in (own, all_pushes))
        if not has_place(held=held, taken=taken, wanted=num_bytes, limit=self._config.pushed_bytes):
            raise StorageLimitExceeded(
                f"pushed adapters may have {self._config.pushed_bytes} bytes (adapters.pushed_bytes); they have "
                f"{taken}, tenant `{tenant}` {held} of these, and this push has {num_bytes}"
            )


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
